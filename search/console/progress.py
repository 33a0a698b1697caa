"""Progress of a running search: a live view on a terminal, plain or JSON lines elsewhere."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search import logs
from search.console.terminal import print_line, signals_deferred
from search.formatting import assignments, duration, percent
from search.results.summary import BestTrial, RunningTrial, Summary, TrialCounts
from search.study.record import reason_of

NARROW = 40  # columns
QUIET = 30.0  # seconds without output after which a progress line is printed
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Progress:
    """Shows the progress of a study.

    Args:
        console: if not a terminal, gets one plain line per finished trial, and one after QUIET seconds without any.
        goal: finished trials at which the run ends.
        finished: trials finished before the run began.
        quiet: print nothing.
        as_json: print a `record` of each finished trial.

    Attributes:
        names: of finalists' trials by number, shown in the place of "trial 3".
    """

    def __init__(self, console: Console, goal: int, finished: int, *, quiet: bool, as_json: bool = False) -> None:
        self.console = console
        self.goal = goal
        self.finished_before = self.counted = finished
        self.quiet = quiet
        self.as_json = as_json
        self.started = self.printed = time.monotonic()
        self.note = self.printed_note = ""
        self.summary: Summary | None = None
        self.names: Mapping[int, str] = {}
        self.live = console.is_interactive and not quiet

    def shown(self) -> AbstractContextManager[None]:
        """Display the live view inside this context."""
        return live_view(self.console, self.view, stays=False) if self.live else nullcontext()

    def show(self, summary: Summary, newly_finished: list[FrozenTrial]) -> None:
        """Show the current summary and the trials that finished since the last call."""
        self.summary = summary
        for trial in newly_finished:  # counted here, as the summary was read before them
            self.counted += counts(trial)
            if self.as_json:
                print(json.dumps(self.record(trial)), file=self.console.file, flush=True)
            self._print(f"[{self.counted}/{self.goal}] {line(trial, summary, self.names)}")
        if self.note != self.printed_note:
            self.printed_note = self.note
            self._print(self.note)
        if time.monotonic() - self.printed > QUIET:  # paused trials may all finish at the end of the search
            self._print(f"[{self.counted}/{self.goal}] {standing(summary, self.names)}")

    def say(self, note: str) -> None:
        """Show a note with the next update."""
        self.note = note  # not printed at once: the caller may be a signal handler

    def _print(self, text: str) -> None:
        self.printed = time.monotonic()
        if not (self.live or self.quiet):
            print_line(self.console, text)

    def record(self, trial: FrozenTrial) -> dict[str, Any]:
        """The record of a finished trial that `run --json` prints.

        value: accuracy or None. reason: why the trial did not complete, None if it did.
        finished, goal: trials that count toward the budget, so far and at the end of the run.
        """
        assert self.summary
        return {
            "event": "trial",
            "study": self.summary.study,
            "number": trial.number,
            "state": STATES[trial.state],
            "value": trial.value,
            "params": trial.params,
            "reason": None if trial.state == TrialState.COMPLETE else reason(trial),
            "finished": self.counted,
            "goal": self.goal,
        }

    def view(self) -> RenderableType:
        """The live view."""
        if self.summary is None:
            return Text(self.note, style="yellow")
        summary, trials = self.summary, self.summary.trials
        head = Text.assemble(
            (f"{trials.finished} of {self.goal} {'training runs' if self.names else 'trials'}", "bold"),
            f"  {trials.complete} complete, {trials.pruned} pruned, {trials.failed} failed"
            f"{f', {trials.paused} paused' if trials.paused else ''}",
        )
        completed = trials.finished + trials.paused
        bar = ProgressBar(total=self.goal, completed=completed, width=min(60, self.console.width))
        best = Text("best so far: none yet")
        if summary.best:
            best = Text.assemble(
                "best so far: ",
                (percent(summary.best.value), "bold green"),
                f" on {summary.score_on} ({self._name(summary.best)})",
            )
        space = 2 if self.console.width > NARROW else 1
        rows = Table(box=None, padding=(0, space, 0, 0), show_edge=False, pad_edge=False)
        first = "training run" if self.names else "trial"
        for title in (first, "epoch", f"{summary.score_on} %"):
            rows.add_column(title, justify="right", style="dim" if title == first else None, no_wrap=True)
        for running in summary.running:
            accuracy = "-" if running.accuracy is None else percent(running.accuracy).removesuffix(" %")
            rows.add_row(self.names.get(running.number, running.label), f"{running.epoch:g}/{running.epochs}", accuracy)
        view = Table.grid()
        for part in (head, bar, best, rows, Text(self._time(trials)), Text(self.note, style="yellow")):
            view.add_row(part)
        return view

    def _name(self, trial: BestTrial | RunningTrial) -> str:
        return self.names.get(trial.number, f"trial {trial.label}")

    def _time(self, trials: TrialCounts) -> str:
        elapsed = time.monotonic() - self.started
        done = trials.finished - self.finished_before
        if done < 3 or trials.paused:  # how many paused trials will be continued is unknown
            return f"{duration(elapsed)} elapsed"
        left = elapsed / done * (self.goal - trials.finished)
        return f"{duration(elapsed)} elapsed, about {duration(left)} left"


def standing(summary: Summary, names: Mapping[int, str]) -> str:
    """The current state of a search in one line; names: as in `Progress`."""
    trials = summary.trials
    counts = f"{f'{trials.paused} paused, ' if trials.paused else ''}{trials.waiting} waiting"
    running = [
        f"{names.get(each.number, f'trial {each.label}')} at epoch {each.epoch:g} of {each.epochs}"
        + ("" if each.accuracy is None else f" ({percent(each.accuracy)})")
        for each in summary.running
    ]
    best = f"; best {percent(summary.best.value)}" if summary.best else ""
    return "; ".join([counts, *running]) + best


def line(trial: FrozenTrial, summary: Summary, names: Mapping[int, str]) -> str:
    """A finished trial in one line; names: as in `Progress`."""
    score = f" at {percent(trial.value)}" if trial.value is not None else ""
    result = {
        TrialState.COMPLETE: f"complete{score}",
        TrialState.PRUNED: f"{reason(trial)}{score}",
        TrialState.FAIL: f"failed: {reason(trial)}",
    }[trial.state]
    best = f", best {percent(summary.best.value)}" if summary.best else ""
    name = f"{names[trial.number]}:" if trial.number in names else f"trial {trial.number}"
    return f"{name} {result} ({assignments(trial.params)}){best}"


def reason(trial: FrozenTrial) -> str:
    """Why a trial was pruned or failed, in one line."""
    return " ".join((reason_of(trial) or "no reason recorded").split())


def counts(trial: FrozenTrial) -> bool:
    """Whether a finished trial counts toward the budget."""
    return trial.state != TrialState.FAIL


class FinishedTrials:
    """Tracks which trials of a study have finished since the last call of `new`.

    Attributes:
        before: finished trials that counted toward the budget at the start.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        finished = self._finished()
        self.before = sum(map(counts, finished))
        self.seen = {trial.number for trial in finished}

    def _finished(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def new(self) -> list[FrozenTrial]:
        fresh = [trial for trial in self._finished() if trial.number not in self.seen]
        self.seen |= {trial.number for trial in fresh}
        return fresh


ECHO = 4  # columns left free for the echo of two Ctrl-C (^C^C), which would otherwise wrap to a line that stays
REFRESH = 2  # per second: low enough for a slow connection


@contextmanager
def live_view(console: Console, draw: Callable[[], RenderableType], *, stays: bool) -> Iterator[None]:
    """Show what `draw` returns at the bottom of a terminal inside this context.

    Args:
        stays: whether the view remains on the terminal afterwards.
    """
    over = False

    def render() -> RenderableType:
        # Nothing in the last frame of a transient view, which rich would let overflow the terminal.
        return "" if over and not stays else Constrain(draw(), console.width - ECHO)

    live = Live(console=console, get_renderable=render, refresh_per_second=REFRESH, transient=not stays)
    try:
        with signals_deferred():
            live.start()
            console.show_cursor(True)  # so that kill -9 or Ctrl-Z does not leave a terminal without cursor
        with logs.diverted(partial(print_line, console)):
            yield
    finally:
        over = True
        with signals_deferred():  # no signal interrupts the last frame
            live.stop()
