"""A whole search: make or resume the study, fill its queue, let workers drain it."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import optuna
from rich.console import Console

from fmnist import data as fashion
from fmnist.errors import ExpectedError
from search import queue
from search.definition import StudyDefinition
from search.engines import local
from search.progress import FinishedTrials, Progress
from search.storage import lock, masked, open_storage, reported
from search.study import REASON, load_study, open_study
from search.summary import Summary, summarize


class SearchFailed(ExpectedError):
    """The search cannot reach its number of trials; the message says why."""


@dataclass(frozen=True)
class RunSettings:
    """How a search runs here, as opposed to what it searches. timeout: seconds."""

    name: str
    trials: int
    storage: str
    folder: Path
    data_dir: Path | None
    device: str
    workers: int
    timeout: float | None
    quiet: bool


@dataclass(frozen=True)
class RunResult:
    """How a search ended. interrupted: by Ctrl-C or SIGTERM. goal: trials it aimed at.

    had_work: whether anything was left to do.
    """

    study: optuna.Study
    data: fashion.DataSet
    summary: Summary
    goal: int
    had_work: bool
    interrupted: bool
    timed_out: bool


class Interrupts:
    """Ctrl-C and SIGTERM: the first asks to stop after the running epochs, the second at once."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.asked = False
        self.on_first = on_first

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.on_first()

    @contextmanager
    def installed(self) -> Iterator[None]:
        before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_search(definition: StudyDefinition, settings: RunSettings, console: Console) -> RunResult:
    """Bring the study to `settings.trials` finished trials, or as far as time allows.

    Tickets that an earlier run left in the queue are run too, if they are more.

    Raises:
        DataError, StorageError, StudyError: nothing was started.
        SearchFailed: too many trials failed, or worker processes crashed.
    """
    data = fashion.load(settings.data_dir)
    storage = open_storage(settings.storage, "create")
    with reported(settings.storage):
        with lock(settings.storage):
            study = open_study(storage, settings.name, definition, data, settings.folder)
            queue.release(study)
            queue.top_up(study, definition, settings.trials)
            goal = queue.size(study)  # more than was asked for, if an earlier run was asked for more
        view = load_study(open_storage(settings.storage), settings.name)
        summary = summarize(view, settings.folder)
        unfinished = summary.trials.finished < goal
        interrupted = timed_out = False
        if unfinished:
            if not settings.quiet:
                _announce(console, definition, data, settings, summary, goal)
                for holder in queue.held(study):
                    console.print(f"Held already: {holder}.", highlight=False, markup=False, soft_wrap=True)
            interrupted, timed_out = _drain(study, view, definition, settings, goal, console)
        summary = summarize(view, settings.folder)
    return RunResult(view, data, summary, goal, unfinished, interrupted, timed_out)


def _announce(
    console: Console,
    definition: StudyDefinition,
    data: fashion.DataSet,
    settings: RunSettings,
    summary: Summary,
    goal: int,
) -> None:
    before = f" ({summary.trials.finished} are finished already)" if summary.trials.finished else ""
    if goal > settings.trials:
        before += f", as an earlier run asked for more than {settings.trials},"
    console.print(
        f"Study {settings.name}: {goal} trials{before} of {definition.defaults.architecture} on {data.name} "
        f"({len(data.train):,} + {len(data.test):,} images), scored on {definition.score_on}.\n"
        f"{definition.sampler} sampler, {definition.pruner} pruner, seed {definition.seed}; "
        f"{settings.workers} workers, torch threads each: {local.threads_each(settings.workers)}, "
        f"device: {settings.device}; {masked(settings.storage)}",
        highlight=False,
        markup=False,
        soft_wrap=not console.is_terminal,
    )


def _drain(
    study: optuna.Study,
    view: optuna.Study,
    definition: StudyDefinition,
    settings: RunSettings,
    goal: int,
    console: Console,
) -> tuple[bool, bool]:
    """Run workers until `goal` is reached; returns whether it was interrupted, and timed out.

    view: the same study over an engine that only reads and so never waits.
    """
    deadline = None if settings.timeout is None else time.monotonic() + settings.timeout
    workers = local.settings_for(settings.storage, settings.name, settings.data_dir, settings.device, settings.workers)
    before = summarize(view, settings.folder).trials
    finished = FinishedTrials(view)

    with Progress(console, goal, before.finished, settings.quiet) as progress:
        interrupts = Interrupts(lambda: progress.say("Stopping after the running epochs; Ctrl-C again stops at once."))

        def stopping() -> bool:
            return interrupts.asked or (deadline is not None and time.monotonic() > deadline)

        def tick() -> None:
            progress.show(summarize(view, settings.folder), finished.new())

        with interrupts.installed():
            while not stopping():
                try:
                    local.drain(study, workers, stopping, tick)
                except local.WorkersDied as error:
                    raise SearchFailed(str(error)) from error
                trials = summarize(view, settings.folder).trials
                if trials.finished >= goal:
                    break
                if not stopping():
                    _replace_failed(study, definition, settings, goal, trials.failed - before.failed)
        return interrupts.asked, not interrupts.asked and stopping()


def _replace_failed(
    study: optuna.Study, definition: StudyDefinition, settings: RunSettings, goal: int, failed: int
) -> None:
    """Put fresh tickets in the place of failed ones, unless failing is the rule."""
    bound = max(3, goal // 10)
    if failed > bound:
        last = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.FAIL,))[-1]
        reason = last.user_attrs.get(REASON, "no reason is recorded")
        raise SearchFailed(f"{failed} trials have failed, the last with: {reason}")
    with lock(settings.storage):
        queue.top_up(study, definition, goal)
