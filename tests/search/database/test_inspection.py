"""Databases that can only be read: on a read-only or full disk, or with a read-only role."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from search.database.url import StorageError, parse
from search.doctor import check_database
from tests.conftest import Command
from tests.postgresql import Server

READ_ONLY = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"'
FULL = 'cp -r "$1" copy; mount -t tmpfs -o size=16m tmpfs "$1"; cp -r copy/* "$1"; cat /dev/zero > "$1/zeros" || true'
INSPECT = """\
set -e
{mount}
python=$2
cd $3
$python -m search status tiny --json --output "$1"
$python -m search best tiny --output "$1" > best.txt
$python -m search report tiny --output "$1" --format json --to report.json > /dev/null
$python -m search run tiny.toml --trials 9 --workers 1 --output "$1" 2> run.txt || echo "exit code $?"
"""


@pytest.fixture
def searched(invoke: Command, study_file: Path, tmp_path: Path) -> Path:
    study_file.write_text(study_file.read_text().replace("epochs = 2", "epochs = 1"))
    assert invoke("run", "tiny.toml", "--trials", "1", "--workers", "1", "--quiet").returncode == 0
    return tmp_path / "studies"


def inside(mount: str, folder: Path, work: Path, tiny_folder: Path) -> list[str]:
    """Output lines of the commands, run in their own mount namespace."""
    flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    script = INSPECT.format(mount=mount)
    call = ["unshare", *flags, "sh", "-c", script, "sh", str(folder), sys.executable, str(work)]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(work), "FMNIST_DATA": str(tiny_folder)}
    done = subprocess.run(call, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("mount", [READ_ONLY, FULL], ids=["read-only", "full"])
def test_studies_on_a_read_only_or_full_disk_can_be_inspected(
    searched: Path, tmp_path: Path, tiny_folder: Path, mount: str
) -> None:
    status, failed = inside(mount, searched, tmp_path, tiny_folder)
    assert json.loads(status)["trials"]["complete"] == 1
    assert failed == "exit code 1"
    (line,) = (tmp_path / "run.txt").read_text().splitlines()
    assert line.startswith("Error: ")
    assert "name another place" in line or "free some disk space" in line
    assert "Trial 0 (default) of study tiny" in (tmp_path / "best.txt").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["summary"]["study"] == "tiny"


def test_changes_that_are_only_in_the_log_are_not_ignored(searched: Path, tmp_path: Path, tiny_folder: Path) -> None:
    with closing(sqlite3.connect(searched / "studies.db")) as connection:
        connection.execute("CREATE TABLE more (x)")
        connection.commit()
        shutil.copytree(searched, tmp_path / "killed")  # as after kill -9: the log is not checkpointed
    (tmp_path / "killed" / "studies.db-shm").unlink()
    script = f'{READ_ONLY}\ncd $3; exec $2 -m search status tiny --output "$1"'
    flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    call = ["unshare", *flags, "sh", "-c", script, "sh", str(tmp_path / "killed"), sys.executable, str(tmp_path)]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "studies.db-wal holds changes that the database does not have yet; copy both files" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_databases_with_other_encodings_work(
    postgresql: Server, encoding: str, invoke: Command, study_file: Path
) -> None:
    name = f"of_{encoding.lower()}"
    with psycopg.connect(postgresql.url(), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    url = postgresql.url(name)
    study_file.write_text(study_file.read_text().replace("epochs = 2", "epochs = 1"))
    done = invoke("run", "tiny.toml", "--name", "größe", "--trials", "1", "--workers", "1", "--storage", url, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(invoke("status", "größe", "--storage", url, "--json").stdout)["trials"]["complete"] == 1
    other = invoke("enqueue", "tiny.toml", "--name", "名", "--storage", url)
    assert other.returncode == (0 if encoding == "SQL_ASCII" else 1)
    assert encoding == "SQL_ASCII" or "use a database with the encoding UTF8" in other.stderr


def test_a_read_only_role_gets_advice(postgresql: Server, invoke: Command, study_file: Path) -> None:
    url = postgresql.create_database()
    invoke("enqueue", "tiny.toml", "--storage", url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("GRANT pg_read_all_data TO reader")
    reading = url.replace("tester@", "reader@")
    assert invoke("status", "tiny", "--storage", reading).returncode == 0
    done = invoke("run", "tiny.toml", "--storage", reading, "--quiet")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "grant that role read and write access to the tables, or name another role in the URL" in line
    (check,) = check_database(reading, 1)
    assert check.status == "failed"
    assert "reader may not write to it" in check.found
    assert check.fix == "run GRANT ALL ON ALL TABLES IN SCHEMA public TO reader"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE reader")


def test_a_folder_in_place_of_the_host_is_explained() -> None:
    with pytest.raises(StorageError, match=r"names a host; write sqlite:///dir/x\.db"):
        parse("sqlite://dir/x.db")
