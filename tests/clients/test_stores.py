"""Catalogs and warehouses across a network: PostgreSQL and S3, and what pyiceberg makes of them."""

import datetime as dt
import os
import subprocess
import time

import adbc_driver_manager as adbc
import numpy as np
import pyarrow as pa
import pytest

from support import BINARY, Postgres, rows, rows_by_pyiceberg, run

GROUP = """
    CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, a DOUBLE, b DOUBLE, c DOUBLE, word VARCHAR DEFAULT 'none',
                            ENTITY KEY (id), EVENT TIME (at))
"""
AT = dt.datetime(2026, 1, 1)
ENTITIES, EVENTS = 1000, 400

READS = [
    "SELECT count(*), count(DISTINCT id), min(at), max(at), max(a) FROM g",
    "SELECT id, at, word FROM g WHERE id IN (1, 500, 999) ORDER BY id, at",
    "SELECT id, a FROM g WHERE at >= TIMESTAMP '2026-01-14 06:00:00' ORDER BY id, at",
    "SELECT l.id, l.n, g.at, g.a, g.word FROM (SELECT id % 1100 AS id, n, to_timestamp_micros(1767225600000000 + n * 3600000000) AS at"
    "  FROM (SELECT value AS id, value % 300 AS n FROM generate_series(1, 5000))) l"
    " ASOF JOIN g MATCH_CONDITION (l.at >= g.at) ON l.id = g.id ORDER BY l.id, l.n",
    "SELECT id, a, word, _status FROM LATEST(g, 1, 999, 5000)",
    "SELECT count(*), max(b) FROM LATEST(g)",
]


def events():
    """More than one part of an upload."""
    random = np.random.default_rng(7)
    count = ENTITIES * EVENTS
    hours = np.arange(EVENTS) * 3_600_000_000
    at = int(AT.replace(tzinfo=dt.UTC).timestamp()) * 1_000_000 + np.repeat(hours, ENTITIES)
    return pa.table(
        {
            "id": np.tile(np.arange(ENTITIES), EVENTS),
            "at": pa.array(at, pa.timestamp("us")),
            **{name: random.random(count) for name in "abc"},
            "word": pa.array([f"word {number % 7}" for number in range(count)]),
        }
    )


def write(server):
    with server.connect() as connection, connection.cursor() as cursor:
        run(connection, GROUP)
        cursor.adbc_ingest("g", events().to_reader(max_chunksize=65_536), mode="append")
        for number in range(3):
            run(connection, f"INSERT INTO g VALUES ({number}, TIMESTAMP '2026-02-01', {number}, 2, 3, NULL)")


def reads(server):
    with server.connect() as connection:
        return [rows(connection, sql) for sql in READS]


def shown(value):
    return [tuple(str(one) if isinstance(one, dt.datetime) else one for one in row) for row in value]


def test_servers_on_postgresql_share_what_pyiceberg_reads(own_server, postgres, tmp_path):
    shared = ["--catalog", postgres.url, "--warehouse", tmp_path / "warehouse"]
    one, two = own_server(*shared), own_server(*shared)
    with one.connect() as first, two.connect() as second:
        run(first, "CREATE TABLE t (n BIGINT, s VARCHAR)", "INSERT INTO t VALUES (1, 'a')")
        run(second, "INSERT INTO t VALUES (2, NULL)")
        assert rows(second, "OPTIMIZE t")
        run(first, "INSERT INTO t VALUES (3, 'c')")
        assert rows(second, "SELECT * FROM t ORDER BY n") == [(1, "a"), (2, None), (3, "c")]
    uri = postgres.url.replace("postgresql://", "postgresql+psycopg2://")
    assert sorted(rows_by_pyiceberg("public.t", uri=uri)) == [(1, "a"), (2, None), (3, "c")]
    for server in (one, two):
        assert server.stop() == 0
        assert Postgres.PASSWORD not in server.log.read_text()


