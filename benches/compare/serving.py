"""Serving: raw Redis, Feast, the bare protocol and Fletching on the same entities, in one run on one machine.

Servers, Redis and load generator (benches/serving) share the machine's CPUs. A floor is a tonic server that does nothing
but answer: with a constant batch, or with what one MGET finds. Fletching answers through Redis with the cache off (cold),
through Redis with every entity cached, and from its embedded store with the cache off. Ratios are taken within a turn, in
which everybody is measured once, and are medians over the turns. Answers
are checked everywhere; a wrong one ends the run.
"""

import argparse
import csv
import json
import os
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from data import FEATURES, VECTOR, short
from harness import FEAST_PYTHON, JobFailed, Redis, check, fresh_server, publish, run, say, support, table

JOBS = "serving_jobs.py"
QUERY = "SELECT * FROM LATEST(user_features, ?)"
TEN_FEATURES = f"SELECT user_id, event_timestamp, {', '.join(VECTOR[:10])}, _status FROM LATEST(user_features, ?)"
TTL = "30 days"
ENTRY_BYTES = 440
KEYS = (1, 100)
CALLERS = (16, 64)
CALLERS_PER_CONNECTION = 4
# How many calls a rate may have in flight, over as many connections as the most callers have.
OPEN_CALLERS = 256
OPEN_SHARE = 0.8
# How often a start is looked after: catching up in less cannot be told.
START_SECONDS_RESOLUTION = 0.02
# Held as long as a run takes, so that "cached" means that every entity is.
CACHED = ("--cache-capacity", "2GB", "--cache-ttl", "1h")
COLD = ("--cache-capacity", "0")


@dataclass(frozen=True)
class Size:
    entities: int
    """Rows of each group."""
    seconds: float
    """Of each run of the load generator, which a fifth of it for warming up precedes."""
    calls: int
    """Of each Python client."""
    feast_calls: dict
    """By the entities that each asks for; by the SDK and by the server."""
    writes: int
    """That must become visible."""
    redis_scale: int
    """Requests to raw Redis, in thousands."""


SIZES = {
    "XS": Size(2_000, 0.3, 20, {1: 20, 100: 5}, 3, 1),
    "S": Size(100_000, 3, 3_000, {1: 2_000, 100: 200}, 50, 100),
}


# The tools.


def load_generator():
    """What Cargo built last of benches/serving."""
    directory = Path(os.environ.get("BENCH_DEPS", Path(support.BINARY).parent / "deps"))
    found = [path for path in directory.glob("serving-*") if not path.suffix]
    check(found, "the load generator is not built: cargo bench --no-run --bench serving")
    return str(max(found, key=lambda path: path.stat().st_mtime))


def generate(command, url, size, **flags):
    """One run of the load generator; its figures."""
    flags = {"url": url, "entities": size.entities, "seconds": size.seconds, "warm_up": size.seconds / 5} | flags
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    done = subprocess.run([load_generator(), command, *words], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        raise JobFailed(f"{command} {' '.join(words)}: {done.stderr}")
    result = json.loads(done.stdout)
    wrong = f"{command} {' '.join(words)}: {result['errors']} errors, the first: {result['first_error']}"
    check(result["errors"] == 0 and result["calls"] > 0, wrong)
    return result


@contextmanager
def floor(*arguments):
    """A floor; how to reach it."""
    port = support.free_port()
    process = subprocess.Popen([load_generator(), "floor", f"--listen=127.0.0.1:{port}", *arguments])
    try:
        support.wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def benchmarked(redis, size, share, pipelined, *command):
    """What redis-benchmark says of a command; keys are 0 to the number of entities."""
    words = ["redis-benchmark", "-p", redis.port, "-c", 16, "-P", pipelined, "-r", size.entities, "--csv"]
    words += ["-n", max(int(size.redis_scale * 1000 * share), 100), *command]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300, check=True)
    header, figures = csv.reader(done.stdout.splitlines()[-2:])
    return dict(zip(header, figures, strict=True))


