"""`doctor` on real defects."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from fmnist import source
from search.cli.doctor import PARTS
from search.database.connection import open_storage, opened
from search.database.url import default_url
from search.doctor import (
    NEWEST,
    OLDEST,
    Check,
    Plan,
    check_artifacts,
    check_data_set,
    check_database,
    check_disk,
    check_python,
    check_torch,
    parts,
)
from tests.conftest import Command
from tests.postgresql import Server

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["Python", "torch", "threads", "data set", "storage", "artifacts", "free disk", "report"]


def doctor(
    tmp_path: Path, *arguments: str, before: str = "", environment: dict[str, str] | None = None
) -> dict[str, Check]:
    """Run the command and return its checks by name; the exit code must match them.

    before: shell commands to run first as root, in a private mount namespace.
    """
    call = [sys.executable, "-m", "search", "doctor", "--json", *arguments]
    if before:
        flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
        call = ["unshare", *flags, "sh", "-ec", f'{before}\nexec "$@"', "sh", *call]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)} | (environment or {})
    result = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout, result.stderr
    found = json.loads(result.stdout)
    checks = [Check(**check) for check in found["checks"]]
    well = all(check.status != "failed" for check in checks)
    assert (result.returncode, found["ok"]) == (int(not well), well)
    return {check.name: check for check in checks}


def stored(url: str) -> dict[str, Check]:
    """The checks of a database by name; a failure must be the last one and have a fix."""
    checks = list(check_database(url, workers=2))
    for check in checks:
        assert "\n" not in check.found
        assert check.status != "failed" or (check is checks[-1] and check.fix)
    return {check.name: check for check in checks}


def test_a_fresh_machine_passes_and_is_not_changed(command: Command, tmp_path: Path) -> None:
    result = command("doctor")
    assert result.returncode == 0, result.stdout
    found = [re.match(r"(?:ok|warning) +([\w ]+?)  ", line) for line in result.stdout.splitlines()]
    assert [line and line.group(1) for line in found] == NEEDED
    assert "studies/studies.db, created by `run`" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_parts_can_be_checked_alone_without_torch(tmp_path: Path) -> None:
    """A container's health check does so regularly."""
    empty = {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "torch.py").write_text("raise ImportError('not needed')")
    assert list(doctor(tmp_path, "--only", "storage", "--only", "disk", environment=empty)) == ["storage", "free disk"]
    assert doctor(tmp_path, "--only", "torch", environment=empty)["torch"].status == "failed"
    assert list(parts(Plan(None, tmp_path, None, None, None))) == list(PARTS)


def test_failures_are_marked_have_a_fix_and_set_the_exit_code(command: Command, tmp_path: Path) -> None:
    result = command("doctor", "--storage", "postgresql://me:hunter2@127.0.0.1:9/db", data_dir=tmp_path)
    assert result.returncode == 1
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert re.match(r"FAILED +data set +.*train-images.* not found; name the folder that holds", failed[0])
    assert re.match(r"FAILED +storage +.*refused; start the server, or correct the URL", failed[1])
    assert len(failed) == 2
    assert "hunter2" not in result.stdout + result.stderr


def test_python_versions_match_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest, newest = OLDEST, NEWEST
    assert project["requires-python"] == f">={oldest[0]}.{oldest[1]}"
    run = [f"{oldest[0]}.{minor}" for minor in range(oldest[1], newest[1] + 1)]
    classifiers = [line.rpartition(" ")[2] for line in project["classifiers"] if ":: Python ::" in line]
    assert classifiers == run
    made = (ROOT / "Makefile").read_text()
    assert f"sys.version_info < {oldest}" in made
    assert f"sys.version_info >= {(newest[0], newest[1] + 1)}" in made
    assert check_python(oldest).status == check_python(newest).status == "ok"
    assert check_python((newest[0], newest[1] + 1)).status == "warning"
    assert check_python((oldest[0], oldest[1] - 1)).status == "failed"


def test_broken_torch_and_plotly_are_reported_and_other_checks_continue(tmp_path: Path) -> None:
    for package in ("torch", "plotly"):
        (tmp_path / "broken" / package).mkdir(parents=True)
        (tmp_path / "broken" / package / "__init__.py").write_text(f"raise OSError('lib{package}.so: cannot open')")
    checks = doctor(tmp_path, environment={"PYTHONPATH": str(tmp_path / "broken")})
    assert {name for name, check in checks.items() if check.status == "failed"} == {"torch", "data set", "report"}
    for name in ("torch", "report"):
        assert "cannot open" in checks[name].found
        assert "pip" in (checks[name].fix or "")
    assert checks["storage"].status == "ok"


def test_more_threads_than_cores_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert [check.status for check in check_torch(workers=None)] == ["ok", "ok"]
    assert "use --workers" in str(list(check_torch(workers=256))[1])
    torch.set_num_threads(256)
    (_, threads) = check_torch(workers=None)
    assert (threads.status, threads.fix) == ("warning", "unset OMP_NUM_THREADS")


