"""Opens the database of studies (Optuna's storage on SQLite or PostgreSQL) and locks it.

On SQLite every transaction starts with BEGIN IMMEDIATE. With deferred transactions, two workers could both read the
queue and take the same ticket (optuna#4002, optuna#4621).
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
    NoStudies,
    StorageError,
    absolute,
    connect_args,
    displayed,
    file_of,
    secrets_of,
)

Mode = Literal["create", "write", "read"]

# What SQLite reports if it cannot create the -wal and -shm files that it needs even to read a database in WAL mode.
UNWRITABLE = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_SHMOPEN,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_WRITE,
}
ALEMBIC = "alembic_version"
LOGS = "logs"  # key in a connection's info: identities of its -wal and -shm files when it was opened
OPTUNA_REVISION = re.compile(r"v\d+\.\d+\.\d+\.\w+")  # other programs have Alembic's default: 12 hexadecimal digits

log = logging.getLogger(__package__)


def open_storage(url: str, mode: Mode = "read") -> RDBStorage:
    """Connect to the database of studies. Connections close with the last reference to the storage.

    Args:
        url: sqlite:///FILE or postgresql://…
        mode: "create" is "write" that first creates a missing file and missing tables; "read" never waits for a
            writer of SQLite, and must not write.

    Raises:
        StorageError: the database is missing, locked, corrupt, unreachable, or belongs to another program.
        OSError: its folder cannot be created.
    """
    logs.hide(*secrets_of(url))
    streams.occupy()  # again, because a program that becomes a daemon closes them after importing us
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # we log these events ourselves
    file, create = file_of(url), mode == "create"
    if file:
        if not create and not file.is_file():
            raise NoStudies(f"no database {file}; start a search there with `run`, or name another with --storage")
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"connect_args": connect_args(url)}
    if not file:
        options |= {"pool_size": 2, "max_overflow": 0, "pool_pre_ping": True}
    elif mode == "read" and _is_on_unwritable_disk(file):
        options["creator"] = partial(_connect_immutable, file)
    with reported(url), lock(url) if create else nullcontext():
        with _unpooled(url, options.get("creator")).connect() as connection:
            made = has_schema(connection, url)
        if not (made or create):  # Optuna would create the tables, perhaps while another process does
            raise NoStudies(
                f"{displayed(url)}: this database has no studies yet; "
                "start one with `run`, or name another database with --storage"
            )
        try:
            storage = RDBStorage(
                absolute(url).render_as_string(hide_password=False),
                engine_kwargs=options,
                skip_compatibility_check=True,  # done below: if the constructor raised, a connection would stay open
                skip_table_creation=made,
            )
            weakref.finalize(storage, storage.engine.dispose)
            check_schema(storage)
        except RuntimeError as error:  # the schema of another version of Optuna
            raise StorageError(f"{displayed(url)}: {' '.join(str(error).split())}") from error
        storage.engine.dispose()  # drop the connections made before the listeners below
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
    """Open a storage inside this context, then close its connections."""
    storage = open_storage(url, mode)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def _unpooled(url: str, creator: Callable[[], sqlite3.Connection] | None = None) -> sqlalchemy.Engine:
    options: dict[str, Any] = {"creator": creator} if creator else {"connect_args": connect_args(url)}
    engine = sqlalchemy.create_engine(absolute(url), poolclass=sqlalchemy.NullPool, **options)
    watch.over(engine)
    return engine


def _is_on_unwritable_disk(file: Path) -> bool:
    # On a read-only or full disk SQLite cannot create the -wal and -shm files. The database can still be read as
    # immutable, unless its write-ahead log holds changes that are not in the main file yet.
    try:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("SELECT 1 FROM sqlite_master").close()
    except sqlite3.OperationalError as error:
        log_file = Path(f"{file.resolve()}-wal")
        if not {error.sqlite_errorcode, error.sqlite_errorcode & PRIMARY} & UNWRITABLE:
            return False  # the next connection reports it
        if log_file.is_file() and log_file.stat().st_size:
            raise StorageError(
                f"{file}: the disk is read-only or full, and {log_file.name} holds changes that the database does not "
                "have yet; copy both files to another disk and name that copy with --storage"
            ) from error
        return True
    except sqlite3.Error:
        return False
    return False


def _connect_immutable(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file.resolve()))}?immutable=1", uri=True, check_same_thread=False)


def has_schema(connection: sqlalchemy.Connection, url: str) -> bool:
    """Whether the database has Optuna's tables, of any version; False if it is empty or their creation was interrupted.

    Raises:
        StorageError: the database belongs to another program.
    """
    inspector = sqlalchemy.inspect(connection)
    expected = columns_by_table()
    # On PostgreSQL: all tables of the current schema, where Optuna would create its own, and any of Optuna's names
    # that another schema on the search path provides.
    tables = {
        *inspector.get_table_names(inspector.default_schema_name),
        *({*expected, ALEMBIC} & set(inspector.get_table_names())),
    }
    revisions: list[str] = []
    if ALEMBIC in tables:  # common to many programs; Optuna creates and fills it last
        revisions = list(connection.scalars(sqlalchemy.text(f"SELECT version_num FROM {ALEMBIC}")))  # noqa: S608
    if revisions and all(map(OPTUNA_REVISION.fullmatch, revisions)):
        return True
    if expected.keys() <= tables and not revisions:
        expected[ALEMBIC] = {"version_num"}
    foreign = {
        *(table for table in tables if expected.get(table) != {each["name"] for each in inspector.get_columns(table)}),
        *(expected.keys() & set(inspector.get_view_names())),  # Optuna would mistake a view for its table
    }
    if foreign:
        names, more = sorted(foreign)[:3], len(foreign) - 3
        listed = f"{', '.join(names)} and {more} more" if more > 0 else ", ".join(names)
        raise StorageError(
            f"{displayed(url)}: contains tables of another program ({listed}); name another database with --storage"
        )
    return False


def _bound_idle_transactions(connection: Any, _record: object) -> None:
    # A worker that hangs inside a transaction may hold a trial's lock: let PostgreSQL end the transaction.
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{BUSY_TIMEOUT}s'")
    connection.commit()


def _begin_as_writer(engine: sqlalchemy.Engine) -> None:
    # SQLAlchemy's recipe for SQLite transactions, plus the write-ahead log.
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")

    def begun(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


def _watch_files(engine: sqlalchemy.Engine, shown: Path, *, immutable: bool) -> None:
    # SQLite keeps writing to deleted files without an error, and creates an empty database in place of a deleted one.
    # So each transaction first checks that the files are still the ones that were opened. `shown` is the path for
    # messages. Of an immutable database SQLite does not notice changed content either.
    file = Path(str(engine.url.database))
    opened, content = _identity(file), _content(file)

    def compare(*_: object) -> None:
        if _identity(file) != opened:
            raise DatabaseGone(f"{shown} was deleted or replaced while in use; restore it and run again")
        if immutable and _content(file) != content:
            raise DatabaseGone(f"{shown} was changed while it was read as an immutable file; run again")

    def connected(connection: Any, record: Any) -> None:
        connection.execute("SELECT 1 FROM sqlite_master").close()  # opens the log, which stays until the last close
        found = {suffix: _identity(Path(f"{file}{suffix}")) for suffix in ("-wal", "-shm")}
        record.info[LOGS] = {suffix: identity for suffix, identity in found.items() if identity}

    def begun(connection: sqlalchemy.Connection) -> None:
        compare()
        for suffix, identity in connection.info[LOGS].items():
            if _identity(Path(f"{file}{suffix}")) != identity:
                raise DatabaseGone(
                    f"{shown}{suffix} was deleted while in use; stop all commands that use the database and run again"
                )

    event.listen(engine, "do_connect", compare)
    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun, insert=True)  # before BEGIN, which may block or fail for the same reason


def _identity(file: Path) -> tuple[int, int] | None:
    # stat rather than open: closing a descriptor of the file would release this process's POSIX locks on it.
    status = _status(file)
    return (status.st_dev, status.st_ino) if status else None


def _content(file: Path) -> list[tuple[int, int]]:
    found = map(_status, (file, Path(f"{file}-wal")))  # the last process to close the database deletes the log
    return [(status.st_mtime_ns, status.st_size) for status in found if status]


def _status(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def lock(url: str) -> Iterator[None]:
    """Hold the database-wide lock of fmnist-search's processes inside this context."""
    location = absolute(url)
    if location.drivername == "sqlite":
        from filelock import FileLock, Timeout

        file = FileLock(f"{location.database}.lock")
        try:
            file.acquire(timeout=SILENCE)
        except Timeout:
            log.warning("waiting without a time limit for another command that holds the database's lock")
            file.acquire()
        try:
            yield
        finally:
            file.release()
        return
    number = sqlalchemy.func.hashtext("fmnist-search")
    # A lock of the transaction, not of the session: a pooler keeps the session open after this process ends.
    with _unpooled(url).connect() as connection:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(number)))
        yield
