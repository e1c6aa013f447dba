"""Every example under clients/ runs as it stands."""

import os
import shutil
import subprocess
import sys
import sysconfig

import pytest

from support import ROOT

CLIENTS = ROOT / "clients"
PYTHON = CLIENTS / "python"
SHOWS = {
    "with_pandas.py": ["42 2026-01-07", "3", "5"],
    "with_polars.py": ["PRESENT", "NOT_FOUND", "[0.8, 0.2]"],
    "events.py": ["durable 2", "latest [(2,)]", "events 3\n"],
    "with_duckdb.py": ["remainder", "333", "166833"],
    "serving.py": ["prepared 43 [(9, 5.5)]", "NOT_FOUND", "request 0 [{", "request 1 [{"],
    "with_sqlalchemy.py": [
        "'public', 'system'",
        "'page_views'",
        "column at TIMESTAMP",
        "preview (1, Timestamp('2026-01-01 08:00:00'), 3, 'NO')",
        "chart 2026-01-01 00:00:00 3",
        "chart 2026-01-02 00:00:00 9",
    ],
}
ELSEWHERE = {"quickstart.py": "test_quickstart.py", "with_pytorch.py": "test_pytorch"}


def test_no_example_is_forgotten():
    assert {path.name for path in PYTHON.glob("*.py")} == set(SHOWS) | set(ELSEWHERE)
    assert {path.name for path in (CLIENTS / "java").iterdir()} == {"Example.java", "Metadata.java"}
    assert {path.name for path in CLIENTS.iterdir()} == {"go", "java", "node", "python"}


def example(server, *command, folder=ROOT, **environment):
    """What it prints."""
    environment = {**os.environ, "FLETCHING_URL": server.url, **environment}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SHOWS)
def test_python(server, name):
    for _ in range(2):  # the second run finds what the first left
        output = example(server, sys.executable, PYTHON / name)
        for text in SHOWS[name]:
            assert text in output


def test_java(server, jdbc):
    output = jdbc.run(CLIENTS / "java" / "Example.java", url=server.url)
    assert "2 is two" in output
    assert "java_words is a TABLE" in output


@pytest.mark.skipif(not shutil.which("go"), reason="NO GO: clients/go was not tested; install Go 1.26 or later")
def test_go(server, tmp_path):
    binary = tmp_path / "example"
    example(server, "go", "build", "-o", binary, ".", folder=CLIENTS / "go", GOFLAGS="-mod=readonly")
    output = example(server, binary)
    assert '{"_status":"PRESENT","clicks":5,"user_id":42}' in output
    assert '{"_status":"NOT_FOUND","clicks":0,"user_id":44}' in output
    assert '{"at":"2026-01-07T00:00:00Z","clicks":3}' in output


@pytest.mark.skipif(not shutil.which("npm"), reason="NO NODE: clients/node was not tested; install Node 20 or later")
def test_node(server, tmp_path):
    folder = shutil.copytree(CLIENTS / "node", tmp_path / "node", ignore=shutil.ignore_patterns("node_modules"))
    example(server, "npm", "install", "--no-save", "--no-audit", "--no-fund", folder=folder)
    output = example(server, "node", "example.js", folder=folder)
    assert "{ user_id: 42n, clicks: 5n, _status: 'PRESENT' }" in output
    assert "{ user_id: 44n, clicks: 0n, _status: 'NOT_FOUND' }" in output
    assert "node_clicks is a FEATURE GROUP" in output


def with_torch():
    """A Python that has PyTorch: this one, or Debian's, which then borrows the packages of this one."""
    borrowed = {"PYTHONPATH": sysconfig.get_path("purelib")}
    for python, environment in ((sys.executable, {}), ("/usr/bin/python3", borrowed)):
        command = [python, "-c", "import adbc_driver_flightsql, pyarrow, torch"]
        if shutil.which(python) and not subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, check=False
        ).returncode:
            return python, environment
    pytest.skip("NO PYTORCH: with_pytorch.py was not tested; `make torch` installs it on Debian, pip elsewhere")


def test_pytorch(server):
    python, environment = with_torch()
    output = example(server, python, PYTHON / "with_pytorch.py", **environment)
    assert "100000 rows in 1 partitions, ['x', 'y'], sum of x 5000050000" in output
