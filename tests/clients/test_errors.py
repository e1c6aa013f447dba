"""The caller's mistake comes back as the caller's, with words to act on."""

import adbc_driver_manager as adbc
import pyarrow as pa
import pytest

from support import rows, run

GROUP = "CREATE FEATURE GROUP {} (id BIGINT, at TIMESTAMP, v DOUBLE, ENTITY KEY (id), EVENT TIME (at))"


def fails(connection, sql, *words):
    """Runs `sql`, expects an error that is the caller's and that says every one of `words`."""
    with pytest.raises(adbc.Error) as caught:
        rows(connection, sql)
    return check(caught.value, *words)


def check(error, *words):
    assert error.status_code not in (adbc.AdbcStatusCode.INTERNAL, adbc.AdbcStatusCode.UNKNOWN), error
    for word in words:
        assert word.lower() in str(error).lower(), error
    return error


@pytest.mark.parametrize(
    "sql,words",
    [
        ("SELEC 1", ["SELEC"]),
        ("SELECT * FROM nowhere", ["nowhere"]),
        ("SELECT nothing FROM (VALUES (1)) AS t(x)", ["nothing"]),
        ("SELECT no_such_function(1)", ["no_such_function"]),
        ("SELECT CAST('x' AS BIGINT)", ["x"]),
        ("SELECT 1 / 0", ["zero"]),
        ("DROP TABLE nowhere", ["nowhere"]),
        ("SELECT * FROM LATEST(nowhere, 1)", ["nowhere"]),
    ],
)
def test_statements(connection, sql, words):
    fails(connection, sql, *words)


def test_codes_tell_what_kind_of_mistake_it_is(connection):
    assert fails(connection, "SELEC 1").status_code == adbc.AdbcStatusCode.INVALID_ARGUMENT
    assert fails(connection, "SELECT * FROM nowhere").status_code == adbc.AdbcStatusCode.NOT_FOUND
    run(connection, "CREATE TABLE twice (a BIGINT)")
    assert fails(connection, "CREATE TABLE twice (a BIGINT)", "twice").status_code == adbc.AdbcStatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    "name,table,words",
    [
        ("null_key", {"id": [1, None], "at": ["2026-01-01", "2026-01-01"], "v": [1.0, 2.0]}, ["null", "id"]),
        ("null_time", {"id": [1, 2], "at": ["2026-01-01", None], "v": [1.0, 2.0]}, ["null", "at"]),
        ("missing_key", {"at": ["2026-01-01"], "v": [1.0]}, ["id"]),
        ("extra_column", {"id": [1], "at": ["2026-01-01"], "v": [1.0], "w": [1.0]}, ["w"]),
        ("wrong_type", {"id": [1, 2], "at": ["2026-01-01", "2026-01-01"], "v": ["1.5", "warm"]}, ["v"]),
    ],
)
def test_a_bad_write_says_what_is_wrong_and_leaves_nothing(connection, name, table, words):
    table = pa.table(table)
    if "at" in table.column_names:
        at = table.column_names.index("at")
        table = table.set_column(at, "at", table.column("at").cast(pa.timestamp("us")))
    run(connection, GROUP.format(name))
    with connection.cursor() as cursor, pytest.raises(adbc.Error) as caught:
        cursor.adbc_ingest(name, table, mode="append")
    check(caught.value, *words)
    assert rows(connection, f"SELECT count(*) FROM {name}") == [(0,)]
    assert rows(connection, f"SELECT count(*) FROM LATEST({name})") == [(0,)]


def test_the_connection_lives_on(connection):
    fails(connection, "SELEC 1")
    assert rows(connection, "SELECT 1") == [(1,)]


def test_a_wrong_number_of_parameters(connection):
    with pytest.raises(adbc.Error) as caught:
        rows(connection, "SELECT ? + ?", (1,))
    check(caught.value, "parameter")
