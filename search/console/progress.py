"""What a search shows while it runs: a live view on a terminal, plain or JSON lines elsewhere."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from search.console.terminal import held_back
from search.formatting import assignments, duration, percent
from search.results.summary import Summary, TrialCounts
from search.study.record import reason_of

NARROW = 40  # columns
QUIET = 30.0  # seconds without a line, after which one says how far the search is
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Progress:
    """Shows a study's summaries as they come.

    Args:
        console: where to; not a terminal means one plain line a finished trial, and one after each QUIET seconds.
        goal: finished trials that the run ends with.
        finished: trials that were finished before it began.
        quiet: say nothing.
        as_json: print a `record` of each finished trial.
    """

    def __init__(self, console: Console, goal: int, finished: int, *, quiet: bool, as_json: bool = False) -> None:
        self.console = console
        self.goal = goal
        self.finished_before = self.counted = finished
        self.quiet = quiet
        self.as_json = as_json
        self.started = self.printed = time.monotonic()
        self.note = self.said = ""
        self.summary: Summary | None = None
        self.live = console.is_interactive and not quiet

    def shown(self) -> AbstractContextManager[None]:
        """Display the live view inside this context."""
        return live_view(self.console, self.view, stays=False) if self.live else nullcontext()

    def show(self, summary: Summary, newly_finished: list[FrozenTrial]) -> None:
        """Show the study as it is now."""
        self.summary = summary
        for trial in newly_finished:  # counted here: the summary is of a moment before they were read
            self.counted += counts(trial)
            if self.as_json:
                print(json.dumps(self.record(trial)), file=self.console.file, flush=True)
            self._print(f"[{self.counted}/{self.goal}] {line(trial, summary)}")
        if self.note != self.said:
            self.said = self.note
            self._print(self.note)
        if time.monotonic() - self.printed > QUIET:  # paused trials may finish together, at the end of the search
            self._print(f"[{self.counted}/{self.goal}] {standing(summary)}")

    def say(self, note: str) -> None:
        """Show a remark on what happens next, when something is shown next: it may come from a signal's handler."""
        self.note = note

    def _print(self, text: str) -> None:
        self.printed = time.monotonic()
        if not (self.live or self.quiet):
            self.console.print(text, soft_wrap=True)

    def record(self, trial: FrozenTrial) -> dict[str, Any]:
        """The record that `run --json` prints of a finished trial.

        value: its accuracy, None if it has none. reason: why it did not come to its end, None if it did.
        finished, goal: trials that count, by then, and when the run ends.
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
        """The whole live view."""
        if self.summary is None:
            return Text(self.note, style="yellow")
        summary, trials = self.summary, self.summary.trials
        head = Text.assemble(
            (f"{trials.finished} of {self.goal} trials", "bold"),
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
                f" on {summary.score_on} (trial {summary.best.label})",
            )
        space = 2 if self.console.width > NARROW else 1
        rows = Table(box=None, padding=(0, space, 0, 0), show_edge=False, pad_edge=False)
        for title in ("trial", "epoch", f"{summary.score_on} %"):
            rows.add_column(title, justify="right", style="dim" if title == "trial" else None, no_wrap=True)
        for running in summary.running:
            accuracy = "-" if running.accuracy is None else percent(running.accuracy).removesuffix(" %")
            rows.add_row(running.label, f"{running.epoch:g}/{running.epochs}", accuracy)
        view = Table.grid()
        for part in (head, bar, best, rows, Text(self._time(trials)), Text(self.note, style="yellow")):
            view.add_row(part)
        return view

    def _time(self, trials: TrialCounts) -> str:
        elapsed = time.monotonic() - self.started
        done = trials.finished - self.finished_before
        if done < 3 or trials.paused:  # nobody knows how many of the paused will be continued
            return f"{duration(elapsed)} elapsed"
        left = elapsed / done * (self.goal - trials.finished)
        return f"{duration(elapsed)} elapsed, about {duration(left)} left"


def standing(summary: Summary) -> str:
    """A search at this moment in one line."""
    trials = summary.trials
    counts = f"{f'{trials.paused} paused, ' if trials.paused else ''}{trials.waiting} waiting"
    at_work = [
        f"trial {each.label} at epoch {each.epoch:g} of {each.epochs}"
        + ("" if each.accuracy is None else f" ({percent(each.accuracy)})")
        for each in summary.running
    ]
    best = f"; best {percent(summary.best.value)}" if summary.best else ""
    return "; ".join([counts, *at_work]) + best


def line(trial: FrozenTrial, summary: Summary) -> str:
    """One finished trial in one line."""
    reached = f" at {percent(trial.value)}" if trial.value is not None else ""
    result = {
        TrialState.COMPLETE: f"complete{reached}",
        TrialState.PRUNED: f"{reason(trial)}{reached}",
        TrialState.FAIL: f"failed: {reason(trial)}",
    }[trial.state]
    best = f", best {percent(summary.best.value)}" if summary.best else ""
    return f"trial {trial.number} {result} ({assignments(trial.params)}){best}"


def reason(trial: FrozenTrial) -> str:
    """Why a trial was pruned or failed, in one line."""
    return " ".join((reason_of(trial) or "no reason is recorded").split())


def counts(trial: FrozenTrial) -> bool:
    """Whether a finished trial is one of those that a budget counts."""
    return trial.state != TrialState.FAIL


class FinishedTrials:
    """The trials of a study that have finished since it was last asked.

    Attributes:
        before: how many a budget counts of those that had finished when it was made.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.study = study
        there = self._finished()
        self.before = sum(map(counts, there))
        self.seen = {trial.number for trial in there}

    def _finished(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def new(self) -> list[FrozenTrial]:
        fresh = [trial for trial in self._finished() if trial.number not in self.seen]
        self.seen |= {trial.number for trial in fresh}
        return fresh


ECHO = 4  # columns left free: the terminal's echo of two Ctrl-C in them begins no line that nobody would erase
REFRESH = 2  # times a second: what a slow connection bears


@contextmanager
def live_view(console: Console, draw: Callable[[], RenderableType], *, stays: bool) -> Iterator[None]:
    """Show what `draw` returns at the end of a terminal, until this is over.

    The cursor is not hidden, so that what ends a process without asking it (`kill -9`) or stops it (Ctrl-Z) does
    not leave a terminal without one. No signal interrupts the last drawing.

    Args:
        stays: whether it is still to be seen afterwards.
    """
    over = False

    def drawn() -> RenderableType:  # at last rich would let a view that is to go overflow the terminal
        return "" if over and not stays else Constrain(draw(), console.width - ECHO)

    live = Live(console=console, get_renderable=drawn, refresh_per_second=REFRESH, transient=not stays)
    try:
        with held_back():
            live.start()
            console.show_cursor(True)
        with logs.diverted(lambda text: console.print(text, soft_wrap=True)):
            yield
    finally:
        over = True
        with held_back():
            live.stop()
