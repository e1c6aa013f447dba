"""The shell on a terminal."""

import os
import pty
import subprocess

from support import BINARY, run


def shown_while(server, statement):
    """What the shell shows on its terminal until it counts rows, or is done."""
    terminal, stderr = pty.openpty()
    shell = subprocess.Popen(
        [BINARY, "sql", "--url", server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(stderr)
    shell.stdin.write(statement.encode())
    shell.stdin.close()
    shown = b""
    while True:
        try:
            read = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not read:
            break
        shown += read
        if b" rows" in shown:
            shell.kill()
    os.close(terminal)
    shell.wait()
    return shown


def test_a_long_write_says_how_far_it_is(server, connection):
    run(connection, "CREATE TABLE long (n BIGINT)")
    # One of these takes as long as it needs to be asked about, whatever the machine.
    for thousands in (4, 16, 64):
        rows = f"generate_series(1, {thousands * 1000})"
        shown = shown_while(server, f"INSERT INTO long SELECT a.value AS n FROM {rows} a, {rows} b;")
        if b" rows" in shown:
            break
    assert b"running" in shown and b" rows" in shown, shown
