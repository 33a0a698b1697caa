import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from search import storage
from search.storage import StorageError

SECRET = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "malformed"),
        (f"mysql://user:{SECRET}@host/db", "mysql: no such storage; use sqlite"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        (f"postgresql://user:{SECRET}@host:port/db", "malformed"),
    ],
)
def test_a_wrong_url_is_explained(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as error:
        storage.parse(url)
    assert SECRET not in str(error.value)


def test_postgresql_means_psycopg_3() -> None:
    assert storage.parse("postgresql://me@host/db").drivername == "postgresql+psycopg"


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    url = f"postgresql://me:{SECRET}@127.0.0.1:9/db?connect_timeout=2"
    assert SECRET not in storage.masked(url)
    with pytest.raises(StorageError, match="start the server, or correct the URL") as error:
        storage.open_storage(url, create=True)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


def test_an_absent_database_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no database .*studies\.db; start a search"):
        storage.open_storage(storage.default_url(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(StorageError, match=r"not a database; .*move it away"):
        storage.open_storage(storage.default_url(tmp_path), create=True)


def test_a_database_of_something_else_is_named(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "studies.db").execute("CREATE TABLE cats (name)").connection.close()
    with pytest.raises(StorageError, match=r"no such table.*it is no database of studies"):
        storage.open_storage(storage.default_url(tmp_path))


def test_transactions_begin_as_writers_in_the_write_ahead_log(tmp_path: Path) -> None:
    """A second writer must wait at once, not fail when it first writes."""
    engine = storage.open_storage(storage.default_url(tmp_path), create=True).engine
    with engine.begin() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        connection.execute(text("SELECT 1"))
        other = sqlite3.connect(tmp_path / "studies.db", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


def create(url: str) -> None:
    storage.open_storage(url, create=True)


def test_processes_that_make_the_same_database_together_all_succeed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=create, args=(storage.default_url(tmp_path),)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
