"""Makes the data that everybody joins, as Parquet, and what everybody serves, in memory.

History: one file a day, in arrival (event time) order; ten features (4 int64, 4 float64, 1 string, 1 boolean).
Labels: random entity, of which one in fifty is unknown, and random time within the same days.
Served: one row per entity, dated within the last day; those ten features, or fifty doubles of which every bit counts.
"""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

FEATURES = {
    "purchase_count_7d": "BIGINT",
    "purchase_count_30d": "BIGINT",
    "avg_order_value_30d": "DOUBLE",
    "total_spend_lifetime": "DOUBLE",
    "days_since_last_purchase": "BIGINT",
    "session_count_7d": "BIGINT",
    "cart_value": "DOUBLE",
    "return_rate": "DOUBLE",
    "favorite_category": "VARCHAR",
    "is_member": "BOOLEAN",
}
COLUMNS = ["user_id", "event_timestamp", *FEATURES]
VECTOR = [f"f{number:02}" for number in range(50)]
CATEGORIES = ["books", "electronics", "garden", "toys", "grocery", "fashion", "sports", "music"]
FIRST_DAY = "2026-01-01"
DAY_US = 86_400_000_000
SEED = 7


@dataclass(frozen=True)
class Size:
    labels: int
    history: int
    entities: int
    days: int

    def __str__(self):
        labels, history, entities = (short(n) for n in (self.labels, self.history, self.entities))
        return f"{labels} labels × {history} rows of history, {entities} entities, {self.days} days"


SIZES = {
    "XS": Size(2_000, 20_000, 500, 5),
    "S": Size(1_000_000, 10_000_000, 100_000, 30),
    "M": Size(5_000_000, 60_000_000, 1_000_000, 60),
    # The history for the labels of XS and S with ten times the events per entity.
    "XS10": Size(0, 200_000, 500, 5),
    "S10": Size(0, 100_000_000, 100_000, 30),
}


def short(count):
    """1000000 as 1M."""
    for factor, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= factor and count % factor == 0:
            return f"{count // factor}{letter}"
    return str(count)


class Data:
    """One size of the data, below a directory; made when it is not there."""

    def __init__(self, root, name):
        self.name, self.size = name, SIZES[name]
        self.path = Path(root).absolute() / name
        if not self.path.exists():
            self.make()

    @property
    def labels(self):
        return str(self.path / "labels.parquet")

    @property
    def files(self):
        """The files of history, in the order of arrival."""
        return sorted(str(path) for path in self.path.glob("history/*.parquet"))

    def make(self):
        """Under another name first, so that half of it never passes for the whole."""
        print(f"making {self.name}: {self.size}", file=sys.stderr, flush=True)
        partial = self.path.with_name(self.path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "history").mkdir(parents=True)
        try:
            generate(partial, self.size)
            partial.rename(self.path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def generate(path, size):
    """A day at a time, so that memory does not grow with history."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(SEED)
    first = np.datetime64(FIRST_DAY, "us").astype(np.int64)
    instant = pa.timestamp("us", tz="UTC")
    per_day = size.history // size.days
    for day in range(size.days):
        n = per_day if day < size.days - 1 else size.history - per_day * (size.days - 1)
        times = np.sort(first + day * DAY_US + rng.integers(0, DAY_US, n))
        history = purchases(rng, times, rng.integers(0, size.entities, n))
        file = path / "history" / f"day={day:02d}.parquet"
        pq.write_table(history, file, compression="zstd", row_group_size=256 * 1024)
    if size.labels:
        n = size.labels
        labels = pa.table(
            {
                "label_id": np.arange(n),
                "user_id": rng.integers(0, int(size.entities * 1.02), n),
                "event_timestamp": pa.array(first + rng.integers(0, size.days * DAY_US, n), instant),
                "label": (rng.random(n) < 0.1).astype(np.int64),
            }
        )
        pq.write_table(labels, path / "labels.parquet", compression="zstd")


def purchases(rng, times, users):
    """Rows of the ten features, rounded as such figures are; times in µs since 1970 UTC."""
    import numpy as np
    import pyarrow as pa

    n = len(times)
    categories = np.array(CATEGORIES)
    return pa.table(
        {
            "user_id": users,
            "event_timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
            "purchase_count_7d": rng.poisson(3, n).astype(np.int64),
            "purchase_count_30d": rng.poisson(11, n).astype(np.int64),
            "avg_order_value_30d": np.round(rng.gamma(3, 20, n), 2),
            "total_spend_lifetime": np.round(rng.gamma(5, 300, n), 2),
            "days_since_last_purchase": rng.integers(0, 90, n),
            "session_count_7d": rng.poisson(5, n).astype(np.int64),
            "cart_value": np.round(rng.exponential(40, n), 2),
            "return_rate": np.round(rng.beta(2, 20, n), 4),
            "favorite_category": pa.array(categories[rng.integers(0, len(categories), n)]),
            "is_member": pa.array(rng.random(n) < 0.3),
        }
    )


def within_a_day(rng, n):
    """Event times in µs, the last of them now: a TTL counts from when a benchmark runs."""
    return time.time_ns() // 1000 - rng.integers(0, DAY_US, n)


def served_purchases(entities):
    import numpy as np

    rng = np.random.default_rng(SEED)
    return purchases(rng, within_a_day(rng, entities), np.arange(entities))


def served_vectors(entities):
    import numpy as np
    import pyarrow as pa

    users, times = np.arange(entities), within_a_day(np.random.default_rng(SEED), entities)
    columns = {"user_id": users, "event_timestamp": pa.array(times, pa.timestamp("us", tz="UTC"))}
    return pa.table(columns | {name: feature(users, number) for number, name in enumerate(VECTOR)})


def feature(users, number):
    """One feature of the vectors, from 0 to below 1, as benches/serving/entities.rs computes it: by SplitMix64."""
    import numpy as np

    mixed = users.astype(np.uint64) * np.uint64(len(VECTOR)) + np.uint64(number + 1)
    mixed = mixed * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(11)) / float(1 << 53)
