"""The point-in-time join, by every peer and by Fletching, on the same work in one go.

Each run is a process of its own and ends with the whole result as an Arrow table. The peers read Parquet in order of
arrival; then those that can read the files that Fletching wrote. Fletching's history and labels lie on the server, and
the result crosses the wire into the client; its memory is the server's. All must find the same, or the run fails.
"""

import argparse
from pathlib import Path

from data import SIZES, Data
from harness import (
    DATA, FEAST_PYTHON, JobFailed, available, check, check_same, fresh_server, memory, point_in_time,
    publish, run, say, spread, table, typical,
)

PEERS = ["polars", "duckdb", "chdb", "pandas", "feast"]
ON_OUR_FILES = ["polars", "duckdb"]
OURS = "fletching"


def peers_for(options):
    """Those that are installed, and at M those that can."""
    wanted = [peer for peer in PEERS if options.size != "M" or peer not in ("pandas", "feast")]
    if options.peers is not None:
        wanted = options.peers
    missing = [p for p in wanted if not (Path(FEAST_PYTHON).exists() if p == "feast" else available(p))]
    if missing:
        say(f"not installed, left out: {', '.join(missing)}")
    return [peer for peer in wanted if peer not in missing]


def measure(options, data, server):
    """Every run of everybody, by name; Fletching's runs as a stream; and the peers that did not get through."""
    arrived, ours = f"{data.path}/history/*.parquet", server.files("history")[0]
    peers = peers_for(options)
    histories = {peer: arrived for peer in peers}
    histories |= {f"{peer}, Fletching's files": ours for peer in peers if peer in ON_OUR_FILES}
    found, failed = {}, {}
    for turn in range(options.runs):
        for name, history in histories.items():
            if name in failed or (name == "feast" and turn >= options.feast_runs):
                continue
            python = {"python": FEAST_PYTHON} if name == "feast" else {}
            try:
                note(found, name, run(name.split(",")[0], **python, labels=data.labels, history=history))
            except JobFailed as error:
                say(str(error))
                failed[name] = str(error).splitlines()[0]
        note(found, OURS, server.run(OURS, query=point_in_time()))
        check_same({name: results[-1] for name, results in found.items()})
    streamed = [server.run("fletching_streamed", query=point_in_time()) for _ in range(options.runs)]
    check(streamed[0]["rows"] == data.size.labels, f"{streamed[0]['rows']} rows were streamed")
    return found, streamed, failed


def note(found, name, result):
    found.setdefault(name, []).append(result)
    say(f"{name}: {result['seconds']:.2f} s, {memory([result]):.0f} MiB")


def ratios(found):
    """The table, and how Fletching does against the best of each kind."""
    seconds = {name: typical(results) for name, results in found.items()}
    on_arrival = [name for name in found if name in PEERS]
    on_ours = [name for name in found if name not in PEERS and name != OURS]
    best = min(on_arrival, key=seconds.get, default=None)
    rows = []
    for name in [OURS, *sorted(on_arrival, key=seconds.get), *sorted(on_ours, key=seconds.get)]:
        against = [f"{seconds[name] / seconds[other]:.2f}" if other else "–" for other in (OURS, best)]
        rows.append([name, f"{seconds[name]:.2f}", spread(found[name]), f"{memory(found[name]):.0f}", *against])
    lines = [table(["engine", "median s", "min–max s", "peak MiB", "÷ Fletching", "÷ best peer"], rows), ""]
    for what, names in (("in order of arrival", on_arrival), ("on Fletching's files", on_ours)):
        if names:
            best = min(names, key=seconds.get)
            times = f"{seconds[OURS] / seconds[best]:.2f}"
            lines.append(f"- Fletching takes {times} × the time of the best peer {what} ({best.split(',')[0]}).")
    return lines


def remarks(options, found, streamed, load_seconds, files, size):
    first, last = typical(streamed, "first_seconds"), typical(streamed)
    held, passing = typical(found[OURS], "peak_mib"), typical(streamed, "peak_mib")
    before = typical(found[OURS], "server_before_mib")
    agree = "all agree" if len(found) > 1 else "compared with nobody"
    how = "as one stream" if options.commits == "one" else "a commit per file"
    return [
        f"- Read as a stream and dropped, the first batch comes after {first:.2f} s, the last after {last:.2f} s.",
        f"- Before each query its server held {before:.0f} MiB, which its peak includes.",
        f"- Its client peaks at {held:.0f} MiB with the whole table, at {passing:.0f} MiB streaming.",
        f"- Its history was loaded through ADBC in {load_seconds:.1f} s, {how}: {files} files, {size / 1e6:.0f} MB.",
        f"- {options.runs} runs; {agree}: {found[OURS][0]['rows']} rows, {found[OURS][0]['nulls']} without a match.",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=[name for name in SIZES if SIZES[name].labels])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--feast-runs", type=int, default=1, help="it takes long")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="those that are installed, unless told; may be none")
    parser.add_argument("--commits", default="per file", choices=["per file", "one"], help="how history is ingested")
    options = parser.parse_args()
    data = Data(DATA, options.size)
    with fresh_server() as server:
        load_seconds = server.load_group("history", data, commits=options.commits)
        server.load_labels(data)
        found, streamed, failed = measure(options, data, server)
        _, files, size = server.files("history")
    lines = ratios(found) + remarks(options, found, streamed, load_seconds, files, size)
    lines += [f"- Did not get through: {message}." for message in failed.values()]
    publish(f"Point-in-time join, {options.size}: {data.size}", "\n".join(lines))


if __name__ == "__main__":
    main()