def test_a_warehouse_in_s3_answers_as_a_local_one(own_server, storage):
    place = ["--warehouse", f"s3://{storage.bucket}/some/prefix", "--s3-endpoint", storage.url]
    server, local = own_server(*place, environment=storage.credentials), own_server()
    for one in (server, local):
        write(one)
    expected = reads(local)
    assert expected[0][0][0] == ENTITIES * EVENTS + 3
    assert reads(server) == expected

    with server.connect() as connection:
        (before,) = rows(connection, 'SELECT count(*) FROM "g$files"')[0]
        rows(connection, "OPTIMIZE g FULL")
        (after,) = rows(connection, 'SELECT count(*) FROM "g$files"')[0]
        assert after < before
        assert reads(server) == expected
        vacuumed = dict(zip(*columns_and_row(connection, "VACUUM g RETAIN '0 days'"), strict=True))
        assert vacuumed["data_files_deleted"] == before
        assert reads(server) == expected

    properties = {"uri": f"sqlite:///{server.data}/catalog.db", "s3__endpoint": storage.url, "s3__region": "us-east-1"}
    table = rows_by_pyiceberg("public.g", environment=storage.credentials, **properties)
    with server.connect() as connection:
        stored = rows(connection, 'SELECT * FROM "g$history"')
    assert sorted(row[:2] for row in table) == sorted(row[:2] for row in shown(stored))
    assert sorted(row[2] for row in table) == sorted(row[2] for row in stored)

    server.kill()
    server.start()
    assert reads(server) == expected
    with server.connect() as connection:
        run(connection, "CREATE TABLE t AS SELECT 1 AS n", "DROP FEATURE GROUP g")
        assert rows(connection, "SELECT n FROM t") == [(1,)]
        run(connection, "DROP TABLE t")
    assert storage.objects() == []


def columns_and_row(connection, sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return [column[0] for column in cursor.description], cursor.fetchone()


def test_storage_that_cannot_be_used_is_named(storage, tmp_path):
    place = ["--warehouse", f"s3://{storage.bucket}/p", "--s3-endpoint", storage.url]
    wrong = storage.credentials | {"AWS_SECRET_ACCESS_KEY": "hunter2"}
    serve = [BINARY, "serve", "--data-dir", tmp_path, "--listen", "127.0.0.1:0", "--http-listen", "off"]
    for arguments, environment, words in [
        (place, wrong, "access is denied"),
        (["--warehouse", "s3://nowhere", *place[2:]], storage.credentials, "the bucket does not exist"),
        ([*place[:2], "--s3-endpoint", "http://127.0.0.1:9"], storage.credentials, "does not answer"),
    ]:
        done = subprocess.run(
            [*serve, *arguments], env=os.environ | environment, capture_output=True, timeout=120, check=False
        )
        said = done.stderr.decode()
        assert done.returncode == 1, said
        assert "cannot use the warehouse at 's3://" in said and words in said
        assert "hunter2" not in said and storage.credentials["AWS_SECRET_ACCESS_KEY"] not in said


def test_storage_that_is_gone_fails_what_needs_it(own_server, storage):
    place = ["--warehouse", f"s3://{storage.bucket}", "--s3-endpoint", storage.url]
    server = own_server(*place, environment=storage.credentials)
    with server.connect() as connection:
        run(connection, GROUP, "INSERT INTO g VALUES (1, TIMESTAMP '2026-01-01', 1, 2, 3, 'x')")
        storage.close()
        begin = time.monotonic()
        # The log takes small writes; what reads or writes the warehouse says what is missing.
        run(connection, "INSERT INTO g VALUES (2, TIMESTAMP '2026-01-01', 2, 2, 3, 'y')")
        for sql in ("SELECT max(a) FROM g", "CHECKPOINT g"):
            with pytest.raises(adbc.Error, match="(?i)unavailable"):
                rows(connection, sql)
        assert time.monotonic() - begin < 60
        assert rows(connection, "SELECT a, word FROM LATEST(g, 1, 2)") == [(1, "x"), (2, "y")]
