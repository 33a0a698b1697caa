"""Closed or unwritable standard streams: no other file gets their descriptors, and no command ends in a traceback."""

import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.database.connection import open_storage
from search.database.url import default_url
from search.study.store import load_study
from tests.conftest import Command

CLOSING = ("<&-", ">&-", "2>&-")  # in a shell
Redirected = Callable[..., subprocess.CompletedProcess[str]]

LOOK = """\
import fmnist
import os, subprocess, sys
places = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in range(3)]
child = [sys.executable, "-c", "import os; [os.fstat(descriptor) for descriptor in range(3)]"]
terminals = [stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)]
print(places, terminals, subprocess.call(child), file=open("found", "w"))
"""

HOLD = """\
with open("own", "w") as file:
    assert file.fileno() == 1
    import fmnist
    print("discarded", flush=True)
    file.write("own content")
"""

SEARCH = """\
import os
import sys

from search import RunSettings, StudyDefinition, definition, run_search

if __name__ == "__main__":
    os.closerange(0, 3)  # like a daemon
    run_search(definition.read("tiny.toml"), RunSettings.of("tiny", trials=2, workers=1, quiet=True))
"""


@pytest.fixture
def redirected(tmp_path: Path, tiny_folder: Path) -> Redirected:
    """Run Python with standard streams redirected by a shell; the others are captured."""

    def run(redirections: str, *arguments: str | Path, unbuffered: bool = False) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FMNIST_DATA": str(tiny_folder)}
        return subprocess.run(
            ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=environment | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {}),
            input="",
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def assert_intact(folder: Path, trials: int) -> None:
    """The database is intact, and its trials are all complete."""
    with closing(sqlite3.connect(folder / "studies" / "studies.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    study = load_study(open_storage(default_url(folder / "studies")), "tiny")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * trials


@pytest.mark.parametrize(
    "closed", [each for n in range(1, 4) for each in itertools.combinations(CLOSING, n)], ids=" ".join
)
def test_importing_the_package_reopens_closed_streams(
    redirected: Redirected, tmp_path: Path, closed: tuple[str, ...]
) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    done = redirected(" ".join(closed), "look.py")
    assert (done.returncode, done.stderr) == (0, "")
    found = (tmp_path / "found").read_text()
    assert found.count(os.devnull) == len(closed)
    assert found.endswith("[False, False, False] 0\n")


def test_a_file_opened_earlier_on_a_standard_descriptor_is_left_alone(redirected: Redirected, tmp_path: Path) -> None:
    (tmp_path / "hold.py").write_text(HOLD)
    done = redirected(">&-", "hold.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "own").read_text() == "own content"


def test_a_search_with_closed_streams_leaves_the_database_intact(
    redirected: Redirected, study_file: Path, tmp_path: Path
) -> None:
    done = redirected("<&-", "-m", "search", "run", study_file, "--trials", "2", "--workers", "1", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert_intact(tmp_path, 2)
    assert "2 trials, 2 complete" in done.stdout
    done = redirected(" ".join(CLOSING), "-m", "search", "worker", "tiny", "--workers", "1")
    assert done.returncode == 0
    assert_intact(tmp_path, 2)


def test_closing_streams_after_importing_the_package_is_safe(
    redirected: Redirected, study_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "daemon.py").write_text(SEARCH)
    assert redirected("", "daemon.py").returncode == 0
    assert_intact(tmp_path, 2)
    assert (tmp_path / "studies" / "tiny" / "report.html").is_file()


def test_commands_that_print_or_prompt_work_without_streams(
    redirected: Redirected, invoke: Command, study_file: Path, tmp_path: Path
) -> None:
    assert invoke("enqueue", study_file).returncode == 0
    for arguments, closed, exit_code in (
        (["status", "tiny"], ">&-", 0),
        (["best", "tiny", "--json"], ">&- 2>&-", 0),
        (["status", "nosuch"], "2>&-", 2),
        (["delete", "tiny"], "<&-", 1),
        (["delete", "tiny"], "<&- >&-", 1),
        (["dashboard", "--auth", "me"], "<&-", 2),
    ):
        done = redirected(closed, "-m", "search", *arguments)
        assert done.returncode == exit_code, (arguments, closed, done.stderr)
        assert "Traceback" not in done.stderr
    assert invoke("status", "tiny").returncode == 0  # nobody confirmed the deletion


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("arguments", [["studies"], ["--help"], ["run", "--help"], ["status", "tiny", "--json"]])
def test_output_that_cannot_be_written_is_a_one_line_error(
    redirected: Redirected, invoke: Command, study_file: Path, arguments: list[str], unbuffered: bool
) -> None:
    assert invoke("enqueue", study_file).returncode == 0
    done = redirected(">/dev/full", "-m", "search", *arguments, unbuffered=unbuffered)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "No space left on device" in line
