"""Checks of what a search needs from this machine, each with how to fix what fails.

Nothing is made but a file that is removed at once where checkpoints go, and nothing is downloaded.
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
from search.database.url import StorageError, absolute, connect_args, default_url, file_of, masked, warnings_for
from search.formatting import count

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """The result of one check. fix: what to do about it. A warning stops no search."""

    name: str
    status: Status
    found: str
    fix: str | None = None

    @classmethod
    def ok(cls, name: str, found: str) -> Self:
        return cls(name, "ok", found)

    @classmethod
    def warning(cls, name: str, text: str) -> Self:
        """From one line: what was found; what to do."""
        found, _, fix = _in_one_line(text).partition("; ")
        return cls(name, "warning", found, fix or None)

    @classmethod
    def failed(cls, name: str, trouble: str | Exception) -> Self:
        """From one line, as the errors that a user can fix have it: what was found; what to do."""
        found, _, fix = _in_one_line(str(trouble)).partition("; ")
        return cls(name, "failed", found, fix or None)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


OLDEST, NEWEST = (3, 11), (3, 13)  # Python that the tests were run on; a newer one is warned of
NEEDED, COMFORTABLE = 100_000_000, 1_000_000_000  # bytes of free disk


def check_python(running: tuple[int, int] = sys.version_info[:2]) -> Check:
    """The interpreter's version."""
    oldest, newest, this = (".".join(map(str, each)) for each in (OLDEST, NEWEST, running))
    if running < OLDEST:
        return Check.failed("Python", f"{this}; install Python {oldest} or newer, and fmnist-search into it")
    if running > NEWEST:
        return Check.warning("Python", f"{this} was never tested; if something fails, use Python {oldest} to {newest}")
    return Check.ok("Python", f"{platform.python_version()}, {sys.executable}")


def check_torch(workers: int | None) -> Iterator[Check]:
    """Whether torch can be imported, what it trains on, and whether it has as many threads as cores at most."""
    try:
        import torch as installed
    except (ImportError, OSError) as error:
        yield Check.failed(
            "torch", f"cannot be imported ({error}); install it again: pip install --force-reinstall torch"
        )
        return
    from search.run.local import cores

    accelerators = {"cuda": installed.cuda.is_available(), "mps": installed.backends.mps.is_available()}
    device = next((name for name, there in accelerators.items() if there), "cpu")
    yield Check.ok("torch", f"{installed.__version__}, trains on {device}")
    threads, here = installed.get_num_threads(), cores()
    if workers and workers > here:
        yield Check.warning("threads", f"{workers} workers on {here} cores; give --workers {here}")
    elif threads > here:
        yield Check.warning("threads", f"torch takes {threads} on {here} cores; unset OMP_NUM_THREADS")
    else:
        yield Check.ok("threads", f"{workers or here} workers on {here} cores")


def check_data_set(folder: Path | None) -> Check:
    """Whether the data set is here and whole."""
    try:
        from fmnist import data, source

        found = source.find(folder)
        if found is None:
            return Check.warning("data set", "is not here yet; `run` downloads it, as does `fmnist-search data`")
        loaded = data.load(found)
    except (ExpectedError, ImportError, OSError) as error:
        return Check.failed("data set", error)
    images = f"{len(loaded.train):,} + {len(loaded.test):,} images"
    return Check.ok("data set", f"{loaded.name}: {images}, verified, in {loaded.folder}")


def check_artifacts(place: str) -> Check:
    """Whether checkpoints can be written where they go."""
    name = f"doctor-{os.getpid()}"
    folder = None if "://" in place else Path(place)
    try:
        if folder is not None and not folder.is_dir():
            above = nearest(folder)
            if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
                return Check.failed("artifacts", f"{folder} cannot be made; make {above} a folder that can be written")
            return Check.ok("artifacts", f"{folder}, which is made when it is needed")
        store = open_artifacts(place)
        store.write(name, b"written by fmnist-search doctor")
        store.remove(name)
    except (ArtifactError, OSError) as error:
        return Check.failed("artifacts", error)
    return Check.ok("artifacts", f"{store.location} can be written")


def check_disk(folders: Iterable[Path]) -> Iterator[Check]:
    """The room on each disk that has one of the folders, or will have it."""
    disks = {folder.stat().st_dev: folder for folder in map(nearest, folders)}
    for folder in disks.values():
        free = shutil.disk_usage(folder).free
        found = f"{free / 1e9:.1f} GB in {folder.resolve()}"
        fix = "make room, or name another --output"
        if free < NEEDED:
            yield Check.failed("free disk", f"{found}; {fix}")
        elif free < COMFORTABLE:
            yield Check.warning("free disk", f"{found}; {fix}")
        else:
            yield Check.ok("free disk", found)


def check_report() -> Check:
    """Whether a report can be written. Its figures need no browser: plotly's JavaScript goes into the page."""
    try:
        from plotly.offline import get_plotlyjs

        import search.report.page  # noqa: F401

        get_plotlyjs()
    except (ImportError, OSError) as error:
        return Check.failed("report", f"cannot be written ({error}); install plotly and jinja2 again with pip")
    return Check.ok("report", f"plotly {version('plotly')}, which draws without browser and network")


def nearest(path: Path) -> Path:
    """The path if it is there, else what is there of the folders above it."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if os.access(each, os.F_OK))


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
            with reported(url), _connected(url) as connection:
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


def _connected(url: str) -> Connection:
    return sqlalchemy.create_engine(
        absolute(url), poolclass=sqlalchemy.NullPool, connect_args=connect_args(url, REACH)
    ).connect()


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
    if not sqlite:
        tables = sorted({*columns_by_table()} & {*sqlalchemy.inspect(connection).get_table_names()})
        write = sqlalchemy.text(
            "SELECT has_table_privilege(:table, 'INSERT') AND has_table_privilege(:table, 'UPDATE')"
        )
        for table in tables:
            if not connection.scalar(write, {"table": table}):
                grant = f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {_user(connection)}"
                raise StorageError(f"{masked(url)}: {_user(connection)} may not write in it; say {grant}")
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
            fix = "the next `run` turns it on, unless the disk is another machine's"
            yield Check.warning("WAL", f"off, journal mode is {journal}; {fix}")


def _user(connection: Connection) -> str:
    return str(connection.scalar(sqlalchemy.text("SELECT current_user")))


@dataclass(frozen=True)
class Plan:
    """What a search would be started with; None is what is taken where nothing is given.

    only: the parts that are looked at; all if there are none.
    """

    storage: str | None
    output: Path
    artifacts: str | None
    data_dir: Path | None
    workers: int | None
    only: tuple[str, ...] = ()


def examine(plan: Plan) -> Iterator[Check]:
    """All checks, each as soon as it is done."""
    for name, part in parts(plan).items():
        if name in (plan.only or (name,)):
            yield from part()


def parts(plan: Plan) -> dict[str, Callable[[], Iterable[Check]]]:
    """What can be looked at, by name."""
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
