"""The database of studies: whether it is within reach, can be written, and is one of this version."""

import os
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy
from sqlalchemy.engine import URL, Connection

from search.database.connection import has_schema, opened
from search.database.retry import reported
from search.database.url import StorageError, absolute, file_of, masked, warnings_for
from search.doctor.check import Check
from search.doctor.machine import nearest
from search.formatting import count

REACH = 5  # seconds within which a server answers and a lock is free


def database_folders(url: str) -> list[Path]:
    """The folder of the database's file, if it is one of this machine."""
    file = _file(url)
    return [file.parent] if file else []


def check_database(url: str, workers: int) -> Iterator[Check]:
    """Reach, write access, schema and write-ahead log of the database; it is not made where there is none."""
    try:
        file = _file(url)
        if file and not os.access(file, os.F_OK):
            yield _absent(file)
        else:
            with reported(url), _connected(absolute(url)) as connection:
                yield from _check_tables(url, connection)
        for warning in warnings_for(url, workers):
            yield Check.warning("storage", warning.removeprefix("Warning: "))
    except StorageError as error:
        yield Check.failed("storage", error)


def _file(url: str) -> Path | None:
    """The file of an SQLite database."""
    try:
        return file_of(url)
    except StorageError:
        return None  # which `check_database` says


def _absent(file: Path) -> Check:
    above = nearest(file)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return Check.failed("storage", f"{file} cannot be made; make {above} a folder that can be written")
    return Check.ok("storage", f"{file}, which `run` makes")


def _connected(url: URL) -> Connection:
    limit = {"timeout": REACH} if url.drivername == "sqlite" else {"connect_timeout": REACH}
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=limit).connect()


def _check_tables(url: str, connection: Connection) -> Iterator[Check]:
    """The checks of a database that is there.

    Raises:
        StorageError: of the first thing that is not well.
    """
    sqlite, made = connection.dialect.name == "sqlite", has_schema(connection, url)
    if sqlite:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("CREATE TABLE doctor (x)")  # BEGIN may pass on a read-only disk
        connection.rollback()
    elif connection.scalar(sqlalchemy.text("SHOW transaction_read_only")) == "on":
        raise StorageError(f"{masked(url)}: read-only; name the primary server, or let {_user(connection)} write")
    if not made:
        may = "SELECT has_schema_privilege(current_schema(), 'CREATE')"
        if not sqlite and not connection.scalar(sqlalchemy.text(may)):
            grant = f"GRANT CREATE ON SCHEMA public TO {_user(connection)}"
            raise StorageError(f"{masked(url)}: {_user(connection)} may not make tables in it; say {grant}")
        yield Check.ok("storage", f"{masked(url)} is not in use yet; `run` makes its tables")
        return
    with opened(url) as storage:
        studies = count(len(optuna.get_all_study_names(storage)), "study").replace("studys", "studies")
        schema = storage.get_current_version()
    yield Check.ok("storage", f"{masked(url)} can be written, {studies}")
    yield Check.ok("schema", f"{schema}, that of Optuna {optuna.__version__}")
    if sqlite:
        journal = connection.scalar(sqlalchemy.text("PRAGMA journal_mode"))
        if journal == "wal":
            yield Check.ok("WAL", "on: readers do not wait for writers")
        else:
            mend = "the next `run` turns it on, unless the disk is another machine's"
            yield Check.warning("WAL", f"off, journal mode is {journal}; {mend}")


def _user(connection: Connection) -> str:
    return str(connection.scalar(sqlalchemy.text("SELECT current_user")))
