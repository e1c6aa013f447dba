"""pyiceberg on the same catalog and tables: what it reads, and what it has written."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from support import rows, run

PYTHON = os.environ.get("ICEBERG_PYTHON", str(Path(__file__).parents[2] / ".venv-iceberg/bin/python"))
PEER = Path(__file__).with_name("iceberg_peer.py")


def peer(server, *arguments):
    command = [PYTHON, PEER, server.data, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read_by_both(server, connection, table, order, columns="*"):
    """The rows, as both read them."""
    ours = rows(connection, f"SELECT {columns} FROM {table} ORDER BY {order}")
    theirs = [tuple(row.values()) for row in peer(server, "rows", table)]
    shown = [tuple(None if value is None else str(value) for value in row) for row in ours]
    theirs = sorted((tuple(None if v is None else str(v) for v in row) for row in theirs), key=str)
    assert sorted(shown, key=str) == theirs
    return ours


def test_pyiceberg_reads_the_same_rows_at_every_step(server, connection):
    run(connection, "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))")
    assert "public.g" in peer(server, "tables")
    history = '"g$history"'

    def same(count):
        run(connection, "CHECKPOINT g")
        ours = rows(connection, f"SELECT * FROM {history}")
        theirs = peer(server, "rows", "g")
        shown = sorted(str([None if v is None else str(v) for v in row]) for row in ours)
        assert shown == sorted(str([None if v is None else str(v) for v in row.values()]) for row in theirs)
        assert len(theirs) == count

    same(0)
    run(connection, "INSERT INTO g VALUES (1, TIMESTAMP '2026-01-01', 10), (2, TIMESTAMP '2026-01-02', NULL)")
    same(2)
    run(connection, "INSERT INTO g SELECT value AS id, TIMESTAMP '2026-01-03' AS at, value + 1 AS v FROM generate_series(1, 2000)")
    same(2002)
    run(connection, "ALTER FEATURE GROUP g ADD FEATURE w VARCHAR")
    same(2002)
    run(connection, "INSERT INTO g VALUES (1, TIMESTAMP '2026-01-01', 11, 'a correction')")
    same(2003)
    run(connection, "ALTER FEATURE GROUP g DROP FEATURE v")
    same(2003)
    rows(connection, "OPTIMIZE g FULL")  # done when its row is fetched
    same(2003)
    kept = peer(server, "snapshots", "g")
    assert [operation for _, operation in kept] == ["append", "append", "append", "replace"]
    for snapshot, _ in kept:
        then = rows(connection, f"SELECT count(*) FROM g FOR VERSION AS OF {snapshot}")
        assert then == [(len(peer(server, "rows", "g", snapshot)),)]
    rows(connection, "VACUUM g RETAIN '0 seconds'")
    same(2003)
    assert [operation for _, operation in peer(server, "snapshots", "g")] == ["replace"]


@pytest.mark.parametrize("layout", ["plain", "partitioned"])
def test_tables_that_pyiceberg_wrote(server, connection, layout):
    assert peer(server, "write", layout, layout) == 95
    ours = read_by_both(server, connection, layout, "id")
    assert [row[0] for row in ours] == [*range(20), *range(25, 100)]
    assert rows(connection, f"SELECT count(town), count(visits), min(visits) FROM {layout}") == [(81, 50, 50)]
    filtered = f"SELECT id FROM {layout} WHERE at >= TIMESTAMP '2026-01-02' AND town = 'p1' ORDER BY id"
    expected = [r[0] for r in ours if r[1] is not None and r[1].day >= 2 and r[2] == "p1"]
    assert [row[0] for row in rows(connection, filtered)] == expected

    insert = f"INSERT INTO {layout} VALUES (2000, TIMESTAMP '2026-02-01', 'p9', 5)"
    if layout == "partitioned":
        with pytest.raises(Exception, match="another engine has partitioned the table"):
            run(connection, insert)
    else:
        run(connection, insert)
    peer(server, "append", layout)
    if layout == "plain":
        rows(connection, f"OPTIMIZE {layout}")
    after = read_by_both(server, connection, layout, "id")
    assert len(after) == len(ours) + (1 if layout == "partitioned" else 2)
