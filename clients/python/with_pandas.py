"""Labels in pandas, features from Fletching, a training set back in pandas."""

import os

import adbc_driver_flightsql.dbapi as flight_sql
import pandas as pd
import pyarrow as pa

with (
    flight_sql.connect(os.environ.get("FLETCHING_URL", "grpc://127.0.0.1:8815"), autocommit=True) as connection,
    connection.cursor() as cursor,
):
    cursor.execute("""
        CREATE FEATURE GROUP IF NOT EXISTS user_baskets (
            user_id BIGINT, event_timestamp TIMESTAMP, purchase_count_7d BIGINT DEFAULT 0,
            ENTITY KEY (user_id), EVENT TIME (event_timestamp)
        ) WITH (ttl = '30 days')""")
    cursor.execute("""
        INSERT INTO user_baskets VALUES
            (42, TIMESTAMP '2026-01-01', 3), (42, TIMESTAMP '2026-01-08', 5), (43, TIMESTAMP '2026-01-02', 1)""")

    labels = pd.DataFrame({"user_id": [42, 42, 44], "at": pd.to_datetime(["2026-01-07", "2026-01-09", "2026-01-09"])})
    cursor.adbc_ingest("labels", pa.Table.from_pandas(labels, preserve_index=False), mode="create", temporary=True)
    cursor.execute("""
        SELECT l.*, f.purchase_count_7d
        FROM labels l
        ASOF JOIN user_baskets f MATCH_CONDITION (l.at >= f.event_timestamp) ON l.user_id = f.user_id
        ORDER BY l.user_id, l.at""")
    print(cursor.fetch_df())
