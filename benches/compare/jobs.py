"""One measured job in a process of its own: its own memory, its own caches, and an end that its caller can set.

`jobs.py JOB '{"argument": …}'` prints one line of JSON. Times exclude imports and connecting; they include everything
from the first byte read to the whole result as Arrow. Nothing is imported here that not every peer has.
"""

import json
import sys
import time
from glob import glob
from pathlib import Path
from statistics import median

from data import COLUMNS, FEATURES

JOIN = "ON l.user_id = f.user_id AND l.event_timestamp >= f.event_timestamp"
SELECTED = ", ".join(["l.*", *("f." + feature for feature in FEATURES)])


def peak_mib():
    """The most memory this process ever held. Not `ru_maxrss`: that counts what its parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def joined(started, table):
    """What a join took, and sums that all must agree on."""
    seconds, peak = time.perf_counter() - started, peak_mib()
    import pyarrow.compute as pc

    return {
        "seconds": seconds,
        "peak_mib": peak,
        "rows": table.num_rows,
        "label_ids": pc.sum(table.column("label_id")).as_py(),
        "spend": pc.sum(table.column("total_spend_lifetime")).as_py(),
        "nulls": table.column("is_member").null_count,
    }


# The peers: `labels` is a Parquet file, `history` a pattern of Parquet files.


def duckdb(labels, history):
    import duckdb

    connection = duckdb.connect()
    started = time.perf_counter()
    connection.execute("SET preserve_insertion_order = false")
    # A relation, not `execute`: the latter's result is copied once more on its way into Arrow.
    result = connection.sql(
        f"SELECT {SELECTED} FROM read_parquet('{labels}') l "
        f"ASOF LEFT JOIN read_parquet('{history}', hive_partitioning = false) f {JOIN}"
    )
    return joined(started, result.to_arrow_table())


def duckdb_sums(labels, history, since=None, ttl_days=None):
    """Not measured: what labels from `since` on must find, when rows older than `ttl_days` do not count."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    found = "f.user_id IS NOT NULL"
    if ttl_days:
        found = f"coalesce(f.event_timestamp >= l.event_timestamp - INTERVAL {ttl_days} DAY, false)"
    recent = f"WHERE event_timestamp >= TIMESTAMPTZ '{since}'" if since else ""
    row = connection.execute(
        "SELECT count(*), sum(l.label_id), sum(f.total_spend_lifetime) FILTER (WHERE " + found + "), "
        f"count(*) FILTER (WHERE NOT {found}) FROM (SELECT * FROM read_parquet('{labels}') {recent}) l "
        f"ASOF LEFT JOIN read_parquet('{history}', hive_partitioning = false) f {JOIN}"
    ).fetchone()
    return dict(zip(["rows", "label_ids", "spend", "nulls"], row, strict=True))


def polars(labels, history):
    import polars as pl

    started = time.perf_counter()
    left = pl.scan_parquet(labels).sort("event_timestamp")
    right = pl.scan_parquet(history, hive_partitioning=False).select(COLUMNS).sort("event_timestamp")
    both = left.join_asof(right, on="event_timestamp", by="user_id", strategy="backward", check_sortedness=False)
    return joined(started, both.collect().to_arrow())


def pandas(labels, history):
    import pandas as pd
    import pyarrow as pa

    started = time.perf_counter()
    left = pd.read_parquet(labels).sort_values("event_timestamp")
    files = sorted(glob(history, recursive=True))
    right = pd.read_parquet(files, columns=COLUMNS, partitioning=None).sort_values("event_timestamp")
    both = pd.merge_asof(left, right, on="event_timestamp", by="user_id", direction="backward")
    return joined(started, pa.Table.from_pandas(both))


def chdb(labels, history):
    import chdb
    import pyarrow  # noqa: F401  not to be timed

    started = time.perf_counter()
    both = chdb.query(
        f"SELECT {SELECTED} FROM file('{labels}', Parquet) l "
        f"ASOF LEFT JOIN file('{history}', Parquet) f {JOIN} SETTINGS join_use_nulls = 1",
        "ArrowTable",
    )
    return joined(started, both)


