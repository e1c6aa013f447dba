"""Every example under clients/ runs as it stands."""

import os
import subprocess
import sys

import pytest

from support import ROOT

FOLDER = ROOT / "clients" / "python"
SHOWS = {
    "with_pandas.py": ["42 2026-01-07", "3", "5"],
    "with_polars.py": ["PRESENT", "NOT_FOUND", "[0.8, 0.2]"],
    "with_duckdb.py": ["remainder", "333", "166833"],
    "serving.py": ["prepared 43 [(9, 5.5)]", "NOT_FOUND", "request 0 [{", "request 1 [{"],
}
ELSEWHERE = {"quickstart.py": "test_quickstart.py"}


def test_no_example_is_forgotten():
    assert {path.name for path in FOLDER.glob("*.py")} == set(SHOWS) | set(ELSEWHERE)
    assert [path.name for path in (ROOT / "clients" / "java").iterdir()] == ["Example.java"]


@pytest.mark.parametrize("name", SHOWS)
def test_example(server, name):
    for _ in range(2):  # the second run finds what the first left
        done = subprocess.run(
            [sys.executable, FOLDER / name],
            env={**os.environ, "FLETCHING_URL": server.url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for text in SHOWS[name]:
            assert text in done.stdout, done.stdout


def test_java(server, jdbc_driver):
    source = ROOT / "clients" / "java" / "Example.java"
    done = subprocess.run(
        ["java", "--add-opens=java.base/java.nio=ALL-UNNAMED", "-cp", jdbc_driver, source],
        env={**os.environ, "FLETCHING_URL": server.url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 is two" in done.stdout
    assert "java_words is a TABLE" in done.stdout
