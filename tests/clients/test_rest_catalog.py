"""Tables in a catalog that speaks Iceberg's REST protocol: Iceberg's own server, over files of this machine."""

import http.client
import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import adbc_driver_manager as adbc
import pytest

from support import BINARY, rows, rows_by_pyiceberg, run

WRITERS, WRITES, BULK = 3, 12, 1500


@pytest.fixture
def servers(own_server, rest_catalog, tmp_path):
    """Two of them, on one catalog."""
    shared = ["--catalog", rest_catalog.url, "--warehouse", tmp_path / "warehouse"]
    return own_server(*shared), own_server(*shared)


def by_pyiceberg(catalog, table):
    return rows_by_pyiceberg(table, type="rest", uri=catalog.url)


def test_a_group_lives_as_in_any_catalog(servers, rest_catalog):
    one, two = servers
    with one.connect() as first, two.connect() as second:
        run(first, "CREATE SCHEMA shop")
        assert ("shop",) in rows(second, "SELECT schema_name FROM information_schema.schemata")
        run(first, "CREATE FEATURE GROUP shop.g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))")
        with pytest.raises(adbc.Error, match="exists already"):
            run(second, "CREATE TABLE shop.g (x BIGINT)")
        run(first, "INSERT INTO shop.g VALUES (1, TIMESTAMP '2026-01-01', 10), (2, TIMESTAMP '2026-01-01', 20)", "CHECKPOINT")
        run(second, "ALTER FEATURE GROUP shop.g ADD FEATURE word VARCHAR DEFAULT 'none'")
        run(second, "INSERT INTO shop.g VALUES (1, TIMESTAMP '2026-01-02', 11, 'a')", "CHECKPOINT")
        expected = [(1, 10, None), (1, 11, "a"), (2, 20, None)]
        latest = "SELECT id, v, word FROM shop.g ORDER BY id, at"
        assert rows(first, latest) == rows(second, latest) == expected
        theirs = by_pyiceberg(rest_catalog, "shop.g")
        assert sorted((row[0], row[2]) for row in theirs) == [(1, 10), (1, 11), (2, 20)]

        snapshots = rows(first, 'SELECT snapshot_id FROM shop."g$snapshots" ORDER BY committed_at')
        assert rows(first, f"SELECT count(*) FROM shop.g FOR VERSION AS OF {snapshots[0][0]}") == [(2,)]
        rows(first, "OPTIMIZE shop.g FULL")
        assert rows(second, latest) == expected
        run(second, "ALTER FEATURE GROUP shop.g DROP FEATURE word")
        run(second, "DELETE FROM shop.g WHERE id = 2")
        rows(second, "VACUUM shop.g RETAIN '0 seconds'")  # the first may have the deletion still to apply
        assert len(rows(first, 'SELECT * FROM shop."g$snapshots"')) == 1
        assert rows(second, "SELECT id, v FROM shop.g ORDER BY at") == [(1, 10), (1, 11)]
        assert sorted((row[0], row[2]) for row in by_pyiceberg(rest_catalog, "shop.g")) == [(1, 10), (1, 11)]

        with pytest.raises(adbc.Error, match="not empty"):
            run(first, "DROP SCHEMA shop")
        run(first, "DROP FEATURE GROUP shop.g", "DROP SCHEMA shop")
        assert ("shop",) not in rows(second, "SELECT schema_name FROM information_schema.schemata")


