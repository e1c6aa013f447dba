"""A feature group written and served with polars alone."""

import os
from datetime import datetime, timezone

import adbc_driver_flightsql.dbapi as flight_sql
import polars as pl

now = datetime.now(timezone.utc).replace(tzinfo=None)
vectors = pl.DataFrame({"item": ["tea", "cup"], "at": [now, now], "embedding": [[0.1, 0.9], [0.8, 0.2]]})

with flight_sql.connect(os.environ.get("FLETCHING_URL", "grpc://127.0.0.1:8815"), autocommit=True) as connection:
    with connection.cursor() as cursor:
        cursor.execute("""
            CREATE FEATURE GROUP IF NOT EXISTS item_vectors (
                item VARCHAR, at TIMESTAMP, embedding DOUBLE[], ENTITY KEY (item), EVENT TIME (at))""")
    vectors.write_database("item_vectors", connection, engine="adbc", if_table_exists="append")
    print(pl.read_database("SELECT item, embedding, _status FROM LATEST(item_vectors, 'cup', 'pot')", connection))
