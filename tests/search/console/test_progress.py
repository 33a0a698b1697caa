import io
import json
import re
import time
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from search.console.progress import QUIET, Progress, line, standing
from search.formatting import duration, percent
from search.results.summary import BestTrial, RunningTrial, Summary, TrialCounts
from tests.terminal import Screen

SUMMARY = Summary(
    study="s",
    score_on="test",
    trials=TrialCounts(complete=2, pruned=3, failed=1, running=2, waiting=4),
    best=BestTrial(number=1, mark=None, value=0.9123, params={}, checkpoint=None),
    running=[RunningTrial(6, None, 2, 5, 0.9051), RunningTrial(7, None, 0.25, 14, None)],
)
FAILED = {"reason": "OSError: [/red] :bug: full\nreally"}


def trial(state: TrialState, **attributes: object) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        state=state,
        params={"filters": 8},
        distributions={"filters": optuna.distributions.IntDistribution(4, 8)},
        **attributes,  # type: ignore[arg-type]
    )


def piped(quiet: bool = False, as_json: bool = False) -> list[str]:
    """The lines printed to a pipe by a search with five earlier trials."""
    console = Console(file=io.StringIO(), markup=False, emoji=False)
    progress = Progress(console, goal=11, finished=5, quiet=quiet, as_json=as_json)
    with progress.shown():
        progress.show(SUMMARY, [trial(TrialState.COMPLETE, value=0.9), trial(TrialState.FAIL, user_attrs=FAILED)])
        progress.say("Stopping")
        for finished in ([trial(TrialState.PRUNED, value=0.8)], []):
            progress.show(SUMMARY, finished)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_pipe_gets_one_numbered_line_per_trial_and_one_per_note() -> None:
    """Each trial that finishes after the summary was read is counted; failed ones are not."""
    assert piped() == [
        "[6/11] trial -1 complete at 90.00 % (filters=8), best 91.23 %",
        "[6/11] trial -1 failed: OSError: [/red] :bug: full really (filters=8), best 91.23 %",
        "[7/11] trial -1 no reason recorded at 80.00 % (filters=8), best 91.23 %",
        "Stopping",
    ]
    assert piped(quiet=True) == []


def test_json_output_is_one_object_per_trial() -> None:
    records = [json.loads(line) for line in piped(quiet=True, as_json=True)]
    assert records[0] == {
        "event": "trial",
        "study": "s",
        "number": -1,
        "state": "complete",
        "value": 0.9,
        "params": {"filters": 8},
        "reason": None,
        "finished": 6,
        "goal": 11,
    }
    assert [(each["state"], each["value"], each["finished"]) for each in records] == [
        ("complete", 0.9, 6),
        ("failed", None, 6),
        ("pruned", 0.8, 7),
    ]
    assert records[1]["reason"] == "OSError: [/red] :bug: full really"


def test_a_pipe_gets_a_progress_line_when_no_trial_finishes_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), markup=False, emoji=False)
    progress = Progress(console, goal=11, finished=5, quiet=False)
    paused = replace(SUMMARY, trials=replace(SUMMARY.trials, paused=3))
    for now in (100.0, 100 + QUIET, 101 + QUIET, 102 + QUIET, 102 + 2 * QUIET):  # noqa: B007
        progress.show(paused, [])
    expected = (
        "[5/11] 3 paused, 4 waiting; trial 6 at epoch 2 of 5 (90.51 %); trial 7 at epoch 0.25 of 14; best 91.23 %"
    )
    assert console.file.getvalue().splitlines() == [expected, expected]  # type: ignore[attr-defined]


def test_the_live_view_estimates_no_time_while_trials_are_paused() -> None:
    console = Console(file=io.StringIO(), width=80)
    progress = Progress(console, goal=11, finished=0, quiet=False)
    progress.show(replace(SUMMARY, trials=replace(SUMMARY.trials, paused=3)), [])
    console.print(progress.view())
    view = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 paused" in view
    assert "elapsed" in view
    assert "left" not in view