def http(server):
    return server.url.replace("grpc://", "http://")


def create(server, group, features):
    columns = ", ".join(f"{name} {kind}" for name, kind in features.items())
    server.sql(
        f"CREATE FEATURE GROUP {group} (user_id BIGINT, event_timestamp TIMESTAMP WITH TIME ZONE, {columns}, "
        f"ENTITY KEY (user_id), EVENT TIME (event_timestamp)) WITH (ttl = '{TTL}')"
    )


def filled(server, size):
    """`server`, with every entity's vector."""
    create(server, "user_features", dict.fromkeys(VECTOR, "DOUBLE"))
    server.run("ingest", script=JOBS, table="user_features", served="vectors", entities=size.entities)
    return server


@contextmanager
def beside(server, *arguments):
    """Another server of the same tables, that shares nothing else."""
    tables = ("--catalog", f"sqlite:{server.data}/catalog.db", "--warehouse", f"{server.data}/warehouse")
    with fresh_server(*tables, *arguments) as other:
        yield other


def ms(value):
    return f"{value:.2f}"


def count(value):
    return f"{value:,.0f}"


# The parts of the page.


def raw_redis(size, redis):
    keys = {number: ["floor:__rand_int__"] * number for number in (1, 100, 1000)}
    value = "x" * ENTRY_BYTES
    rows = []
    for name, number, share, pipelined, command in [
        ("GET, 16 connections", 1, 3, 1, ["GET", *keys[1]]),
        ("GET, pipelined by 32", 1, 20, 32, ["GET", *keys[1]]),
        ("MGET of 100 keys", 100, 0.4, 1, ["MGET", *keys[100]]),
        ("MGET of 1000 keys", 1000, 0.05, 1, ["MGET", *keys[1000]]),
        ("SET, pipelined by 16", 1, 10, 16, ["SET", "raw:__rand_int__", value]),
    ]:
        found = benchmarked(redis, size, share, pipelined, *command)
        rate = float(found["rps"])
        say(f"{name}: {rate:.0f}")
        rows.append([name, count(rate), count(rate * number), found["p50_latency_ms"], found["p99_latency_ms"]])
    redis.cli("FLUSHALL")
    heading = f"raw Redis, values of {ENTRY_BYTES} bytes"
    return table([heading, "calls/s", "keys/s", "p50 ms", "p99 ms"], rows)


def feast(size):
    if not Path(FEAST_PYTHON).exists():
        say("Feast is not installed, left out")
        return "Feast is not installed."
    with Redis() as redis:
        arguments = {"port": redis.port, "entities": size.entities}
        reads = run("feast_reads", python=FEAST_PYTHON, script=JOBS, calls=size.feast_calls, **arguments)
    rows = []
    for path, by_keys in reads.items():
        for keys, found in by_keys.items():
            say(f"feast, {path}, {keys}: {found}")
            rows.append([f"{path}, {entities_of(keys)} × 50", ms(found["p50_ms"]), ms(found["p99_ms"])])
    return table(["Feast on Redis, one caller", "p50 ms", "p99 ms"], rows)


def entities_of(keys):
    return "1 entity" if int(keys) == 1 else f"{keys} entities"


