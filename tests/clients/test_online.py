"""LATEST over a real Redis, with moka in front."""

import re

import pytest

from support import rows, run

GROUP = "CREATE FEATURE GROUP {} (id BIGINT, at TIMESTAMP, v BIGINT DEFAULT -1, ENTITY KEY (id), EVENT TIME (at))"


@pytest.fixture(scope="module")
def redis_server(redis, tmp_path_factory):
    from support import Server

    server = Server(tmp_path_factory.mktemp("redis") / "data", "--online", redis.url)
    yield server
    server.close()


def metric(connection, sql, name):
    """Sum of a metric over the plan that EXPLAIN ANALYZE shows."""
    plan = "\n".join(str(row) for row in rows(connection, "EXPLAIN ANALYZE " + sql))
    values = re.findall(rf"\b{name}=(\d+)", plan)
    assert values, plan
    return sum(map(int, values))


def test_the_second_call_is_answered_by_moka(redis_server):
    with redis_server.connect() as connection:
        run(connection, GROUP.format("hot"), "INSERT INTO hot VALUES (1, TIMESTAMP '2026-01-01', 10)")
        sql = "SELECT v FROM LATEST(hot, 1)"
        assert rows(connection, sql) == [(10,)]
        assert metric(connection, sql, "cache_hits") == 1


def test_a_write_is_visible_to_the_next_latest(redis_server):
    with redis_server.connect() as reader, redis_server.connect() as writer:
        run(writer, GROUP.format("fresh"))
        for value in range(1, 20):
            run(writer, f"INSERT INTO fresh VALUES (1, TIMESTAMP '2026-01-01' + INTERVAL '{value} minutes', {value})")
            assert rows(reader, "SELECT v, _status FROM LATEST(fresh, 1)") == [(value, "PRESENT")]


def test_an_older_write_changes_nothing(redis_server):
    with redis_server.connect() as connection:
        run(
            connection,
            GROUP.format("older"),
            "INSERT INTO older VALUES (1, TIMESTAMP '2026-01-02', 2)",
            "INSERT INTO older VALUES (1, TIMESTAMP '2026-01-01', 1)",
        )
        assert rows(connection, "SELECT v FROM LATEST(older, 1)") == [(2,)]


def test_a_wiped_redis_is_filled_again(redis, own_server):
    import socket

    server = own_server("--online", redis.url)
    with server.connect() as connection:
        run(connection, GROUP.format("again"), "INSERT INTO again VALUES (1, TIMESTAMP '2026-01-01', 5)")
    assert server.stop() == 0
    with socket.create_connection(("127.0.0.1", redis.port)) as raw:
        raw.sendall(b"FLUSHALL\r\n")
        assert raw.recv(16).startswith(b"+OK")
    server.start()
    with server.connect() as connection:
        assert rows(connection, "SELECT v, _status FROM LATEST(again, 1)") == [(5, "PRESENT")]
