"""The terminal after a search ends in each possible way: real processes, pseudo-terminals and signals."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from search.database.connection import lock, open_storage
from search.database.url import default_url
from search.study.store import load_study
from search.worker import retention
from tests.factories import STUDY
from tests.processes import Process
from tests.terminal import Terminal

LONG = STUDY.replace("epochs = 2", "epochs = 400")
DRAWN = "elapsed"  # contained in each frame of the live view, and nowhere else
Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path, tiny_folder: Path) -> Start:
    """Starts a command on a terminal."""

    def started(*arguments: str, columns: int = 80, **environment: str) -> Terminal:
        return Terminal(*arguments, cwd=tmp_path, columns=columns, FMNIST_DATA=str(tiny_folder), **environment)

    return started


@pytest.fixture
def searching(start: Start, study_file: Path) -> Start:
    """Starts a long search and waits until it is displayed."""

    def started(columns: int = 80) -> Terminal:
        study_file.write_text(LONG)
        terminal = start("run", "tiny.toml", "--workers", "1", columns=columns)
        terminal.read_until(DRAWN)
        return terminal

    return started


def left(terminal: Terminal, exit_code: int) -> str:
    """The final text of the terminal, which must have a cursor and no rest of the live view."""
    code, screen = terminal.wait()
    assert code == exit_code, screen.text
    assert screen.cursor_shown
    assert DRAWN not in screen.text
    assert "Traceback" not in screen.text
    return screen.text


def test_log_lines_of_workers_appear_intact_above_the_view(start: Start, study_file: Path) -> None:
    terminal = start("run", "tiny.toml", "--trials", "2", "--workers", "1", "--log-level", "info", columns=160)
    lines = left(terminal, 0).splitlines()
    logged = [line for line in lines if " INFO " in line]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO tiny.*: .+", line) for line in logged)
    assert sum(line.endswith(": claimed") for line in logged) == 2
    assert any(re.search(r"trial 1 worker \S+: completed at", line) for line in logged)


@pytest.mark.parametrize("columns", [80, 20])
def test_a_finished_search_leaves_its_result(start: Start, study_file: Path, columns: int) -> None:
    study_file.write_text(STUDY.replace("epochs = 2", "epochs = 60"))
    terminal = start("run", "tiny.toml", "--trials", "2", "--workers", "1", columns=columns)
    terminal.read_until(DRAWN)
    text = left(terminal, 0)
    assert "Done: 2 trials, 2 complete and 0 pruned." in " ".join(text.split())
    assert "best so far" not in text


@pytest.mark.parametrize("columns", [80, 20])
def test_ctrl_c_leaves_its_message(searching: Start, columns: int) -> None:
    terminal = searching(columns)
    terminal.type(b"\x03")
    text = left(terminal, 130)
    assert not re.search("^0 of 6 trials  ", text, re.MULTILINE), "the view is still there"
    text = " ".join(text.split())
    assert "Stopping after" in terminal.output
    assert "Stopping after" not in text
    assert "Stopped: 0 of 6 trials are finished; run the same command to resume." in text


def test_ctrl_c_twice_leaves_one_word(searching: Start, study_file: Path) -> None:
    study_file.write_text(LONG.replace("filters = 4", "filters = 256"))
    terminal = searching()
    terminal.type(b"\x03")
    terminal.read_until("Ctrl-C again")
    terminal.type(b"\x03")
    assert re.search(r"^(\^C)*Stopped\.$", left(terminal, 130), re.MULTILINE)


def test_sigterm_leaves_its_message(searching: Start) -> None:
    terminal = searching()
    terminal.process.send_signal(signal.SIGTERM)
    assert "Stopped: 0 of 6 trials are finished" in left(terminal, 130)


def test_an_error_during_a_search_leaves_one_line(searching: Start, tmp_path: Path) -> None:
    terminal = searching()
    url = default_url(tmp_path / "studies")
    with lock(url):
        study = load_study(open_storage(url, "write"), "tiny")
        for files in retention.files_of(study, tmp_path / "studies" / "tiny"):
            retention.delete(files, [str(tmp_path)])
    text = left(terminal, 2)
    assert text.splitlines()[-1].startswith("Error: ")
    assert "study 'tiny' was deleted" in text


def test_a_killed_search_leaves_the_cursor_visible(searching: Start) -> None:
    terminal = searching()
    terminal.process.kill()
    code, screen = terminal.wait()
    assert code == -signal.SIGKILL
    assert screen.cursor_shown


def test_a_dumb_terminal_gets_lines(start: Start, study_file: Path) -> None:
    terminal = start("run", "tiny.toml", "--trials", "2", "--workers", "1", TERM="dumb")
    text = left(terminal, 0)
    assert "\x1b" not in terminal.output
    assert len(re.findall(r"^\[\d/2\] trial \d complete at", text, re.MULTILINE)) == 2


def test_a_pipe_gets_plain_lines_despite_force_color(study_file: Path, tmp_path: Path, tiny_folder: Path) -> None:
    environment = os.environ | {"FMNIST_DATA": str(tiny_folder), "FORCE_COLOR": "1", "TERM": "xterm"}
    call = ("run", "tiny.toml", "--trials", "2", "--workers", "1")
    output, errors = Process(*call, cwd=tmp_path, env=environment).communicate()
    assert errors == ""
    assert set(re.findall(r"\x1b\[[^a-zA-Z]*([a-zA-Z])", output)) <= {"m"}  # colours, as FORCE_COLOR requests
    assert len(re.findall(r"^\[\d/2\] trial \d complete at", output, re.MULTILINE)) == 2
