"""Worker processes under adverse conditions: what they import, and failures to start them."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.database.connection import open_storage
from search.database.url import default_url
from search.queue.reaper import alive
from search.run import local
from search.study.store import load_study
from tests.conftest import Make, worker_pids, worker_servers
from tests.factories import definition

COMPLETE, WAITING = TrialState.COMPLETE, TrialState.WAITING
COMMAND = """\
from search.cli import main

if __name__ == "__main__":
    main(prog_name="fmnist-search")
"""
SPAWNING = """\
import multiprocessing
from search.run import local

local.process_context = lambda: multiprocessing.get_context("spawn")  # as on macOS
"""

Search = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def search(study_file: Path, tmp_path: Path, tiny_folder: Path) -> Iterator[Search]:
    """Start `fmnist-search run` like its console script: sys.path starts with the script's folder."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *arguments: str, options: tuple[str, ...] = (), before: str = "", **environment: str
    ) -> subprocess.Popen[str]:
        script = tmp_path / "bin" / "fmnist-search"
        script.parent.mkdir()
        script.write_text(before + COMMAND)
        call = [sys.executable, *options, str(script), "run", str(study_file), *arguments]
        clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FMNIST_DATA": str(tiny_folder)}
        here, pipe = tmp_path / "here", subprocess.PIPE
        here.mkdir(exist_ok=True)
        process = subprocess.Popen(call, cwd=here, env=clean | environment, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def states(tmp_path: Path) -> list[TrialState]:
    study = load_study(open_storage(default_url(tmp_path / "here" / "studies")), "tiny")
    return [trial.state for trial in study.trials]


@pytest.mark.parametrize(
    ("before", "options"),
    [("", ()), (SPAWNING, ("-E",))],
    ids=["server", "spawn"],  # -E: without PYTHONSAFEPATH
)
def test_workers_import_nothing_from_the_working_directory(
    search: Search, tmp_path: Path, before: str, options: tuple[str, ...]
) -> None:
    marker = tmp_path / "imported"
    for name in ("fmnist", "random", "threading", "signal", "selectors", "optuna", "search/__init__"):
        file = tmp_path / "here" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"open({str(marker)!r}, 'a').write({name!r})\nraise SystemExit(99)\n")
    process = search("--trials", "2", "--workers", "1", "--quiet", before=before, options=options)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert not marker.exists()
    assert states(tmp_path) == [COMPLETE] * 2


def test_workers_start_despite_a_long_path_for_temporary_files(search: Search, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    process = search("--trials", "1", "--workers", "1", "--quiet", TMPDIR=str(long))
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert states(tmp_path) == [COMPLETE]


def test_a_search_survives_kills_of_the_server_that_starts_workers(search: Search, tmp_path: Path) -> None:
    process = search("--trials", "3", "--workers", "2", "--quiet")
    killed: list[int] = []
    workers: set[int] = set()
    while process.poll() is None:
        for server in worker_servers(process.pid):
            forked = set(worker_pids(process.pid))
            if server not in killed and (not killed or (len(killed) < 2 and forked)):
                os.kill(server, signal.SIGKILL)
                killed.append(server)
            workers |= forked
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert all(" WARNING tiny" in line for line in errors.splitlines())
    assert len(killed) == 2
    assert "3 trials, 3 complete" in output
    assert states(tmp_path) == [COMPLETE] * 3
    assert not any(map(alive, workers))


@contextmanager
def out_of_descriptors() -> Iterator[Callable[[], None]]:
    """Use up this process's file descriptors; yields a function that releases them."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))

    def end() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    try:
        yield end
    finally:
        end()


def test_failing_to_start_workers_is_a_one_line_error_and_holds_no_ticket(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(), 2)
    monkeypatch.setattr(local, "LONGEST_DELAY", 0.1)
    with out_of_descriptors(), pytest.raises(local.WorkersDied, match=r"cannot be started: .*Too many open files"):
        local.run_workers(study, [settings] * 2, lambda: False, lambda: None)
    assert [trial.state for trial in study.trials] == [WAITING] * 2


def test_starting_a_worker_is_retried(make: Make) -> None:
    study, settings = make(definition(), 2)
    with out_of_descriptors() as end:
        local.run_workers(study, [settings] * 2, lambda: False, end)
    assert [trial.state for trial in study.trials] == [COMPLETE] * 2
