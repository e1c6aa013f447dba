"""The point-in-time join, by every peer and by Fletching, on the same work in one go.

Each run is a process of its own and ends with the whole result as an Arrow table. The peers read Parquet in order of
arrival; then those that can read the files that Fletching wrote. Fletching's history and labels lie on the server, and
the result crosses the wire into the client; its memory is the server's. All must find the same, or the run fails.
"""

import argparse

from data import SIZES, Data
from harness import (
    DATA, FEAST_PYTHON, JobFailed, Path, available, check, check_same, fresh_server,
    median, point_in_time, publish, run, say, spread, table,
)  # fmt: skip

PEERS = ["polars", "duckdb", "chdb", "pandas", "feast"]
ON_OUR_FILES = ["polars", "duckdb"]
OURS = "fletching"


def peers_for(options):
    """Those that are installed, and at M those that can."""
    wanted = options.peers or [p for p in PEERS if options.size != "M" or p not in ("pandas", "feast")]
    missing = [p for p in wanted if not (Path(FEAST_PYTHON).exists() if p == "feast" else available(p))]
    if missing:
        say(f"not installed, left out: {', '.join(missing)}")
    return [peer for peer in wanted if peer not in missing]


def measure(options, data, server):
    """Every run of everybody, by name; and what else was seen of Fletching."""
    ours, history = server.files("history")[0], f"{data.path}/history/*.parquet"
    peers = peers_for(options)
    jobs = {peer: {"labels": data.labels, "history": history} for peer in peers}
    jobs |= {f"{p}, Fletching's files": {"labels": data.labels, "history": ours} for p in peers if p in ON_OUR_FILES}
    found = {}
    for turn in range(options.runs):
        for name, arguments in jobs.items():
            if name == "feast" and turn >= options.feast_runs:
                continue
            python = {"python": FEAST_PYTHON} if name == "feast" else {}
            note(found, name, run(name.split(",")[0], **python, **arguments))
        note(found, OURS, server.run(OURS, query=point_in_time()))
        check_same({name: results[-1] for name, results in found.items()})
    streamed = [server.run("fletching_streamed", query=point_in_time()) for _ in range(options.runs)]
    check(streamed[0]["rows"] == data.size.labels, f"{streamed[0]['rows']} rows were streamed")
    return found, streamed


def note(found, name, result):
    found.setdefault(name, []).append(result)
    memory = result.get("server_mib", result["peak_mib"])
    say(f"{name}: {result['seconds']:.2f} s, {memory:.0f} MiB")


def report(found):
    seconds = {name: median([r["seconds"] for r in results]) for name, results in found.items()}
    peers = [name for name in seconds if name in PEERS]
    best = min(peers, key=seconds.get) if peers else OURS
    rows = []
    for name in [OURS, *sorted((n for n in seconds if n != OURS), key=lambda n: (n not in PEERS, seconds[n]))]:
        memory = median([r.get("server_mib", r["peak_mib"]) for r in found[name]])
        runs = [r["seconds"] for r in found[name]]
        against = [f"{seconds[name] / seconds[OURS]:.2f}", f"{seconds[name] / seconds[best]:.2f}"]
        rows.append([name, f"{seconds[name]:.2f}", spread(runs), f"{memory:.0f}", *against])
    lines = [table(["engine", "median s", "min–max s", "peak MiB", "÷ Fletching", "÷ best peer"], rows), ""]
    same_files = [name for name in seconds if name not in PEERS and name != OURS]
    for what, names in (("in order of arrival", peers), ("on Fletching's files", same_files)):
        if names:
            best = min(names, key=seconds.get)
            lines.append(f"- Against the best peer {what} ({best.split(',')[0]}): {seconds[OURS] / seconds[best]:.2f} × its time.")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="S", choices=[name for name in SIZES if SIZES[name].labels])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--feast-runs", type=int, default=1, help="it takes long")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="those that are installed, unless told")
    parser.add_argument("--commits", default="per file", choices=["per file", "one"], help="how history is ingested")
    options = parser.parse_args()
    data = Data(DATA, options.size)
    with fresh_server() as server:
        load_seconds = server.load_group("history", data, commits=options.commits)
        server.load_labels(data)
        try:
            found, streamed = measure(options, data, server)
        except JobFailed as error:
            raise SystemExit(f"FAILED: {error}") from None
        _, files, size = server.files("history")
    lines = report(found)
    client = median([r["peak_mib"] for r in found[OURS]])
    lines += [
        f"- Fletching's first batch arrives after {median([r['first_seconds'] for r in streamed]):.2f} s, the last of a "
        f"stream that nobody keeps after {median([r['seconds'] for r in streamed]):.2f} s; its client peaks at "
        f"{client:.0f} MiB with the table held, at {median([r['peak_mib'] for r in streamed]):.0f} MiB streaming.",
        f"- History loaded through ADBC in {load_seconds:.1f} s ({'one stream' if options.commits == 'one' else 'a commit per day'}); "
        f"{files} files, {size / 1e6:.0f} MB.",
        f"- {options.runs} runs; all agree: {found[OURS][0]['rows']} rows, {found[OURS][0]['nulls']} without a match.",
    ]
    publish(f"Point-in-time join, {options.size}: {data.size}", "\n".join(lines))


if __name__ == "__main__":
    main()
