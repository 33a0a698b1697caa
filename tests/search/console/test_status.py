"""status --watch: a real process beside a running search."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from search.console import status
from search.database.connection import open_storage
from search.database.url import DatabaseGone, default_url
from search.results.summary import BestTrial, RunningTrial, Summary, TrialCounts
from search.study.store import GOAL, load_study
from search.worker.loop import WorkerSettings, work
from tests.conftest import Command, Make
from tests.factories import FINALISTS, STUDY, definition
from tests.processes import Process
from tests.terminal import Terminal

WATCH = ["status", "s", "--watch", "0.1"]
Made = tuple[optuna.Study, WorkerSettings]


@pytest.fixture
def made(make: Make) -> Made:
    return make(definition(finalists=0), 3)


def drain(made: Made) -> None:
    """Run the study's trials in this process."""
    work(made[1], lambda: False)


def piped(tmp_path: Path, *arguments: str) -> Process:
    return Process(*WATCH, "--output", str(tmp_path), *arguments, cwd=tmp_path, env=os.environ)


def test_a_pipe_gets_a_line_per_change_until_the_search_is_finished(made: Made, tmp_path: Path) -> None:
    process = piped(tmp_path)
    assert process.stdout
    first = process.stdout.readline()
    assert first == "Study s: 0 trials finished (0 complete, 0 pruned), 0 running, 3 waiting, 0 failed.\n"
    drain(made)
    rest, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    lines = rest.splitlines()
    assert all(before != after for before, after in zip([first, *lines], lines, strict=False))
    assert lines[-1].startswith(
        "Study s: 3 trials finished (3 complete, 0 pruned), 0 running, 0 waiting, 0 failed. Best"
    )


def test_watch_json_prints_the_status_record_when_it_changed(
    made: Made, tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    process = piped(tmp_path, "--json")
    assert process.stdout
    assert json.loads(process.stdout.readline())["trials"]["waiting"] == 3
    drain(made)
    last = process.communicate()[0].splitlines()[-1]
    assert json.loads(last) == json.loads(command("status", "s", "--output", tmp_path, "--json").stdout)
    assert process.returncode == 0


def test_watch_continues_until_the_goal_is_reached(made: Made, tmp_path: Path) -> None:
    """Tickets are created on demand, so that at times none is waiting or running."""
    drain(made)
    made[0].set_user_attr(GOAL, {"trials": 5, "failed": 0})
    process = piped(tmp_path)
    assert process.stdout
    assert "3 trials finished (3 complete, 0 pruned), 0 running, 2 waiting" in process.stdout.readline()
    drain(made)
    assert process.communicate()[0].splitlines()[-1].startswith("Study s: 5 trials finished")


@pytest.mark.parametrize("columns", [80, 20])
def test_a_terminal_is_redrawn_in_place(made: Made, tmp_path: Path, columns: int) -> None:
    terminal = Terminal(*WATCH, "--output", str(tmp_path), cwd=tmp_path, columns=columns)
    terminal.read_until("Study s: 0")
    drain(made)
    exit_code, screen = terminal.wait()
    assert exit_code == 0
    assert screen.text.count("Study s") == 1
    assert "3 waiting" in " ".join(terminal.output.split())
    assert "3 trials finished (3 complete" in " ".join(screen.text.split())
    assert screen.cursor_shown


@pytest.mark.parametrize("ending", [b"\x03", signal.SIGTERM])
def test_interrupting_watch_leaves_the_terminal_intact(
    made: Made, tmp_path: Path, ending: bytes | signal.Signals
) -> None:
    terminal = Terminal(*WATCH, "--output", str(tmp_path), cwd=tmp_path, columns=80)
    terminal.read_until("Study s: 0")
    if isinstance(ending, bytes):
        terminal.type(ending)
    else:
        terminal.process.send_signal(ending)
    exit_code, screen = terminal.wait()
    assert exit_code == 130
    assert screen.text.count("Study s: 0 trials finished") == 1
    assert screen.text.splitlines()[-1].endswith("Stopped.")
    assert screen.cursor_shown


def test_watch_continues_through_the_finalists_of_a_run(study_file: Path, tmp_path: Path, invoke: Command) -> None:
    study_file.write_text(STUDY.replace("finalists = 0", "finalists = 1").replace("epochs = 2", "epochs = 4"))
    invoke("enqueue", "tiny.toml")
    watcher = Process("status", "tiny", "--watch", "0.2", cwd=tmp_path, env=os.environ)
    assert watcher.stdout
    assert "1 waiting" in watcher.stdout.readline()
    assert invoke("run", "tiny.toml", "--trials", "2", "--workers", "1", "--quiet").returncode == 0
    *_, last = watcher.communicate()[0].splitlines()
    assert watcher.returncode == 0
    trained = last.partition("Finalists: ")[2].split()
    assert trained[0] == trained[2]


def test_watch_ends_if_no_run_chooses_finalists(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers without a `run` choose no finalists. watch does not wait after an already finished search."""
    study, settings = make(definition(finalists=1), 1)
    worker = threading.Thread(target=work, args=(settings, lambda: False))
    monkeypatch.setattr(status, "AWAITED_FINALISTS", 0.3)
    worker.start()
    status.watch(study, tmp_path / "s", Console(), 0.1, FINALISTS, as_json=False)
    worker.join()
    assert "Study s: 1 trial finished" in capsys.readouterr().out
    monkeypatch.setattr(status, "AWAITED_FINALISTS", 1e9)
    status.watch(study, tmp_path / "s", Console(), 0.1, FINALISTS, as_json=False)
    assert "Study s: 1 trial finished" in capsys.readouterr().out


def test_deleting_the_database_ends_watch(made: Made, tmp_path: Path) -> None:
    class Deletes(StringIO):
        def write(self, text: str) -> int:
            (tmp_path / "studies.db").unlink(missing_ok=True)
            return super().write(text)

    shown = Deletes()
    study = load_study(open_storage(default_url(tmp_path)), "s")
    with pytest.raises(DatabaseGone, match=r"studies\.db was deleted"):
        status.watch(study, tmp_path / "s", Console(file=shown), 0.1, FINALISTS, as_json=False)
    assert "3 waiting" in shown.getvalue()


def test_starting_points_are_marked_in_each_line() -> None:
    best, running = BestTrial(2, "start 2", 0.93, {}, None), RunningTrial(1, "start 1", 2, 5, 0.9)
    lines = status.status(Summary("s", "test", TrialCounts(1, 0, 0, 1, 0), best, [running]), None, FINALISTS)
    assert lines[1:] == [
        "  trial 1 (start 1): epoch 2 of 5, 90.00 % on test",
        "Best so far: trial 2 (start 2), 93.00 % on test.",
    ]
