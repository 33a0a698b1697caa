import shutil
import socket
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages._rdb.models import BaseModel
from optuna.trial import TrialState
from sqlalchemy import text

from search.database.connection import Mode, open_storage
from search.database.retry import retry
from search.database.url import DatabaseGone, StorageError, absolute, connect_args, default_url, displayed
from search.doctor import check_database
from tests.children import create, together
from tests.factories import STUDY
from tests.pgbouncer import NEEDS_PGBOUNCER, pooler
from tests.postgresql import Server
from tests.processes import Process

SECRET = "hunter2"  # noqa: S105


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    url = f"postgresql://me:{SECRET}@127.0.0.1:9/db?connect_timeout=2"
    assert SECRET not in displayed(url)
    with pytest.raises(StorageError, match="start the server, or correct the URL") as error:
        open_storage(url, "create")
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://127.0.0.1:9/db?user=me&password={SECRET}&connect_timeout=2",
        f"postgresql://me:{SECRET}@127.0.0.1:9/db?nosuchoption=1",
    ],
)
def test_a_password_in_the_options_is_not_shown(url: str) -> None:
    with pytest.raises(StorageError) as error:
        open_storage(url, "create")
    assert SECRET not in str(error.value)


def test_the_schema_of_another_optuna_is_one_line(tmp_path: Path) -> None:
    made = open_storage(default_url(tmp_path), "create")
    with made.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'v0.9.0.a'"))
    with pytest.raises(StorageError, match=r"studies\.db: ") as error:
        open_storage(default_url(tmp_path))
    assert "\n" not in str(error.value)


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    url = default_url(tmp_path)
    writer, reader = open_storage(url, "create"), open_storage(url)
    with writer.engine.begin(), reader.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM studies")) == 0


