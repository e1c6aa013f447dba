"""The shell on a terminal."""

import os
import pty
import subprocess

from support import BINARY, run


def test_a_long_write_says_how_far_it_is(server, connection):
    run(connection, "CREATE TABLE long (n BIGINT)")
    terminal, stderr = pty.openpty()
    shell = subprocess.Popen(
        [BINARY, "sql", "--url", server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(stderr)
    # As long as it takes to be asked about twice.
    slow = "INSERT INTO long SELECT a.value AS n FROM generate_series(1, 4000) a, generate_series(1, 4000) b;"
    shell.stdin.write(slow.encode())
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
    assert b"running" in shown and b" rows" in shown, shown
