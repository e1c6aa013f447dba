"""Users, tokens and TLS, by the stock drivers as people use them."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi as flight_sql
import adbc_driver_manager as adbc
import pyarrow.flight as flight
import pytest

from support import BINARY, ROOT, Server, free_port, rows, wait_for_port
from test_readme import blocks

PASSWORD = "correct: hörse"
TLS_ROOT = adbc_driver_flightsql.DatabaseOptions.TLS_ROOT_CERTS.value
TLS_CERT = adbc_driver_flightsql.DatabaseOptions.MTLS_CERT_CHAIN.value
TLS_KEY = adbc_driver_flightsql.DatabaseOptions.MTLS_PRIVATE_KEY.value
HEADER = adbc_driver_flightsql.DatabaseOptions.AUTHORIZATION_HEADER.value


class Authority:
    """A certificate authority of our own, and what it signs."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.ca, self.key = self.make("authority")

    def make(self, name, *more):
        """Files of a certificate and its key."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-days", "2", "-subj", f"/CN={name}", "-keyout", key, "-out", cert, *more]
        subprocess.run(command, check=True, capture_output=True)
        return cert, key

    def sign(self, name):
        signed = ["-CA", self.ca, "-CAkey", self.key, "-addext", "basicConstraints=critical,CA:FALSE"]
        return self.make(name, *signed, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")


def user_line(*arguments):
    """What `fletching user` writes: the line, and what it tells."""
    done = subprocess.run([BINARY, "user", *arguments], input=f"{PASSWORD}\n", capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


class Secured:
    """A server, its users file, and the token of the service that it names."""

    def __init__(self, folder, *arguments):
        line, told = user_line("service", "--token")
        self.token = told.split()[-1]
        self.users = folder / "users"
        self.users.write_text(user_line("ada")[0] + line)
        self.server = Server(folder / "data", "--users-file", self.users, *arguments)

    def connect(self, url=None, **options):
        return flight_sql.connect(url or self.server.url, db_kwargs=options, autocommit=True)

    def jdbc(self, parameters):
        return f"jdbc:arrow-flight-sql://localhost:{self.server.port}?{parameters}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    secured = Secured(tmp_path_factory.mktemp("plain"))
    yield secured
    secured.server.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory, authority):
    cert, key = authority.sign("server")
    secured = Secured(tmp_path_factory.mktemp("encrypted"), "--tls-cert", cert, "--tls-key", key)
    yield secured
    secured.server.close()


@pytest.fixture(scope="module")
def mutual(tmp_path_factory, authority):
    """A server where a certificate is all that a client needs."""
    cert, key = authority.sign("server2")
    arguments = ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", authority.ca]
    server = Server(tmp_path_factory.mktemp("mutual") / "data", *arguments)
    yield server
    server.close()


@pytest.fixture(scope="module")
def java(jdbc_driver):
    """What SignIn.java says of a URL."""

    def run(url, password=None):
        source = ROOT / "tests" / "clients" / "java" / "SignIn.java"
        command = ["java", "--add-opens=java.base/java.nio=ALL-UNNAMED", "-cp", jdbc_driver, source, url]
        environment = os.environ | ({"PASSWORD": password} if password else {})
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith(("answer", "types", "refused"))]

    return run


def answers(connection):
    """A question, a prepared statement, and what exists."""
    with connection:
        assert rows(connection, "SELECT 1") == [(1,)]
        assert rows(connection, "SELECT ? + 1", (41,)) == [(42,)]
        assert connection.adbc_get_table_types()


def refused(connect, *words):
    with pytest.raises(adbc.Error) as caught, connect() as connection:
        rows(connection, "SELECT 1")
    assert caught.value.status_code == adbc.AdbcStatusCode.UNAUTHENTICATED, caught.value
    for word in words:
        assert word in str(caught.value)
    assert PASSWORD not in str(caught.value)


JAVA_ANSWERS = ["answer 42", "types true"]


def test_adbc_signs_in(plain):
    answers(plain.connect(username="ada", password=PASSWORD))
    answers(plain.connect(**{HEADER: f"Bearer {plain.token}"}))
    refused(lambda: plain.connect(username="ada", password="wrong"), "wrong user name or password")
    refused(lambda: plain.connect(username="eve", password=PASSWORD), "wrong user name or password")
    refused(lambda: plain.connect(**{HEADER: "Bearer flt_wrong"}), "sign in again")
    refused(plain.connect, "sign in")


def test_pyarrow_signs_in(plain):
    ticket = flight.Ticket('{"query": "SELECT 42 AS n"}')
    with flight.connect(plain.server.url) as client:
        token = client.authenticate_basic_token("ada", PASSWORD)
        options = flight.FlightCallOptions(headers=[token])
        assert client.do_get(ticket, options).read_all().to_pydict() == {"n": [42]}
        with pytest.raises(flight.FlightUnauthenticatedError):
            client.authenticate_basic_token("ada", "wrong")
        with pytest.raises(flight.FlightUnauthenticatedError):
            client.do_get(ticket)


class Greeter(flight.ClientAuthHandler):
    """The older way: the handshake carries a message each way."""

    def __init__(self, password):
        super().__init__()
        self.password, self.token = password, b""

    def authenticate(self, outgoing, incoming):
        outgoing.write(flight.BasicAuth("ada", self.password).serialize())
        self.token = incoming.read()

    def get_token(self):
        return self.token


def test_pyarrow_signs_in_the_older_way(plain):
    with flight.connect(plain.server.url) as client:
        client.authenticate(Greeter(PASSWORD))
        assert client.do_get(flight.Ticket('{"query": "SELECT 42 AS n"}')).read_all().to_pydict() == {"n": [42]}
    with flight.connect(plain.server.url) as client, pytest.raises(flight.FlightUnauthenticatedError):
        client.authenticate(Greeter("wrong"))


def test_jdbc_signs_in(plain, java):
    clear = "useEncryption=false"
    assert java(plain.jdbc(f"{clear}&user=ada"), PASSWORD) == JAVA_ANSWERS
    assert java(plain.jdbc(f"{clear}&token={plain.token}")) == JAVA_ANSWERS
    for url, password in [(f"{clear}&user=ada", "wrong"), (f"{clear}&token=flt_wrong", None), (clear, None)]:
        (said,) = java(plain.jdbc(url), password)
        assert said.startswith("refused"), said


def test_adbc_over_tls(encrypted, authority):
    url = f"grpc+tls://localhost:{encrypted.server.port}"
    trust = {TLS_ROOT: authority.ca.read_text()}
    answers(encrypted.connect(url, username="ada", password=PASSWORD, **trust))
    answers(encrypted.connect(url, **trust, **{HEADER: f"Bearer {encrypted.token}"}))
    refused(lambda: encrypted.connect(url, username="ada", password="wrong", **trust), "wrong user name or password")
    for where, options in [(url, {}), (encrypted.server.url, {})]:  # an authority that nobody trusts; in clear
        with pytest.raises(adbc.Error), encrypted.connect(where, username="ada", password=PASSWORD, **options) as connection:
            rows(connection, "SELECT 1")


def test_jdbc_over_tls(encrypted, authority, java):
    assert java(encrypted.jdbc(f"tlsRootCerts={authority.ca}&user=ada"), PASSWORD) == JAVA_ANSWERS
    assert java(encrypted.jdbc(f"tlsRootCerts={authority.ca}&token={encrypted.token}")) == JAVA_ANSWERS
    assert java(encrypted.jdbc("disableCertificateVerification=true&user=ada"), PASSWORD) == JAVA_ANSWERS
    (said,) = java(encrypted.jdbc(f"tlsRootCerts={authority.ca}&user=ada"), "wrong")
    assert said.startswith("refused"), said


def test_adbc_with_a_certificate(mutual, authority, tmp_path):
    url = f"grpc+tls://localhost:{mutual.port}"

    def connect(signer):
        cert, key = signer.sign("ada")
        options = {TLS_ROOT: authority.ca.read_text(), TLS_CERT: cert.read_text(), TLS_KEY: key.read_text()}
        return flight_sql.connect(url, db_kwargs=options, autocommit=True)

    answers(connect(authority))
    with pytest.raises(adbc.Error), connect(Authority(tmp_path)) as connection:
        rows(connection, "SELECT 1")


def test_jdbc_with_a_certificate(mutual, authority, java):
    cert, key = authority.sign("bob")
    url = f"jdbc:arrow-flight-sql://localhost:{mutual.port}?tlsRootCerts={authority.ca}"
    assert java(f"{url}&clientCertificate={cert}&clientKey={key}") == JAVA_ANSWERS
    (said,) = java(url)
    assert said.startswith("refused"), said


def test_adbc_takes_a_fresh_token(tmp_path):
    """In use, a connection outlives the token that it was given first."""
    secured = Secured(tmp_path, "--token-ttl", "4s")
    try:
        with secured.connect(username="ada", password=PASSWORD) as connection:
            until = time.monotonic() + 9
            while time.monotonic() < until:
                assert rows(connection, "SELECT 1") == [(1,)]
    finally:
        secured.server.close()


def test_the_greeting_says_how_to_connect(encrypted, mutual):
    said = encrypted.server.log.read_text()
    assert f"grpc+tls://127.0.0.1:{encrypted.server.port}" in said and "--user" in said and "password" in said
    assert "useEncryption" not in mutual.log.read_text()


def test_no_secret_is_logged(tmp_path):
    secured = Secured(tmp_path, "--log-level", "trace")
    try:
        answers(secured.connect(username="ada", password=PASSWORD))
        answers(secured.connect(**{HEADER: f"Bearer {secured.token}"}))
        refused(lambda: secured.connect(username="ada", password="hunter2"))
    finally:
        secured.server.close()
    log = secured.server.log.read_text()
    assert "serving" in log
    # HTTP/2 itself, at its own level of detail, prints the headers that it decodes.
    own = "".join(line for line in log.splitlines(keepends=True) if " h2::" not in line)
    for secret in (PASSWORD, "hunter2", secured.token, "argon2id"):
        assert secret not in own


def test_the_readme(authority, tmp_path):
    """Its commands, one by one, where a certificate is at hand."""
    ((language, text),) = blocks("Users and TLS")
    assert language == "sh"
    for made, name in zip(authority.sign("readme"), ("server.pem", "server.key")):
        shutil.copy(made, tmp_path / name)
    port = free_port()
    add_user, add_service, serve = text.replace("0.0.0.0:8815", f"0.0.0.0:{port}").strip().splitlines()
    place = {"cwd": tmp_path, "env": os.environ | {"PATH": f"{Path(BINARY).parent}:{os.environ['PATH']}"}, "text": True}
    subprocess.run(add_user, shell=True, input=f"{PASSWORD}\n", check=True, **place)
    told = subprocess.run(add_service, shell=True, capture_output=True, check=True, **place).stderr
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(f"exec {serve}", shell=True, stdout=log, stderr=log, **place)
    try:
        wait_for_port(port, process)
        url, trust = f"grpc+tls://localhost:{port}", {TLS_ROOT: authority.ca.read_text()}
        for proof in ({"username": "ada", "password": PASSWORD}, {HEADER: f"Bearer {told.split()[-1]}"}):
            answers(flight_sql.connect(url, db_kwargs=proof | trust, autocommit=True))
        command = [BINARY, "sql", "--url", url, "--tls-ca", authority.ca, "--user", "ada", "-c", "SELECT 1"]
        subprocess.run(command, env=os.environ | {"FLETCHING_PASSWORD": PASSWORD}, check=True, capture_output=True)
    finally:
        process.kill()
        process.wait()
