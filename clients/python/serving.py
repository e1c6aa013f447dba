"""Feature vectors for a model server: three ways to ask, each with a stock client."""

import json
import os
import threading

import adbc_driver_flightsql.dbapi as flight_sql
import pyarrow as pa
import pyarrow.flight as flight

URL = os.environ.get("FLETCHING_URL", "grpc://127.0.0.1:8815")

# A prepared statement: with the same text the driver prepares once, and each call binds, asks and fetches.
with flight_sql.connect(URL, autocommit=True) as connection, connection.cursor() as cursor:
    cursor.execute("""
        CREATE FEATURE GROUP IF NOT EXISTS user_activity (
            user_id BIGINT, at TIMESTAMP, clicks BIGINT DEFAULT 0, spend DOUBLE,
            ENTITY KEY (user_id), EVENT TIME (at)
        ) WITH (ttl = '3650 days')""")
    cursor.execute("INSERT INTO user_activity VALUES (42, TIMESTAMP '2026-01-01', 7, 19.99), (43, TIMESTAMP '2026-01-02', 9, 5.5)")
    for user in (42, 43):
        cursor.execute("SELECT clicks, spend FROM LATEST(user_activity, ?)", (user,))
        print("prepared", user, cursor.fetchall())

# One round trip: the query and its parameters are the ticket. As many keys as you like, answered in their order.
client = flight.connect(URL)
query = "SELECT user_id, clicks, spend, _status FROM LATEST(user_activity, ?)"
ticket = flight.Ticket(json.dumps({"query": query, "parameters": [42, 43, 44]}))
print("one round trip", client.do_get(ticket).read_all().to_pylist())

# A stream: batches of keys in, batches of features out, in order; what you send along comes back with the answer.
descriptor = flight.FlightDescriptor.for_command(json.dumps({"query": query}))
keys = pa.schema([("user_id", pa.int64())])
writer, reader = client.do_exchange(descriptor)


def ask():
    writer.begin(keys)
    for number, users in enumerate([[42], [44, 43]]):
        writer.write_with_metadata(pa.record_batch([users], schema=keys), f"request {number}".encode())
    writer.done_writing()


asking = threading.Thread(target=ask)
asking.start()
for answer in reader:
    print(answer.app_metadata.to_pybytes().decode(), answer.data.to_pylist())
asking.join()
writer.close()
