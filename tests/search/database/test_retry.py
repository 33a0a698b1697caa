import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.dialects.postgresql.psycopg import dialect as psycopg_dialect
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from search.database import retry
from search.database.url import StorageError, default_url

UNREACHABLE = OperationalError("SELECT", {}, psycopg.OperationalError("Connection refused"))
TRANSIENT = [
    psycopg.errors.AdminShutdown,
    psycopg.errors.CannotConnectNow,
    psycopg.errors.ConnectionFailure,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.QueryCanceled,
    psycopg.errors.TooManyConnections,
]
PERMANENT = [
    psycopg.errors.DiskFull,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.InvalidSqlStatementName,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.UndefinedTable,
]


def of_server(kind: type[psycopg.Error], words: str = "...") -> DBAPIError:
    error = DBAPIError.instance("SELECT", {}, kind(words), psycopg.Error, dialect=psycopg_dialect())
    assert isinstance(error, DBAPIError)
    return error


def failing(*errors: Exception) -> Callable[[], str]:
    """Raise each error once, then return "done"."""
    left = iter(errors)

    def action() -> str:
        for error in left:
            raise error
        return "done"

    return action


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that advances only by `sleep` and by the test."""
    now = [0.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def test_progress_restarts_the_time_limit_of_retries(clock: list[float]) -> None:
    steps, tries = [0], []

    def train_for_an_hour_between_outages() -> str:
        tries.append(clock[0])
        if len(tries) == 9:
            return "done"
        if len(tries) % 4 == 1:
            clock[0] += 3600
            steps[0] += 1000
        raise UNREACHABLE

    assert retry.retry(train_for_an_hour_between_outages, progress=lambda: steps[0]) == "done"


@pytest.mark.parametrize("seconds", [0, 10, 130])
def test_retries_end_whatever_the_duration_of_an_attempt(clock: list[float], seconds: float) -> None:
    tries = []

    def never_again() -> None:
        clock[0] += seconds
        tries.append(clock[0])
        raise UNREACHABLE

    with pytest.raises(OperationalError):
        retry.retry(never_again)
    assert retry.PATIENCE < tries[-1] - tries[0] < retry.PATIENCE + retry.LONGEST_PAUSE + seconds


@pytest.mark.parametrize("kind", TRANSIENT)
def test_transient_errors_are_recognized_by_code_not_by_message(clock: list[float], kind: type[psycopg.Error]) -> None:
    error = of_server(kind, "FATAL: password authentication failed, database does not exist, disk")
    assert retry.retry(failing(error, error), reached=False) == "done"
    lost = OperationalError("SELECT", {}, psycopg.OperationalError("lost"), connection_invalidated=True)
    assert retry.retry(failing(lost, error, lost), reached=False) == "done"
    assert clock[0] > 0


@pytest.mark.parametrize("kind", PERMANENT)
def test_permanent_errors_are_not_retried(clock: list[float], kind: type[psycopg.Error]) -> None:
    with pytest.raises(DBAPIError):
        retry.retry(failing(of_server(kind, "connection refused")))
    assert clock[0] == 0
    with pytest.raises(StorageError) as reported, retry.reported("postgresql://me@db/studies"):
        raise of_server(kind, "the connection of a sort")
    assert "start the server" not in str(reported.value)


def test_a_server_that_never_answered_is_not_retried(clock: list[float]) -> None:
    assert retry.retry(failing(UNREACHABLE)) == "done"
    waited = clock[0]
    with pytest.raises(OperationalError):
        retry.retry(failing(UNREACHABLE), reached=False)
    assert clock[0] == waited > 0


@pytest.mark.parametrize("error", [PoolTimeoutError("QueuePool limit"), PendingRollbackError("Can't reconnect until")])
def test_errors_caused_by_a_lost_connection_are_transient(clock: list[float], error: Exception) -> None:
    assert retry.retry(failing(error)) == "done"
    wrapped = StorageInternalError("An exception is raised during the commit.")
    wrapped.__cause__ = error
    assert retry.retry(failing(wrapped)) == "done"


def full(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA max_page_count = 3")
    database.execute("CREATE TABLE large AS SELECT zeroblob(100000)")


def read_only(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA query_only = 1")
    database.execute("DROP TABLE x")


def locked(database: sqlite3.Connection) -> None:
    _, _, file = database.execute("PRAGMA database_list").fetchone()
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO x VALUES (1)")


def without_log(database: sqlite3.Connection) -> None:
    _, _, file = database.execute("PRAGMA database_list").fetchone()
    Path(f"{file}-wal").unlink()
    with closing(sqlite3.connect(file, timeout=0)) as other:
        other.execute("SELECT * FROM x")


def without_folder(database: sqlite3.Connection) -> None:
    _, _, file = database.execute("PRAGMA database_list").fetchone()
    sqlite3.connect(f"{file}/there")


def overwritten(database: sqlite3.Connection) -> None:
    _, _, file = database.execute("PRAGMA database_list").fetchone()
    database.execute("PRAGMA journal_mode = DELETE")
    Path(file).write_bytes(b"something else" * 1000)
    with closing(sqlite3.connect(file, timeout=0)) as other:
        other.execute("SELECT * FROM x")


@pytest.mark.parametrize(
    ("spoil", "advice", "transient"),
    [
        (full, "free some disk space", False),
        (read_only, "writable", False),
        (locked, "stop the program", True),
        (without_log, "-wal file was deleted", False),
        (without_folder, "make its folder", False),
        (overwritten, "move it away", False),
        (lambda database: database.execute("SELECT * FROM y"), "move it away", False),
    ],
)
def test_advice_on_sqlite_depends_on_the_error_code(
    tmp_path: Path, spoil: Callable[[sqlite3.Connection], object], advice: str, transient: bool
) -> None:
    with closing(sqlite3.connect(tmp_path / "studies.db", timeout=0, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE x (y)")
        with pytest.raises(sqlite3.Error) as raised:
            spoil(database)
    error = DBAPIError.instance("SELECT", {}, raised.value, sqlite3.Error)
    assert retry.is_transient(error) == transient
    with pytest.raises(StorageError, match=advice) as reported, retry.reported(default_url(tmp_path)):
        raise error
    assert "\n" not in str(reported.value)
    assert ("free some disk space" in str(reported.value)) == (spoil is full)
