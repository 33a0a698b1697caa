"""What searches and workers log, as their own processes write it."""

import json
import logging
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from search import logs
from tests.conftest import Command, Launch, worker_pids

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) (.+?): (.+)")
WORKER = r"worker \S+:\d+"


def parsed(text: str) -> list[tuple[str, str, str]]:
    """Level, subject and message of each line."""
    found = [LINE.fullmatch(line) for line in text.splitlines()]
    assert all(found), text
    return [(match[1], match[2], match[3]) for match in found if match]


def of_trial(lines: list[tuple[str, str, str]], number: int, study: str = "tiny") -> list[str]:
    """The messages about a trial, in their order."""
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


def test_nothing_is_logged_where_nothing_went_wrong(command: Command, study_file: Path) -> None:
    assert command("run", "tiny.toml", "--trials", "1", "--workers", "1", "--quiet").stderr == ""


def test_a_worker_that_is_killed_and_the_one_that_goes_on_tell_the_story(
    study_file: Path, start: Launch, tmp_path: Path
) -> None:
    study_file.write_text(study_file.read_text().replace("epochs = 2", "epochs = 40"))
    process = start("tiny.toml", "--trials", "1", "--workers", "1", "--log-level", "info", stderr=subprocess.PIPE)
    (pid,) = worker_pids(process.pid)
    while not list((tmp_path / "studies" / "tiny" / "checkpoints").glob("*-epoch-1.pt")):  # the first is on record
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


def test_a_worker_that_is_stopped_gives_back(study_file: Path, start: Launch) -> None:
    study_file.write_text(study_file.read_text().replace("epochs = 2", "epochs = 400"))
    process = start("tiny.toml", "--trials", "1", "--workers", "1", "--log-level", "info", stderr=subprocess.PIPE)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert of_trial(parsed(errors), 0)[-1] == "given back"


def test_a_file_that_cannot_be_written_is_one_line(command: Command, study_file: Path) -> None:
    result = command("run", "tiny.toml", "--log-file", "nowhere/log.txt")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: nowhere/log.txt: No such file")


def test_a_password_is_never_logged(capfd: pytest.CaptureFixture[str], log_lines: None) -> None:
    logging.getLogger("search.database").warning("at %s", "postgresql://me:hunter2@db/studies?x=1")
    assert "postgresql://me:***@db/studies?x=1" in capfd.readouterr().err


def test_a_record_of_several_lines_is_one_line(capfd: pytest.CaptureFixture[str], log_lines: None) -> None:
    with logs.about("tiny trial 3"):
        logging.getLogger("search.worker").warning("first\nsecond")
    assert parsed(capfd.readouterr().err) == [("WARNING", "tiny trial 3", "first second")]


@pytest.fixture
def log_lines() -> None:
    logs.configure("warning")
