"""What the benchmarks share: jobs in processes of their own, a measured server, tables of results."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import date
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data import FEATURES

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))
import support  # noqa: E402

DATA = os.environ.get("BENCH_DATA", str(ROOT / "data" / "bench"))
FEAST_PYTHON = os.environ.get("BENCH_FEAST_PYTHON", str(ROOT / ".venv-bench-feast" / "bin" / "python"))
RESULTS = Path(os.environ.get("BENCH_RESULTS", HERE / "RESULTS.md"))
JOB_SECONDS_MAX = int(os.environ.get("BENCH_TIMEOUT", "1800"))
SUM_TOLERANCE = 1e-9

# `make` and `timeout` end with SIGTERM; every `finally` is to run then too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


class JobFailed(SystemExit):
    """Ends the benchmark with its message, unless somebody catches it."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(job, python=sys.executable, script="jobs.py", **arguments):
    """One job of a script of jobs; its result."""
    command = [python, HERE / script, job, json.dumps(arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=JOB_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired:
        raise JobFailed(f"{job}: not done after {JOB_SECONDS_MAX} s") from None
    if done.returncode == -signal.SIGKILL:
        raise JobFailed(f"{job}: killed, most likely out of memory")
    if done.returncode != 0:
        raise JobFailed(f"{job}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def available(module):
    try:
        version(module)
    except PackageNotFoundError:
        return False
    return True


class Server(support.Server):
    """A server whose peak memory can be measured from a moment on."""

    def status_mib(self, key):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key)) / 1024

    def run(self, job, **arguments):
        """A job that talks to this server, with the server's peak while it ran, and what it held before.

        The peak cannot fall below the latter: memory that loading or an earlier query left with the allocator counts.
        """
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        before = self.status_mib("VmRSS")
        try:
            result = run(job, url=self.url, **arguments)
        except JobFailed as error:
            log = "".join(self.log.read_text().splitlines(keepends=True)[-10:])
            raise JobFailed(f"{error}\nthe server's last words:\n{log}") from None
        return result | {"server_mib": self.status_mib("VmHWM"), "server_before_mib": before}

    def sql(self, *statements):
        """The rows of the last statement, values as text."""
        return self.run("run_sql", statements=statements)["rows"]

    def load_group(self, name, data, features=FEATURES, ttl=None, commits="per file", **trickle):
        """Creates a feature group and appends the history in order of arrival; seconds of the latter."""
        columns = ", ".join(f"{feature} {FEATURES[feature]}" for feature in features)
        expiry = f", ttl = '{ttl}'" if ttl else ""
        self.sql(
            f"CREATE FEATURE GROUP {name} (user_id BIGINT, event_timestamp TIMESTAMP WITH TIME ZONE, {columns}, "
            f"ENTITY KEY (user_id), EVENT TIME (event_timestamp)) WITH (online = false{expiry})"
        )
        columns = None if features is FEATURES else ["user_id", "event_timestamp", *features]
        loaded = self.run(
            "load", table=name, files=data.files, mode="append", columns=columns, commits=commits, **trickle
        )
        check(loaded["rows"] == data.size.history, f"{loaded['rows']} rows of history were acknowledged")
        say(f"{name}: {loaded['rows']} rows in {loaded['seconds']:.1f} s")
        return loaded["seconds"]

    def load_labels(self, data):
        self.run("load", table="labels", files=[data.labels], mode="create")

    def files(self, table):
        """The Parquet files behind a table; as nothing deletes or rewrites, all below its directory."""
        import pyarrow.parquet as pq

        pattern = f"{self.data}/warehouse/public/{table}-*/**/*.parquet"
        paths = glob(pattern, recursive=True)
        rows = sum(pq.read_metadata(path).num_rows for path in paths)
        count = int(self.sql(f"SELECT count(*) FROM {table}")[0][0])
        check(rows == count, f"{rows} rows in the files of {table}, {count} in the table")
        return pattern, len(paths), sum(Path(path).stat().st_size for path in paths)


class Redis(support.Redis):
    """A Redis that can be asked about itself."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def cli(self, *words):
        command = ["redis-cli", "-p", str(self.port), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def used_bytes(self):
        return int(re.search(r"^used_memory:(\d+)", self.cli("INFO", "memory"), re.MULTILINE)[1])


@contextmanager
def fresh_server(*arguments):
    """`fletching serve` on an empty data directory, gone afterwards with everything it wrote."""
    Path(DATA).mkdir(parents=True, exist_ok=True)
    directory = tempfile.mkdtemp(prefix="server-", dir=DATA)
    server = None
    try:
        server = Server(f"{directory}/data", *arguments)
        yield server
    finally:
        if server:
            server.close()
        shutil.rmtree(directory, ignore_errors=True)


def point_in_time(labels="labels", group="history"):
    selected = ", ".join(["l.*", *("f." + feature for feature in FEATURES)])
    return (
        f"SELECT {selected} FROM {labels} l ASOF JOIN {group} f "
        "MATCH_CONDITION (l.event_timestamp >= f.event_timestamp) ON l.user_id = f.user_id"
    )


def check(truth, otherwise):
    if not truth:
        raise SystemExit(f"FAILED: {otherwise}")


def check_same(results):
    """All joins, by name, must have found the same."""
    (first, expected), *others = results.items()
    for name, found in others:
        same = all(found[key] == expected[key] for key in ("rows", "label_ids", "nulls"))
        same = same and same_sum(found["spend"], expected["spend"])
        check(same, f"{name} and {first} differ:\n{name}: {found}\n{first}: {expected}")


def same_sum(a, b):
    return a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=SUM_TOLERANCE))


def typical(results, key="seconds"):
    """The median over the runs."""
    return statistics.median(result[key] for result in results)


def spread(results, key="seconds"):
    values = [result[key] for result in results]
    return f"{min(values):.2f}–{max(values):.2f}"


def memory(results):
    """Median of the peak memory where the work was done: in the server, where there is one."""
    return typical(results, "server_mib" if "server_mib" in results[0] else "peak_mib")


def table(header, rows):
    """Markdown: the first column left, the others right."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]

    def line(cells):
        first, *others = (str(cell) for cell in cells)
        others = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return f"| {' | '.join([first.ljust(widths[0]), *others])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def measured_binary():
    """Its version, and its commit; or a digest, where it was given and so nobody knows what it was built from."""
    command = [support.BINARY, "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    commit = os.environ.get("BENCH_COMMIT")
    if commit:
        return f"{shown} at {commit}"
    with open(support.BINARY, "rb") as binary:
        return f"{shown}, a given binary, sha256 {hashlib.file_digest(binary, 'sha256').hexdigest()[:12]}"


def environment():
    """What the figures depend on, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ["duckdb", "polars", "pandas", "chdb", "pyarrow", "pyiceberg", "adbc-driver-flightsql"]
    versions = ", ".join(f"{name} {version(name)}" for name in packages if available(name))
    if Path(FEAST_PYTHON).exists():
        pinned = (HERE / "requirements-feast.txt").read_text()
        versions += ", feast " + re.search(r"^feast.*==(.*)$", pinned, re.MULTILINE)[1]
    machine = f"{os.cpu_count()} CPUs, {memory:.0f} GiB"
    return f"{date.today()}; {machine}; {measured_binary()}; {versions}."


def publish(title, text):
    """Prints a section and puts it into RESULTS.md, in the place of the one with the same title."""
    section = f"## {title}\n\n{text}\n\n{environment()}\n"
    print("\n" + section, flush=True)
    head = "# Results\n\nWritten by `make bench-…`; what is measured and how stands in the scripts beside this page.\n"
    sections = {}
    if RESULTS.exists():
        for part in RESULTS.read_text().split("\n## ")[1:]:
            sections[part.split("\n", 1)[0]] = "## " + part.strip() + "\n"
    sections[title] = section
    RESULTS.write_text("\n".join([head, *(sections[key] for key in sorted(sections))]))
