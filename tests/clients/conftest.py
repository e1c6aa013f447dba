import subprocess

import pytest

from support import Redis, Server

JDBC = "flight-sql-jdbc-driver"
JDBC_VERSION = "18.3.0"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server per test file; each test uses names of its own."""
    server = Server(tmp_path_factory.mktemp("server") / "data")
    yield server
    server.close()


@pytest.fixture
def connection(server):
    """A connection of its own, and so a session of its own."""
    with server.connect() as connection:
        yield connection


@pytest.fixture
def own_server(tmp_path):
    """Starts servers that a test may kill: `own_server(*arguments)`."""
    started = []

    def start(*arguments):
        started.append(Server(tmp_path / f"data{len(started)}", *arguments))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def redis():
    redis = Redis()
    yield redis
    redis.close()


@pytest.fixture(scope="session")
def jdbc_driver(tmp_path_factory):
    """The stock driver, by Maven and its local repository."""
    folder = tmp_path_factory.mktemp("jdbc")
    plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
    artifact = f"-Dartifact=org.apache.arrow:{JDBC}:{JDBC_VERSION}"
    subprocess.run(["mvn", "-q", "-B", plugin, artifact, f"-DoutputDirectory={folder}"], check=True, timeout=600)
    return folder / f"{JDBC}-{JDBC_VERSION}.jar"
