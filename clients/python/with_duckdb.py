"""Results of Fletching as tables of DuckDB, by Arrow, without a copy in between."""

import os

import adbc_driver_flightsql.dbapi as flight_sql
import duckdb

with (
    flight_sql.connect(os.environ.get("FLETCHING_URL", "grpc://127.0.0.1:8815"), autocommit=True) as connection,
    connection.cursor() as cursor,
):
    cursor.execute("SELECT value AS n, value % 3 AS remainder FROM generate_series(1, 1000)")
    numbers = cursor.fetch_record_batch()
    print(duckdb.sql("SELECT remainder, count(*) AS count, sum(n) AS sum FROM numbers GROUP BY remainder ORDER BY 1"))
