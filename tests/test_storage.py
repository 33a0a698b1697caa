import multiprocessing
import sqlite3
from pathlib import Path

import optuna
import pytest
from sqlalchemy import text

from search import storage
from search.outage import persistently
from search.url import StorageError, default_url, masked
from tests.postgresql import Server

SECRET = "hunter2"  # noqa: S105


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    url = f"postgresql://me:{SECRET}@127.0.0.1:9/db?connect_timeout=2"
    assert SECRET not in masked(url)
    with pytest.raises(StorageError, match="start the server, or correct the URL") as error:
        storage.open_storage(url, "create")
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://127.0.0.1:9/db?user=me&password={SECRET}&connect_timeout=2",
        f"postgresql://me:{SECRET}@127.0.0.1:9/db?nosuchoption=1",
    ],
)
def test_a_password_among_the_options_is_not_shown_either(url: str) -> None:
    with pytest.raises(StorageError) as error:
        storage.open_storage(url, "create")
    assert SECRET not in str(error.value)


def test_the_schema_of_another_optuna_is_one_line(tmp_path: Path) -> None:
    made = storage.open_storage(default_url(tmp_path), "create")
    with made.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'v0.9.0.a'"))
    with pytest.raises(StorageError, match=r"studies\.db: ") as error:
        storage.open_storage(default_url(tmp_path))
    assert "\n" not in str(error.value)


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    url = default_url(tmp_path)
    writer = storage.open_storage(url, "create").engine
    reader = storage.open_storage(url).engine
    with writer.begin(), reader.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM studies")) == 0


def test_an_absent_database_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no database .*studies\.db; start a search"):
        storage.open_storage(default_url(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(StorageError, match=r"not a database; .*move it away"):
        storage.open_storage(default_url(tmp_path), "create")


def test_a_database_of_something_else_is_named(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "studies.db").execute("CREATE TABLE cats (name)").connection.close()
    with pytest.raises(StorageError, match=r"studies.db: no study was made in this database yet; start one"):
        storage.open_storage(default_url(tmp_path))


def test_transactions_begin_as_writers_in_the_write_ahead_log(tmp_path: Path) -> None:
    """A second writer must wait at once, not fail when it first writes."""
    engine = storage.open_storage(default_url(tmp_path), "create").engine
    with engine.begin() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        connection.execute(text("SELECT 1"))
        other = sqlite3.connect(tmp_path / "studies.db", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


def create(url: str) -> None:
    storage.open_storage(url, "create")


def test_processes_that_make_the_same_database_together_all_succeed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=create, args=(default_url(tmp_path),)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6


def test_a_worker_frozen_within_a_transaction_loses_it_and_its_lock(
    postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_TIMEOUT", 1)
    opened = storage.open_storage(postgresql.create_database(), "create")
    optuna.create_study(storage=opened, study_name="s")
    lock = text("SELECT * FROM studies FOR UPDATE")
    tries = []

    def freeze_once() -> None:
        with opened.engine.begin() as connection:
            connection.execute(lock)
            tries.append(1)
            if len(tries) == 1:
                with opened.engine.begin() as other:
                    other.execute(lock)  # waits until the server has ended the first
            connection.execute(text("SELECT 1"))

    persistently(freeze_once)
    assert len(tries) == 2
