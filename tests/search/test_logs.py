"""Log lines of real searches and workers."""

import io
import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from optuna.trial import TrialState

from search import logs
from search.database import retry
from search.database.connection import open_storage
from search.database.url import StorageError
from search.worker.loop import work
from search.worker.trial import Outcome
from tests.children import never
from tests.conftest import Command, Launch, Make, worker_pids
from tests.factories import definition

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) (.+?): (.+)")
WORKER = r"worker \S+:\d+"


def parsed(text: str) -> list[tuple[str, str, str]]:
    """Level, subject and message of each log line."""
    found = [LINE.fullmatch(line) for line in text.splitlines()]
    assert all(found), text
    return [(match[1], match[2], match[3]) for match in found if match]


def of_trial(lines: list[tuple[str, str, str]], number: int, study: str = "tiny") -> list[str]:
    """The messages about a trial, in order."""
    return [message for _, subject, message in lines if re.fullmatch(rf"{study} trial {number}( {WORKER})?", subject)]


def test_each_step_of_a_trial_is_a_line(command: Command, study_file: Path, tmp_path: Path) -> None:
    arguments = ["--trials", "2", "--workers", "1", "--log-level", "info", "--log-file", "log.txt", "--json"]
    result = command("run", "tiny.toml", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    lines = parsed((tmp_path / "log.txt").read_text())
    for number in range(2):
        claimed, *reports, end = of_trial(lines, number)
        assert claimed == "claimed"
        assert re.fullmatch(r"completed at \d+\.\d\d %", end)
        assert re.fullmatch(r"reported \d+\.\d\d % at epoch 0\.25", reports[0])
        assert reports[-1].endswith("at epoch 2")
    assert all(json.loads(line) for line in result.stdout.splitlines())
    assert any(re.fullmatch(r"worker process \d+ started", message) for *_, message in lines)


def test_nothing_is_logged_if_nothing_fails(command: Command, study_file: Path) -> None:
    assert command("run", "tiny.toml", "--trials", "1", "--workers", "1", "--quiet").stderr == ""


def test_the_log_shows_how_a_killed_workers_trial_is_resumed(study_file: Path, start: Launch, tmp_path: Path) -> None:
    study_file.write_text(study_file.read_text().replace("epochs = 2", "epochs = 40"))
    process = start("tiny.toml", "--trials", "1", "--workers", "1", "--log-level", "info", stderr=subprocess.PIPE)
    (pid,) = worker_pids(process.pid)
    while not list(
        (tmp_path / "studies" / "tiny" / "checkpoints").glob("*-epoch-1.pt")
    ):  # until the first epoch is saved
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 0
    lines = parsed(errors)
    messages = of_trial(lines, 0)
    died = next(place for place, message in enumerate(messages) if f"process {pid} on" in message)
    assert re.fullmatch(rf"taken over, back in the queue: process {pid} on \S+ died", messages[died])
    assert messages[0] == messages[died + 1] == "claimed"
    assert re.fullmatch(r"resumed at epoch [\d.]+", messages[died + 2])
    assert messages[-1].startswith("completed at")
    assert ("WARNING", "tiny", f"worker process {pid} ended with exit code -9") in lines


def test_a_stopped_worker_logs_that_it_returned_its_trial(study_file: Path, start: Launch) -> None:
    study_file.write_text(study_file.read_text().replace("epochs = 2", "epochs = 400"))
    process = start("tiny.toml", "--trials", "1", "--workers", "1", "--log-level", "info", stderr=subprocess.PIPE)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert of_trial(parsed(errors), 0)[-1] == "given back"


def test_an_unwritable_log_file_is_a_one_line_error(command: Command, study_file: Path) -> None:
    result = command("run", "tiny.toml", "--log-file", "nowhere/log.txt")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: nowhere/log.txt: No such file")


def test_failed_and_early_ended_trials_are_logged_with_the_reason(
    make: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, settings = make(definition(), 2)
    outcomes = iter([RuntimeError("out\nof memory"), Outcome(TrialState.PRUNED, reason="diverged: its loss is nan")])

    def run_trial(trial: optuna.Trial, *_: object) -> Outcome:
        outcome = next(outcomes, None)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome or Outcome(TrialState.COMPLETE, 0.5)

    monkeypatch.setattr("search.worker.loop.run_trial", run_trial)
    logs.configure("info")
    work(settings, never)
    lines = parsed(capfd.readouterr().err)
    failed = "failed, will be retried: RuntimeError: out of memory"
    assert of_trial(lines, 0, "s") == ["claimed", failed, "claimed", "ended early: diverged: its loss is nan"]
    assert of_trial(lines, 1, "s") == ["claimed", "completed at 50.00 %"]


@pytest.mark.parametrize("url", ["postgresql://me:{}@127.0.0.1:9/db", "postgresql://me@127.0.0.1:9/db?password={}"])
@pytest.mark.parametrize("secret", ["hunter2", "a/b@c", "%41"])
def test_a_password_is_never_logged(
    url: str, secret: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, log_lines: None
) -> None:
    full, quoted = url.format(secret), url.format(quote(secret, safe=""))
    monkeypatch.setattr(retry, "PATIENCE", 0.1)
    with pytest.raises(StorageError):
        retry.retry(lambda: open_storage(quoted, "create"))
    log = logging.getLogger("search.database")
    for text in (full, quoted, f"FATAL: wrong password '{secret}' of me"):
        log.warning("at %s", text)
    lines = capfd.readouterr().err
    assert "waiting for the database for up to" in lines
    assert secret not in lines
    assert quote(secret, safe="") not in lines


def test_lines_are_diverted_only_from_a_terminal(monkeypatch: pytest.MonkeyPatch, log_lines: None) -> None:
    above: list[str] = []
    for terminal in (False, True):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        with logs.diverted(above.append):
            logging.getLogger("search.worker").warning("said")
        assert (stream.getvalue() == "") == terminal
        assert len(above) == terminal


def test_worker_records_are_handled_by_the_callers_logging_configuration(caplog: pytest.LogCaptureFixture) -> None:
    """By the standard library's rules, as if this process had logged them."""
    logger = logging.getLogger("search")
    logger.handlers, logger.propagate = [], True
    context = multiprocessing.get_context("fork")
    with logs.gathered() as lines:
        worker = context.Process(target=log_as_a_worker, args=(lines(),))
        os.write(lines().fileno(), b'{"torn\n')
        worker.start()
        worker.join()
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == (
        "search.worker",
        "INFO",
        "\u540d" * logs.SHORT + " ...",
    )
    assert record.subject == "tiny trial 7"


def log_as_a_worker(lines: Connection) -> None:
    logs.configure_worker("info", lines)
    with logs.about(study="tiny", trial=7):
        logging.getLogger("search.worker").info("%s", "\u540d" * 3000)


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_a_failed_thread_start_leaves_no_open_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    opened = descriptors()
    with logs.gathered() as lines:
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", refuse)
            with pytest.raises(OSError, match="can't start new thread"):
                lines()
        assert descriptors() == opened
        lines()
    assert descriptors() == opened


def test_a_multi_line_record_is_logged_as_one_line(capfd: pytest.CaptureFixture[str], log_lines: None) -> None:
    with logs.about(study="tiny", trial=3):
        logging.getLogger("search.worker").warning("first\nsecond")
    assert parsed(capfd.readouterr().err) == [("WARNING", "tiny trial 3", "first second")]


@pytest.fixture
def log_lines() -> None:
    logs.configure("warning")
