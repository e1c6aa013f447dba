"""Batches of a training set for PyTorch: each worker fetches its share of the result's endpoints."""

import os

import adbc_driver_flightsql.dbapi as flight_sql
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

URL = os.environ.get("FLETCHING_URL", "grpc://127.0.0.1:8815")


class FlightSql(IterableDataset):
    """A query's result of numbers as (rows × columns) tensors, each a batch as the server sends it; NULL is NaN.

    Workers fetch at the same time, each from its own endpoints: `fletching serve --endpoints 4` splits a large result
    into four. They must be spawned: the driver does not survive a fork.
    """

    def __init__(self, url, query):
        self.url = url
        with flight_sql.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
            self.partitions, self.schema = cursor.adbc_execute_partitions(query)

    def __iter__(self):
        worker = get_worker_info()
        mine = self.partitions if worker is None else self.partitions[worker.id :: worker.num_workers]
        with flight_sql.connect(self.url, autocommit=True) as connection, connection.cursor() as cursor:
            for partition in mine:
                cursor.adbc_read_partition(partition)
                for batch in cursor.fetch_record_batch():
                    yield torch.stack([tensor(column) for column in batch.columns], dim=1)


def tensor(column):
    """An Arrow column as it lies in memory."""
    return torch.from_dlpack(pc.fill_null(column.cast(pa.float32(), safe=False), float("nan")))


if __name__ == "__main__":
    numbers = FlightSql(URL, "SELECT value AS x, 3 * value + 1 AS y FROM generate_series(1, 100000) AS t(value)")
    rows, total = 0, 0.0
    for batch in DataLoader(numbers, batch_size=None, num_workers=2, multiprocessing_context="spawn"):
        rows, total = rows + len(batch), total + batch[:, 0].double().sum().item()
    print(f"{rows} rows in {len(numbers.partitions)} partitions, {numbers.schema.names}, sum of x {total:.0f}")
