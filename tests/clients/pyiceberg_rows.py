"""Reads a table as another engine does, and prints its rows as JSON: `pyiceberg_rows.py TABLE KEY=VALUE…`, where keys and
values are properties of the catalog. Runs on requirements-iceberg.txt."""

import json
import sys

from pyiceberg.catalog import load_catalog

name, *properties = sys.argv[1:]
properties = dict(given.split("=", 1) for given in properties)
catalog = load_catalog("fletching", **{"type": "sql", "init_catalog_tables": "false"} | properties)
table = catalog.load_table(name).scan().to_arrow()
print(json.dumps([list(row.values()) for row in table.to_pylist()], default=str))
