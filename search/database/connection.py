"""The database of studies, opened: Optuna's storage on SQLite or PostgreSQL, and the lock on it.

Every transaction on SQLite begins as a writer's. Two workers that read the queue in
readers' transactions would otherwise take the same ticket (optuna#4002, optuna#4621).
"""

import logging
import os
import re
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import event

from fmnist import streams
from search import logs
from search.database.optuna_schema import check_schema, columns_by_table
from search.database.retry import PRIMARY, SILENCE, reported, watch
from search.database.url import (
    BUSY_TIMEOUT,
    DatabaseGone,
    StorageError,
    absolute,
    connect_args,
    file_of,
    masked,
    secrets_of,
)

Mode = Literal["create", "write", "read"]

# What SQLite reports where it cannot make the files that it needs to read a database with a write-ahead log.
UNWRITABLE = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_WRITE,
}
ALEMBIC = "alembic_version"
LOGS = "logs"  # a key of a connection's info: which files its write-ahead log was in when it was opened
OPTUNA_REVISION = re.compile(r"v\d+\.\d+\.\d+\.\w+")  # other programs keep Alembic's own, of 12 hexadecimal digits

log = logging.getLogger(__package__)


def open_storage(url: str, mode: Mode = "read") -> RDBStorage:
    """Connect to the database of studies. The connections are closed with the last reference to the storage.

    Args:
        url: sqlite:///FILE or postgresql://…
        mode: "create" makes the file and the tables where there are none and then is as
            "write"; "read" never waits for a writer of SQLite, and must not write.

    Raises:
        StorageError: it is absent, locked, broken, out of reach, or another program's.
        OSError: its folder cannot be made.
    """
    logs.hide(*secrets_of(url))
    streams.occupy()  # again: a program may have closed them since it imported us, as one does that becomes a daemon
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what is to be said, we say
    file, create = file_of(url), mode == "create"
    if file:
        if not create and not file.is_file():
            raise StorageError(
                f"no database {file}; start a search with `fmnist-search run`, or name another with --storage"
            )
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"connect_args": connect_args(url)}
    if not file:
        options |= {"pool_size": 2, "max_overflow": 0, "pool_pre_ping": True}
    elif mode == "read" and _is_on_a_dead_disk(file):
        options["creator"] = partial(_connect_immutable, file)
    with reported(url), lock(url) if create else nullcontext():
        with _unpooled(url, options.get("creator")).connect() as connection:
            made = has_schema(connection, url)
        if not (made or create):  # Optuna would write into it, beside whoever is making the tables
            raise StorageError(
                f"{masked(url)}: no study was made in this database yet; "
                "start one with `fmnist-search run`, or name another database with --storage"
            )
        try:
            storage = RDBStorage(
                absolute(url).render_as_string(hide_password=False),
                engine_kwargs=options,
                skip_compatibility_check=True,  # until it can be closed: the constructor would leave a connection open
                skip_table_creation=made,
            )
            weakref.finalize(storage, storage.engine.dispose)
            check_schema(storage)
        except RuntimeError as error:  # the schema is of another version of Optuna
            raise StorageError(f"{masked(url)}: {' '.join(str(error).split())}") from error
        storage.engine.dispose()  # connections made before the events were there
        if not file:
            event.listen(storage.engine, "connect", _bound_idle_transactions)
        else:
            if mode != "read":
                _begin_as_writer(storage.engine)
            _watch_files(storage.engine, file, immutable="creator" in options)
        watch.over(storage.engine)
    return storage


@contextmanager
def opened(url: str, mode: Mode = "read") -> Iterator[RDBStorage]:
    """Open a storage for a block and close its connections afterwards."""
    storage = open_storage(url, mode)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def _unpooled(url: str, creator: Callable[[], sqlite3.Connection] | None = None) -> sqlalchemy.Engine:
    given: dict[str, Any] = {"creator": creator} if creator else {"connect_args": connect_args(url)}
    engine = sqlalchemy.create_engine(absolute(url), poolclass=sqlalchemy.NullPool, **given)
    watch.over(engine)
    return engine


def _is_on_a_dead_disk(file: Path) -> bool:
    """Whether SQLite cannot create the files that it needs to read a database, on a read-only or full disk.

    The database can then be read as immutable, unless its log holds changes that were never written back.

    Raises:
        StorageError: the log holds such changes.
    """
    try:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("SELECT 1 FROM sqlite_master").close()
    except sqlite3.OperationalError as error:
        log_file = Path(f"{file.resolve()}-wal")
        if not {error.sqlite_errorcode, error.sqlite_errorcode & PRIMARY} & UNWRITABLE:
            return False  # of which the next to try will tell
        if log_file.is_file() and log_file.stat().st_size:
            raise StorageError(
                f"{file}: its disk is read-only or full, and {log_file.name} has what is to be written; copy "
                "both files to another disk and name that with --storage"
            ) from error
        return True
    except sqlite3.Error:
        return False
    return False


