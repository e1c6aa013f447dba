"""The whole of the DB-API, and of what ADBC adds to it, by the stock driver."""

import datetime as dt
import threading
from decimal import Decimal

import adbc_driver_flightsql as driver
import adbc_driver_flightsql.dbapi as flight_sql
import adbc_driver_manager as adbc
import numpy as np
import pyarrow as pa
import pytest

from support import rows, run, until

LONG = "SELECT value FROM generate_series(1, 30000000) ORDER BY value % 7919, value"


def test_a_query_describes_its_columns(connection):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 AS a, 'x' AS \"naïve\", DATE '2026-01-01' AS d")
        assert [(name, kind) for name, kind, *_ in cursor.description] == [
            ("a", pa.int64()),
            ("naïve", pa.string()),
            ("d", pa.date32()),
        ]
        assert cursor.description[0][1] == flight_sql.NUMBER
        assert cursor.rowcount == -1


def test_rows_are_fetched_one_by_one_some_and_all(connection):
    with connection.cursor() as cursor:
        cursor.execute("SELECT value FROM generate_series(1, 25)")
        assert cursor.fetchone() == (1,)
        assert cursor.fetchmany(3) == [(2,), (3,), (4,)]
        cursor.arraysize = 2
        assert cursor.fetchmany() == [(5,), (6,)]
        assert cursor.rownumber == 6
        assert next(cursor) == (7,)
        assert len(list(cursor)) == 18
        assert cursor.fetchone() is None and cursor.fetchall() == []


def test_results_in_every_shape(connection):
    query = "SELECT value AS n FROM generate_series(1, 3)"
    with connection.cursor() as cursor:
        assert cursor.execute(query).fetch_arrow_table().to_pydict() == {"n": [1, 2, 3]}
        assert cursor.execute(query).fetchallarrow().num_rows == 3
        assert cursor.execute(query).fetch_df().n.tolist() == [1, 2, 3]
        assert cursor.execute(query).fetch_polars()["n"].to_list() == [1, 2, 3]
        assert cursor.execute(query).fetch_record_batch().read_all().num_rows == 3
        assert pa.table(cursor.execute(query).fetch_arrow()).num_rows == 3


def test_no_rows_keep_their_columns(connection):
    with connection.cursor() as cursor:
        cursor.execute("SELECT value AS n, 'x' AS s FROM generate_series(1, 3) WHERE value > 3")
        table = cursor.fetch_arrow_table()
    assert table.num_rows == 0
    assert table.schema == pa.schema([("n", pa.int64()), ("s", pa.string())])


def test_statements_without_rows(connection):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE dbapi_updates (n BIGINT)")
        assert cursor.description in (None, [])
        cursor.execute("INSERT INTO dbapi_updates VALUES (1), (2)")
        assert cursor.rowcount == 2 and cursor.fetchall() == []
        cursor.executemany("INSERT INTO dbapi_updates VALUES (?)", [(3,), (4,), (5,)])
        assert cursor.rowcount == 3
        cursor.executemany("INSERT INTO dbapi_updates VALUES (?)", [])
    assert rows(connection, "SELECT count(*) FROM dbapi_updates") == [(5,)]


VALUES = [
    1,
    -(2**63),
    1.5,
    "日本 😀 '",
    b"\x00\xff",
    True,
    None,
    dt.date(1969, 7, 20),
    dt.time(1, 2, 3, 4),
    dt.datetime(1969, 7, 20, 20, 17, 40, 123456),
    dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc),
    dt.timedelta(seconds=5),
    Decimal("1.25"),
    [1, None, 2],
    {"a": 1, "b": "x"},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_parameter_comes_back(connection, value):
    assert rows(connection, "SELECT ? AS v", (value,)) == [(value,)]


@pytest.mark.parametrize(
    "condition,parameters",
    [
        ("id = ?", (1,)),
        ("id = ?", (1.0,)),
        ("id = ?", ("1",)),
        ("id IN (?, ?)", (7, 1)),
        ("price = ?", (Decimal("1.5"),)),
        ("price > ?", (1,)),
        ("name LIKE ?", ("x%",)),
        ("at = ?", (dt.datetime(2026, 1, 1),)),
        ("at > ?", (dt.date(2025, 12, 31),)),
        ("at BETWEEN ? AND ?", ("2025-12-31", dt.datetime(2026, 1, 2))),
        ("at = ?", (dt.datetime(2026, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),)),
        ("date_trunc(?, at) = ?", ("day", dt.datetime(2026, 1, 1))),
        ("name = ? OR ? IS NULL", (None, None)),
    ],
)
def test_parameters_meet_columns(connection, condition, parameters):
    run(
        connection,
        "CREATE TABLE IF NOT EXISTS dbapi_typed AS"
        " SELECT 1 AS id, CAST(1.5 AS DECIMAL(10, 2)) AS price, 'xy' AS name, TIMESTAMP '2026-01-01' AS at",
    )
    assert rows(connection, f"SELECT id FROM dbapi_typed WHERE {condition}", parameters) == [(1,)]


