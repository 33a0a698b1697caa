"""The database of studies: from a URL to Optuna's storage, SQLite or PostgreSQL.

Every transaction on SQLite begins as a writer's. Two workers that read the queue in
readers' transactions would otherwise take the same ticket (optuna#4002, optuna#4621).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from fmnist.errors import ExpectedError

BUSY_TIMEOUT = 60  # seconds that a writer waits for another


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
    if "@" in (parsed.host or ""):
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
        {"connect_args": {"timeout": BUSY_TIMEOUT}} if sqlite else {"pool_size": 2, "pool_pre_ping": True}
    )
    with reported(url), lock(url) if create else nullcontext():
        try:
            storage = RDBStorage(
                parsed.render_as_string(hide_password=False), engine_kwargs=options, skip_table_creation=not create
            )
        except RuntimeError as error:  # the schema is of another version of Optuna
            raise StorageError(f"{masked(url)}: {' '.join(str(error).split())}") from error
        if sqlite and mode != "read":
            _begin_as_writer(storage.engine)
    return storage


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
