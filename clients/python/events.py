"""Single events, each acknowledged as soon as it is durable: a stream of writes by stock pyarrow."""

import json
import os
from datetime import datetime

import adbc_driver_flightsql.dbapi as flight_sql
import pyarrow as pa
import pyarrow.flight as flight

URL = os.environ.get("FLETCHING_URL", "grpc://127.0.0.1:8815")

with flight_sql.connect(URL, autocommit=True) as connection, connection.cursor() as cursor:
    cursor.execute("""
        CREATE FEATURE GROUP IF NOT EXISTS user_clicks (
            user_id BIGINT, at TIMESTAMP, clicks BIGINT, ENTITY KEY (user_id), EVENT TIME (at)
        )""")

# One call for all events of this process: each batch is a write, and each answer says that one of them is durable.
client = flight.connect(URL)
schema = pa.schema([("user_id", pa.int64()), ("at", pa.timestamp("us")), ("clicks", pa.int64())])
descriptor = flight.FlightDescriptor.for_command(json.dumps({"append": "user_clicks"}))
writer, acknowledgements = client.do_put(descriptor, schema)
for number in range(3):
    event = pa.record_batch([[42], [datetime(2026, 1, 1, 12, number)], [number]], schema=schema)
    # What comes with a batch is its idempotency key: sent again, over whatever connection, it lands once.
    writer.write_with_metadata(event, f"session-7/{number}".encode())
    if acknowledgements.read() is None:
        break  # the stream has ended: closing it says why
    print("durable", number)
writer.close()

with flight_sql.connect(URL) as connection, connection.cursor() as cursor:
    cursor.execute("SELECT clicks FROM LATEST(user_clicks, 42)")
    print("latest", cursor.fetchall())
    cursor.execute("SELECT count(*) FROM user_clicks")
    print("events", cursor.fetchone()[0])
