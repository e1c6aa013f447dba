"""Writes: bulk, small ones from many at a time, and single ones, of Fletching and its peers in one run on one machine.

Bulk: the same Parquet files of twelve columns, in order of arrival, into sorted files (Fletching, DuckDB) or as they come
(pyiceberg); rates are rows over seconds until they are durable, memory is that of the process that writes. Trickle: a load generator
(benches/serving) whose writers each write one row and wait until it is acknowledged: as the next batch of a stream of writes, or by a
DoPut of its own. Single: one client, one row after the
other. Online: the newest row of every entity into an empty Redis, out of a history that is there.
Servers, Redis and clients share the machine's CPUs. Every count is checked.
"""

import argparse
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import serving
from data import FEATURES, SIZES, Data, short
from harness import DATA, FEAST_PYTHON, Redis, available, check, fresh_server, memory, publish, run, say, spread, table, typical

JOBS = "ingest_jobs.py"
OURS = "Fletching, COPY"
TEN = {f"f{number:02}": "DOUBLE" for number in range(10)}


@dataclass(frozen=True)
class Size:
    seconds: float
    """Of a trickle, which a fifth of it for warming up precedes."""
    writers: int
    singles: int
    """Writes of each client that writes one row after the other."""
    entities: int
    """Of trickle and single writes."""


WRITES = {"XS": Size(0.5, 8, 3, 100), "S": Size(10, 64, 200, 100_000), "M": Size(10, 64, 200, 100_000)}


def create(server, group, features, online):
    columns = ", ".join(f"{name} {kind}" for name, kind in features.items())
    server.sql(
        f"CREATE FEATURE GROUP {group} (user_id BIGINT, event_timestamp TIMESTAMP WITH TIME ZONE, {columns}, "
        f"ENTITY KEY (user_id), EVENT TIME (event_timestamp)) WITH (online = {str(online).lower()})"
    )


def pyiceberg_writes():
    """Whether it is there, and with it what its SQL catalog needs."""
    try:
        import pyiceberg.catalog.sql  # noqa: F401
    except ImportError as error:
        say(f"pyiceberg is left out: {error}")
        return False
    return True


# Bulk.


def copied(data):
    """`COPY … FROM` of the directory."""
    with fresh_server("--copy-from", str(data.path)) as server:
        create(server, "history", FEATURES, online=False)
        result = server.run("copy", script=JOBS, table="history", source="history")
        return counted(server, data, result)


def ingested(data):
    """The same files through one client, as one stream."""
    with fresh_server() as server:
        create(server, "history", FEATURES, online=False)
        result = server.run("load", table="history", files=data.files, mode="append", commits="one")
        return counted(server, data, result)


def counted(server, data, result):
    count = int(server.sql("SELECT count(*) FROM history")[0][0])
    check(result["rows"] == count == data.size.history, f"{result['rows']} rows acknowledged, {count} there")
    return result


@contextmanager
def scratch():
    Path(DATA).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="server-", dir=DATA) as directory:
        yield directory


def by_peer(job, data):
    with scratch() as directory:
        result = run(job, script=JOBS, files=data.files, directory=directory)
    check(result["rows"] == data.size.history, f"{job}: {result['rows']} rows")
    return result


def bulk(options, data):
    """Everybody once in every turn."""
    writers = {OURS: lambda: copied(data), "Fletching, adbc_ingest": lambda: ingested(data)}
    if pyiceberg_writes():
        writers["pyiceberg, append"] = lambda: by_peer("pyiceberg_append", data)
    if available("duckdb"):
        writers["DuckDB, sorted Parquet"] = lambda: by_peer("duckdb_sorted", data)
    found = {name: [] for name in writers}
    for turn in range(options.runs):
        for name, write in writers.items():
            result = write()
            found[name].append(result | {"rate": result["rows"] / result["seconds"]})
            say(f"turn {turn + 1}, {name}: {found[name][-1]['rate']:.0f} rows/s")
    ours = found[OURS]
    rows = []
    for name, results in found.items():
        pairs = zip(results, ours, strict=True)
        ratio = median(theirs["seconds"] / of_ours["seconds"] for theirs, of_ours in pairs)
        figures = [count_of(typical(results, "rate")), f"{typical(results):.2f}", spread(results)]
        rows.append([name, *figures, f"{memory(results):.0f}", f"{ratio:.2f}"])
    columns = len(FEATURES) + 2
    header = [f"bulk, {columns} columns", "rows/s (goal ≥ 1,000,000)", "median s", "min–max s", "peak MiB", "÷ COPY"]
    return table(header, rows)


def count_of(value):
    return f"{value:,.0f}"


# Trickle and single writes.


