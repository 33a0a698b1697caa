"""Checks that this machine can run a search, each with a fix for what fails.

The only side effect is a test file in the checkpoint storage, removed at once. Nothing is downloaded.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

import joblib
import optuna
import sqlalchemy
from sqlalchemy.engine import Connection

from fmnist.errors import ExpectedError
from search.artifacts import ArtifactError, open_artifacts
from search.database.connection import has_schema, opened
from search.database.optuna_schema import columns_by_table
from search.database.retry import reported
from search.database.url import StorageError, absolute, connect_args, default_url, displayed, file_of, warnings_for
from search.formatting import count

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """The result of one check; fix: what to do if it is not ok. A search can run despite warnings."""

    name: str
    status: Status
    found: str
    fix: str | None = None

    @classmethod
    def ok(cls, name: str, found: str) -> Self:
        return cls(name, "ok", found)

    @classmethod
    def warning(cls, name: str, text: str) -> Self:
        """From a line "what was found; what to do"."""
        found, _, fix = _in_one_line(text).partition("; ")
        return cls(name, "warning", found, fix or None)

    @classmethod
    def failed(cls, name: str, trouble: str | Exception) -> Self:
        """From a line "what is wrong; what to do", the format of expected errors."""
        found, _, fix = _in_one_line(str(trouble)).partition("; ")
        return cls(name, "failed", found, fix or None)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


OLDEST, NEWEST = (3, 11), (3, 13)  # tested versions of Python; newer ones get a warning
NEEDED, COMFORTABLE = 100_000_000, 1_000_000_000  # bytes of free disk


def check_python(running: tuple[int, int] = sys.version_info[:2]) -> Check:
    """Check the interpreter's version."""
    oldest, newest, this = (".".join(map(str, each)) for each in (OLDEST, NEWEST, running))
    if running < OLDEST:
        return Check.failed("Python", f"{this}; install Python {oldest} or newer, and fmnist-search into it")
    if running > NEWEST:
        return Check.warning("Python", f"{this} is not tested; if something fails, use Python {oldest} to {newest}")
    return Check.ok("Python", f"{platform.python_version()}, {sys.executable}")


def check_torch(workers: int | None) -> Iterator[Check]:
    """Check that torch can be imported, its device, and that workers or threads do not outnumber cores."""
    try:
        import torch as installed
    except (ImportError, OSError) as error:
        yield Check.failed("torch", f"cannot be imported ({error}); reinstall it: pip install --force-reinstall torch")
        return
    from search.run.local import cores

    accelerators = {"cuda": installed.cuda.is_available(), "mps": installed.backends.mps.is_available()}
    device = next((name for name, available in accelerators.items() if available), "cpu")
    yield Check.ok("torch", f"{installed.__version__}, trains on {device}")
    threads, available_cores = installed.get_num_threads(), cores()
    if workers and workers > available_cores:
        found = f"{workers} workers on {available_cores} cores"
        yield Check.warning("threads", f"{found}; use --workers {available_cores}")
    elif threads > available_cores:
        found = f"torch uses {threads} threads on {available_cores} cores"
        yield Check.warning("threads", f"{found}; unset OMP_NUM_THREADS")
    else:
        yield Check.ok("threads", f"{workers or available_cores} workers on {available_cores} cores")


def check_data_set(folder: Path | None) -> Check:
    """Check that the data set is present and intact."""
    try:
        from fmnist import data, source

        found = source.find(folder)
        if found is None:
            return Check.warning("data set", "not on this machine yet; `run` or `fmnist-search data` downloads it")
        loaded = data.load(found)
    except (ExpectedError, ImportError, OSError) as error:
        return Check.failed("data set", error)
    images = f"{len(loaded.train):,} + {len(loaded.test):,} images"
    return Check.ok("data set", f"{loaded.name}: {images}, verified, in {loaded.folder}")


def check_artifacts(place: str) -> Check:
    """Check that checkpoints can be written to a folder or bucket."""
    name = f"doctor-{os.getpid()}"
    folder = None if "://" in place else Path(place)
    try:
        if folder is not None and not folder.is_dir():
            parent = nearest(folder)
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                return Check.failed("artifacts", f"cannot create {folder}; make {parent} a writable folder")
            return Check.ok("artifacts", f"{folder}, created when needed")
        store = open_artifacts(place)
        store.write(name, b"written by fmnist-search doctor")
        store.remove(name)
    except (ArtifactError, OSError) as error:
        return Check.failed("artifacts", error)
    return Check.ok("artifacts", f"{store.location} is writable")


def check_disk(folders: Iterable[Path]) -> Iterator[Check]:
    """Check the free space of each disk that has or will have one of the folders."""
    disks = {folder.stat().st_dev: folder for folder in map(nearest, folders)}
    for folder in disks.values():
        free = shutil.disk_usage(folder).free
        found = f"{free / 1e9:.1f} GB in {folder.resolve()}"
        fix = "free some space, or name another --output"
        if free < NEEDED:
            yield Check.failed("free disk", f"{found}; {fix}")
        elif free < COMFORTABLE:
            yield Check.warning("free disk", f"{found}; {fix}")
        else:
            yield Check.ok("free disk", found)