def feast(labels, history):
    """Feast with its DuckDB offline store; definitions are applied before the clock starts."""
    import tempfile

    import pandas as pd

    with tempfile.TemporaryDirectory() as directory:
        online = {"type": "sqlite", "path": f"{directory}/online.db"}
        store = feast_store(directory, online, "history", FEATURES, history)
        started = time.perf_counter()
        features = [f"history:{feature}" for feature in FEATURES]
        job = store.get_historical_features(entity_df=pd.read_parquet(labels), features=features)
        return joined(started, job.to_arrow())


def feast_store(directory, online, view, features, source, ttl_days=0):
    """A store of one feature view over Parquet files, applied; features with their types in SQL."""
    from datetime import timedelta

    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Bool, Float64, Int64, String

    types = {"BIGINT": Int64, "DOUBLE": Float64, "VARCHAR": String, "BOOLEAN": Bool}
    config = RepoConfig(
        project="compare",
        provider="local",
        registry=f"{directory}/registry.db",
        online_store=online,
        offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name=view,
        entities=[user],
        ttl=timedelta(days=ttl_days),
        schema=[Field(name=name, dtype=types[kind]) for name, kind in features.items()],
        source=FileSource(path=source, timestamp_field="event_timestamp", file_format=ParquetFormat()),
        online=online["type"] == "redis",
    )
    store.apply([user, view])
    return store


# Fletching, through the stock ADBC driver.


def connect(url):
    import adbc_driver_flightsql.dbapi as flight_sql
    import pyarrow  # noqa: F401  not to be timed

    return flight_sql.connect(url, autocommit=True)


def fletching(url, query):
    with connect(url) as connection, connection.cursor() as cursor:
        started = time.perf_counter()
        cursor.execute(query)
        return joined(started, cursor.fetch_arrow_table())


def fletching_held(url, query):
    """Any query, its whole result held."""
    with connect(url) as connection, connection.cursor() as cursor:
        started = time.perf_counter()
        cursor.execute(query)
        rows = cursor.fetch_arrow_table().num_rows
        return {"seconds": time.perf_counter() - started, "rows": rows, "peak_mib": peak_mib()}


def fletching_streamed(url, query):
    """As a training job reads: batch by batch, nothing kept."""
    with connect(url) as connection, connection.cursor() as cursor:
        started = time.perf_counter()
        cursor.execute(query)
        reader = cursor.fetch_record_batch()
        rows = reader.read_next_batch().num_rows
        first_seconds = time.perf_counter() - started
        rows += sum(batch.num_rows for batch in reader)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "first_seconds": first_seconds, "rows": rows, "peak_mib": peak_mib()}


def run_sql(url, statements):
    """The rows of the last statement, and what it took."""
    with connect(url) as connection, connection.cursor() as cursor:
        for statement in statements:
            started = time.perf_counter()
            cursor.execute(statement)
            rows = cursor.fetchall()
    return {"seconds": time.perf_counter() - started, "rows": [[str(value) for value in row] for row in rows]}


