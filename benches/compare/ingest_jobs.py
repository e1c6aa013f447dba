"""The jobs of ingest.py: what writes, in a process of its own, and how long it took."""

import time
from contextlib import ExitStack, contextmanager
from random import Random

from data import COLUMNS, FEATURES, SEED
from jobs import connect, feast_store, load, main, peak_mib, run_sql

FEAST_TTL_DAYS = 36_500


# Fletching.


def copy(url, table=None, source=None, statement=None):
    """One statement, as a client waits for it."""
    with connect(url) as connection, connection.cursor() as cursor:
        cursor.adbc_statement.set_sql_query(statement or f"COPY {table} FROM '{source}'")
        started = time.perf_counter()
        rows = cursor.adbc_statement.execute_update()
        return {"seconds": time.perf_counter() - started, "rows": rows}


def single_ingest(url, table, times, entities):
    with connect(url) as connection, connection.cursor() as cursor:
        return timed(lambda row: cursor.adbc_ingest(table, row, mode="append"), times, entities)


def single_insert(url, table, times, entities):
    """A statement prepared by the driver for each write, as `executemany` and `execute` do."""
    values = ", ".join("?" for _ in COLUMNS)
    with connect(url) as connection, connection.cursor() as cursor:

        def insert(row):
            cursor.execute(f"INSERT INTO {table} VALUES ({values})", list(row.to_pylist()[0].values()))

        return timed(insert, times, entities)


def timed(write, times, entities, prepare=None):
    """Rows of random entities, one after the other, each an hour after the one before; `prepare` sees the first before."""
    import numpy as np
    import pyarrow as pa

    random, seconds = Random(SEED), []
    for number in range(times):
        row = pa.table(
            {
                "user_id": pa.array([random.randrange(entities)], pa.int64()),
                "event_timestamp": pa.array([1_767_225_600_000_000 + number * 3_600_000_000], pa.timestamp("us", tz="UTC")),
                **{name: pa.array([made_up(kind, number)]) for name, kind in FEATURES.items()},
            }
        )
        if prepare and number == 0:
            prepare(row)
        started = time.perf_counter()
        write(row)
        seconds.append(time.perf_counter() - started)
    milliseconds = np.array(seconds) * 1000
    percentiles = {f"p{percent}_ms": float(np.percentile(milliseconds, percent)) for percent in (50, 99)}
    return percentiles | {"per_second": times / sum(seconds)}


def made_up(kind, number):
    return {"BIGINT": number, "DOUBLE": number / 4, "VARCHAR": "books", "BOOLEAN": number % 2 == 0}[kind]


# The peers.


def duckdb_sorted(files, directory):
    """Sorted by entity and time, as one file, compressed as fast as Parquet has it."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET temp_directory = '{directory}/spill'")
    started = time.perf_counter()
    rows = connection.execute(
        f"COPY (SELECT * FROM read_parquet({files}, hive_partitioning = false) ORDER BY user_id, event_timestamp) "
        f"TO '{directory}/sorted.parquet' (FORMAT parquet, COMPRESSION snappy)"
    ).fetchone()[0]
    return {"seconds": time.perf_counter() - started, "rows": rows, "peak_mib": peak_mib()}


def iceberg_table(directory, schema):
    """In a SQLite catalog, as Fletching's by default."""
    from pyiceberg.catalog.sql import SqlCatalog

    uri, warehouse = f"sqlite:///{directory}/catalog.db", f"file://{directory}/warehouse"
    catalog = SqlCatalog("bench", uri=uri, warehouse=warehouse)
    catalog.create_namespace("public")
    return catalog.create_table("public.history", schema)


def pyiceberg_append(files, directory):
    """A commit per file, so that memory does not grow with history."""
    import pyarrow.parquet as pq

    table = iceberg_table(directory, pq.read_schema(files[0]).remove_metadata())
    rows = 0
    started = time.perf_counter()
    for file in files:
        batch = pq.read_table(file, partitioning=None)
        table.append(batch)
        rows += batch.num_rows
    return {"seconds": time.perf_counter() - started, "rows": rows, "peak_mib": peak_mib()}


def single_append(directory, times, entities):
    tables = []

    def prepare(row):
        tables.append(iceberg_table(directory, row.schema))

    return timed(lambda row: tables[0].append(row), times, entities, prepare)


@contextmanager
def feast_on_redis(port, source):
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        online = {"type": "redis", "connection_string": f"127.0.0.1:{port}"}
        yield feast_store(directory, online, "history", FEATURES, source, FEAST_TTL_DAYS)


def latest(files):
    """The newest row of each entity."""
    import pyarrow.parquet as pq

    frame = pq.read_table(files, partitioning=None).to_pandas()
    return frame.sort_values("event_timestamp").drop_duplicates("user_id", keep="last")


def feast_materialize(port, files):
    """All of history; Feast finds the newest row of each entity by its DuckDB offline store."""
    from datetime import datetime, timezone
    from pathlib import Path

    pattern = str(Path(files[0]).parent / "*.parquet")
    with feast_on_redis(port, pattern) as store:
        started = time.perf_counter()
        store.materialize(datetime(2020, 1, 1, tzinfo=timezone.utc), datetime(2030, 1, 1, tzinfo=timezone.utc))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "entities": len(latest(files))}


def feast_push(port, files):
    """The newest rows, already found."""
    frame = latest(files)
    with feast_on_redis(port, files[0]) as store:
        started = time.perf_counter()
        store.write_to_online_store("history", frame)
        return {"seconds": time.perf_counter() - started, "entities": len(frame)}


def feast_single(port, times, entities):
    import tempfile

    import pyarrow.parquet as pq

    with ExitStack() as stack:
        source = stack.enter_context(tempfile.TemporaryDirectory()) + "/source.parquet"
        stores = []

        def prepare(row):
            pq.write_table(row, source)
            stores.append(stack.enter_context(feast_on_redis(port, source)))

        return timed(lambda row: stores[0].write_to_online_store("history", row.to_pandas()), times, entities, prepare)


JOBS = [
    run_sql, load, copy, single_ingest, single_insert, duckdb_sorted, pyiceberg_append, single_append, feast_materialize,
    feast_push, feast_single,
]

if __name__ == "__main__":
    main(JOBS)
