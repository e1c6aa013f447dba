"""The benchmarks on tiny data: they run, everybody agrees, and the tables are written. The figures mean nothing."""

import os
import subprocess
import sys

import pytest

from support import BINARY, ROOT

SECONDS_MAX = 600


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Runs one of the scripts; what it printed, and the page that it wrote."""
    directory = tmp_path_factory.mktemp("bench")
    results = directory / "RESULTS.md"
    places = {
        "FLETCHING": BINARY,
        "BENCH_DATA": str(directory / "data"),
        "BENCH_RESULTS": str(results),
        "BENCH_FEAST_PYTHON": str(directory / "not-installed"),
    }

    def run(script, *arguments):
        command = [sys.executable, ROOT / "benches" / "compare" / script, "--runs", "1", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | places, timeout=SECONDS_MAX, check=False
        )
        assert done.returncode == 0, done.stderr
        left = [path.name for path in (directory / "data").iterdir() if not path.name.startswith("XS")]
        assert left == [], "servers leave nothing behind"
        return done.stdout, results.read_text()

    return run


def rows_of(text):
    """The tables' rows by their first column."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


def test_compare(bench):
    printed, page = bench("compare.py", "--size", "XS")
    rows = rows_of(printed)
    for engine in ("fletching", "polars", "duckdb", "pandas", "polars, Fletching's files", "duckdb, Fletching's files"):
        seconds, _, memory, against_us, against_best = rows[engine]
        assert float(seconds) >= 0 and float(memory) > 0 and float(against_us) >= 0 and float(against_best) >= 0
    assert rows["fletching"][3] == "1.00"
    assert "all agree: 2000 rows, 94 without a match" in printed
    assert printed.strip() in page


def test_a_section_is_replaced_and_others_stay(bench):
    _, first = bench("compare.py", "--size", "XS", "--peers", "duckdb")
    _, second = bench("limits.py", "--size", "XS", "--chained-size", "XS")
    _, third = bench("compare.py", "--size", "XS", "--peers", "duckdb")

    def titles(page):
        return [line for line in page.splitlines() if line.startswith("## ")]

    assert len(titles(first)) == 1
    assert len(titles(second)) == 4
    assert titles(third) == titles(second)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("density.py", ["fletching", "polars", "duckdb"]),
        ("trickled.py", ["bulk", "trickled"]),
        ("scan.py", ["fletching, pyarrow.flight", "fletching, ADBC", "one entity", "100 entities", "one hour"]),
    ],
)
def test_the_others(bench, script, expected):
    printed, _ = bench(script, "--size", "XS")
    assert set(expected) <= set(rows_of(printed))


def test_ingest(bench):
    printed, _ = bench("ingest.py", "--size", "XS")
    rows = rows_of(printed)
    assert rows["Fletching, COPY"][-1] == "1.00"
    assert {"Fletching, adbc_ingest", "DuckDB, sorted Parquet"} <= set(rows)
    for way in ("a stream of writes each", "a call a write"):
        assert f"8 connections, {way}, offline and online" in rows
    assert {"Fletching, INSERT by ADBC", "Fletching, REFRESH ONLINE"} <= set(rows)


def test_serving(bench):
    printed, _ = bench("serving.py", "--size", "XS")
    rows = rows_of(printed)
    for path in ("floor, constant", "floor, one MGET", "cached", "cold", "embedded"):
        assert {f"{path}, 1 key, 16 callers", f"{path}, 100 keys, 64 callers"} <= set(rows)
    assert {"GET, 16 connections", "cold, 1000 keys a message, 4 in flight", "Fletching", "3 writes"} <= set(rows)