@pytest.mark.parametrize(
    "condition,parameter,words",
    [("id = ?", 1.5, "Int64"), ("price = ?", Decimal("1.505"), "Decimal128(10, 2)"), ("at = ?", "noon", "noon")],
)
def test_a_parameter_that_would_lose_is_refused(connection, condition, parameter, words):
    run(connection, "CREATE TEMPORARY TABLE t AS SELECT 1 AS id, CAST(1 AS DECIMAL(10, 2)) AS price, now() AS at")
    with pytest.raises(adbc.ProgrammingError, match=".*") as caught:
        rows(connection, f"SELECT id FROM t WHERE {condition}", (parameter,))
    assert words in str(caught.value)


def test_a_statement_tells_its_parameters_and_its_result_before_it_runs(connection):
    run(connection, "CREATE TABLE dbapi_told (id BIGINT, name VARCHAR)")
    with connection.cursor() as cursor:
        asked = cursor.adbc_prepare("SELECT name FROM dbapi_told WHERE id = ? AND name > ?")
        assert asked.types == [pa.int64(), pa.string()]
        assert cursor.adbc_execute_schema("SELECT id, name FROM dbapi_told").types == [pa.int64(), pa.string()]
        with pytest.raises(adbc.Error):
            cursor.adbc_execute_schema("INSERT INTO dbapi_told VALUES (1, 'x')")
    assert rows(connection, "SELECT count(*) FROM dbapi_told") == [(0,)]


def test_partitions_are_read_by_another_connection(server, connection):
    with connection.cursor() as cursor:
        query = "SELECT value FROM generate_series(1, 100000) WHERE value > ?"
        partitions, schema = cursor.adbc_execute_partitions(query, (10,))
    assert schema.names == ["value"]
    read = []
    with server.connect() as other, other.cursor() as cursor:
        for partition in partitions:
            cursor.adbc_read_partition(partition)
            read += [value for (value,) in cursor.fetchall()]
    assert sorted(read) == list(range(11, 100_001))


