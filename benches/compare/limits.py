"""What holds when it gets tight or long: little memory, a time to live, ten feature groups in one query.

(a) the join at --size with little memory for queries; (b) a group with a TTL of 7 days over the same history, with all
labels and with those of the last 10 days; (c) ten groups chained, against the sum of ten single joins. Plans are shown
without the metrics that are zero: a join whose plan shows no spill did not spill.
"""

import argparse
import re
import textwrap
from datetime import date, timedelta

from data import FEATURES, FIRST_DAY, SIZES, Data
from harness import (
    DATA, available, check_same, fresh_server, memory, point_in_time, publish, run, say, spread, table, typical,
)

MEMORY = "512MB"
TTL_DAYS = 7
TTL = f"{TTL_DAYS} days"
RECENT_DAYS = 10
OPERATORS = ("Asof", "Sort", "DataSource", "Iceberg", "Spill")
NOISE = re.compile(r"=0(\.0 B| total.*)?$|=\d+ns$|_time=|^time_|^output_b|_ratio=")


def timed(server, query, runs, job="fletching"):
    results = [server.run(job, query=query) for _ in range(runs)]
    say(f"{typical(results):.2f} s, {memory(results):.0f} MiB")
    return results


def row(name, results):
    matched = results[0]["rows"] - results[0]["nulls"]
    return [name, f"{typical(results):.2f}", spread(results), *server_memory(results), results[0]["rows"], matched]


def server_memory(results):
    return [f"{memory(results):.0f}", f"{typical(results, 'server_before_mib'):.0f}"]


HEADER = ["query", "median s", "min–max s", "server peak MiB", "held before", "rows", "with a match"]


def plan(server, query):
    """What EXPLAIN ANALYZE says of the join and of what feeds it."""
    text = "\n".join(cells[-1] for cells in server.sql(f"EXPLAIN ANALYZE {query}"))
    lines = [line for line in text.splitlines() if line.strip().startswith(OPERATORS)]
    return textwrap.dedent("\n".join(map(shortened, lines)))


def shortened(line):
    """Files by their number, and of the metrics those that are not zero, without the many small times of a scan."""
    line = re.sub(r"\{(\d+ groups?): \[\[.*?\]\]\}", lambda m: f"{m[0].count('.parquet')} files in {m[1]}", line)
    line = re.sub(r", projection=\[.*?\]", "", line)
    operator, found, metrics = line.rstrip().partition("metrics=[")
    kept = [metric for metric in metrics.removesuffix("]").split(", ") if not NOISE.search(metric)]
    return f"{operator}{found}{', '.join(kept)}]" if found else line


def recent_since(data):
    return f"{date.fromisoformat(FIRST_DAY) + timedelta(days=data.size.days - RECENT_DAYS)} 00:00:00+00:00"


def check_by_duckdb(data, *all_results):
    """Files are skipped here, so the sums of each query are taken by somebody who skips none."""
    if not available("duckdb"):
        return "Not checked by another engine."
    recent, ttl = {"since": recent_since(data)}, {"ttl_days": TTL_DAYS}
    for restriction, results in zip([{}, ttl, recent, recent | ttl], all_results, strict=True):
        arguments = {"labels": data.labels, "history": f"{data.path}/history/*.parquet"}
        expected = run("duckdb_sums", **arguments, **restriction)
        for result in results:
            check_same({f"duckdb {restriction}": expected, "fletching": result})
    return "DuckDB finds the same sums for each query."


def memory_and_ttl(options, data):
    """(a) and (b)"""
    with fresh_server("--memory-limit", MEMORY) as server:
        server.load_group("history", data)
        server.load_labels(data)
        tight = timed(server, point_in_time(), options.runs)
        tight_plan = plan(server, point_in_time())
    with fresh_server() as server:
        server.load_group("history", data)
        server.load_group("fresh", data, ttl=TTL)
        server.load_labels(data)
        server.sql(
            "CREATE TABLE recent AS SELECT * FROM labels "
            f"WHERE event_timestamp >= TIMESTAMP WITH TIME ZONE '{recent_since(data)}'"
        )
        wide = timed(server, point_in_time(), options.runs)
        check_same({"with little memory": tight[0], "with enough": wide[0]})
        queries = {
            f"TTL {TTL}, all labels": point_in_time(group="fresh"),
            f"no TTL, labels of the last {RECENT_DAYS} days": point_in_time(labels="recent"),
            f"TTL {TTL}, labels of the last {RECENT_DAYS} days": point_in_time(labels="recent", group="fresh"),
        }
        timings = {name: timed(server, query, options.runs) for name, query in queries.items()}
        rows = [row(name, results) for name, results in timings.items()]
        plans = [f"{name}:\n\n```text\n{plan(server, query)}\n```" for name, query in list(queries.items())[1:]]
    checked = check_by_duckdb(data, wide, *timings.values())
    memory = [
        table(HEADER, [row("unlimited", wide), row(f"--memory-limit {MEMORY}", tight)]),
        f"With {MEMORY}:\n\n```text\n{tight_plan}\n```",
        checked,
    ]
    publish(f"Limits, memory, {data.name}: {data.size}", "\n\n".join(memory))
    rows.insert(0, row("no TTL, all labels", wide))
    publish(f"Limits, time to live, {data.name}: {data.size}", "\n\n".join([table(HEADER, rows), *plans, checked]))


def chained(options, data):
    """(c): ten groups of one feature each."""
    names = {feature: f"group_{number}" for number, feature in enumerate(FEATURES)}
    with fresh_server() as server:
        for feature, group in names.items():
            server.load_group(group, data, features=[feature])
        server.load_labels(data)
        chain = chain_of(names)
        together = timed(server, chain, options.runs)
        # One feature alone lacks the columns that sums are taken of.
        singles = [
            timed(server, chain_of({feature: group}), options.runs, job="fletching_held")
            for feature, group in names.items()
        ]
        server.load_group("history", data)
        one = timed(server, point_in_time(), options.runs)
    check_same({"ten chained groups": together[0], "one group of ten features": one[0]})
    total, highest = sum(map(typical, singles)), max(singles, key=memory)
    rows = [
        ["ten groups chained", f"{typical(together):.2f}", *server_memory(together)],
        ["ten single joins: sum of seconds, highest peak", f"{total:.2f}", *server_memory(highest)],
        ["one group of all ten features", f"{typical(one):.2f}", *server_memory(one)],
    ]
    text = table(["query", "median s", "server peak MiB", "held before"], rows)
    text += f"\n\nChained ÷ sum of singles: {typical(together) / total:.2f}."
    publish(f"Limits, ten feature groups, {data.name}: {data.size}", text)


def chain_of(names):
    """Labels joined with each of these groups in turn, one feature from each."""
    selected = ", ".join(["l.*", *(f"{group}.{feature}" for feature, group in names.items())])
    joins = " ".join(
        f"ASOF JOIN {group} MATCH_CONDITION (l.event_timestamp >= {group}.event_timestamp) "
        f"ON l.user_id = {group}.user_id"
        for group in names.values()
    )
    return f"SELECT {selected} FROM labels l {joins}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="M", choices=[name for name in SIZES if SIZES[name].labels])
    parser.add_argument("--chained-size", default="S", choices=[name for name in SIZES if SIZES[name].labels])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["memory-and-ttl", "chained"])
    options = parser.parse_args()
    if options.only != "chained":
        memory_and_ttl(options, Data(DATA, options.size))
    if options.only != "memory-and-ttl":
        chained(options, Data(DATA, options.chained_size))


if __name__ == "__main__":
    main()