def test_tables_come_with_their_rows_and_are_not_replaced(servers, rest_catalog):
    one, two = servers
    with one.connect() as first, two.connect() as second:
        run(first, "CREATE SCHEMA odd", "CREATE TABLE odd.\"od/d 100%\" AS SELECT value AS n FROM generate_series(1, 3)")
        assert rows(second, 'SELECT sum(n) FROM odd."od/d 100%"') == [(6,)]
        with pytest.raises(adbc.Error, match="DROP TABLE"):
            run(second, 'CREATE OR REPLACE TABLE odd."od/d 100%" AS SELECT 1 AS n')
        run(second, 'INSERT INTO odd."od/d 100%" VALUES (4)')
        assert rows(first, 'SELECT sum(n) FROM odd."od/d 100%"') == [(10,)]
        for name in ("a\tb", "..", "."):
            with pytest.raises(adbc.Error, match="cannot have the name"):
                run(first, f'CREATE TABLE odd."{name}" (x BIGINT)')
        run(first, 'DROP TABLE odd."od/d 100%"')
        assert rows(second, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'odd'") == []


def test_writers_on_two_servers_lose_and_double_nothing(servers, rest_catalog):
    one, two = servers
    with one.connect() as connection:
        run(connection, "CREATE FEATURE GROUP crowd (id BIGINT, at TIMESTAMP, ENTITY KEY (id), EVENT TIME (at))")

    def write(writer, server):
        with server.connect() as connection:
            for number in range(WRITES):
                first = (writer * WRITES + number) * BULK
                values = f"SELECT value AS id, TIMESTAMP '2026-01-01' AS at FROM generate_series({first}, {first + BULK - 1})"
                run(connection, f"INSERT INTO crowd {values}")

    writers = [threading.Thread(target=write, args=(number, servers[number % 2])) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    total = WRITERS * WRITES * BULK
    for server in servers:
        with server.connect() as connection:
            assert rows(connection, "SELECT count(*), count(DISTINCT id), max(id) FROM crowd") == [(total, total, total - 1)]


def test_a_catalog_that_is_gone_is_named_and_found_again(servers, rest_catalog):
    server = servers[0]
    with server.connect() as connection:
        run(connection, "CREATE FEATURE GROUP kept (id BIGINT, at TIMESTAMP, ENTITY KEY (id), EVENT TIME (at))")
        run(connection, "INSERT INTO kept VALUES (1, TIMESTAMP '2026-01-01')")
        rest_catalog.close()
        with pytest.raises(adbc.Error, match=f"the catalog at '{rest_catalog.url}' does not answer"):
            run(connection, "CREATE TABLE t (x BIGINT)")
        rest_catalog.start()
        run(connection, "CREATE TABLE t (x BIGINT)", "CHECKPOINT kept", "DROP TABLE t")
        assert rows(connection, "SELECT count(*) FROM kept") == [(1,)]


class Gateway(ThreadingHTTPServer):
    """Stands before the catalog: asks for a token, has the catalog below a path and a prefix, and fails when told to."""

    PATH, PREFIX, TOKEN = "/some/v1/catalogs", "main%7Cshop", "not-for-logs"

    def __init__(self, catalog):
        super().__init__(("127.0.0.1", 0), Handler)
        self.daemon_threads = True
        self.catalog, self.fails_with, self.loses_answers = catalog, None, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}{self.PATH}"


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self):
        gateway = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {gateway.TOKEN}":
            return self.answer(401, b"who are you?")
        if gateway.fails_with:
            return self.answer(*gateway.fails_with)
        path = self.path.removeprefix(f"{gateway.PATH}/v1")
        if path.startswith("/config"):
            config = {"defaults": {}, "overrides": {"prefix": gateway.PREFIX}}
            return self.answer(200, json.dumps(config).encode())
        assert path.startswith(f"/{gateway.PREFIX}/"), self.path
        behind = http.client.HTTPConnection("127.0.0.1", gateway.catalog.port, timeout=30)
        behind.request(self.command, "/v1" + path.removeprefix(f"/{gateway.PREFIX}"), body, {"Content-Type": "application/json"})
        answered = behind.getresponse()
        status, said = answered.status, answered.read()
        if self.command == "POST" and gateway.loses_answers:
            gateway.loses_answers -= 1
            status, said = 503, b"<html>try again</html>"
        return self.answer(status, said)

    do_GET = do_POST = do_DELETE = handle_any

    def log_message(self, *_):
        pass


def refused(place, folder):
    """What a server says that does not start."""
    serve = [BINARY, "serve", "--data-dir", folder / "refused", "--listen", "127.0.0.1:0", "--http-listen", "off"]
    done = subprocess.run([*serve, *place], capture_output=True, timeout=120, check=False)
    assert done.returncode in (1, 2)
    return done.stderr.decode()


def test_a_gateway_before_the_catalog(own_server, rest_catalog, tmp_path):
    gateway = Gateway(rest_catalog)
    token = tmp_path / "token"
    token.write_text("wrong\n")
    place = ["--catalog", gateway.url, "--catalog-token-file", token, "--warehouse", tmp_path / "warehouse"]
    assert "refuses access" in refused(place, tmp_path)
    token.write_text(f"{gateway.TOKEN}\n")
    gateway.fails_with = (308, b"", [("Location", "https://elsewhere/")])
    assert "it is elsewhere, 'https://elsewhere/'" in refused(place, tmp_path)
    gateway.fails_with = None
    server = own_server(*place, "--fold-interval", "100ms")
    with server.connect() as connection:
        run(connection, "CREATE SCHEMA behind")
        run(connection, "CREATE FEATURE GROUP behind.g (id BIGINT, at TIMESTAMP, ENTITY KEY (id), EVENT TIME (at))")
        gateway.loses_answers = 2
        for first in (0, 2000):
            values = f"SELECT value AS id, TIMESTAMP '2026-01-01' AS at FROM generate_series({first}, {first + 1999})"
            run(connection, f"INSERT INTO behind.g {values}")
        assert gateway.loses_answers == 0
        count = "SELECT count(*), count(DISTINCT id) FROM behind.g"
        assert rows(connection, count) == [(4000, 4000)]
        # A page of somebody who does not know the catalog says nothing of what is in it.
        run(connection, "INSERT INTO behind.g VALUES (4000, TIMESTAMP '2026-01-01')")
        gateway.fails_with = (404, b"<html>no such page</html>")
        for sql in ("CHECKPOINT behind.g", "CREATE TABLE behind.t (x BIGINT)"):
            with pytest.raises(adbc.Error, match="(?i)unavailable"):
                run(connection, sql)
        gateway.fails_with = None
        run(connection, "CHECKPOINT behind.g")
        assert rows(connection, count) == [(4001, 4001)]
    server.stop()
    assert gateway.TOKEN not in server.log.read_text()
    gateway.shutdown()