def test_cursors_of_one_connection_run_at_once(connection):
    cursors = [connection.cursor() for _ in range(16)]
    for number, cursor in enumerate(cursors):
        cursor.execute(f"SELECT value FROM generate_series({number}, 30000)")
    assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(16)]
    found = [0] * 16

    def drain(number):
        found[number] = sum(value for (value,) in cursors[number].fetchall())

    threads = [threading.Thread(target=drain, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert found == [sum(range(number + 1, 30_001)) for number in range(16)]
    for cursor in cursors:
        cursor.close()


def test_cancel_ends_the_query_here_and_there(server, connection):
    with connection.cursor() as cursor:
        before = server.ticks()

        def cancel():
            until(lambda: server.ticks() > before + 30)
            cursor.adbc_cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        with pytest.raises(adbc.OperationalError) as caught:
            cursor.execute(LONG).fetchall()
        canceller.join(timeout=60)
    assert caught.value.status_code == adbc.AdbcStatusCode.CANCELLED
    server.wait_until_idle()
    assert rows(connection, "SELECT 1") == [(1,)]


def test_a_deadline_ends_the_query_here_and_there(server):
    with server.connect(db_kwargs={driver.DatabaseOptions.TIMEOUT_FETCH.value: "1.0"}) as connection:
        with pytest.raises(adbc.OperationalError) as caught:
            rows(connection, LONG)
        assert caught.value.status_code == adbc.AdbcStatusCode.TIMEOUT
        server.wait_until_idle()


def test_every_statement_commits_by_itself(server, connection):
    with pytest.raises(adbc.NotSupportedError, match="transaction"):
        connection.adbc_connection.set_autocommit(False)
    with pytest.warns(Warning, match="autocommit"), flight_sql.connect(server.url) as other:
        run(other, "CREATE TABLE dbapi_committed AS SELECT 1 AS n")
        other.rollback()
        other.commit()
    assert rows(connection, "SELECT n FROM dbapi_committed") == [(1,)]


def test_mistakes_raise_the_exceptions_of_the_dbapi(connection):
    for sql, kind in [
        ("SELEC 1", flight_sql.ProgrammingError),
        ("SELECT * FROM nowhere", flight_sql.ProgrammingError),
        ("SELECT 1; SELECT 2", flight_sql.ProgrammingError),
        ("CREATE VIEW v AS SELECT 1", flight_sql.NotSupportedError),
    ]:
        with pytest.raises(kind):
            rows(connection, sql)
    with connection.cursor() as cursor, pytest.raises(flight_sql.NotSupportedError):
        cursor.callproc("p", ())
    assert rows(connection, "SELECT 1") == [(1,)]


def test_a_connection_is_cloned(connection):
    with connection.adbc_clone() as clone:
        assert clone.execute("SELECT 1").fetchall() == [(1,)]


KEPT_AS = {
    "tinyint": (pa.int8(), pa.int32(), 1),
    "smallint": (pa.int16(), pa.int32(), -1),
    "unsigned": (pa.uint32(), pa.int64(), 2**32 - 1),
    "big_unsigned": (pa.uint64(), pa.decimal128(20, 0), Decimal(2**64 - 1)),
    "half": (pa.float16(), pa.float32(), 0.5),
    "large_text": (pa.large_string(), pa.string(), "ä"),
    "text_view": (pa.string_view(), pa.string(), "ä"),
    "category": (pa.dictionary(pa.int32(), pa.string()), pa.string(), "ä"),
    "large_bytes": (pa.large_binary(), pa.binary(), b"\x00"),
    "fixed_bytes": (pa.binary(2), pa.binary(2), b"ab"),
    "seconds": (pa.timestamp("s"), pa.timestamp("us"), dt.datetime(2026, 1, 1)),
    "zoned": (
        pa.timestamp("us", "Europe/Oslo"),
        pa.timestamp("us", "UTC"),
        dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc),
    ),
    "clock": (pa.time32("s"), pa.time64("us"), dt.time(1, 2, 3)),
    "fixed_list": (pa.list_(pa.int64(), 2), pa.list_(pa.field("element", pa.int64())), [1, 2]),
}


def test_what_iceberg_has_no_word_for_is_kept_as_the_next_of_kin(connection):
    columns = {name: pa.array([value, None], given) for name, (given, _, value) in KEPT_AS.items()}
    with connection.cursor() as cursor:
        cursor.adbc_ingest("dbapi_kin", pa.table(columns), mode="create")
        back = cursor.execute("SELECT * FROM dbapi_kin").fetch_arrow_table()
    assert back.schema.types == [kept for _, kept, _ in KEPT_AS.values()]
    assert back.slice(0, 1).to_pylist() == [{name: value for name, (_, _, value) in KEPT_AS.items()}]
    assert set(back.slice(1).to_pylist()[0].values()) == {None}


@pytest.mark.parametrize(
    "name,column",
    [
        ("spans", pa.array([1], pa.duration("us"))),
        ("wide", pa.array([Decimal(1)], pa.decimal256(40, 3))),
        ("maps", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))),
        ("nanoseconds", pa.array([1], pa.timestamp("ns"))),
    ],
)
def test_a_column_that_cannot_be_kept_is_named(connection, name, column):
    with connection.cursor() as cursor, pytest.raises(adbc.ProgrammingError, match=f"column '{name}'.*CAST"):
        cursor.adbc_ingest("dbapi_unkept", pa.table({name: column}), mode="create")
    with pytest.raises(adbc.ProgrammingError, match="dbapi_unkept"):
        rows(connection, "SELECT * FROM dbapi_unkept")


def test_ingest_into_a_schema(connection):
    run(connection, "CREATE SCHEMA dbapi_schema")
    table = pa.table({"a b": [1], "Ünï": ["x"]})
    with connection.cursor() as cursor:
        cursor.adbc_ingest('We"ird', table, mode="create", catalog_name="fletching", db_schema_name="dbapi_schema")
    assert rows(connection, 'SELECT "a b", "Ünï" FROM fletching.dbapi_schema."We""ird"') == [(1, "x")]
    for target in ({"db_schema_name": "nope"}, {"catalog_name": "nope"}):
        with connection.cursor() as cursor, pytest.raises(adbc.ProgrammingError, match="nope.*does not exist"):
            cursor.adbc_ingest("t", table, mode="create", **target)


def test_ingest_of_no_rows(connection):
    with connection.cursor() as cursor:
        assert cursor.adbc_ingest("dbapi_none", pa.record_batch({"n": pa.array([], pa.int64())}), mode="create") == 0
        # of a table without rows the driver sends nothing, not even its name
        with pytest.raises(adbc.ProgrammingError, match="no rows.*record batch"):
            cursor.adbc_ingest("dbapi_nothing", pa.table({"n": pa.array([], pa.int64())}), mode="create")
    assert rows(connection, "SELECT * FROM dbapi_none") == []


def test_ten_million_rows_are_ingested(connection):
    total, size = 10_000_000, 65_536
    schema = pa.schema([("id", pa.int64()), ("v", pa.float64())])

    def batches():
        for start in range(0, total, size):
            ids = np.arange(start, min(start + size, total))
            yield pa.record_batch([ids, ids * 0.5], schema=schema)

    with connection.cursor() as cursor:
        reader = pa.RecordBatchReader.from_batches(schema, batches())
        assert cursor.adbc_ingest("dbapi_large", reader, mode="create") == total
    expected = (total, total, total * (total - 1) / 4)
    assert rows(connection, "SELECT count(*), max(id) + 1, sum(v) FROM dbapi_large") == [expected]
