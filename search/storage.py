"""The database of studies: from a URL to Optuna's storage, SQLite or PostgreSQL.

Every transaction on SQLite begins as a writer's. Two workers that read the queue in
readers' transactions would otherwise take the same ticket (optuna#4002, optuna#4621).
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from fmnist.errors import ExpectedError

BUSY_TIMEOUT = 60  # seconds that a writer waits for another
SQLITE_WORKERS = 8  # that SQLite serves without much waiting
NETWORKED = ("nfs", "cifs", "smb", "afs", "9p", "ceph", "lustre", "gpfs", "fuse.sshfs", "fuse.gluster", "fuse.s3")
PATIENCE = 600  # seconds for which a database that is out of reach is tried again
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds between two tries

T = TypeVar("T")


class StorageError(ExpectedError):
    """The database cannot be reached or used; the message says what to do, without a password."""


def default_url(output: Path) -> str:
    """The embedded database of an output folder."""
    return f"sqlite:///{output / 'studies.db'}"


def parse(url: str) -> URL:
    """Check a storage URL; `postgresql://` is taken to mean psycopg 3.

    Raises:
        StorageError: it is malformed, in memory, or of another database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StorageError(
            "the storage URL is malformed; write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise StorageError(
            f"{parsed.drivername}: no such storage; use sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    if "@" in (parsed.host or "") or (parsed.host and "@" in (parsed.database or "")):
        raise StorageError("the storage URL has more than one @; write one in a user name or password as %40")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StorageError("a database in memory cannot be shared by workers; write sqlite:///FILE")
    return parsed


def masked(url: str) -> str:
    """The URL as it may be shown: a password as ***, and no options, which may hold one too."""
    return parse(url).set(query={}).render_as_string(hide_password=True)


def open_storage(url: str, mode: Literal["create", "write", "read"] = "read") -> RDBStorage:
    """Connect to the database of studies.

    Args:
        url: sqlite:///FILE or postgresql://…
        mode: "create" makes the file and the tables where there are none and then is as
            "write"; "read" never waits for a writer of SQLite, and must not write.

    Raises:
        StorageError: it is absent, locked, broken or out of reach.
        OSError: its folder cannot be made.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what is to be said, we say
    parsed = parse(url)
    sqlite, create = parsed.drivername == "sqlite", mode == "create"
    if sqlite:
        file = Path(str(parsed.database))
        if not create and not file.is_file():
            raise StorageError(
                f"no database {file}; start a search with `fmnist-search run`, or name another with --storage"
            )
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = (
        {"connect_args": {"timeout": BUSY_TIMEOUT}}
        if sqlite
        else {"pool_size": 2, "max_overflow": 0, "pool_pre_ping": True}
    )
    with reported(url), lock(url) if create else nullcontext():
        if not create:
            _refuse_unfinished(parsed)  # Optuna would write into it, beside whoever is making the tables
        try:
            storage = RDBStorage(
                parsed.render_as_string(hide_password=False), engine_kwargs=options, skip_table_creation=not create
            )
        except RuntimeError as error:  # the schema is of another version of Optuna
            raise StorageError(f"{masked(url)}: {' '.join(str(error).split())}") from error
        if not sqlite:
            storage.engine.dispose()  # connections made before the event was there
            event.listen(storage.engine, "connect", _bound_idle_transactions)
        elif mode != "read":
            _begin_as_writer(storage.engine)
    return storage


def _refuse_unfinished(url: URL) -> None:
    """See whether the tables are there, to the last that Optuna makes."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    if not sqlalchemy.inspect(engine).has_table("alembic_version"):
        raise StorageError(
            f"{masked(url.render_as_string(hide_password=False))}: no study was made in this database yet; "
            "start one with `fmnist-search run`, or name another database with --storage"
        )


def _bound_idle_transactions(connection: Any, _record: object) -> None:
    """Let PostgreSQL end the transaction of a worker that stopped within it: it may hold a trial's lock."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{BUSY_TIMEOUT}s'")
    connection.commit()


def warnings_for(url: str, workers: int, *, cluster: bool = False) -> list[str]:
    """What is to be said about a database that will not serve so many workers, or not safely.

    cluster: whether the workers may be on several machines.
    """
    parsed = parse(url)
    if parsed.drivername != "sqlite":
        return []
    warnings = []
    if cluster:
        warnings.append("Warning: SQLite serves workers of this machine only; use PostgreSQL for those of others.")
    if workers > SQLITE_WORKERS:
        warnings.append(f"Warning: more than {SQLITE_WORKERS} workers wait for each other on SQLite; use PostgreSQL.")
    kind = _file_system(Path(str(parsed.database)))
    if kind.startswith(NETWORKED):
        warnings.append(f"Warning: SQLite is not safe on a network file system ({kind}); use PostgreSQL.")
    return warnings


def _file_system(path: Path) -> str:
    """The kind of file system that a path is on, as /proc/mounts calls it; empty where that cannot be told."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return ""
    mounted = map(str.split, mounts.read_text().splitlines())
    kinds = {Path(fields[1].encode().decode("unicode_escape")): fields[2] for fields in mounted}
    absolute = path.resolve()
    return next((kinds[folder] for folder in (absolute, *absolute.parents) if folder in kinds), "")


def _begin_as_writer(engine: sqlalchemy.Engine) -> None:
    """SQLAlchemy's recipe for SQLite, plus the write-ahead log."""

    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")

    def begun(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before the events were there
    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


@contextmanager
def lock(url: str) -> Iterator[None]:
    """Hold the one lock that all processes on this database respect."""
    parsed = parse(url)
    if parsed.drivername == "sqlite":
        from filelock import FileLock

        with FileLock(f"{parsed.database}.lock"):
            yield
        return
    engine = sqlalchemy.create_engine(parsed, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(
            sqlalchemy.select(sqlalchemy.func.pg_advisory_lock(sqlalchemy.func.hashtext("fmnist-search")))
        )
        yield


@contextmanager
def reported(url: str) -> Iterator[None]:
    """Turn a database's own errors into one line that names the database, not its password."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        reason = _without_password(str(getattr(cause, "orig", None) or cause).strip().splitlines()[0], url)
        raise StorageError(f"{masked(url)}: {reason}{_mend(reason)}") from error


def persistently(action: Callable[[], T], giving_up: Callable[[], bool] = lambda: False) -> T:
    """Do it again, later and later, for as long as the database is out of reach or busy.

    Args:
        action: may be done again though its first time was committed.
        giving_up: asked before each new try; after PATIENCE the trouble is raised in any case.
    """
    troubled, pause = 0.0, FIRST_PAUSE
    while True:
        started = time.monotonic()
        try:
            return action()
        except (SQLAlchemyError, StorageInternalError, StorageError) as error:
            if not troubled or time.monotonic() - started > 2 * BUSY_TIMEOUT:  # it had worked meanwhile
                troubled, pause = time.monotonic(), FIRST_PAUSE
            if not _passing(error) or giving_up() or time.monotonic() - troubled > PATIENCE:
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # so that workers do not all come back at once
        pause = min(2 * pause, LONGEST_PAUSE)


def _passing(error: BaseException | None) -> bool:
    """Whether the trouble may pass by itself: a server that restarts, a lock that another holds."""
    cause = error
    while isinstance(cause, StorageInternalError | StorageError):
        cause = cause.__cause__
    if isinstance(cause, DBAPIError) and cause.connection_invalidated:
        return True
    if not isinstance(cause, OperationalError | InterfaceError):
        return False
    reason = str(cause.orig)
    if "sqlite" in type(cause.orig).__module__:
        return "locked" in reason
    return not any(mark in reason for mark in ("authentication failed", "does not exist", "pg_hba.conf"))


def _without_password(text: str, url: str) -> str:
    """The driver's words, in case it repeats what it was given."""
    parsed = make_url(url)
    secrets = [parsed.password, *(value for key, value in parsed.query.items() if "pass" in key)]
    for secret in filter(None, secrets):
        text = text.replace(str(secret), "***")
    return text


def _mend(reason: str) -> str:
    mends = {
        "not a database": "; the file is broken or of another kind: move it away, or name another with --storage",
        "malformed": "; the file is broken: move it away, or name another with --storage",
        "no such table": "; it is no database of studies: name another with --storage",
        "locked": f"; another program has kept it for over {BUSY_TIMEOUT} s: end that program and run again",
        "readonly": "; make the file and its folder writable",
        "disk": "; free some space and run again: what was stored is whole",
        "connection": "; start the server, or correct the URL",
    }
    return next((mend for mark, mend in mends.items() if mark in reason), "")
