"""Plain scans: all of history to a client, and filters that select little of it.

Rates are Arrow bytes as the client counts them, over the seconds from the query to the last batch. DuckDB runs in
process, without a wire, over the files in order of arrival and over those that Fletching wrote.
"""

import argparse
from datetime import datetime, timedelta

from data import COLUMNS, FIRST_DAY, SIZES, Data
from harness import DATA, available, check, fresh_server, memory, publish, run, same_sum, say, spread, table, typical

TIMES = 9


def conditions(size):
    """Filters by name. The keys are spread over all entities; the hour begins at noon of the day amid history."""
    entity = 42
    hundred = ", ".join(str(n * size.entities // 100) for n in range(100))
    midnight = datetime.fromisoformat(FIRST_DAY) + timedelta(days=size.days // 2)
    hour = between(midnight + timedelta(hours=12), midnight + timedelta(hours=13))
    day = between(midnight, midnight + timedelta(days=1))
    return {
        "one entity": f"user_id = {entity}",
        "100 entities": f"user_id IN ({hundred})",
        "one hour": hour,
        "one entity, one day": f"user_id = {entity} AND {day}",
        "100 entities, one day": f"user_id IN ({hundred}) AND {day}",
    }


def between(start, end):
    low, high = (f"TIMESTAMP WITH TIME ZONE '{instant:%Y-%m-%d %H:%M:%S}+00:00'" for instant in (start, end))
    return f"event_timestamp >= {low} AND event_timestamp < {high}"


def scans(options, data, server, sources):
    query = "SELECT * FROM history"
    jobs = {
        "fletching, pyarrow.flight": lambda: server.run("scan_flight", query=query),
        "fletching, ADBC": lambda: server.run("scan_adbc", query=query),
    }
    for name, files in sources.items():
        jobs[name] = lambda files=files: run("scan_duckdb", history=files)
    found = {name: [] for name in jobs}
    for _ in range(options.runs):
        for name, job in jobs.items():
            result = job()
            check(result["rows"] == data.size.history, f"{name}: {result['rows']} rows")
            found[name].append(result | {"rate": result["bytes"] / 1e9 / result["seconds"]})
    rows = []
    for name, results in found.items():
        rate, size = f"{typical(results, 'rate'):.2f}", f"{results[0]['bytes'] / 1e9:.2f}"
        say(f"{name}: {rate} GB/s")
        rows.append([name, rate, spread(results, "rate"), f"{typical(results):.2f}", size, f"{memory(results):.0f}"])
    return table(["SELECT *", "median GB/s", "min–max GB/s", "median s", "GB", "peak MiB"], rows)


def selections(data, server, sources):
    columns = ", ".join(COLUMNS)
    where = conditions(data.size)

    def queries(source):
        return {name: f"SELECT {columns} FROM {source} WHERE {condition}" for name, condition in where.items()}

    found = {"fletching, ADBC": server.run("filters_fletching", queries=queries("history"), times=TIMES)}
    for name, files in sources.items():
        source = f"read_parquet('{files}', hive_partitioning = false)"
        found[name] = run("filters_duckdb", queries=queries(source), times=TIMES)
    ours = found["fletching, ADBC"]
    for name, results in found.items():
        for filter_ in where:
            theirs, expected = results[filter_], ours[filter_]
            same = theirs["rows"] == expected["rows"] and same_sum(theirs["spend"], expected["spend"])
            check(same, f"{name} and fletching differ on {filter_}: {theirs}, {expected}")
    rows = []
    for filter_ in where:
        medians = [f"{results[filter_]['median_ms']:.1f}" for results in found.values()]
        rows.append([filter_, ours[filter_]["rows"], *medians])
    return table(["filter, median ms", "rows", *found], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=[name for name in SIZES if SIZES[name].labels])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--commits", default="per file", choices=["per file", "one"], help="how history is ingested")
    options = parser.parse_args()
    data = Data(DATA, options.size)
    with fresh_server() as server:
        server.load_group("history", data, commits=options.commits)
        sources = {}
        if available("duckdb"):
            sources = {
                "duckdb, order of arrival": f"{data.path}/history/*.parquet",
                "duckdb, Fletching's files": server.files("history")[0],
            }
        parts = [scans(options, data, server, sources), selections(data, server, sources)]
    notes = f"Scans: {options.runs} runs, each a process of its own. Filters: {TIMES} runs on a warm connection."
    publish(f"Scans, {options.size}: {data.size.history:,} rows × {len(COLUMNS)} columns", "\n\n".join([*parts, notes]))


if __name__ == "__main__":
    main()
