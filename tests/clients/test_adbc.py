"""The stock ADBC driver, with pandas and polars on top."""

import datetime as dt
from decimal import Decimal

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from support import rows, run

GROUP = """
CREATE FEATURE GROUP {name} (
    user_id BIGINT,
    at TIMESTAMP,
    purchases BIGINT DEFAULT 0,
    category VARCHAR,
    ENTITY KEY (user_id),
    EVENT TIME (at)
)
"""
DAY = dt.datetime(2026, 1, 1)


def days(count):
    return DAY + dt.timedelta(days=count)


def test_define_ingest_join_and_serve(connection):
    run(
        connection,
        GROUP.format(name="spending"),
        "INSERT INTO spending VALUES"
        " (1, TIMESTAMP '2026-01-01', 3, 'toys'), (1, TIMESTAMP '2026-01-05', 4, NULL), (2, TIMESTAMP '2026-01-02', 9, 'food')",
    )
    labels = pd.DataFrame({"user_id": [1, 1, 2, 3], "label_at": [days(1), days(6), days(0), days(9)], "y": [0, 1, 1, 0]})
    with connection.cursor() as cursor:
        cursor.adbc_ingest("spending_labels", pa.Table.from_pandas(labels), mode="create", temporary=True)
        cursor.execute(
            "SELECT l.*, f.purchases, f.category FROM spending_labels l"
            " ASOF JOIN spending f MATCH_CONDITION (l.label_at >= f.at) ON l.user_id = f.user_id ORDER BY l.user_id, l.label_at"
        )
        frame = cursor.fetch_df()
    assert frame.purchases.tolist() == [3, 4, 0, 0]
    assert frame.category.fillna("-").tolist() == ["toys", "-", "-", "-"]
    served = rows(connection, "SELECT user_id, purchases, _status FROM LATEST(spending, 2, 7, 1)")
    assert served == [(2, 9, "PRESENT"), (7, 0, "NOT_FOUND"), (1, 4, "PRESENT")]


def test_polars_reads_and_writes(connection):
    frame = pl.DataFrame({"id": [1, 2, 3], "name": ["a", None, "c"], "when": [days(0), days(1), None]})
    frame.write_database("from_polars", connection, engine="adbc", if_table_exists="replace")
    again = pl.read_database("SELECT * FROM from_polars ORDER BY id", connection)
    assert again.equals(frame.with_columns(pl.col("when").cast(pl.Datetime("us"))))
    some = pl.read_database(
        "SELECT name FROM from_polars WHERE id > ? ORDER BY id", connection, execute_options={"parameters": (1,)}
    )
    assert some["name"].to_list() == [None, "c"]


def test_pandas_reads_and_writes(connection):
    frame = pd.DataFrame({"id": [1, 2], "score": [0.5, None]})
    frame.to_sql("from_pandas", connection, index=False)
    again = pd.read_sql("SELECT * FROM from_pandas ORDER BY id", connection)
    pd.testing.assert_frame_equal(again, frame)


@pytest.mark.parametrize("sql", ["SELECT ? + 1 AS a, ? AS b", "SELECT $1 + 1 AS a, $2 AS b"])
def test_parameters(connection, sql):
    assert rows(connection, sql, (41, "x")) == [(42, "x")]


def test_a_statement_is_prepared_once_and_run_with_other_values(connection):
    run(connection, "CREATE TABLE numbers AS SELECT * FROM (VALUES (1, 'one'), (2, 'two')) AS t(n, word)")
    with connection.cursor() as cursor:
        for number, word in ((1, "one"), (2, "two")):
            cursor.execute("SELECT word FROM numbers WHERE n = ?", (number,))
            assert cursor.fetchall() == [(word,)]


def test_executemany_inserts_every_row_once(connection):
    run(connection, "CREATE TABLE many (n BIGINT, word VARCHAR)")
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO many VALUES (?, ?)", [(1, "one"), (2, None), (3, "three")])
    assert rows(connection, "SELECT * FROM many ORDER BY n") == [(1, "one"), (2, None), (3, "three")]


def test_a_bound_batch_of_keys_is_served_in_its_order(connection):
    run(connection, GROUP.format(name="bound"), "INSERT INTO bound VALUES (1, TIMESTAMP '2026-01-01', 5, 'x')")
    with connection.cursor() as cursor:
        keys = pa.record_batch({"key": [8, 1, 9]})
        cursor.execute("SELECT user_id, purchases, _status FROM LATEST(bound, ?)", keys)
        assert cursor.fetchall() == [(8, 0, "NOT_FOUND"), (1, 5, "PRESENT"), (9, 0, "NOT_FOUND")]


