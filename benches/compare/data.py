"""Makes the data that everybody joins: feature history and labels, as Parquet.

History: one file a day, in arrival (event time) order; ten features (4 int64, 4 float64, 1 string, 1 boolean).
Labels: random entity, of which one in fifty is unknown, and random time within the same days.
"""

import shutil
import sys
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
    categories = np.array(CATEGORIES)
    per_day = size.history // size.days
    for day in range(size.days):
        n = per_day if day < size.days - 1 else size.history - per_day * (size.days - 1)
        times = np.sort(first + day * DAY_US + rng.integers(0, DAY_US, n))
        history = pa.table(
            {
                "user_id": rng.integers(0, size.entities, n),
                "event_timestamp": pa.array(times, instant),
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
