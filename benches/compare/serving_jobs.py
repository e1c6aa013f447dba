"""The jobs of serving.py: what a client does, in a process of its own, and how long each call took."""

import json
import os
import socket
import time
from contextlib import contextmanager
from random import Random

from data import FEATURES, SEED, VECTOR, served_purchases, served_vectors
from jobs import connect, feast_store, main, run_sql

WARM_UP_CALLS = 200
FEAST_TTL_DAYS = 30
START_SECONDS_MAX = 60
VISIBLE_SECONDS_MAX = 20
SERVED = {"purchases": served_purchases, "vectors": served_vectors}


def latencies(call, calls, keys, entities, let_go=lambda: None):
    """Calls one after the other, each for random entities. `call` returns what `f00` is, which must be right.

    Milliseconds until the answer is there, and ("whole") until `let_go` has released what the client keeps of it.
    """
    import numpy as np
    from data import feature

    random, seconds, whole = Random(SEED), [], []
    for _ in range(min(WARM_UP_CALLS, calls) + calls):
        users = [random.randrange(entities) for _ in range(keys)]
        started = time.perf_counter()
        found = call(users)
        seconds.append(time.perf_counter() - started)
        let_go()
        whole.append(time.perf_counter() - started)
        expected = feature(np.array(users), 0)
        if not np.array_equal(np.asarray(found), expected):
            raise ValueError(f"entities {users[:5]}…: f00 is {found[:5]}…, not {expected[:5]}…")
    return {
        f"{prefix}p{percent}_ms": float(np.percentile(np.array(times[-calls:]) * 1000, percent))
        for prefix, times in (("", seconds), ("whole_", whole))
        for percent in (50, 99)
    }


# Fletching.


def ingest(url, table, served, entities):
    """Rows for all entities, through ADBC; seconds until they are acknowledged."""
    rows = SERVED[served](entities)
    with connect(url) as connection, connection.cursor() as cursor:
        started = time.perf_counter()
        cursor.adbc_ingest(table, rows.to_reader(max_chunksize=16384), mode="append")
        return {"seconds": time.perf_counter() - started}


def get_by_ticket(url, query, **asked):
    """pyarrow's Flight client and the direct ticket: one round trip."""
    import pyarrow.flight as flight

    with flight.FlightClient(url.replace("grpc://", "grpc+tcp://")) as client:

        def get(users):
            ticket = flight.Ticket(json.dumps({"query": query, "parameters": users}).encode())
            return client.do_get(ticket).read_all().column("f00")

        return latencies(get, **asked)


def get_prepared(url, query, **asked):
    """ADBC's own interface: a statement prepared once, bound and executed.

    The driver runs a garbage collection of Go's whenever a stream of results is released: it is let go of when the answer
    has been taken.
    """
    import adbc_driver_flightsql
    import adbc_driver_manager
    import pyarrow as pa

    driver = adbc_driver_flightsql._driver_path()
    with (
        adbc_driver_manager.AdbcDatabase(driver=driver, uri=url) as database,
        adbc_driver_manager.AdbcConnection(database) as connection,
        adbc_driver_manager.AdbcStatement(connection) as statement,
    ):
        statement.set_sql_query(query)
        statement.prepare()

        held = []

        def get(users):
            statement.bind(pa.record_batch({"user_id": users}))
            stream, _ = statement.execute_query()
            held.append(pa.RecordBatchReader._import_from_c(stream.address))
            return held[0].read_all().column("f00")

        return latencies(get, let_go=held.clear, **asked)


def get_by_cursor(url, query, **asked):
    """What most people write: `cursor.execute` with the same text each time."""
    with connect(url) as connection, connection.cursor() as cursor:

        def get(users):
            cursor.execute(query, users)
            return cursor.fetch_arrow_table().column("f00")

        return latencies(get, **asked)