def load(url, table, files, mode, columns=None, commits="per file", commit_rows=None, optimize_every=None):
    """Bulk ingest of Parquet files, in order; `commits` is "per file" or "one" for a single stream of all. With `commit_rows`
    so many rows are a commit, and after `optimize_every` of them their files are optimized."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches(files):
        for file in files:
            with pq.ParquetFile(file) as parquet:
                yield from parquet.iter_batches(columns=columns, batch_size=commit_rows or 65536)

    def commits_of():
        if commit_rows:
            return ([batch] for batch in batches(files))
        return (batches(group) for group in ([files] if commits == "one" else [[file] for file in files]))

    schema = pq.read_schema(files[0]).remove_metadata()
    if columns:
        schema = pa.schema([schema.field(column) for column in columns])
    rows = 0
    with connect(url) as connection, connection.cursor() as cursor:
        started = time.perf_counter()
        for number, group in enumerate(commits_of(), 1):
            reader = pa.RecordBatchReader.from_batches(schema, group)
            rows += cursor.adbc_ingest(table, reader, mode=mode)
            if optimize_every and number % optimize_every == 0:
                cursor.execute(f"OPTIMIZE {table}").fetchall()
    return {"seconds": time.perf_counter() - started, "rows": rows}


# Scans: everything, counted and dropped.


def counted(started, batches):
    rows = size = 0
    for batch in batches:
        rows += batch.num_rows
        size += batch.nbytes
    return {"seconds": time.perf_counter() - started, "rows": rows, "bytes": size, "peak_mib": peak_mib()}


def scan_adbc(url, query):
    with connect(url) as connection, connection.cursor() as cursor:
        started = time.perf_counter()
        cursor.execute(query)
        return counted(started, cursor.fetch_record_batch())


def scan_flight(url, query):
    """pyarrow's Flight client knows no Flight SQL, so its command is packed by hand."""
    import pyarrow.flight as flight

    client = flight.FlightClient(url.replace("grpc://", "grpc+tcp://"))
    with client:
        started = time.perf_counter()
        info = client.get_flight_info(flight.FlightDescriptor.for_command(statement_query(query)))
        batches = (
            chunk.data for endpoint in info.endpoints for chunk in client.do_get(endpoint.ticket)
        )
        return counted(started, batches)


def statement_query(query):
    """A `google.protobuf.Any` around `CommandStatementQuery { query = 1 }`."""
    kind = "type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
    return field(1, kind.encode()) + field(2, field(1, query.encode()))


def field(number, value):
    """One length-delimited field of Protocol Buffers: tag, length as varint, bytes."""
    length, rest = [], len(value)
    while rest > 0x7F:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([number << 3 | 2, *length, rest]) + value


def scan_duckdb(history):
    import duckdb
    import pyarrow  # noqa: F401  not to be timed

    connection = duckdb.connect()
    started = time.perf_counter()
    connection.execute("SET preserve_insertion_order = false")
    columns = ", ".join(COLUMNS)
    result = connection.sql(f"SELECT {columns} FROM read_parquet('{history}', hive_partitioning = false)")
    return counted(started, result.to_arrow_table().to_batches())


# Selective filters: one warm connection, each filter `times` over, and once more before that.


def filters(run, queries, times):
    import pyarrow.compute as pc

    found = {}
    for name, query in queries.items():
        seconds = []
        for _ in range(times + 1):
            started = time.perf_counter()
            table = run(query)
            seconds.append(time.perf_counter() - started)
        spend = pc.sum(table.column("total_spend_lifetime")).as_py()
        found[name] = {"median_ms": median(seconds[1:]) * 1000, "rows": table.num_rows, "spend": spend}
    return found


def filters_fletching(url, queries, times):
    with connect(url) as connection, connection.cursor() as cursor:

        def run(query):
            cursor.execute(query)
            return cursor.fetch_arrow_table()

        return filters(run, queries, times)


def filters_duckdb(queries, times):
    import duckdb
    import pyarrow  # noqa: F401  not to be timed

    connection = duckdb.connect()
    return filters(lambda query: connection.sql(query).to_arrow_table(), queries, times)


JOBS = [
    duckdb, duckdb_sums, polars, pandas, chdb, feast, fletching, fletching_held, fletching_streamed,
    run_sql, load, scan_adbc, scan_flight, scan_duckdb, filters_fletching, filters_duckdb,
]


def main(jobs):
    # When memory runs out, the kernel takes this process, and no other.
    Path("/proc/self/oom_score_adj").write_text("1000")
    job, arguments = sys.argv[1], json.loads(sys.argv[2])
    result = {job.__name__: job for job in jobs}[job](**arguments)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(JOBS)
