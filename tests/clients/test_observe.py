"""What an operator sees from outside: health, metrics, the log, and what runs."""

import json
import re
import threading
import time
from urllib.error import HTTPError
from urllib.request import urlopen

import adbc_driver_manager as adbc
import pyarrow as pa
import pyarrow.flight as flight
import pytest

from support import ROOT, rows, run

ENDLESS = "SELECT value FROM generate_series(1, 1000000000000)"


def read(server, path):
    with urlopen(f"http://127.0.0.1:{server.http_port}{path}", timeout=30) as answer:
        return answer.read().decode()


def metrics(server):
    lines = (line for line in read(server, "/metrics").splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_health(server, connection):
    assert rows(connection, "SELECT 1") == [(1,)]  # it may have been starting
    assert read(server, "/health/live") == "live\n"
    assert read(server, "/health/ready") == "ready\nonline store: answers\n"
    with pytest.raises(HTTPError) as caught:
        read(server, "/")
    assert caught.value.code == 404


def test_metrics_move(server, connection):
    ok = 'fletching_queries_total{kind="query",outcome="ok"}'
    before = metrics(server)
    assert rows(connection, "SELECT 1") == [(1,)]
    with pytest.raises(adbc.Error):
        rows(connection, "SELECT * FROM nowhere")
    after = metrics(server)
    assert after[ok] == before[ok] + 1
    assert after["fletching_rows_sent_total"] == before["fletching_rows_sent_total"] + 1
    assert after["fletching_sent_bytes_total"] > before["fletching_sent_bytes_total"]
    assert after["process_resident_memory_bytes"] > 1e6


def test_the_log_tells_of_a_statement(server, connection):
    assert rows(connection, "SELECT ? + 1 AS told_in_the_log", (424242,)) == [(424243,)]
    log = server.log.read_text()
    line = next(line for line in log.splitlines() if "told_in_the_log" in line)
    assert "fletching::query" in line and "outcome" in line
    assert "424242" not in log


def test_what_runs_is_seen_and_ended_from_another_connection(server, connection):
    ended = []

    def read_all():
        with server.connect() as other, other.cursor() as cursor:
            try:
                cursor.execute(ENDLESS)
                for _ in cursor.fetch_record_batch():
                    pass
            except Exception as error:  # what pyarrow makes of it
                ended.append(str(error))

    reader = threading.Thread(target=read_all)
    reader.start()
    deadline = time.monotonic() + 60
    running = []
    while not running:
        assert time.monotonic() < deadline
        found = "SELECT query_id, rows FROM system.queries WHERE state = 'running' AND rows > 0"
        running = rows(connection, found)
    run(connection, f"KILL QUERY '{running[0][0]}'")
    reader.join(timeout=60)
    assert not reader.is_alive()
    assert "cancelled" in ended[0], ended
    assert rows(connection, "SELECT count(*) FROM system.queries WHERE state = 'running'") == [(0,)]


def test_the_shell_sees_and_ends_too(server, connection):
    assert "planning" in server.sql("-c", "SELECT state FROM system.queries")
    with server.connect() as other, other.cursor() as cursor:
        cursor.execute(ENDLESS)
        reader = cursor.fetch_record_batch()
        reader.read_next_batch()
        ids = server.sql("-c", "SELECT query_id FROM system.queries WHERE state = 'running'", "--format", "csv")
        server.sql("-c", f"KILL QUERY '{ids.split()[1]}'")
        with pytest.raises(Exception, match="cancelled"):
            while True:
                reader.read_next_batch()


def test_the_readme_names_what_there_is(server, connection):
    assert rows(connection, "SELECT 1") == [(1,)]  # it may have been starting
    page = (ROOT / "README.md").read_text()
    section = page.split("\n## Watching it\n")[1].split("\n## ")[0]
    named = re.findall(r"`(fletching_\w+)`", section)
    assert named
    there = read(server, "/metrics")
    for name in named:
        assert re.search(rf"^{name}(_count)?[{{ ]", there, re.MULTILINE), name


def test_results_are_compressed_for_those_who_ask(server):
    query = "SELECT value / 1000 AS v, 'the same' AS t FROM generate_series(1, 200000) ORDER BY 1"
    client = flight.connect(server.url)
    sent = []
    tables = []
    for headers in ([], [(b"fletching-compression", b"lz4")], [(b"fletching-compression", b"zstd")]):
        before = metrics(server)["fletching_sent_bytes_total"]
        options = flight.FlightCallOptions(headers=headers)
        tables.append(client.do_get(flight.Ticket(json.dumps({"query": query})), options).read_all())
        sent.append(metrics(server)["fletching_sent_bytes_total"] - before)
    assert tables[0].num_rows == 200_000 and all(table.equals(tables[0]) for table in tables)
    assert all(bytes * 3 < sent[0] for bytes in sent[1:]), sent
    header = {"adbc.flight.sql.rpc.call_header.fletching-compression": "lz4"}
    with server.connect(db_kwargs=header) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        assert cursor.fetch_arrow_table().equals(tables[0])
    with pytest.raises(pa.ArrowInvalid, match="lz4, zstd or none"):
        options = flight.FlightCallOptions(headers=[(b"fletching-compression", b"gzip")])
        client.do_get(flight.Ticket(json.dumps({"query": query})), options).read_all()
