"""A study's status, shown again and again until nothing is left to do."""

import json
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import optuna
from optuna.trial import TrialState
from rich.console import Console
from rich.text import Text

from search import presentation
from search.database.retry import persistently
from search.interrupts import handled
from search.live import live_view
from search.queue import tickets
from search.results.finalists import Standings, standings_of
from search.results.summary import Summary, summarize
from search.study.store import FINISHED, definition_of, finalists_of

AWAITED_FINALISTS = 30.0  # seconds after the last trial within which a `run` has made the study of its finalists


def watch(study: optuna.Study, folder: Path, console: Console, seconds: float, *, as_json: bool) -> None:
    """Show a study's status every so many seconds, until it and its finalists are finished.

    On a terminal it is drawn in its place; elsewhere a line is printed whenever it says something new.

    Raises:
        StudyError: the study was deleted.
        KeyboardInterrupt: by Ctrl-C, and by SIGTERM too.
    """

    def look() -> tuple[Summary, Standings | None]:
        return summarize(study, folder), standings_of(study, folder)

    shown, said, busy = persistently(look), "", float("-inf")  # when something was last left to do
    live = console.is_interactive and not as_json
    view = live_view(console, lambda: Text("\n".join(presentation.status(*shown))), stays=True)
    with handled(signal.default_int_handler), view if live else nullcontext():
        while True:
            left, awaited = persistently(lambda: (_is_busy(study), _awaits_finalists(study)))
            shown = persistently(look)  # after that: the last to be shown is the end
            line = json.dumps(shown[0].as_json()) if as_json else " ".join(presentation.status(*shown, running=False))
            if not live and line != said:
                print(line, file=console.file, flush=True)
                said = line
            if left:
                busy = time.monotonic()
            elif not awaited or time.monotonic() - busy > AWAITED_FINALISTS:
                return
            time.sleep(seconds)


def _is_busy(study: optuna.Study) -> bool:
    """Whether trials are left, of the study or of its finalists."""
    state = tickets.counts(study)
    if state[TrialState.RUNNING] or state[TrialState.WAITING]:
        return True
    finalists = finalists_of(study)
    if finalists is None:
        return False
    state = tickets.counts(finalists)
    return sum(state[each] for each in FINISHED) < tickets.goal(finalists)["trials"]


def _awaits_finalists(study: optuna.Study) -> bool:
    """Whether a `run` would choose finalists now, or is about to. Workers do not: nobody may ever do so."""
    finalists = finalists_of(study)
    return definition_of(study).finalists > 0 and (finalists is None or tickets.goal(finalists)["trials"] == 0)