def check_report() -> Check:
    """Check that a report can be written. This needs no browser: plotly's JavaScript is embedded in the page."""
    try:
        from search.report.page import plotly_js

        plotly_js()
    except (ImportError, OSError) as error:
        fix = "reinstall fmnist-search, plotly and jinja2 with pip"
        return Check.failed("report", f"cannot be written ({error}); {fix}")
    return Check.ok("report", f"plotly {version('plotly')}, needs no browser and no network")


def nearest(path: Path) -> Path:
    """The path if it exists, else its closest existing parent."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if os.access(each, os.F_OK))


REACH = 5  # seconds to wait for a server or a lock


def database_folders(url: str) -> list[Path]:
    """The folder of an SQLite database's file, as a list; empty for a server."""
    file = _file(url)
    return [file.parent] if file else []


def check_database(url: str, workers: int) -> Iterator[Check]:
    """Check connection, write access, schema and write-ahead log of the database; a missing one is not created."""
    try:
        file = _file(url)
        if file and not os.access(file, os.F_OK):
            yield _check_creatable(file)
        else:
            with reported(url), _connected(url) as connection:
                yield from _check_tables(url, connection)
        for warning in warnings_for(url, workers):
            yield Check.warning("storage", warning.removeprefix("Warning: "))
    except StorageError as error:
        yield Check.failed("storage", error)


def _file(url: str) -> Path | None:
    try:
        return file_of(url)
    except StorageError:
        return None  # `check_database` reports it


def _check_creatable(file: Path) -> Check:
    parent = nearest(file)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return Check.failed("storage", f"cannot create {file}; make {parent} a writable folder")
    return Check.ok("storage", f"{file}, created by `run`")


def _connected(url: str) -> Connection:
    return sqlalchemy.create_engine(
        absolute(url), poolclass=sqlalchemy.NullPool, connect_args=connect_args(url, REACH)
    ).connect()


def _check_tables(url: str, connection: Connection) -> Iterator[Check]:
    """Check an existing database.

    Raises:
        StorageError: at the first failure.
    """
    sqlite, has_tables = connection.dialect.name == "sqlite", has_schema(connection, url)
    if sqlite:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("CREATE TABLE doctor (x)")  # BEGIN alone may succeed on a read-only disk
        connection.rollback()
    elif connection.scalar(sqlalchemy.text("SHOW transaction_read_only")) == "on":
        raise StorageError(f"{displayed(url)}: read-only; name the primary server, or let {_user(connection)} write")
    if not has_tables:
        may_create = "SELECT has_schema_privilege(current_schema(), 'CREATE')"
        if not sqlite and not connection.scalar(sqlalchemy.text(may_create)):
            grant = f"GRANT CREATE ON SCHEMA public TO {_user(connection)}"
            raise StorageError(f"{displayed(url)}: {_user(connection)} may not create tables; run {grant}")
        yield Check.ok("storage", f"{displayed(url)} is empty; `run` creates its tables")
        return
    if not sqlite:
        tables = sorted({*columns_by_table()} & {*sqlalchemy.inspect(connection).get_table_names()})
        write = sqlalchemy.text(
            "SELECT has_table_privilege(:table, 'INSERT') AND has_table_privilege(:table, 'UPDATE')"
        )
        for table in tables:
            if not connection.scalar(write, {"table": table}):
                grant = f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {_user(connection)}"
                raise StorageError(f"{displayed(url)}: {_user(connection)} may not write to it; run {grant}")
    with opened(url) as storage:
        studies = count(len(optuna.get_all_study_names(storage)), "study").replace("studys", "studies")
        schema = storage.get_current_version()
    yield Check.ok("storage", f"{displayed(url)} is writable, {studies}")
    yield Check.ok("schema", f"{schema}, for Optuna {optuna.__version__}")
    if sqlite:
        journal = connection.scalar(sqlalchemy.text("PRAGMA journal_mode"))
        if journal == "wal":
            yield Check.ok("WAL", "on: readers do not wait for writers")
        else:
            fix = "the next `run` turns it on, except on a network file system"
            yield Check.warning("WAL", f"off, journal mode is {journal}; {fix}")


def _user(connection: Connection) -> str:
    return str(connection.scalar(sqlalchemy.text("SELECT current_user")))


@dataclass(frozen=True)
class Plan:
    """The options of the search to check for; None means an option's default.

    only: names of the parts to check; empty means all.
    """

    storage: str | None
    output: Path
    artifacts: str | None
    data_dir: Path | None
    workers: int | None
    only: tuple[str, ...] = ()


def examine(plan: Plan) -> Iterator[Check]:
    """Yield all checks, each when it is done."""
    for name, part in parts(plan).items():
        if name in (plan.only or (name,)):
            yield from part()


def parts(plan: Plan) -> dict[str, Callable[[], Iterable[Check]]]:
    """The functions that run the checks, by the name of the part."""
    url = plan.storage or default_url(plan.output)
    return {
        "python": lambda: [check_python()],
        "torch": lambda: check_torch(plan.workers),
        "data": lambda: [check_data_set(plan.data_dir)],
        "storage": lambda: check_database(url, plan.workers or joblib.cpu_count()),
        "artifacts": lambda: [check_artifacts(plan.artifacts or str(plan.output))],
        "disk": lambda: check_disk([plan.output, *database_folders(url)]),
        "report": lambda: [check_report()],
    }
