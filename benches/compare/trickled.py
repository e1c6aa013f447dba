"""Does a training query cost more on history that came in small commits, as the log of small writes makes them?

A day of trickle is 1,440 commits, one a minute, of the same rows in the same order that the other group gets in bulk; every
60 of them, as with `--optimize-interval 1h`, the files are optimized. The last hour is left as it came.
"""

import argparse

from data import Data
from harness import DATA, check_same, fresh_server, memory, point_in_time, publish, say, spread, table, typical

COMMITS = 1440
COMMITS_AN_HOUR = 60


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=["XS", "S"])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    data = Data(DATA, options.size)
    found, seconds, files = {"bulk": [], "trickled": []}, {}, {}
    with fresh_server() as server:
        server.load_labels(data)
        seconds["bulk"] = server.load_group("bulk", data)
        trickle = {"commit_rows": -(-data.size.history // COMMITS), "optimize_every": COMMITS_AN_HOUR}
        seconds["trickled"] = server.load_group("trickled", data, **trickle)
        for group in found:
            files[group] = int(server.sql(f'SELECT count(*) FROM "{group}$files"')[0][0])
        for _ in range(options.runs):
            for group, results in found.items():
                results.append(server.run("fletching", query=point_in_time(group=group)))
                say(f"{group}: {results[-1]['seconds']:.2f} s")
    check_same({group: results[0] for group, results in found.items()})
    ratio = typical(found["trickled"]) / typical(found["bulk"])
    rows = [
        [group, files[group], f"{seconds[group]:.1f}", f"{typical(results):.2f}", spread(results), f"{memory(results):.0f}"]
        for group, results in found.items()
    ]
    header = ["history", "files", "loaded in s", "query, median s", "min–max s", "peak MiB"]
    text = f"{table(header, rows)}\n\nTrickled ÷ bulk: {ratio:.2f} (goal ≤ 1.2). The same was found in both."
    publish(f"A day of trickle, {options.size}: {data.size}, in {COMMITS} commits", text)


if __name__ == "__main__":
    main()
