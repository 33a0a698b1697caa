import io

import optuna
from optuna.trial import TrialState
from rich.console import Console

from search.progress import Progress, line
from search.summary import BestTrial, RunningTrial, Summary, TrialCounts
from search.text import duration, percent

SUMMARY = Summary(
    study="s",
    score_on="test",
    trials=TrialCounts(complete=2, pruned=3, failed=1, running=2, waiting=4),
    best=BestTrial(number=1, value=0.9123, params={}, checkpoint=None),
    running=[RunningTrial(6, 2, 5, 0.9051), RunningTrial(7, 0, 4, None)],
)


def trial(state: TrialState, **attributes: object) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(
        state=state,
        params={"filters": 8},
        distributions={"filters": optuna.distributions.IntDistribution(4, 8)},
        **attributes,  # type: ignore[arg-type]
    )


def shown(width: int, terminal: bool, quiet: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    with Progress(console, goal=11, finished=0 if terminal else 4, quiet=quiet) as progress:
        progress.show(SUMMARY, [trial(TrialState.COMPLETE, value=0.9)])
        if terminal:
            console.print(progress.view(SUMMARY))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_live_view_shows_counts_running_trials_and_the_best() -> None:
    view = shown(80, terminal=True)
    assert "5 of 11 trials  2 complete, 3 pruned, 1 failed" in view
    assert "best so far: 91.23 % on test (trial 1)" in view
    rows = [row.split() for row in view.splitlines()]
    assert ["6", "2/5", "90.51", "%"] in rows
    assert ["7", "0/4", "-"] in rows
    assert "elapsed, about" in view


def test_the_live_view_fits_a_narrow_terminal_and_restores_the_cursor() -> None:
    view = shown(30, terminal=True)
    assert view.count("\x1b[?25l") == view.count("\x1b[?25h") == 1
    assert "91.23 %" in view


def test_a_pipe_gets_one_line_a_trial_and_quiet_nothing() -> None:
    assert shown(80, terminal=False) == "[5/11] trial -1 complete at 90.00 % (filters=8), best 91.23 %\n"
    assert shown(80, terminal=False, quiet=True) == ""


def test_trials_that_finish_after_the_summary_was_read_have_numbers_of_their_own() -> None:
    console = Console(file=io.StringIO(), width=80)
    with Progress(console, goal=11, finished=5, quiet=False) as progress:
        progress.show(SUMMARY, [trial(TrialState.COMPLETE, value=0.9), trial(TrialState.FAIL)])
        progress.show(SUMMARY, [trial(TrialState.PRUNED, value=0.8)])
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[0] for line in lines] == ["[6/11]", "[6/11]", "[7/11]"]


def test_a_remark_from_a_signal_handler_is_printed_once_and_not_by_the_handler() -> None:
    console = Console(file=io.StringIO(), width=80)
    with Progress(console, goal=11, finished=0, quiet=False) as progress:
        progress.say("Stopping")
        assert console.file.getvalue() == ""  # type: ignore[attr-defined]
        progress.show(SUMMARY, [])
        progress.show(SUMMARY, [])
    assert console.file.getvalue() == "Stopping\n"  # type: ignore[attr-defined]


def test_a_line_says_how_a_trial_ended() -> None:
    pruned = trial(TrialState.PRUNED, value=0.8, user_attrs={"reason": "pruned after epoch 2 of 5"})
    assert "pruned after epoch 2 of 5 at 80.00 %" in line(pruned, SUMMARY)
    diverged = trial(TrialState.PRUNED, user_attrs={"reason": "diverged: the training loss is nan"})
    assert "trial -1 diverged: the training loss is nan (" in line(diverged, SUMMARY)
    failed = trial(TrialState.FAIL, user_attrs={"reason": "OSError: [/red] full\nreally"})
    assert "failed: OSError: [/red] full really" in line(failed, SUMMARY)


def test_a_reason_is_printed_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=80)
    with Progress(console, goal=11, finished=0, quiet=False) as progress:
        progress.show(SUMMARY, [trial(TrialState.FAIL, user_attrs={"reason": "OSError: [/red]"})])
    assert "OSError: [/red]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_units() -> None:
    assert [duration(seconds) for seconds in (0.4, 59, 61, 3599, 3661)] == [
        "0 s",
        "59 s",
        "1 min 01 s",
        "59 min 59 s",
        "1 h 01 min",
    ]
    assert percent(0.92345) == "92.34 %"
