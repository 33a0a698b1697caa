"""A real PgBouncer for tests, in transaction mode in front of the PostgreSQL of `tests.postgresql`."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.postgresql import Server, account, free_port

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
NEEDS_PGBOUNCER = pytest.mark.skipif(PROGRAM is None, reason="no PgBouncer here: apt-get install pgbouncer")
SETTINGS = """\
[databases]
* = host=127.0.0.1 port={server} user=tester

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
query_wait_timeout = {patience}
logfile = {folder}/log
"""


@contextmanager
def pooler(server: Server, *, connections: int, patience: int = 120) -> Iterator[int]:
    """PgBouncer, while it is needed; gives its port.

    Args:
        connections: to the server, for each database.
        patience: seconds after which it ends a client that waits for one of them.
    """
    assert PROGRAM
    folder, port, who = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir="/tmp")), free_port(), account()
    settings = folder / "pgbouncer.ini"
    chosen = {"server": server.port, "port": port, "connections": connections, "patience": patience, "folder": folder}
    settings.write_text(SETTINGS.format(**chosen))
    uid, gid = (who.pw_uid, who.pw_gid) if who else (None, None)
    if uid is not None and gid is not None:
        os.chown(folder, uid, gid)
    output = (folder / "output").open("w")
    process = subprocess.Popen(
        [PROGRAM, str(settings)], cwd="/", stdout=output, stderr=output, user=uid, group=gid, extra_groups=()
    )
    try:
        while not _listens(port):
            assert process.poll() is None, (folder / "output").read_text()
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()
        output.close()
        shutil.rmtree(folder)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
