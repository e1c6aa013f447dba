"""Disks that are full or cannot be written: clear errors, nothing lost, and work goes on when they can be."""

import adbc_driver_manager as adbc
import pytest

from support import SmallDisk, rows, run

GROUP = "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))"
COUNT = "SELECT count(*), count(DISTINCT id), sum(v) FROM g"


@pytest.fixture
def small_disk(tmp_path):
    """Makes one: `small_disk(name, mebibytes)`."""
    made = []

    def make(name, mebibytes):
        try:
            made.append(SmallDisk(tmp_path / name, mebibytes))
        except PermissionError as error:
            pytest.skip(f"file systems cannot be mounted here: {error}")
        return made[-1]

    yield make
    for disk in made:
        disk.close()


def one_row(number):
    return f"INSERT INTO g VALUES ({number}, TIMESTAMP '2026-01-01', {number})"


def many_rows(first, count):
    return (
        "INSERT INTO g SELECT value AS id, TIMESTAMP '2026-01-01' AS at, value AS v"
        f" FROM generate_series({first}, {first + count - 1})"
    )


def check(connection, ids):
    ids = list(ids)
    assert rows(connection, COUNT) == [(len(ids), len(ids), sum(ids))]
    assert rows(connection, "SELECT count(*), sum(v) FROM LATEST(g)") == [(len(ids), sum(ids))]


def test_a_full_disk_refuses_writes_and_loses_nothing(own_server, small_disk):
    disk = small_disk("data0", 96)
    server = own_server(within=disk.within)
    assert server.data == disk.folder
    with server.connect() as connection:
        run(connection, GROUP, one_row(0), many_rows(1, 2000), one_row(2001), "CHECKPOINT")
        disk.fill()
        for sql in (one_row(5000), many_rows(6000, 20_000), "CREATE TABLE t AS SELECT 1 AS x"):
            with pytest.raises(adbc.Error, match="No space left|disk is full"):
                run(connection, sql)
        check(connection, range(2002))
        disk.free()
        run(connection, one_row(2002), many_rows(2003, 2000), one_row(4003))
        check(connection, range(4004))
        disk.fill()
        with pytest.raises(adbc.Error, match="No space left|disk is full"):
            run(connection, one_row(9000))
    server.kill()
    disk.free()
    server.start()
    with server.connect() as connection:
        run(connection, one_row(4004))
        check(connection, range(4005))


def test_a_warehouse_that_is_read_only_keeps_small_writes_in_the_log(own_server, small_disk):
    disk = small_disk("warehouse", 64)
    server = own_server("--warehouse", disk.folder / "files", within=disk.within)
    with server.connect() as connection:
        run(connection, GROUP, many_rows(0, 2000))
        disk.set_read_only(True)
        check(connection, range(2000))
        run(connection, one_row(2000))
        for sql in (many_rows(6000, 2000), "CHECKPOINT g", "OPTIMIZE g FULL", "CREATE TABLE t (x BIGINT)"):
            with pytest.raises(adbc.Error, match="Read-only file system"):
                rows(connection, sql)
        assert rows(connection, "SELECT v FROM LATEST(g, 2000)") == [(2000,)]
        disk.set_read_only(False)
        run(connection, one_row(2001), many_rows(2002, 2000))
        check(connection, range(4002))