class Serving:
    """Servers that hold every entity, and the floors beside them."""

    def __init__(self, size, stack):
        self.size = size
        redis = stack.enter_context(Redis())
        fill(redis, size)
        self.cached = filled(stack.enter_context(fresh_server("--online", redis.url, *CACHED)), size)
        self.cold = stack.enter_context(beside(self.cached, "--online", redis.url, *COLD))
        self.embedded = filled(stack.enter_context(fresh_server(*COLD)), size)
        entries = (f"--redis={redis.url}", f"--entities={size.entities}")
        floors = {"floor, constant": (), "floor, one MGET": entries}
        self.floors = {
            (name, keys): stack.enter_context(floor(f"--rows={keys}", *arguments))
            for name, arguments in floors.items()
            for keys in KEYS
        }
        self.servers = {"cached": self.cached, "embedded": self.embedded, "cold": self.cold}
        self.floor_of = {"cached": "floor, constant", "embedded": "floor, constant", "cold": "floor, one MGET"}

    def warm(self):
        """Every entity into the cache: this many draws of a thousand miss none to speak of."""
        generate("load", http(self.cached), self.size, keys=1000, callers=4, warm_up=0)

    def load(self, path, keys, callers, **flags):
        """DoGet by path, a floor or a server."""
        if path in self.servers:
            url = http(self.servers[path])
        else:
            url, flags = self.floors[path, keys], flags | {"check": "rows"}
        connections = max(min(callers, max(CALLERS)) // CALLERS_PER_CONNECTION, 1)
        return generate(
            "load", url, self.size, keys=keys, callers=callers, connections=connections, **{"query": QUERY} | flags
        )

    def exchange(self, path, keys, window):
        if path in self.servers:
            return generate("exchange", http(self.servers[path]), self.size, keys=keys, window=window, query=QUERY)
        return generate("exchange", self.floors[path, 1], self.size, keys=keys, window=window, check="rows")


def fill(redis, size):
    command = [load_generator(), "fill", f"--redis={redis.url}", f"--entities={size.entities}"]
    subprocess.run(command, check=True, timeout=300)


def do_get(serving, runs):
    """Closed loops, everybody once in every turn; then open loops at a share of the peak."""
    paths = [*dict.fromkeys(serving.floor_of.values()), *serving.servers]
    cells = [(keys, callers) for keys in KEYS for callers in CALLERS]
    found = {(path, *cell): [] for cell in cells for path in paths}
    for turn in range(runs):
        for (path, keys, callers), results in found.items():
            results.append(serving.load(path, keys, callers))
            say(f"turn {turn + 1}, {path}, {keys} keys, {callers} callers: {results[-1]['calls_per_second']:.0f}")
    rows = []
    for (path, keys, callers), results in found.items():
        ratio = "–"
        if path in serving.floor_of:
            floors = found[serving.floor_of[path], keys, callers]
            ratio = f"{ratio_of(results, floors):.2f}"
        figures = [median(result[key] for result in results) for key in ("p50_ms", "p99_ms", "p999_ms")]
        rate = peak(results)
        name = f"{path}, {keys_of(keys)}, {callers} callers"
        rows.append([name, count(rate), count(rate * keys), *map(ms, figures), ratio])
    header = ["DoGet", "calls/s", "keys/s", "p50 ms", "p99 ms", "p99.9 ms", "÷ its floor (goal ≥ 0.85)"]
    peaks = {
        (path, keys): max(peak(found[path, keys, callers]) for callers in CALLERS)
        for path in serving.servers
        for keys in KEYS
    }
    return table(header, rows) + "\n\n" + at_a_share_of(serving, peaks, runs)


def keys_of(keys):
    return "1 key" if keys == 1 else f"{keys} keys"


def peak(results):
    return median(result["calls_per_second"] for result in results)


def ratio_of(results, floors):
    pairs = zip(results, floors, strict=True)
    return median(ours["calls_per_second"] / floor["calls_per_second"] for ours, floor in pairs)


def at_a_share_of(serving, peaks, runs):
    found = {cell: [] for cell in peaks}
    for turn in range(runs):
        for (path, keys), results in found.items():
            rate = peaks[path, keys] * OPEN_SHARE
            results.append(serving.load(path, keys, OPEN_CALLERS, rate=rate))
            say(f"turn {turn + 1}, {path}, {keys} keys at {rate:.0f}: p99 {results[-1]['p99_ms']:.2f} ms")
    rows = []
    for (path, keys), results in found.items():
        figures = [ms(median(result[key] for result in results)) for key in ("p50_ms", "p99_ms", "p999_ms", "max_ms")]
        rate = count(peaks[path, keys] * OPEN_SHARE)
        rows.append([f"{path}, {keys_of(keys)}", rate, count(peak(results)), *figures])
    heading = f"DoGet at {OPEN_SHARE:.0%} of its peak"
    return table([heading, "calls/s due", "calls/s", "p50 ms", "p99 ms (goal < 10)", "p99.9 ms", "max ms"], rows)


def exchanges(serving):
    rows = []
    for path, keys, window, goal in [
        ("floor, constant", 1, 64, "–"),
        ("cached", 1, 64, "50,000"),
        ("embedded", 1, 64, "–"),
        ("floor, one MGET", 1, 64, "–"),
        ("cold", 1, 64, "–"),
        ("floor, constant", 1000, 4, "–"),
        ("cached", 1000, 4, "2,000,000"),
        ("embedded", 1000, 4, "–"),
        ("floor, one MGET", 1000, 4, "–"),
        ("cold", 1000, 4, "1,000,000"),
    ]:
        found = serving.exchange(path, keys, window)
        say(f"exchange, {path}, {keys} keys: {found['keys_per_second']:.0f} keys/s")
        name = f"{path}, {keys_of(keys)} a message, {window} in flight"
        figures = [count(found["calls_per_second"]), count(found["keys_per_second"]), goal]
        rows.append([name, *figures, ms(found["p50_ms"]), ms(found["p99_ms"])])
    header = ["DoExchange, one connection", "messages/s", "keys/s", "goal ≥", "p50 ms", "p99 ms"]
    return table(header, rows)


def clients(serving):
    one, hundred = ("≤ 0.45", "≤ 1"), ("≤ 0.8", "≤ 1.5")
    prepared = ("≤ 0.7", "≤ 1")
    rows = []
    for name, path, job, keys, goals in [
        ("pyarrow, direct ticket, cached", "cached", "get_by_ticket", 1, one),
        ("pyarrow, direct ticket, cold", "cold", "get_by_ticket", 1, one),
        ("pyarrow, direct ticket, embedded", "embedded", "get_by_ticket", 1, one),
        ("ADBC, prepared statement, cached", "cached", "get_prepared", 1, prepared),
        ("ADBC, prepared statement, cold", "cold", "get_prepared", 1, prepared),
        ("ADBC, cursor.execute, cached", "cached", "get_by_cursor", 1, prepared),
        ("ADBC, cursor.execute, cold", "cold", "get_by_cursor", 1, prepared),
        ("pyarrow, direct ticket, cached", "cached", "get_by_ticket", 100, ("–", "–")),
        ("pyarrow, direct ticket, cold", "cold", "get_by_ticket", 100, hundred),
    ]:
        size, server = serving.size, serving.servers[path]
        asked = {"calls": size.calls, "keys": keys, "entities": size.entities}
        features, query = (10, TEN_FEATURES) if keys == 1 else (len(VECTOR), QUERY)
        found = server.run(job, script=JOBS, query=query, **asked)
        say(f"{name}, {keys} keys: p50 {found['p50_ms']:.2f} ms, p99 {found['p99_ms']:.2f} ms")
        p50_goal, p99_goal = goals
        what = f"{name}, {entities_of(keys)} × {features} features"
        rows.append([what, ms(found["p50_ms"]), p50_goal, ms(found["p99_ms"]), p99_goal])
        if job == "get_prepared":
            whole = [ms(found["whole_p50_ms"]), p50_goal, ms(found["whole_p99_ms"]), p99_goal]
            rows.append(["the same until the driver has released its stream", *whole])
    return table([f"Python client, {serving.size.calls} calls in turn", "p50 ms", "goal", "p99 ms", "goal"], rows)


def writes(size, runs):
    rows = [["Fletching", *fletching_writes(size, runs)]]
    if Path(FEAST_PYTHON).exists():
        with Redis() as redis:
            before = redis.used_bytes()
            arguments = {"port": redis.port, "entities": size.entities}
            seconds = run("feast_writes", python=FEAST_PYTHON, script=JOBS, **arguments)["seconds"]
            room = (redis.used_bytes() - before) / size.entities
        rows.append(["Feast, write_to_online_store", "–", count(size.entities / seconds), f"{room:.0f}"])
    header = [
        "10 features into Redis", "offline and online, by ADBC, entities/s", "online, entities/s (goal ≥ 150,000)",
        "bytes per entity (goal ≤ 200)",
    ]
    return table(header, rows)


def fletching_writes(size, runs):
    """Rates of an acknowledged ingest and of filling an empty Redis from history, and bytes per entity."""
    with Redis() as redis:
        empty = redis.used_bytes()
        with fresh_server("--online", redis.url) as server:
            create(server, "purchases", FEATURES)
            ingest = {"table": "purchases", "served": "purchases", "entities": size.entities}
            acknowledged = size.entities / server.run("ingest", script=JOBS, **ingest)["seconds"]
            rates = []
            for _ in range(runs):
                server.stop()
                room = (redis.used_bytes() - empty) / size.entities
                nothing_to_do = seconds_of(lambda: answering(server))
                server.stop()
                redis.cli("FLUSHALL")
                # It takes connections at once, and answers when it has caught up.
                catching_up = max(seconds_of(lambda: answering(server)) - nothing_to_do, START_SECONDS_RESOLUTION)
                rates.append(size.entities / catching_up)
                say(f"caught up in {catching_up:.2f} s, {room:.0f} bytes per entity")
            served = int(server.sql("SELECT count(*) FROM LATEST(purchases)")[0][0])
            check(served == size.entities, f"{served} entities are served after catching up")
    return count(acknowledged), count(median(rates)), f"{room:.0f}"


def answering(server):
    server.start()
    server.sql("SELECT 1")


def seconds_of(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def visibility(size):
    """With the cache as it is by default."""
    with Redis() as redis, fresh_server("--online", redis.url) as writer:
        create(writer, "seen", {"v": "BIGINT"})
        writer.sql("INSERT INTO seen VALUES (1, now(), 0)")
        with beside(writer, "--online", redis.url) as reader:
            arguments = {"reader": reader.url, "group": "seen", "times": size.writes}
            found = writer.run("visibility", script=JOBS, **arguments)["ms"]
    say(f"visible after {median(found):.2f} ms, at most {max(found):.2f} ms")
    header = ["a write through one server, seen by the other's cache", "p50 ms", "max ms", "goal"]
    return table(header, [[f"{size.writes} writes", ms(median(found)), ms(max(found)), "≤ 50"]])


PARTS = ["redis", "feast", "get", "exchange", "clients", "writes", "visibility"]


def parts(options, size):
    wanted = set(options.only or PARTS)
    if "redis" in wanted:
        with Redis() as redis:
            fill(redis, size)
            yield raw_redis(size, redis)
    if "feast" in wanted:
        yield feast(size)
    if wanted & {"get", "exchange", "clients"}:
        with ExitStack() as stack:
            serving = Serving(size, stack)
            serving.warm()
            if "get" in wanted:
                yield do_get(serving, options.runs)
            if "exchange" in wanted:
                yield exchanges(serving)
            if "clients" in wanted:
                yield clients(serving)
    if "writes" in wanted:
        yield writes(size, options.runs)
    if "visibility" in wanted:
        yield visibility(size)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=SIZES)
    parser.add_argument("--runs", type=int, default=3, help="turns of DoGet, and fills of an empty Redis")
    parser.add_argument("--only", nargs="*", choices=PARTS)
    options = parser.parse_args()
    size = SIZES[options.size]
    notes = (
        "Cold: Redis, no cache. Cached: Redis behind a cache that holds every entity. Embedded: the embedded store, no "
        f"cache. DoGet: medians of {options.runs} turns of {size.seconds} s. Servers, Redis and clients share the CPUs."
    )
    text = "\n\n".join([*parts(options, size), notes])
    title = f"Serving, {options.size}: {short(size.entities)} entities × {len(VECTOR)} features"
    publish(title + (f", only {', '.join(options.only)}" if options.only else ""), text)


if __name__ == "__main__":
    main()
