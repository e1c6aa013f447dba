"""What Superset does with a feature group: lists it, previews it, charts it. The dialect is that of flightsql-dbapi.

pip install flightsql-dbapi pandas; it takes SQLAlchemy 1.4, as Superset does.
The URI for Superset is datafusion+flightsql://127.0.0.1:8815?insecure=true
"""

import os

import flightsql.sqlalchemy  # registers the dialect
import sqlalchemy as sa

server = os.environ.get("FLETCHING_URL", "grpc://127.0.0.1:8815").removeprefix("grpc://")
engine = sa.create_engine(f"datafusion+flightsql://{server}?insecure=true")

with engine.connect() as connection:
    connection.execute(sa.text("DROP FEATURE GROUP IF EXISTS page_views"))
    connection.execute(sa.text("""
        CREATE FEATURE GROUP page_views (
            user_id BIGINT, at TIMESTAMP, views BIGINT DEFAULT 0, country VARCHAR,
            ENTITY KEY (user_id), EVENT TIME (at))"""))
    connection.execute(sa.text("""
        INSERT INTO page_views VALUES
            (1, TIMESTAMP '2026-01-01 08:00:00', 3, 'NO'), (2, TIMESTAMP '2026-01-01 21:00:00', 4, 'SE'),
            (1, TIMESTAMP '2026-01-02 09:30:00', 9, 'NO')"""))

    inspector = sa.inspect(engine)
    print("schemas", inspector.get_schema_names())
    print("tables", inspector.get_table_names("public"))
    for column in inspector.get_columns("page_views", "public"):
        print("column", column["name"], column["type"])

    page_views = sa.Table("page_views", sa.MetaData(), schema="public", autoload_with=engine)
    for row in connection.execute(sa.select([page_views]).order_by(page_views.c.at).limit(2)):
        print("preview", tuple(row))

    day = sa.func.date_trunc("day", page_views.c.at).label("day")
    chart = (
        sa.select([day, sa.func.sum(page_views.c.views).label("views")])
        .where(page_views.c.country == "NO")
        .group_by(day)
        .order_by(day)
    )
    for row in connection.execute(chart):
        print("chart", row.day, row.views)
