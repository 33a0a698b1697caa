"""Workers of this machine on a study that another process made and filled."""

import signal
import time
from collections.abc import Callable

import optuna

from search.console.progress import FinishedTrials, line
from search.console.terminal import Interrupts
from search.database.connection import open_storage
from search.database.retry import reported
from search.database.url import StorageError, warnings_for
from search.engines import local
from search.formatting import count
from search.queue.lease import ATTEMPTS, this_machine
from search.results.summary import summarize
from search.study.places import StudyError, folder_of, location_of
from search.study.store import load_study, stop_requests, told_if_deleted
from search.worker.loop import FOLLOW_POLL, WorkerSettings


def join(settings: WorkerSettings, workers: int, say: Callable[[str], None]) -> bool:
    """Run workers until the queue is empty, or with `settings.follow` until they are stopped.

    Returns whether Ctrl-C ended it; SIGTERM is how a service is told to end, and no more than that.

    Raises:
        StorageError, StudyError: the study is not to be had.
        WorkersDied, TooManyFailures: the workers cannot go on.
    """
    notes: list[str] = []
    interrupts = Interrupts(lambda: notes.append("Stopping after the running epochs; once more stops at once."))
    with interrupts.installed(), reported(settings.storage):
        study = _wait_for(settings, lambda: interrupts.asked, say)
        if study is None:
            return interrupts.by == signal.SIGINT
        for warning in warnings_for(settings.storage, workers):
            say(warning)
        say(f"{count(workers, 'worker')} on study {settings.study}, torch threads each: {local.threads_each(workers)}.")
        view = load_study(open_storage(settings.storage), settings.study)
        finished = FinishedTrials(view)
        request, stopped = stop_requests(view), False

        def tick() -> None:
            nonlocal stopped
            while notes:
                say(notes.pop())
            stopped = stop_requests(view) != request
            summary = summarize(view)
            for trial in finished.new():
                if trial.user_attrs.get(ATTEMPTS, [{}])[-1].get("machine") == this_machine():
                    say(line(trial, summary))

        with told_if_deleted(view, location_of(view, settings.output and folder_of(view, settings.output))):
            local.drain(study, local.shared_out(settings, workers), lambda: interrupts.asked or stopped, tick)
    return interrupts.by == signal.SIGINT


def _wait_for(
    settings: WorkerSettings, interrupted: Callable[[], bool], say: Callable[[str], None]
) -> optuna.Study | None:
    """The study, once it is there; None if that was not waited for. Without `follow` it must be there now."""
    said = ""
    while not interrupted():
        try:
            return load_study(open_storage(settings.storage, "write"), settings.study)
        except (StudyError, StorageError) as error:
            if not settings.follow:
                raise
            if str(error) != said:
                said = str(error)
                say(f"Waiting: {said}")
        time.sleep(FOLLOW_POLL)
    return None
