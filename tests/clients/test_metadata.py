"""What tools ask before they query."""

import adbc_driver_manager as adbc
import pyarrow as pa
import pytest

from support import run

pytestmark = pytest.mark.usefixtures("objects")


@pytest.fixture(scope="module")
def objects(server):
    with server.connect() as connection:
        run(
            connection,
            "CREATE FEATURE GROUP meta_group (id BIGINT, at TIMESTAMP, v DOUBLE COMMENT 'a value',"
            " ENTITY KEY (id), EVENT TIME (at)) COMMENT 'for tools'",
            "CREATE TABLE meta_table (id BIGINT, name VARCHAR)",
        )


def found(connection, **filters):
    """catalog → schema → table → (type, columns), as adbc_get_objects tells it."""
    with connection.cursor():
        listing = connection.adbc_get_objects(**filters).read_all().to_pylist()
    return {
        catalog["catalog_name"]: {
            schema["db_schema_name"]: {
                table["table_name"]: (
                    table["table_type"],
                    [column["column_name"] for column in table["table_columns"] or []],
                )
                for table in schema["db_schema_tables"] or []
            }
            for schema in catalog["catalog_db_schemas"] or []
        }
        for catalog in listing
    }


def test_get_objects_tells_catalogs_schemas_tables_and_columns(connection):
    tables = found(connection, depth="all")["fletching"]["public"]
    assert tables["meta_group"] == ("FEATURE GROUP", ["id", "at", "v"])
    assert tables["meta_table"] == ("TABLE", ["id", "name"])


def test_get_objects_stops_at_the_depth_asked(connection):
    assert list(found(connection, depth="catalogs")) == ["fletching"]
    assert {"public", "system"} <= set(found(connection, depth="db_schemas")["fletching"])


def test_get_objects_takes_patterns(connection):
    tables = found(connection, depth="tables", table_name_filter="meta%")["fletching"]["public"]
    assert set(tables) == {"meta_group", "meta_table"}
    only = found(connection, depth="tables", table_types_filter=["FEATURE GROUP"])["fletching"]["public"]
    assert "meta_group" in only and "meta_table" not in only


@pytest.mark.parametrize(
    "filters,expected",
    [
        ({"catalog_filter": "fletching", "table_name_filter": "meta_t%"}, {"meta_table": ["id", "name"]}),
        ({"catalog_filter": "elsewhere"}, {}),
        ({"db_schema_filter": "publ_c", "table_name_filter": "meta_table"}, {"meta_table": ["id", "name"]}),
        ({"db_schema_filter": "elsewhere"}, {}),
        ({"table_name_filter": "meta_____p", "column_name_filter": "i%"}, {"meta_group": ["id"]}),
        ({"table_name_filter": "META%"}, {}),
        ({"table_name_filter": "meta%", "table_types_filter": ["FEATURE GROUP", "VIEW"]}, {"meta_group": ["id", "at", "v"]}),
    ],
)
def test_get_objects_filters_at_every_depth(connection, filters, expected):
    everything = found(connection, depth="all", **filters)
    tables = {
        name: columns
        for schemas in everything.values()
        for tables in schemas.values()
        for name, (_, columns) in tables.items()
    }
    assert tables == expected


def test_get_objects_describes_columns(connection):
    listing = connection.adbc_get_objects(depth="all", table_name_filter="meta_group", db_schema_filter="public")
    (table,) = listing.read_all().to_pylist()[0]["catalog_db_schemas"][0]["db_schema_tables"]
    told = [
        (column["ordinal_position"], column["xdbc_type_name"], column["xdbc_data_type"], column["xdbc_scope_table"])
        for column in table["table_columns"]
    ]
    assert told == [(1, "BIGINT", -5, "meta_group"), (2, "TIMESTAMP", 93, "meta_group"), (3, "DOUBLE", 6, "meta_group")]


def test_what_the_driver_has_no_code_for(connection):
    for ask in (connection.adbc_get_statistics, connection.adbc_get_statistic_names):
        with pytest.raises(adbc.NotSupportedError):
            ask()


def test_get_table_schema(connection):
    assert connection.adbc_get_table_schema("meta_table").types == [pa.int64(), pa.string()]
    schema = connection.adbc_get_table_schema("features", catalog_filter="fletching", db_schema_filter="system")
    assert schema.names
    for missing in ({"table_name": "nowhere"}, {"table_name": "meta_table", "db_schema_filter": "system"}):
        with pytest.raises(adbc.ProgrammingError, match="NOT_FOUND"):
            connection.adbc_get_table_schema(**missing)


def test_get_table_types(connection):
    assert {"TABLE", "FEATURE GROUP"} <= set(connection.adbc_get_table_types())


def test_get_info(connection):
    info = connection.adbc_get_info()
    assert info["vendor_name"].lower() == "fletching"
    assert info["vendor_version"] and info["vendor_arrow_version"]
    assert info["driver_adbc_version"] >= 1_001_000


def test_feature_groups_describe_themselves_in_sql(connection):
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM system.feature_groups WHERE name = 'meta_group'")
        groups = cursor.fetch_arrow_table().to_pylist()
        cursor.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 'meta_group'")
        columns = [name for (name,) in cursor.fetchall()]
    assert len(groups) == 1 and "for tools" in groups[0].values()
    assert set(columns) >= {"id", "at", "v"}


def test_patterns_may_escape_their_wildcards(connection):
    run(connection, "CREATE TABLE meta_1 (n BIGINT)", "CREATE TABLE metax1 (n BIGINT)")
    for pattern, expected in [
        ("meta_1", {"meta_1", "metax1"}),
        ("meta\\_1", {"meta_1"}),
        ("META%", set()),
    ]:
        tables = found(connection, depth="tables", table_name_filter=pattern)["fletching"].get("public", {})
        assert set(tables) == expected, pattern


def test_columns_carry_type_names_remarks_and_nullability(connection):
    with connection.cursor():
        listing = connection.adbc_get_objects(depth="columns", table_name_filter="meta_group").read_all().to_pylist()
    (table,) = [t for s in listing[0]["catalog_db_schemas"] for t in s["db_schema_tables"] or []]
    columns = {column["column_name"]: column for column in table["table_columns"]}
    assert [columns[name]["xdbc_type_name"] for name in ("id", "at", "v")] == ["BIGINT", "TIMESTAMP", "DOUBLE"]
    assert [columns[name]["ordinal_position"] for name in ("id", "at", "v")] == [1, 2, 3]
