import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from search.database import retry
from search.database.url import StorageError, default_url


def trouble(invalidated: bool = False, words: str = "Connection refused") -> OperationalError:
    return OperationalError("SELECT", {}, psycopg.OperationalError(words), connection_invalidated=invalidated)


def test_an_outage_is_waited_for_after_however_long_the_work_had_gone_well(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    tries = []

    def trains_for_an_hour_between_outages() -> str:
        tries.append(clock[0])
        if len(tries) == 9:
            return "done"
        clock[0] += 3600 if len(tries) % 4 == 1 else 1
        raise trouble()

    assert retry.persistently(trains_for_an_hour_between_outages) == "done"
    tries.clear()

    def never_again() -> None:
        tries.append(clock[0])
        raise trouble()

    with pytest.raises(OperationalError):
        retry.persistently(never_again)
    assert retry.PATIENCE < tries[-1] - tries[0] < retry.PATIENCE + 2 * retry.LONGEST_PAUSE


def test_what_will_not_pass_is_not_waited_for() -> None:
    for error in (trouble(words="password authentication failed"), trouble(words='database "x" does not exist')):
        with pytest.raises(OperationalError):
            retry.persistently(lambda error=error: (_ for _ in ()).throw(error))


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
    ("spoil", "advice", "passing"),
    [
        (full, "free some space", False),
        (read_only, "writable", False),
        (locked, "end that program", True),
        (without_log, "-wal file was deleted", False),
        (without_folder, "make its folder", False),
        (overwritten, "move it away", False),
        (lambda database: database.execute("SELECT * FROM y"), "move it away", False),
    ],
)
def test_advice_on_sqlite_is_by_what_went_wrong(
    tmp_path: Path, spoil: Callable[[sqlite3.Connection], object], advice: str, passing: bool
) -> None:
    with closing(sqlite3.connect(tmp_path / "studies.db", timeout=0, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE x (y)")
        with pytest.raises(sqlite3.Error) as met:
            spoil(database)
    error = DBAPIError.instance("SELECT", {}, met.value, sqlite3.Error)
    assert retry.is_transient(error) == passing
    with pytest.raises(StorageError, match=advice) as said, retry.reported(default_url(tmp_path)):
        raise error
    assert "\n" not in str(said.value)
    assert ("free some space" in str(said.value)) == (spoil is full)