def test_an_update_counts_its_rows(connection):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE counted (n BIGINT)")
        cursor.execute("INSERT INTO counted VALUES (1), (2), (3)")
        assert cursor.rowcount == 3
    assert rows(connection, "SELECT count(*) FROM counted") == [(3,)]


TYPES = pa.table(
    {
        "boolean": pa.array([True, None]),
        "int": pa.array([-(2**31), None], pa.int32()),
        "bigint": pa.array([2**63 - 1, None], pa.int64()),
        "real": pa.array([1.5, None], pa.float32()),
        "double": pa.array([-0.1, None], pa.float64()),
        "decimal": pa.array([Decimal("12345.678"), None], pa.decimal128(18, 3)),
        "text": pa.array(["ä\n", None]),
        "bytes": pa.array([b"\x00\xff", None], pa.binary()),
        "date": pa.array([dt.date(1969, 7, 20), None]),
        "timestamp": pa.array([dt.datetime(1969, 7, 20, 20, 17, 40, 123456), None], pa.timestamp("us")),
        "instant": pa.array([dt.datetime(2026, 1, 1, 12), None], pa.timestamp("us", "UTC")),
        "embedding": pa.array([[0.1, 0.2], None], pa.list_(pa.float32())),
        "struct": pa.array([{"a": 1, "b": "x"}, None], pa.struct([("a", pa.int64()), ("b", pa.string())])),
    }
)


def test_every_type_comes_back_as_it_went(connection):
    with connection.cursor() as cursor:
        cursor.adbc_ingest("every_type", TYPES, mode="create")
        cursor.execute("SELECT * FROM every_type ORDER BY boolean NULLS LAST")
        back = cursor.fetch_arrow_table()
    assert back.to_pylist() == TYPES.to_pylist()
    for field in TYPES.schema:
        assert back.schema.field(field.name).type.equals(field.type), field


@pytest.mark.parametrize("mode,first,second", [("append", None, 4), ("create_append", 2, 4), ("replace", 2, 2)])
def test_ingest_modes_on_a_table_that_exists(connection, mode, first, second):
    table, name = pa.table({"n": [1, 2]}), f"mode_{mode}"
    with connection.cursor() as cursor:
        if first is None:
            with pytest.raises(Exception, match=name):
                cursor.adbc_ingest(name, table, mode=mode)
            cursor.adbc_ingest(name, table, mode="create")
        else:
            assert cursor.adbc_ingest(name, table, mode=mode) == first
        cursor.adbc_ingest(name, table, mode=mode)
    assert rows(connection, f"SELECT count(*) FROM {name}") == [(second,)]


def test_ingest_create_refuses_a_table_that_exists(connection):
    with connection.cursor() as cursor:
        cursor.adbc_ingest("mode_create", pa.table({"n": [1]}), mode="create")
        with pytest.raises(Exception, match="mode_create.*exists"):
            cursor.adbc_ingest("mode_create", pa.table({"n": [2]}), mode="create")
    assert rows(connection, "SELECT * FROM mode_create") == [(1,)]


def test_ingest_in_many_batches_is_one_write(connection):
    batches = pa.RecordBatchReader.from_batches(
        pa.schema([("n", pa.int64())]), (pa.record_batch({"n": range(i * 1000, i * 1000 + 1000)}) for i in range(50))
    )
    with connection.cursor() as cursor:
        assert cursor.adbc_ingest("in_batches", batches, mode="create") == 50_000
    assert rows(connection, "SELECT count(DISTINCT n), sum(n) FROM in_batches") == [(50_000, 1_249_975_000)]


def test_temporary_tables_are_seen_by_their_connection_alone(server, connection):
    with connection.cursor() as cursor:
        cursor.adbc_ingest("mine", pa.table({"n": [7]}), mode="create", temporary=True)
    assert rows(connection, "SELECT * FROM mine") == [(7,)]
    with server.connect() as other, pytest.raises(Exception, match="mine"):
        rows(other, "SELECT * FROM mine")


