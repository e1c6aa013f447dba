"""pyiceberg on a server's catalog and warehouse, run by an environment of its own: its SQLAlchemy is not the one that
flightsql-dbapi wants. `iceberg_peer.py DATA ACTION [ARGUMENTS]` prints JSON."""

import datetime as dt
import json
import sys

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import LongType, NestedField, StringType, TimestampType

DATA = sys.argv[1]
CATALOG = SqlCatalog("fletching", uri=f"sqlite:///{DATA}/catalog.db", warehouse=f"file://{DATA}/warehouse")

EVENTS = Schema(
    NestedField(1, "id", LongType(), required=False),
    NestedField(2, "at", TimestampType(), required=False),
    NestedField(3, "place", StringType(), required=False),
)
PARTITIONED = PartitionSpec(PartitionField(source_id=3, field_id=1000, transform=IdentityTransform(), name="place"))


def events(ids, place="place"):
    at = [dt.datetime(2026, 1, 1 + n % 3, n % 24) if n % 5 else None for n in ids]
    places = [f"p{n % 2}" if n % 7 else None for n in ids]
    return pa.table({"id": pa.array(ids, pa.int64()), "at": pa.array(at, pa.timestamp("us")), place: places})


def tables():
    return sorted(".".join(name) for name in CATALOG.list_tables("public"))


def rows(name, snapshot=None):
    scan = CATALOG.load_table(f"public.{name}").scan(snapshot_id=snapshot and int(snapshot))
    return scan.to_arrow().to_pylist()


def snapshots(name):
    kept = sorted(CATALOG.load_table(f"public.{name}").snapshots(), key=lambda s: s.sequence_number)
    return [[str(s.snapshot_id), s.summary.operation.value] for s in kept]


def write(name, *options):
    """A table of 100 rows in files of 10, a column renamed and one added half-way, and some rows deleted."""
    spec = {"partition_spec": PARTITIONED} if "partitioned" in options else {}
    CATALOG.create_namespace_if_not_exists("public")
    table = CATALOG.create_table(f"public.{name}", EVENTS, **spec)
    for first in range(0, 50, 10):
        table.append(events(range(first, first + 10)))
    with table.update_schema() as update:
        update.rename_column("place", "town")
        update.add_column("visits", LongType())
    for first in range(50, 100, 10):
        batch = events(range(first, first + 10), "town")
        table.append(batch.append_column("visits", pa.array(range(first, first + 10), pa.int64())))
    table.delete("id >= 20 and id < 25")
    return len(rows(name))


def append(name):
    batch = events([1000], "town")
    CATALOG.load_table(f"public.{name}").append(batch.append_column("visits", pa.array([1], pa.int64())))


ACTIONS = {action.__name__: action for action in (tables, rows, snapshots, write, append)}
print(json.dumps(ACTIONS[sys.argv[2]](*sys.argv[3:]), default=str))