def test_reading_a_missing_database_does_not_create_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no database .*studies\.db; start a search"):
        open_storage(default_url(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_file_is_reported_by_name(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(StorageError, match=r"not a database; .*move it away"):
        open_storage(default_url(tmp_path), "create")


MLFLOW = ["CREATE TABLE experiments (experiment_id INTEGER)", "CREATE TABLE alembic_version (version_num VARCHAR(32))"]
STAMPED = [*MLFLOW, "INSERT INTO alembic_version VALUES ('0a8213491aaf')"]


@pytest.mark.parametrize("mode", ["read", "write", "create"])
@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (["CREATE TABLE cats (name TEXT)"], "cats"),
        (MLFLOW, "experiments"),
        (STAMPED, "experiments"),
        (STAMPED[1:], "alembic_version"),
        (["CREATE TABLE studies (id INTEGER, title TEXT)"], "studies"),
        (["CREATE VIEW trials AS SELECT 1 AS trial_id"], "trials"),
    ],
)
def test_another_programs_database_is_reported_and_left_unchanged(
    url: str, statements: list[str], found: str, mode: Mode
) -> None:
    change(url, *statements)
    before = relations(url)
    with pytest.raises(StorageError, match=rf"another program \(.*{found}.*\); name another database with --storage"):
        open_storage(url, mode)
    (check,) = check_database(url, workers=1)
    assert (check.status, check.fix) == ("failed", "name another database with --storage")
    assert found in check.found
    assert relations(url) == before


def test_a_database_shared_with_another_programs_alembic_version_is_refused(url: str) -> None:
    open_storage(url, "create").engine.dispose()
    change(url, "UPDATE alembic_version SET version_num = '0a8213491aaf'", *MLFLOW[:1])
    with pytest.raises(StorageError, match=r"another program \(alembic_version, experiments\)"):
        open_storage(url)


def test_a_database_created_by_optuna_is_opened_despite_other_tables(url: str) -> None:
    stock = optuna.storages.RDBStorage(absolute(url).render_as_string(hide_password=False))
    stock.engine.dispose()
    change(url, "CREATE TABLE cats (name TEXT)")
    for mode in ("read", "write", "create"):
        open_storage(url, mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("left", [1, 5, 12, 13])
def test_interrupted_table_creation_is_completed(url: str, left: int) -> None:
    """Optuna stores its version last; until then the creation is incomplete."""
    tables = [*BaseModel.metadata.sorted_tables]
    engine = sqlalchemy.create_engine(absolute(url))
    BaseModel.metadata.create_all(engine, tables[:left])
    engine.dispose()
    if left > len(tables):
        change(url, MLFLOW[1])
    with pytest.raises(StorageError, match="this database has no studies yet; start one"):
        open_storage(url)
    optuna.create_study(storage=open_storage(url, "create"), study_name="s")
    assert optuna.get_all_study_names(open_storage(url)) == ["s"]


def test_tables_in_other_postgresql_schemas_are_ignored_unless_optuna_would_use_them(postgresql: Server) -> None:
    url = postgresql.create_database()
    change(
        url, "CREATE SCHEMA theirs", "CREATE TABLE theirs.studies (id INTEGER)", "CREATE TABLE theirs.cats (x INTEGER)"
    )
    open_storage(url, "create")
    change(url, "CREATE SCHEMA empty", "CREATE TABLE public.dogs (x INTEGER)")
    path = f"{url}?options=-csearch_path%3D"
    open_storage(f"{path}empty,pg_catalog", "create")
    change(url, "CREATE SCHEMA mine")
    with pytest.raises(StorageError, match=r"another program \(studies\)"):  # Optuna would mistake it for its own
        open_storage(f"{path}mine,theirs", "create")


def change(url: str, *statements: str) -> None:
    """Execute statements as another program would."""
    engine = sqlalchemy.create_engine(absolute(url), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def relations(url: str) -> list[str]:
    """The tables and views of a database, each with its columns."""
    engine = sqlalchemy.create_engine(absolute(url), poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        inspector = sqlalchemy.inspect(connection)
        names = inspector.get_table_names() + inspector.get_view_names()
        return [f"{name} {[column['name'] for column in inspector.get_columns(name)]}" for name in names]


def test_transactions_begin_as_writers_in_the_write_ahead_log(tmp_path: Path) -> None:
    """A second writer must wait when it begins, instead of failing at its first write."""
    opened = open_storage(default_url(tmp_path), "create")
    with opened.engine.begin() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        connection.execute(text("SELECT 1"))
        other = sqlite3.connect(tmp_path / "studies.db", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


def replaced(file: Path) -> None:
    copy = file.with_name("copy")
    shutil.copy(file, copy)
    copy.replace(file)


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (Path.unlink, "studies.db was deleted or replaced"),
        (replaced, "studies.db was deleted or replaced"),
        (lambda file: shutil.rmtree(file.parent), "studies.db was deleted or replaced"),
        (lambda file: Path(f"{file}-wal").unlink(), "studies.db-wal was deleted"),
        (lambda file: Path(f"{file}-shm").unlink(), "studies.db-shm was deleted"),
    ],
)
def test_the_next_transaction_detects_deleted_files(
    tmp_path: Path, spoil: Callable[[Path], object], what: str, mode: Mode
) -> None:
    """Open and new connections alike, and no file is created in their place."""
    file = tmp_path / "its" / "studies.db"
    writer = open_storage(default_url(file.parent), "create")
    optuna.create_study(storage=writer, study_name="s")
    opened = open_storage(default_url(file.parent), mode)
    opened.get_all_studies()
    spoil(file)
    before = [path.name for path in tmp_path.rglob("*")]
    for _ in range(2):
        with pytest.raises(DatabaseGone, match=what):
            retry(opened.get_all_studies)
    if not file.exists():
        opened.engine.dispose()
        with pytest.raises(DatabaseGone, match=what):
            retry(opened.get_all_studies)
    assert [path.name for path in tmp_path.rglob("*")] == before


def test_sqlites_own_changes_to_its_log_are_not_reported_as_deletion(tmp_path: Path) -> None:
    """SQLite deletes its log when the last connection is closed, and truncates it."""
    url = default_url(tmp_path)
    writer, reader = open_storage(url, "create"), open_storage(url)
    for journal in ("WAL", "DELETE", "WAL"):
        for opened in (writer, reader):
            optuna.get_all_study_names(opened)
        with writer.engine.connect() as connection:
            connection.execute(text("ROLLBACK"))
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.exec_driver_sql("VACUUM")
        optuna.create_study(storage=writer)
        for opened in (reader, writer):
            opened.engine.dispose()
        assert not (tmp_path / "studies.db-wal").exists()
        with closing(sqlite3.connect(tmp_path / "studies.db")) as other:
            other.execute(f"PRAGMA journal_mode = {journal}")
    assert len(optuna.get_all_study_names(reader)) == 3


def test_processes_can_create_the_same_database_concurrently(tmp_path: Path) -> None:
    with together(create, 6, default_url(tmp_path)):
        pass


def test_a_worker_that_hangs_in_a_transaction_loses_the_transaction_and_its_lock(
    postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.database.connection.BUSY_TIMEOUT", 1)
    opened = open_storage(postgresql.create_database(), "create")
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

    retry(freeze_once)
    assert len(tries) == 2


def test_a_statement_without_an_answer_is_logged(
    postgresql: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("search.database.retry.SILENCE", 0.2)
    opened = open_storage(postgresql.create_database(), "create")
    optuna.create_study(storage=opened, study_name="s")
    statement = text("SELECT * FROM studies FOR UPDATE")

    def logged(what: str) -> bool:
        return any(what in record.getMessage() for record in caplog.records)

    def ask() -> None:
        with opened.engine.begin() as connection:
            connection.execute(statement)

    with ThreadPoolExecutor() as pool:
        with opened.engine.begin() as connection:
            connection.execute(statement)
            blocked = pool.submit(ask)
            while not logged("waiting for the database: no answer for"):
                assert not blocked.done()
        blocked.result()
    assert logged("resumed after")


@pytest.mark.parametrize("options", ["", "?prepare_threshold=0", "?prepare_threshold=3&connect_timeout=5"])
def test_the_url_may_contain_driver_options(postgresql: Server, options: str) -> None:
    opened = open_storage(postgresql.create_database() + options, "create")
    with opened.engine.connect() as connection:
        for _ in range(5):
            connection.execute(text("SELECT 1"))
        prepared = connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    assert (prepared > 0) == bool(options)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("prepare_threshold=soon", "prepare_threshold must be a whole number"),
        ("connect_timeout=-1", "connect_timeout must be a whole number"),
        ("connect_timeout=1&connect_timeout=2", "connect_timeout must be a whole number"),
        ("autocommit=1", "remove the option autocommit"),
        ("row_factory=x", "remove the option row_factory"),
    ],
)
def test_an_invalid_option_is_a_one_line_error(option: str, why: str) -> None:
    with pytest.raises(StorageError, match=why) as error:
        open_storage(f"postgresql://me:{SECRET}@127.0.0.1:9/db?{option}", "create")
    assert SECRET not in str(error.value)


def test_connecting_to_an_unresponsive_server_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/db?connect_timeout=2"
        with pytest.raises(StorageError, match=r"timeout.*start the server, or correct the URL"):
            open_storage(url, "create")
    assert connect_args("postgresql://me@db/s")["connect_timeout"] < 20  # the driver's default is 130 seconds


@NEEDS_PGBOUNCER
def test_pgbouncer_in_transaction_mode_needs_no_url_options(
    postgresql: Server, tmp_path: Path, tiny_folder: Path
) -> None:
    url = postgresql.create_database()
    (tmp_path / "tiny.toml").write_text(STUDY)
    with pooler(postgresql, connections=3) as port:
        pooled = url.replace(str(postgresql.port), str(port))
        process = Process(
            *("run", "tiny.toml", "--storage", pooled, "--trials", "4", "--workers", "2"),
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FMNIST_DATA": str(tiny_folder)},
        )
        output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "Done: 4 trials" in output
    study = optuna.load_study(storage=open_storage(url), study_name="tiny")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