@pytest.mark.parametrize("columns", [80, 20])
def test_the_live_view_shows_counts_running_trials_and_the_best(columns: int) -> None:
    console = Console(file=io.StringIO(), width=columns)
    progress = Progress(console, goal=11, finished=0, quiet=False)
    progress.show(SUMMARY, [])
    progress.say("Stopping")
    console.print(progress.view())
    view = console.file.getvalue()  # type: ignore[attr-defined]
    words = " ".join(view.split())
    assert "5 of 11 trials 2 complete, 3 pruned, 1 failed" in words
    assert "best so far: 91.23 % on test (trial 1)" in words
    assert "elapsed, about" in words
    assert words.endswith("Stopping")
    rows = [row.split() for row in view.splitlines()]
    for row in (["trial", "epoch", "test", "%"], ["6", "2/5", "90.51"], ["7", "0.25/14", "-"]):
        assert row in rows
    assert max(map(len, view.splitlines())) <= columns


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (20, 24), (20, 5), (1, 5)])
def test_the_live_view_leaves_nothing_behind(columns: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the view is larger than the terminal."""
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), width=columns, height=rows, force_terminal=True, color_system=None)
    progress = Progress(console, goal=11, finished=0, quiet=False)
    console.print("x")
    with progress.shown():
        progress.show(replace(SUMMARY, running=SUMMARY.running * 20), [])
        while "5" not in (drawn := console.file.getvalue()):  # type: ignore[attr-defined]
            time.sleep(0.01)
        while console.file.getvalue() == drawn:  # type: ignore[attr-defined]  # until it is redrawn
            time.sleep(0.01)
        assert Screen(columns, rows).feed(console.file.getvalue()).cursor_shown  # type: ignore[attr-defined]
    console.print("y")
    screen = Screen(columns, rows).feed(console.file.getvalue())  # type: ignore[attr-defined]
    assert screen.text == "x\ny"
    assert screen.cursor_shown


def test_a_note_from_a_signal_handler_is_printed_once_and_not_by_the_handler() -> None:
    console = Console(file=io.StringIO(), width=80)
    progress = Progress(console, goal=11, finished=0, quiet=False)
    progress.say("Stopping")
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    progress.show(SUMMARY, [])
    progress.show(SUMMARY, [])
    assert console.file.getvalue() == "Stopping\n"  # type: ignore[attr-defined]


def test_a_line_shows_how_a_trial_ended() -> None:
    pruned = trial(TrialState.PRUNED, value=0.8, user_attrs={"reason": "pruned after epoch 2 of 5"})
    assert "pruned after epoch 2 of 5 at 80.00 %" in line(pruned, SUMMARY, {})
    diverged = trial(TrialState.PRUNED, user_attrs={"reason": "diverged: the training loss is nan"})
    assert "trial -1 diverged: the training loss is nan (" in line(diverged, SUMMARY, {})


def test_finalists_are_named_in_lines_and_view() -> None:
    console = Console(file=io.StringIO(), width=80, markup=False)
    progress = Progress(console, goal=6, finished=0, quiet=False)
    progress.names = {-1: "default, seed 1 of 3", 1: "finalist 1, seed 1 of 3", 6: "finalist 2, seed 3 of 3"}
    progress.show(SUMMARY, [trial(TrialState.COMPLETE, value=0.9)])
    progress.console.print(progress.view())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[1/6] default, seed 1 of 3: complete at 90.00 %" in shown
    assert "91.23 % on test (finalist 1, seed 1 of 3)" in shown
    assert re.search(r"^ *finalist 2, seed 3 of 3 +2/5 +90.51 *$", shown, re.MULTILINE)
    assert "finalist 2, seed 3 of 3 at epoch 2 of 5" in standing(SUMMARY, progress.names)


def test_durations_and_percentages_have_units() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 61, 3599, 3661)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "59 min 59 s",
        "1 h 01 min",
    ]
    assert percent(0.92345) == "92.34 %"