def trickle(options, size):
    """One row a write; everything that was acknowledged must be there."""
    rows = []
    for by, online in product(("stream", "call"), (False, True)):
        found = []
        for turn in range(options.runs):
            with fresh_server() as server:
                create(server, "user_features", TEN, online)
                result = serving.generate(
                    "write", serving.http(server), size, group="user_features", features=len(TEN),
                    writers=size.writers, connections=size.writers, by=by,
                )
                there = int(server.sql("SELECT count(*) FROM user_features")[0][0])
            check(there == result["acknowledged_rows"], f"{result['acknowledged_rows']} acknowledged, {there} there")
            say(f"turn {turn + 1}, trickle, a {by}, online {online}: {result['calls_per_second']:.0f} writes/s")
            found.append(result)
        figures = [median(result[key] for result in found) for key in ("p50_ms", "p99_ms", "p999_ms")]
        way = "a stream of writes each" if by == "stream" else "a call a write"
        name = f"{size.writers} connections, {way}, {'offline and online' if online else 'offline'}"
        rate = median(result["calls_per_second"] for result in found)
        rows.append([name, count_of(rate), *(f"{figure:.2f}" for figure in figures)])
    header = ["trickle, one row a write", "writes/s (goal ≥ 10,000)", "p50 ms", "p99 ms (goal ≤ 20)", "p99.9 ms"]
    return table(header, rows)


def single(size):
    asked = {"times": size.singles, "entities": size.entities}
    rows = []
    with fresh_server() as server:
        for name, job in (("Fletching, adbc_ingest", "single_ingest"), ("Fletching, INSERT by ADBC", "single_insert")):
            create(server, job, FEATURES, online=True)
            rows.append([name, *latencies(server.run(job, script=JOBS, table=job, **asked))])
            there = int(server.sql(f"SELECT count(*) FROM {job}")[0][0])
            check(there == size.singles, f"{size.singles} rows acknowledged, {there} there")
    if pyiceberg_writes():
        with scratch() as directory:
            rows.append(["pyiceberg, append", *latencies(run("single_append", script=JOBS, directory=directory, **asked))])
    if Path(FEAST_PYTHON).exists():
        with Redis() as redis:
            found = run("feast_single", python=FEAST_PYTHON, script=JOBS, port=redis.port, **asked)
        rows.append(["Feast, write_to_online_store (online alone)", *latencies(found)])
    return table([f"single writes, {size.singles} in turn", "p50 ms", "p99 ms", "writes/s"], rows)


def latencies(found):
    say(f"single: {found}")
    return [f"{found['p50_ms']:.2f}", f"{found['p99_ms']:.2f}", count_of(found["per_second"])]


# Online.


def materialized(data):
    """The latest of each entity into Redis."""
    rows = []
    with ExitStack() as stack:
        redis = stack.enter_context(Redis())
        server = stack.enter_context(fresh_server("--copy-from", str(data.path), "--online", redis.url))
        create(server, "history", FEATURES, online=True)
        server.run("copy", script=JOBS, table="history", source="history")
        redis.cli("FLUSHALL")
        result = server.run("copy", script=JOBS, statement="REFRESH ONLINE history FULL")
        served = int(server.sql("SELECT count(*) FROM LATEST(history)")[0][0])
        rows.append(["Fletching, REFRESH ONLINE", *online_rates(result["seconds"], data, served)])
    if Path(FEAST_PYTHON).exists():
        for name, job in (("Feast, materialize", "feast_materialize"), ("Feast, write_to_online_store", "feast_push")):
            with Redis() as redis:
                found = run(job, python=FEAST_PYTHON, script=JOBS, port=redis.port, files=data.files)
            rows.append([name, *online_rates(found["seconds"], data, found["entities"])])
    return table(["history into an empty Redis", "seconds", "rows of history/s", "entities/s"], rows)


def online_rates(seconds, data, entities):
    say(f"online: {seconds:.2f} s, {entities} entities")
    return [f"{seconds:.2f}", count_of(data.size.history / seconds), count_of(entities / seconds)]


PARTS = ["bulk", "trickle", "single", "online"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=WRITES)
    parser.add_argument("--runs", type=int, default=3, help="turns of bulk and trickle")
    parser.add_argument("--only", nargs="*", choices=PARTS)
    options = parser.parse_args()
    wanted, size = set(options.only or PARTS), WRITES[options.size]
    parts = []
    data = Data(DATA, options.size) if wanted & {"bulk", "online"} else None
    if "bulk" in wanted:
        parts.append(bulk(options, data))
    if "trickle" in wanted:
        parts.append(trickle(options, size))
    if "single" in wanted:
        parts.append(single(size))
    if "online" in wanted:
        parts.append(materialized(data))
    parts.append(
        f"Bulk and trickle: medians of {options.runs} turns, each of which has everybody once. Fletching's and DuckDB's files are "
        "sorted by entity and time, pyiceberg's are as the rows come. Feast writes online alone."
    )
    title = f"Writes, {options.size}: {short(SIZES[options.size].history)} rows × {len(FEATURES) + 2} columns"
    publish(title + (f", only {', '.join(options.only)}" if options.only else ""), "\n\n".join(parts))


if __name__ == "__main__":
    main()
