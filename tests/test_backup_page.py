"""The page on backup and restore: its commands work as written, and their copies can be read and continued."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.postgresql import Server, find_binaries

PAGE = (Path(__file__).resolve().parent.parent / "docs/backup.md").read_text()
NEEDS_SQLITE = pytest.mark.skipif(shutil.which("sqlite3") is None, reason="no sqlite3 here: apt-get install sqlite3")


def commands(heading: str) -> list[str]:
    """The commands in a section, without comments."""
    section = re.search(rf"^## {heading}\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    assert section
    return re.findall(r"^\$ (.*?)(?:  +#.*)?$", section[1], re.MULTILINE)


def shell(line: str, folder: Path, **replaced: str) -> None:
    """Run a line in a shell with this Python and PostgreSQL's programs on its PATH."""
    for was, now in replaced.items():
        line = line.replace(was, now)
    programs = f"{Path(sys.executable).parent}:{find_binaries()}:{os.environ['PATH']}"
    subprocess.run(line, shell=True, cwd=folder, env={**os.environ, "PATH": programs}, check=True)  # noqa: S602


def search(invoke: Command, study_file: Path, *options: str | Path) -> None:
    result = invoke("run", study_file, "--name", "cnn", "--workers", "1", "--quiet", *options)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("program", [pytest.param("sqlite3", marks=NEEDS_SQLITE), "python"])
def test_a_copy_of_an_sqlite_database_and_its_folders_continues(
    program: str, tmp_path: Path, study_file: Path, invoke: Command
) -> None:
    search(invoke, study_file, "--finalists", "1")
    for line in commands("SQLite"):
        if line.startswith(("mkdir", "cp", program)):
            shell(line, tmp_path)
    answer = invoke("best", "cnn").stdout
    shutil.rmtree(tmp_path / "studies")
    assert invoke("best", "cnn", "--output", "backup").stdout == answer.replace("studies/", "backup/")

    (tmp_path / "backup").rename(tmp_path / "studies")
    assert invoke("best", "cnn").stdout == answer
    search(invoke, study_file, "--trials", "7", "--finalists", "0")
    assert '"complete": 7' in invoke("status", "cnn", "--json").stdout


def test_a_restored_dump_of_postgresql_continues(
    tmp_path: Path, study_file: Path, invoke: Command, postgresql: Server
) -> None:
    url = postgresql.create_database()
    search(invoke, study_file, "--storage", url, "--artifacts", tmp_path / "shared")
    (tmp_path / "backup").mkdir()
    server = {
        "postgresql://me@db/studies": url,
        "postgresql://me@db/restored": postgresql.url("restored"),
        "--host db --username me": f"--host 127.0.0.1 --port {postgresql.port} --username tester",
        "/shared": "shared",
    }
    lines = [line for line in commands("PostgreSQL") if not line.startswith(("fmnist-search", "docker"))]
    assert [line.split()[0] for line in lines] == ["pg_dump", "cp", "createdb", "pg_restore"]
    for line in lines:
        shell(line, tmp_path, **server)
    shutil.rmtree(tmp_path / "shared")
    shutil.move(tmp_path / "backup/shared", tmp_path / "moved")

    restored = postgresql.url("restored")
    before, after = (invoke("status", "cnn", "--json", "--storage", each).stdout for each in (url, restored))
    assert '"complete"' in after
    assert before.partition('"best"')[0] == after.partition('"best"')[0]
    search(invoke, study_file, "--storage", restored, "--artifacts", tmp_path / "moved", "--trials", "7")
    assert '"complete": 7' in invoke("status", "cnn", "--json", "--storage", restored).stdout
