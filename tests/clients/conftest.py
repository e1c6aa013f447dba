import pytest

from support import Jdbc, ObjectStorage, Postgres, Redis, RestCatalog, Server


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
    """Starts servers that a test may kill: `own_server(*arguments, environment={})`."""
    started = []

    def start(*arguments, **options):
        started.append(Server(tmp_path / f"data{len(started)}", *arguments, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def redis():
    redis = Redis()
    yield redis
    redis.close()


@pytest.fixture(scope="module")
def postgres():
    postgres = Postgres()
    yield postgres
    postgres.close()


@pytest.fixture(scope="module")
def rest_catalog(tmp_path_factory, postgres):
    catalog = RestCatalog(tmp_path_factory.mktemp("rest"), postgres)
    yield catalog
    catalog.close()


@pytest.fixture
def storage():
    storage = ObjectStorage()
    yield storage
    storage.close()


@pytest.fixture(scope="session")
def jdbc(tmp_path_factory):
    return Jdbc(tmp_path_factory.mktemp("jdbc"))


@pytest.fixture(scope="session")
def jdbc_driver(jdbc):
    """The jar of the stock driver."""
    return jdbc.jar
