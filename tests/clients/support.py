"""Starts and stops what the tests talk to: the built binary, and a real Redis."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight_sql

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("FLETCHING", str(ROOT / "target" / "debug" / "fletching"))
ICEBERG_PYTHON = ROOT / ".venv-iceberg" / "bin" / "python"
START_SECONDS_MAX = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, process):
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ended with exit code {process.returncode} before it listened")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port} after {START_SECONDS_MAX} s")


def until(condition, seconds_max=10):
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds_max} s")
        time.sleep(0.01)


class Server:
    """`fletching serve` on a data directory; it can be killed and started again."""

    def __init__(self, data, *arguments, environment=None, within=()):
        self.data = Path(data)
        self.environment = environment or {}
        # what starts it, if it is not us
        self.within = within
        self.arguments = [str(argument) for argument in arguments]
        self.log = self.data.with_name(self.data.name + ".log")
        self.process = None
        self.start()

    def start(self):
        self.port, self.http_port = free_port(), free_port()
        command = [*self.within, BINARY, "serve", "--data-dir", self.data, "--listen", f"127.0.0.1:{self.port}", *self.arguments]
        # in the environment, as binaries that benchmarks compare may be of a time before there was such a port
        environment = os.environ | {"FLETCHING_HTTP_LISTEN": f"127.0.0.1:{self.http_port}"} | self.environment
        environment.pop("_RJEM_MALLOC_CONF", None)  # which Polars sets for itself in every process that imports it
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_port(self.port, self.process)
        except Exception as error:
            self.kill()
            raise RuntimeError(f"{error}:\n{self.log.read_text()}") from error

    @property
    def url(self):
        return f"grpc://127.0.0.1:{self.port}"

    def connect(self, **options):
        return flight_sql.connect(self.url, autocommit=True, **options)

    def kill(self):
        """What a power cut does to the process."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def close(self):
        if self.process.poll() is None:
            self.kill()

    def ticks(self):
        """Processor time so far, in hundredths of a second."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def wait_until_idle(self):
        def idle():
            before = self.ticks()
            time.sleep(0.2)
            return self.ticks() <= before + 2

        until(idle)

    def sql(self, *arguments):
        """`fletching sql …` against this server; its standard output."""
        command = [BINARY, "sql", "--url", self.url, *arguments]
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=300, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode())
        return done.stdout.decode()


class SmallDisk:
    """A file system of our own at `folder`, in memory, for who is started `within` it."""

    def __init__(self, folder, mebibytes):
        self.folder, self.size = Path(folder), mebibytes
        self.folder.mkdir()
        is_root = os.geteuid() == 0
        apart = ["unshare", "--mount"] if is_root else ["unshare", "--user", "--map-root-user", "--mount"]
        mounted = f"mount -t tmpfs -o size={mebibytes}m none '{self.folder}' && echo mounted && exec sleep infinity"
        if not shutil.which("unshare"):
            raise PermissionError("there is no unshare")
        self.holder = subprocess.Popen([*apart, "sh", "-c", mounted], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if self.holder.stdout.readline() != b"mounted\n":
            raise PermissionError(self.holder.stderr.read().decode())
        into = ["--mount"] if is_root else ["--user", "--preserve-credentials", "--mount"]
        self.within = ["nsenter", "--target", str(self.holder.pid), *into]

    def _run(self, *command):
        done = subprocess.run([*self.within, *command], capture_output=True, timeout=60, check=False)
        return done.returncode, done.stderr.decode()

    def fill(self):
        """Until not a byte is free."""
        code, said = self._run("dd", "if=/dev/zero", f"of={self.folder}/ballast", "bs=4k")
        assert code != 0 and "No space left" in said, said

    def free(self):
        assert self._run("rm", f"{self.folder}/ballast") == (0, "")

    def set_read_only(self, is_read_only):
        option = "ro" if is_read_only else "rw"
        assert self._run("mount", "-o", f"remount,{option}", str(self.folder)) == (0, "")

    def close(self):
        self.holder.kill()
        self.holder.wait()


class Redis:
    """A redis-server of our own, with nothing saved."""

    def __init__(self):
        self.port = free_port()
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port, self.process)

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}"

    def close(self):
        self.process.terminate()
        self.process.wait()


class Postgres:
    """A PostgreSQL server of our own, which asks for a password."""

    PASSWORD = "not-for-logs"

    def __init__(self):
        self.port = free_port()
        self.directory = tempfile.TemporaryDirectory(prefix="postgres-")
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        binaries = f"{installed[-1]}/" if installed else ""
        # it does not run as root
        self.user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        password, data = Path(self.directory.name) / "password", Path(self.directory.name) / "data"
        password.write_text(self.PASSWORD)
        if self.user:
            os.chown(self.directory.name, self.user.pw_uid, self.user.pw_gid)
            os.chown(password, self.user.pw_uid, self.user.pw_gid)
        made = ["--username=fletching", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._popen(f"{binaries}initdb", *made, f"--pwfile={password}", "-D", data).wait(timeout=60)
        served = ["-D", data, "-p", str(self.port), "-h", "127.0.0.1", "-k", "", "-c", "fsync=off"]
        self.process = self._popen(f"{binaries}postgres", *served)
        wait_for_port(self.port, self.process)

    def _popen(self, *command):
        owner = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []} if self.user else {}
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=self.directory.name, **owner, **silent)

    @property
    def url(self):
        return f"postgresql://fletching:{self.PASSWORD}@127.0.0.1:{self.port}/postgres"

    def close(self):
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()
        self.directory.cleanup()


class RestCatalog:
    """Iceberg's own REST catalog over PostgreSQL, by Maven and its local repository; rest/pom.xml says what of it."""

    def __init__(self, folder, postgres):
        self.folder, self.postgres, pom = folder, postgres, ROOT / "tests/clients/rest/pom.xml"
        plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:build-classpath"
        written = folder / "classpath"
        command = ["mvn", "-q", "-B", "-f", pom, plugin, f"-Dmdep.outputFile={written}"]
        subprocess.run(command, check=True, timeout=600, stdin=subprocess.DEVNULL)
        self.classpath, self.port = written.read_text().strip(), free_port()
        self.start()

    def start(self):
        settings = {
            "CATALOG_REST_PORT": str(self.port),
            "CATALOG_URI": f"jdbc:postgresql://127.0.0.1:{self.postgres.port}/postgres",
            "CATALOG_JDBC_USER": "fletching",
            "CATALOG_JDBC_PASSWORD": self.postgres.PASSWORD,
            "CATALOG_WAREHOUSE": str(self.folder / "theirs"),
        }
        command = ["java", "-cp", self.classpath, "org.apache.iceberg.rest.RESTCatalogServer"]
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=os.environ | settings, **silent)
        wait_for_port(self.port, self.process)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def close(self):
        self.process.kill()
        self.process.wait()


