"""What is deleted is gone for other engines too, and COPY says how many rows it took."""

import sqlite3
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table import StaticTable

from support import rows, run

GROUP = "CREATE FEATURE GROUP {} (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))"


def iceberg(server, table):
    """The table's rows as pyiceberg reads them, without a catalog: by the newest metadata."""
    with closing(sqlite3.connect(f"{server.data}/catalog.db")) as catalog:
        query = "SELECT metadata_location FROM iceberg_tables WHERE table_name = ?"
        location = catalog.execute(query, [table]).fetchone()[0]
    return StaticTable.from_metadata(location)


def ids(table):
    return sorted(table.scan().to_arrow().column("id").to_pylist())


def changed(connection, sql):
    with connection.cursor() as cursor:
        cursor.adbc_statement.set_sql_query(sql)
        return cursor.adbc_statement.execute_update()


def test_pyiceberg_reads_what_is_left(server, connection):
    run(connection, GROUP.format("g"))
    for first in (0, 10):
        values = ", ".join(f"({n}, TIMESTAMP '2026-01-01', {n})" for n in range(first, first + 10))
        run(connection, f"INSERT INTO g VALUES {values}", "CHECKPOINT g")
    assert changed(connection, "DELETE FROM g WHERE v >= 5 AND id <> 7") == 14
    left = [*range(5), 7]
    assert rows(connection, "SELECT id FROM g ORDER BY id") == [(n,) for n in left]
    assert rows(connection, "SELECT id FROM LATEST(g) ORDER BY id") == [(n,) for n in left]
    table = iceberg(server, "g")
    assert ids(table) == left
    before = table.current_snapshot()
    assert before.summary.operation.value == "overwrite"
    assert before.summary["total-records"] == "6" and before.summary["deleted-records"] == "20"
    assert len(table.scan(snapshot_id=before.parent_snapshot_id).to_arrow()) == 20
    assert rows(connection, "PURGE g")[0][0] == 2  # snapshots
    assert [snapshot.snapshot_id for snapshot in iceberg(server, "g").snapshots()] == [before.snapshot_id]
    assert changed(connection, "DELETE FROM g") == 6
    assert ids(iceberg(server, "g")) == []


def test_copy_counts_rows(own_server, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    at = pa.array([0, 1000], pa.timestamp("ns"))
    pq.write_table(pa.table({"id": [1, 2], "at": at, "v": [1, 2]}), files / "a.parquet")
    server = own_server("--copy-from", str(files))
    with server.connect() as connection:
        run(connection, GROUP.format("g"))
        assert changed(connection, "COPY g FROM 'a.parquet'") == 2
        run(connection, "COPY g (id, at) FROM '*.parquet'")
        assert rows(connection, "SELECT id, count(*), count(v) FROM g GROUP BY id ORDER BY id") == [(1, 2, 1), (2, 2, 1)]
        jobs = rows(connection, "SELECT kind, target, state, rows FROM system.jobs")
        assert jobs == [("copy", "public.g", "done", 2)] * 2
        run(connection, "CHECKPOINT g")
    assert ids(iceberg(server, "g")) == [1, 1, 2, 2]
