"""The same labels against one and ten times the events per entity: does the join cost what it reads, or more?"""

import argparse

from data import Data
from harness import (
    DATA, JobFailed, available, check, check_same, fresh_server, memory, point_in_time, publish, run, say, spread,
    table, typical,
)

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
    say(f"{dense.name}: fletching {typical(ours):.2f} s")
    found = {OURS: ours}
    for peer in [peer for peer in options.peers if available(peer)]:
        try:
            found[peer] = [run(peer, labels=labels.labels, history=arrived) for _ in range(options.runs)]
            say(f"{dense.name}: {peer} {typical(found[peer]):.2f} s")
        except JobFailed as error:
            say(f"{dense.name}: {error}")
    check_same({name: results[0] for name, results in found.items()})
    before = typical(ours, "server_before_mib")
    return found, {"load_seconds": load_seconds, "files": files, "bytes": size, "before": before}


def cells(results):
    if results is None:
        return ["–"] * 3
    return [f"{typical(results):.2f}", spread(results), f"{memory(results):.0f}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=["XS", "S"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    options = parser.parse_args()
    once, tenfold = Data(DATA, options.size), Data(DATA, options.size + "10")
    (thin, thin_store), (dense, dense_store) = (joins(once, data, options) for data in (once, tenfold))
    rows = []
    for name, results in thin.items():
        ratio = f"{typical(dense[name]) / typical(results):.2f}" if name in dense else "–"
        rows.append([name, *cells(results), *cells(dense.get(name)), ratio])
    header = ["engine", "1× median s", "min–max s", "peak MiB", "10× median s", "min–max s", "peak MiB", "10× ÷ 1×"]
    growth = dense_store["bytes"] / thin_store["bytes"]
    lines = [table(header, rows), ""]
    for times, store in (("1×", thin_store), ("10×", dense_store)):
        lines.append(
            f"- {times}: {store['bytes'] / 1e6:.0f} MB of history in {store['files']} files, "
            f"loaded through ADBC in {store['load_seconds']:.1f} s; "
            f"before each query the server held {store['before']:.0f} MiB, which its peak includes."
        )
    lines.append(f"- History on disk grows {growth:.1f}-fold.")
    for name, found in (("1×", thin), ("10×", dense)):
        others = [peer for peer in found if peer != OURS]
        lines.append(f"- {name}: the same was found by {', '.join(others) or 'nobody else, as nobody else was asked'}.")
    check(growth > 5, "ten times the rows must take more room")
    publish(f"Density, {options.size}: {once.size}, and ten times the events of each", "\n".join(lines))


if __name__ == "__main__":
    main()