class ObjectStorage:
    """An S3 server of our own: `bucket`, and who may write it as environment variables."""

    def __init__(self):
        self.port, self.bucket = free_port(), "features"
        command = [ICEBERG_PYTHON, ROOT / "tests/clients/s3_server.py", str(self.port)]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **streams)
        self.credentials = json.loads(self.process.stdout.readline())

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def objects(self):
        """The keys of all objects."""
        self.process.stdin.write(b"list\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.kill()
        self.process.wait()


def rows_by_pyiceberg(table, environment=None, **properties):
    """All rows of an Iceberg table, as another engine reads them."""
    given = [f"{key.replace('__', '.')}={value}" for key, value in properties.items()]
    command = [ICEBERG_PYTHON, ROOT / "tests/clients/pyiceberg_rows.py", table, *given]
    environment = os.environ | (environment or {})
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode())
    return [tuple(row) for row in json.loads(done.stdout)]


class Jdbc:
    """The stock driver, by Maven and its local repository, and programs of one file run with it."""

    ARTIFACT, VERSION = "flight-sql-jdbc-driver", "18.3.0"

    def __init__(self, folder):
        plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
        artifact = f"-Dartifact=org.apache.arrow:{self.ARTIFACT}:{self.VERSION}"
        subprocess.run(["mvn", "-q", "-B", plugin, artifact, f"-DoutputDirectory={folder}"], check=True, timeout=600)
        self.jar = folder / f"{self.ARTIFACT}-{self.VERSION}.jar"

    def run(self, source, *arguments, url="", zone="UTC"):
        """Its standard output."""
        options = ["--add-opens=java.base/java.nio=ALL-UNNAMED", f"-Duser.timezone={zone}", "-Dfile.encoding=UTF-8"]
        done = subprocess.run(
            ["java", *options, "-cp", self.jar, source, *map(str, arguments)],
            env={**os.environ, "FLETCHING_URL": url},
            capture_output=True,
            encoding="utf-8",
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def rows(connection, sql, parameters=None):
    """All rows as tuples."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()


def run(connection, *statements):
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
