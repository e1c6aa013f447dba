"""The same labels against one and ten times the events per entity: does the join cost what it reads, or more?"""

import argparse

from data import Data
from harness import (
    DATA, JobFailed, available, check, check_same, fresh_server, median, point_in_time, publish, run, say, spread, table,
)  # fmt: skip

PEERS = ["polars", "duckdb"]
OURS = "fletching"


def joins(labels, dense, options):
    """Every engine's runs against one history, by name, and the bytes that each of them had to look at."""
    arrived = f"{dense.path}/history/*.parquet"
    with fresh_server() as server:
        load_seconds = server.load_group("history", dense)
        server.load_labels(labels)
        _, files, size = server.files("history")
        ours = [server.run(OURS, query=point_in_time()) for _ in range(options.runs)]
    say(f"{dense.name}: fletching {median([r['seconds'] for r in ours]):.2f} s")
    found = {OURS: ours}
    for peer in [peer for peer in options.peers if available(peer)]:
        try:
            found[peer] = [run(peer, labels=labels.labels, history=arrived) for _ in range(options.runs)]
            say(f"{dense.name}: {peer} {median([r['seconds'] for r in found[peer]]):.2f} s")
        except JobFailed as error:
            say(f"{dense.name}: {error}")
    check_same({name: results[0] for name, results in found.items()})
    return found, {"load_seconds": load_seconds, "files": files, "bytes": size}


def cells(results):
    if results is None:
        return ["–"] * 3
    memory = median([r.get("server_mib", r["peak_mib"]) for r in results])
    seconds = [r["seconds"] for r in results]
    return [f"{median(seconds):.2f}", spread(seconds), f"{memory:.0f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=["XS", "S"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    options = parser.parse_args()
    once, tenfold = Data(DATA, options.size), Data(DATA, options.size + "10")
    try:
        (thin, thin_store), (dense, dense_store) = (joins(once, data, options) for data in (once, tenfold))
    except JobFailed as error:
        raise SystemExit(f"FAILED: {error}") from None
    rows = []
    for name, results in thin.items():
        ratio = "–"
        if name in dense:
            ratio = f"{median([r['seconds'] for r in dense[name]]) / median([r['seconds'] for r in results]):.2f}"
        rows.append([name, *cells(results), *cells(dense.get(name)), ratio])
    header = ["engine", "1× median s", "min–max s", "peak MiB", "10× median s", "min–max s", "peak MiB", "10× ÷ 1×"]
    growth = dense_store["bytes"] / thin_store["bytes"]
    lines = [table(header, rows), ""]
    for times, store in (("1×", thin_store), ("10×", dense_store)):
        lines.append(
            f"- {times}: {store['bytes'] / 1e6:.0f} MB of history in {store['files']} files, "
            f"loaded through ADBC in {store['load_seconds']:.1f} s."
        )
    lines.append(f"- History on disk grows {growth:.1f}-fold.")
    check(growth > 5, "ten times the rows must take more room")
    publish(f"Density, {options.size}: the labels of {once.size}; against it and ten times its events", "\n".join(lines))


if __name__ == "__main__":
    main()
