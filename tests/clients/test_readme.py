"""The README's tour, block by block: what it says is what one sees."""

import os
import re
import subprocess
import sys

import pytest

from support import BINARY, ROOT


def blocks(heading):
    """(language, text) of each fenced block below `heading`."""
    page = (ROOT / "README.md").read_text()
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def lines(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def execute(language, text, url):
    if language == "sql":
        command = [BINARY, "sql", "--url", url, "-f", "-"]
    elif language == "python":
        command = [sys.executable, "-"]
    else:
        pytest.fail(f"nothing here runs {language}")
    done = subprocess.run(
        command, input=text.replace("grpc://127.0.0.1:8815", url), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tour(server):
    tour = blocks("Five minutes")
    assert [language for language, _ in tour] == ["sh", "sql", "sql", "text", "python", "text"]
    output = None
    for language, text in tour[1:]:
        if language == "text":
            assert lines(output) == lines(text)
        else:
            output = execute(language, text, server.url)


def test_links_lead_somewhere():
    for page in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text()
        named = re.findall(r"^\[\w+\]: (\S+)$", text, re.MULTILINE)
        for target in re.findall(r"\]\(([^)#]+)\)", text) + named:
            assert target.startswith("https://") or (ROOT / target).exists(), f"{page}: {target}"


def test_every_cell_of_the_clients_names_a_test():
    page = (ROOT / "README.md").read_text()
    known = set(re.findall(r"^\[(\w+)\]: ", page, re.MULTILINE))
    table = [line for line in page.split("\n## Connect\n")[1].split("\n## ")[0].splitlines() if line.startswith("| ")]
    assert len(table) > 10
    for row in table[1:]:
        for cell in row.strip("| ").split(" | ")[1:]:
            assert cell == "–" or set(re.findall(r"\[(\w+)\](?!\()", cell)) & known, f"{row}: {cell}"


def test_every_target_the_readme_names_exists():
    page = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"`make ([a-z-]+)`", page))
    assert targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True, env=os.environ)