def _connect_immutable(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file.resolve()))}?immutable=1", uri=True, check_same_thread=False)


def has_schema(connection: sqlalchemy.Connection, url: str) -> bool:
    """Whether Optuna's tables, of whatever version, are there; False for no table, and for unfinished creation.

    Raises:
        StorageError: the database belongs to another program, and nothing may be created in it.
    """
    inspector = sqlalchemy.inspect(connection)
    expected = columns_by_table()
    # on PostgreSQL those of the current schema, where Optuna would create its own, and what it would find elsewhere
    tables = {
        *inspector.get_table_names(inspector.default_schema_name),
        *({*expected, ALEMBIC} & set(inspector.get_table_names())),
    }
    revisions: list[str] = []
    if ALEMBIC in tables:  # many programs have one; Optuna creates and fills it last
        revisions = list(connection.scalars(sqlalchemy.text(f"SELECT version_num FROM {ALEMBIC}")))  # noqa: S608
    if revisions and all(map(OPTUNA_REVISION.fullmatch, revisions)):
        return True
    if expected.keys() <= tables and not revisions:
        expected[ALEMBIC] = {"version_num"}
    foreign = {
        *(table for table in tables if expected.get(table) != {each["name"] for each in inspector.get_columns(table)}),
        *(expected.keys() & set(inspector.get_view_names())),  # Optuna would take a view for the table that it needs
    }
    if foreign:
        names, more = sorted(foreign)[:3], len(foreign) - 3
        held = f"{', '.join(names)} and {more} more" if more > 0 else ", ".join(names)
        raise StorageError(f"{masked(url)}: holds tables of another program ({held}); name another with --storage")
    return False


def _bound_idle_transactions(connection: Any, _record: object) -> None:
    """Let PostgreSQL end the transaction of a worker that stopped within it: it may hold a trial's lock."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{BUSY_TIMEOUT}s'")
    connection.commit()


def _begin_as_writer(engine: sqlalchemy.Engine) -> None:
    """SQLAlchemy's recipe for SQLite, plus the write-ahead log."""

    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")

    def begun(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


def _watch_files(engine: sqlalchemy.Engine, shown: Path, *, immutable: bool) -> None:
    """Let each transaction begin by making sure that SQLite's files are still those that were opened.

    SQLite goes on without an error in files that were deleted, and creates an empty database where its own was.

    Args:
        shown: the database's path as it is shown to the user.
        immutable: SQLite looks for no change of its content either.
    """
    file = Path(str(engine.url.database))
    opened, content = _identity(file), _content(file)

    def compare(*_: object) -> None:
        if _identity(file) != opened:
            raise DatabaseGone(f"{shown} was deleted or replaced while in use; put it back and run again")
        if immutable and _content(file) != content:
            raise DatabaseGone(f"{shown} was written to while it was read as it stood; run this again")

    def connected(connection: Any, record: Any) -> None:
        connection.execute("SELECT 1 FROM sqlite_master").close()  # opens the log, which then stays until all close it
        found = {suffix: _identity(Path(f"{file}{suffix}")) for suffix in ("-wal", "-shm")}
        record.info[LOGS] = {suffix: identity for suffix, identity in found.items() if identity}

    def begun(connection: sqlalchemy.Connection) -> None:
        compare()
        for suffix, identity in connection.info[LOGS].items():
            if _identity(Path(f"{file}{suffix}")) != identity:
                raise DatabaseGone(
                    f"{shown}{suffix} was deleted while in use; end all commands that use the database and run again"
                )

    event.listen(engine, "do_connect", compare)
    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun, insert=True)  # before BEGIN, which may wait or fail for the same reason


def _identity(file: Path) -> tuple[int, int] | None:
    """Which file a path leads to; None if to none. Opening it instead would end this process's locks on it."""
    status = _status(file)
    return (status.st_dev, status.st_ino) if status else None


def _content(file: Path) -> list[tuple[int, int]]:
    """What changes when somebody writes to a database: times and sizes of it and of its log."""
    found = map(_status, (file, Path(f"{file}-wal")))  # the log goes when the last process closes the database
    return [(status.st_mtime_ns, status.st_size) for status in found if status]


def _status(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def lock(url: str) -> Iterator[None]:
    """Hold the one lock that all processes on this database respect."""
    place = absolute(url)
    if place.drivername == "sqlite":
        from filelock import FileLock, Timeout

        file = FileLock(f"{place.database}.lock")
        try:
            file.acquire(timeout=SILENCE)
        except Timeout:
            log.warning("waiting for another command that has the database's lock, for as long as it takes")
            file.acquire()
        try:
            yield
        finally:
            file.release()
        return
    number = sqlalchemy.func.hashtext("fmnist-search")
    with _unpooled(
        url
    ).connect() as connection:  # for one transaction, which ends with it: behind a pooler a session does not
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(number)))
        yield
