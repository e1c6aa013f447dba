"""What was acknowledged is there, once, after the worst ending a process can have."""

import datetime as dt
import threading

import pyarrow as pa
import pytest

from support import rows, run

GROUP = "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))"
AT = dt.datetime(2026, 1, 1)


def batch(number, size=100):
    ids = range(number * size, (number + 1) * size)
    return pa.table({"id": ids, "at": pa.array([AT] * size, pa.timestamp("us")), "v": [number] * size})


def check(server, acknowledged, attempted):
    """Every acknowledged batch whole and once; the one in flight whole or not at all; online the same as offline."""
    with server.connect() as connection:
        offline = rows(connection, "SELECT v, count(*), count(DISTINCT id) FROM g GROUP BY v ORDER BY v")
        online = rows(connection, "SELECT v, count(*) FROM LATEST(g) GROUP BY v ORDER BY v")
    assert all(count == distinct == 100 for _, count, distinct in offline)
    numbers = [number for number, _, _ in offline]
    assert numbers[: len(acknowledged)] == acknowledged
    assert set(numbers) - set(acknowledged) <= {attempted}
    assert online == [(number, count) for number, count, _ in offline]


@pytest.mark.parametrize("after", [1, 5, 9])
def test_kill_between_and_during_writes(own_server, after):
    server = own_server()
    with server.connect() as connection:
        run(connection, GROUP)
    acknowledged, enough = [], threading.Event()

    def write():
        try:
            with server.connect() as connection, connection.cursor() as cursor:
                for number in range(10_000):
                    cursor.adbc_ingest("g", batch(number), mode="append")
                    acknowledged.append(number)
                    if len(acknowledged) >= after:
                        enough.set()
        except Exception:  # noqa: BLE001 - the server is gone; what counts is what was acknowledged
            enough.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert enough.wait(timeout=120)
    server.kill()
    writer.join(timeout=120)
    assert len(acknowledged) >= after
    server.start()
    check(server, acknowledged, attempted=len(acknowledged))


def test_a_clean_restart_keeps_everything(own_server):
    server = own_server()
    with server.connect() as connection, connection.cursor() as cursor:
        run(connection, GROUP, "CREATE TABLE plain AS SELECT 1 AS n")
        cursor.adbc_ingest("g", batch(0), mode="append")
    assert server.stop() == 0
    server.start()
    check(server, [0], attempted=0)
    with server.connect() as connection:
        assert rows(connection, "SELECT * FROM plain") == [(1,)]


def test_the_embedded_online_store_can_be_wiped(own_server):
    server = own_server()
    with server.connect() as connection, connection.cursor() as cursor:
        run(connection, GROUP)
        cursor.adbc_ingest("g", batch(0), mode="append")
    assert server.stop() == 0
    wiped = [path for path in server.data.iterdir() if path.name.startswith("online")]
    assert wiped
    for path in wiped:
        path.unlink()
    server.start()
    check(server, [0], attempted=0)


def test_sigterm_lets_a_running_query_finish(own_server):
    server = own_server()
    total = 3_000_000
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT value FROM generate_series(1, {total})")
        reader = cursor.fetch_record_batch()
        seen = reader.read_next_batch().num_rows
        stopped = threading.Thread(target=lambda: codes.append(server.stop()))
        codes = []
        stopped.start()
        seen += sum(one.num_rows for one in reader)
    stopped.join(timeout=60)
    assert seen == total
    assert codes == [0]