def visibility(url, reader, group, times):
    """Milliseconds from the end of each write through `url` until `reader`, with the old value cached, shows it."""
    latest = f"SELECT v FROM LATEST({group}, ?)"
    milliseconds = []
    with connect(url) as here, connect(reader) as there:
        with here.cursor() as writing, here.cursor() as reading_here, there.cursor() as reading_there:

            def shown(cursor):
                cursor.execute(latest, [1])
                return cursor.fetchone()[0]

            for value in range(1, times + 1):
                before = shown(reading_there)
                writing.execute(f"INSERT INTO {group} VALUES (1, now(), {value})")
                written = time.perf_counter()
                if shown(reading_here) != value:
                    raise ValueError(f"write {value} is not visible on the server that took it")
                while shown(reading_there) != value:
                    if time.perf_counter() - written > VISIBLE_SECONDS_MAX:
                        raise ValueError(f"write {value} is not visible on the other server, which shows {before}")
                milliseconds.append((time.perf_counter() - written) * 1000)
    return {"ms": milliseconds}


# Feast.


@contextmanager
def feast_on_redis(port, view, features, rows):
    """A store whose entries expire as Fletching's do."""
    import tempfile

    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as directory:
        source = f"{directory}/source.parquet"
        pq.write_table(rows.slice(0, 1), source)
        online = {"type": "redis", "connection_string": f"127.0.0.1:{port}"}
        online["key_ttl_seconds"] = FEAST_TTL_DAYS * 24 * 60 * 60
        yield feast_store(directory, online, view, features, source, FEAST_TTL_DAYS)


def feast_reads(port, entities, calls):
    """Entities × 50 features, by the SDK in this process and by Feast's own server; `calls` by entities a call."""
    rows = served_vectors(entities)
    with feast_on_redis(port, "user_features", dict.fromkeys(VECTOR, "DOUBLE"), rows) as store:
        store.write_to_online_store("user_features", rows.to_pandas())
        names = [f"user_features:{name}" for name in VECTOR]

        def by_sdk(users):
            asked = [{"user_id": user} for user in users]
            return store.get_online_features(features=names, entity_rows=asked).to_dict()["f00"]

        with feast_server(store) as ask:

            def by_server(users):
                answer = ask({"features": names, "entities": {"user_id": users}})
                column = answer["metadata"]["feature_names"].index("f00")
                return answer["results"][column]["values"]

            return {
                name: {keys: latencies(get, times, int(keys), entities) for keys, times in calls.items()}
                for name, get in {"SDK": by_sdk, "server": by_server}.items()
            }


@contextmanager
def feast_server(store):
    """`feast serve`, as it comes: one worker. Yields how to ask it."""
    import http.client
    import multiprocessing

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = multiprocessing.get_context("fork").Process(target=serve_feast, args=(store, port))
    serve.start()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                connection.connect()
                break
            except OSError:
                if time.monotonic() > deadline or not serve.is_alive():
                    raise
                time.sleep(0.1)

        def ask(question):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/get-online-features", json.dumps(question), headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise ValueError(f"feast serve: {answer.status} {text[:500]}")
            return json.loads(text)

        yield ask
    finally:
        connection.close()
        serve.terminate()
        serve.join()


def serve_feast(store, port):
    # The job's output is its result.
    os.dup2(2, 1)
    store.serve("127.0.0.1", port, "http", True, workers=1, max_requests=0)


def feast_writes(port, entities):
    """Entities × 10 features into an empty Redis."""
    rows = served_purchases(entities)
    frame = rows.to_pandas()
    with feast_on_redis(port, "purchases", FEATURES, rows) as store:
        started = time.perf_counter()
        store.write_to_online_store("purchases", frame)
        return {"seconds": time.perf_counter() - started}


JOBS = [run_sql, ingest, get_by_ticket, get_prepared, get_by_cursor, visibility, feast_reads, feast_writes]

if __name__ == "__main__":
    main(JOBS)