def test_a_data_set_is_checked_and_not_downloaded(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_data_set(tiny_folder).found == (f"data set 'digits': 600 + 300 images, verified, in {tiny_folder}")
    cut = tmp_path / "cut"
    shutil.copytree(tiny_folder, cut)
    file = cut / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    truncated = check_data_set(cut)
    assert (truncated.status, truncated.fix) == ("failed", "delete it and download it again")
    assert "t10k-images-idx3-ubyte.gz: truncated" in truncated.found
    monkeypatch.delenv("FMNIST_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(source, "DEBIAN_FOLDER", tmp_path / "nowhere")
    assert check_data_set(None).status == "warning"
    assert not (tmp_path / "cache").exists()


def test_a_database_in_use_passes(tmp_path: Path) -> None:
    url = default_url(tmp_path)
    with opened(url, "create") as storage, storage.engine.connect():
        checks = stored(url)
    assert {check.status for check in checks.values()} == {"ok"}
    assert checks["storage"].found.endswith("studies.db is writable, 0 studies")
    assert checks["schema"].found.startswith("v")
    assert checks["WAL"].found.startswith("on")


def test_a_disabled_write_ahead_log_is_a_warning_and_stays_disabled(tmp_path: Path) -> None:
    url = default_url(tmp_path)
    open_storage(url, "create").engine.dispose()
    connection = sqlite3.connect(tmp_path / "studies.db")
    connection.execute("PRAGMA journal_mode=DELETE")
    assert stored(url)["WAL"].status == "warning"
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


def test_a_locked_database_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.doctor.REACH", 0.1)
    url = default_url(tmp_path)
    open_storage(url, "create").engine.dispose()
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "locked" in stored(url)["storage"].found
    other.close()


def test_foreign_broken_and_empty_databases_are_distinguished(tmp_path: Path) -> None:
    file, url = tmp_path / "studies.db", default_url(tmp_path)
    file.touch()
    assert "is empty" in stored(url)["storage"].found
    sqlite3.connect(file).execute("CREATE TABLE cats (name)").connection.close()
    assert "another program (cats)" in stored(url)["storage"].found
    file.write_bytes(b"this is not a database" * 100)
    assert "not a database" in stored(url)["storage"].found


def test_another_optunas_schema_is_reported(url: str) -> None:
    with opened(url, "create") as storage, storage.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'v0.9.0.a'"))
    checks = list(check_database(url, workers=2))
    assert checks[-1].status == "failed"
    assert "optuna" in f"{checks[-1].found} {checks[-1].fix}"


def test_missing_privileges_on_a_server_are_reported(postgresql: Server) -> None:
    url = postgresql.create_database()
    assert "is empty" in stored(url)["storage"].found
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN")
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        guest = url.replace("tester@", "guest@")
        assert stored(guest)["storage"].fix == "run GRANT CREATE ON SCHEMA public TO guest"
        connection.execute("ALTER ROLE guest SET default_transaction_read_only = on")
    assert "read-only" in stored(guest)["storage"].found
    assert "does not exist" in list(check_database(postgresql.url("nosuch"), workers=2))[-1].found


def test_unusable_folders_are_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (str(tmp_path / "file"), str(tmp_path / "file" / "below"), "ftp://x", "s3://"):
        assert check_artifacts(place).status == "failed"
    assert "cannot create" in stored(default_url(tmp_path / "file" / "below"))["storage"].found
    assert check_artifacts(str(tmp_path)).status == check_artifacts(str(tmp_path / "new" / "x")).status == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_read_only_disk_is_reported(tmp_path: Path, tiny_folder: Path, journal: str) -> None:
    open_storage(default_url(tmp_path / "studies"), "create").engine.dispose()
    sqlite3.connect(tmp_path / "studies" / "studies.db").execute(f"PRAGMA journal_mode={journal}").connection.close()
    mount = f"mount --bind {tmp_path} {tmp_path}; mount -o remount,ro,bind {tmp_path}; cd {tmp_path}"
    checks = doctor(tmp_path, "--data-dir", str(tiny_folder), before=mount)
    assert {name for name, check in checks.items() if check.status == "failed"} == {"storage", "artifacts"}
    assert "writ" in (checks["storage"].fix or "")


def test_a_full_disk_is_reported(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "studies").mkdir()
    fill = "mount -t tmpfs -o size=1m tmpfs studies; cat /dev/zero > studies/zeros || true"
    checks = doctor(tmp_path, "--data-dir", str(tiny_folder), before=fill)
    assert {name for name, check in checks.items() if check.status == "failed"} == {"artifacts", "free disk"}
    assert "No space left" in checks["artifacts"].found
    assert checks["free disk"].found.startswith("0.0 GB in ")


def test_low_disk_space_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr("search.doctor.COMFORTABLE", 2 * free)
    (check,) = check_disk([tmp_path, tmp_path / "new" / "folder"])
    assert (check.status, check.fix) == ("warning", "free some space, or name another --output")
