"""Large results: whole, and in bounded memory however slowly they are read."""

from pathlib import Path

GIGABYTE = 2**30


def resident_bytes_max(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def test_two_gigabytes_arrive_whole(own_server):
    server, total = own_server(), 2_000_000
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT value, repeat('x', 1000) AS text FROM generate_series(1, {total})")
        count = size = 0
        for batch in cursor.fetch_record_batch():
            count += batch.num_rows
            size += batch.nbytes
    assert count == total
    assert size > 2_000_000_000
    assert resident_bytes_max(server) < GIGABYTE


def test_a_slow_reader_costs_no_memory(own_server):
    server = own_server()
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT value, repeat('x', 1000) AS text FROM generate_series(1, 50000000)")
        reader = cursor.fetch_record_batch()
        reader.read_next_batch()
        # the reader pauses for as long as another connection needs for half a gigabyte
        with server.connect() as other, other.cursor() as fast:
            fast.execute("SELECT value, repeat('x', 1000) AS text FROM generate_series(1, 500000)")
            assert sum(batch.num_rows for batch in fast.fetch_record_batch()) == 500_000
        reader.read_next_batch()
    assert resident_bytes_max(server) < GIGABYTE