def test_the_current_catalog_and_schema_are_told_and_set(server, connection):
    run(connection, "CREATE SCHEMA adbc_shop", "CREATE TABLE adbc_shop.sold AS SELECT 7 AS n")
    assert (connection.adbc_current_catalog, connection.adbc_current_db_schema) == ("fletching", "public")
    connection.adbc_current_db_schema = "adbc_shop"
    assert connection.adbc_current_db_schema == "adbc_shop"
    assert rows(connection, "SELECT n FROM sold") == [(7,)]
    with connection.cursor() as cursor:
        cursor.adbc_ingest("ingested", pa.table({"n": [1, 2]}), mode="create")
    assert rows(connection, "SELECT count(*) FROM adbc_shop.ingested") == [(2,)]
    connection.adbc_current_catalog = "fletching"
    with pytest.raises(Exception, match="invalid value"):
        connection.adbc_current_catalog = "elsewhere"
    with pytest.raises(Exception, match="invalid value"):
        connection.adbc_current_db_schema = "nowhere"
    assert connection.adbc_current_db_schema == "adbc_shop"
    with server.connect() as other:
        assert other.adbc_current_db_schema == "public"


def test_session_options_are_settings(connection):
    prefix = "adbc.flight.sql.session.option."
    database = connection.adbc_connection
    database.set_options(**{prefix + "time_zone": "+02:00", prefix + "batch_size": "100"})
    assert database.get_option(prefix + "time_zone") == "+02:00"
    assert database.get_option_int(prefix + "batch_size") == 100
    assert rows(connection, "SHOW time_zone") == [("datafusion.execution.time_zone", "+02:00")]
    run(connection, "SET time_zone = 'Europe/Berlin'")
    assert database.get_option(prefix + "time_zone") == "Europe/Berlin"
    with pytest.raises(Exception, match="invalid name"):
        database.set_options(**{prefix + "nonsense": "1"})


def test_a_session_is_found_again_by_its_cookie(server):
    keeps_cookies = {"adbc.flight.sql.rpc.with_cookie_middleware": "true"}
    with server.connect(db_kwargs=keeps_cookies) as connection:
        run(connection, "CREATE SCHEMA adbc_cookie")
        connection.adbc_current_db_schema = "adbc_cookie"
        run(connection, "CREATE TEMP TABLE mine AS SELECT 3 AS n")
        assert rows(connection, "SELECT n FROM mine") == [(3,)]
        assert connection.adbc_current_db_schema == "adbc_cookie"


def test_a_result_in_several_endpoints_is_whole(connection):
    run(
        connection,
        "CREATE TABLE split (n BIGINT)",
        *(f"INSERT INTO split SELECT value FROM generate_series({i * 1000}, {i * 1000 + 999})" for i in range(4)),
        "SET endpoints = 4",
    )
    with connection.cursor() as cursor:
        partitions, schema = cursor.adbc_execute_partitions("SELECT n FROM split WHERE n >= 0")
        assert len(partitions) == 4 and schema.names == ["n"]
        counts = []
        for partition in partitions:
            cursor.adbc_read_partition(partition)
            counts.append(cursor.fetch_arrow_table().num_rows)
        assert counts == [1000] * 4
        cursor.execute("SELECT n FROM split")
        assert sorted(cursor.fetch_arrow_table()["n"].to_pylist()) == list(range(4000))
        partitions, _ = cursor.adbc_execute_partitions("SELECT n FROM split ORDER BY n")
        assert len(partitions) == 1


@pytest.mark.parametrize("schema", [None, "public", "ingest_shop"])
@pytest.mark.parametrize("temporary", [False, True])
def test_ingest_modes_by_schema_and_kind(connection, schema, temporary):
    run(connection, "CREATE SCHEMA IF NOT EXISTS ingest_shop")
    name, table = f"kind_{schema}_{temporary}".lower(), pa.table({"n": [1, 2]})
    options = {"catalog_name": "fletching", "db_schema_name": schema, "temporary": temporary}
    with connection.cursor() as cursor:
        if temporary and schema == "ingest_shop":
            with pytest.raises(Exception, match="give its name alone"):
                cursor.adbc_ingest(name, table, mode="create", **options)
            return
        for mode, expected in [
            ("append", None),
            ("create", 2),
            ("create", None),
            ("append", 4),
            ("create_append", 6),
            ("replace", 2),
        ]:
            if expected is None:
                with pytest.raises(Exception, match=name):
                    cursor.adbc_ingest(name, table, mode=mode, **options)
            else:
                assert cursor.adbc_ingest(name, table, mode=mode, **options) == 2, mode
                counted = f"SELECT count(*) FROM {schema or 'public'}.{name}"
                assert rows(connection, counted) == [(expected,)], mode
        with pytest.raises(Exception, match="elsewhere"):
            cursor.adbc_ingest(name, table, mode="append", **{**options, "catalog_name": "elsewhere"})
