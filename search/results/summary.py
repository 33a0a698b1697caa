"""Trial counts, the best trial and the running trials of a study, from SQL aggregates."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from fmnist.errors import ExpectedError
from search.choices import FINALISTS
from search.database.optuna_schema import best_trial, engine_of, read_trial, trials_in
from search.formatting import marked
from search.queue import freezing, tickets
from search.results.finalists import Standings, standings_of
from search.study import space
from search.study.definition import StudyDefinition
from search.study.places import StudyError, artifacts_of
from search.study.record import FINISHED, STEPS_PER_EPOCH, checkpoint_of
from search.study.store import definition_of, finalists_of, load_study

if TYPE_CHECKING:
    from fmnist.data import DataSet

Stopped = Literal["interrupted", "timeout", "request"]


@dataclass(frozen=True)
class TrialCounts:
    """Trials by state; a budget counts the `finished` ones."""

    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int
    paused: int = 0

    @property
    def finished(self) -> int:
        return self.complete + self.pruned

    @property
    def left(self) -> int:
        """Trials still to finish before the goal is reached."""
        return self.running + self.waiting + self.paused


@dataclass(frozen=True)
class BestTrial:
    """The complete trial with the highest accuracy.

    mark: `default`, or `start 2` for a starting point; None for a sampled trial. checkpoint: path or URL; None if the
    file is missing.
    """

    number: int
    mark: str | None
    value: float
    params: dict[str, Any]
    checkpoint: str | None

    @property
    def label(self) -> str:
        return marked(self.number, self.mark)


@dataclass(frozen=True)
class RunningTrial:
    """A running trial; mark: as in BestTrial. accuracy: at its last report; None before the first."""

    number: int
    mark: str | None
    epoch: float
    epochs: int | None
    accuracy: float | None

    @property
    def label(self) -> str:
        return marked(self.number, self.mark)


@dataclass(frozen=True)
class Summary:
    """Snapshot of a study."""

    study: str
    score_on: str
    trials: TrialCounts
    best: BestTrial | None
    running: list[RunningTrial]

    def as_json(self, standings: Standings | None) -> dict[str, Any]:
        """The record that `status --json` prints; standings: of the finalists, if any."""
        return {
            "study": self.study,
            "direction": "maximize",
            "trials": asdict(self.trials),
            **self.answer_as_json(standings),
        }

    def answer_as_json(self, standings: Standings | None) -> dict[str, Any]:
        """The record that `best --json` prints: the best single trial, and the winner of the finalists."""
        return {
            "best": asdict(self.best) if self.best else None,
            "winner": standings.winner_as_json() if standings else None,
        }


@dataclass(frozen=True)
class RunResult:
    """Outcome of a search.

    goal: number of trials to finish. standings: of the finalists, if any are trained. had_work: whether anything was
    left to do. stopped: what stopped the search before its goal; None if it was reached. error: why training the
    finalists failed after a finished search. report: its path.
    """

    study: optuna.Study
    data: "DataSet"
    summary: Summary
    goal: int
    standings: Standings | None
    had_work: bool
    stopped: Stopped | None
    error: ExpectedError | None
    report: Path

    def as_json(self) -> dict[str, Any]:
        """The last record of `run --json`: that of `status --json` and the outcome of the search."""
        return {
            "event": "result",
            **self.summary.as_json(self.standings),
            "goal": self.goal,
            "stopped": self.stopped,
            "finalists": self.standings.as_json() if self.standings else None,
            "error": str(self.error) if self.error else None,
            "report": str(self.report),
        }


def summarize(study: optuna.Study, folder: Path | None = None) -> Summary:
    """Summarize a study.

    Args:
        folder: of the study's files, if not the one that the last `run` used.
    """
    with engine_of(study).connect() as connection:
        running = trials_in(connection, study, TrialState.RUNNING)
        best_id = best_trial(connection, study)
    definition, state = definition_of(study), tickets.counts(study)
    paused = freezing.paused(study) if definition.pruner == "freeze" else 0
    begun = state[TrialState.COMPLETE] + state[TrialState.PRUNED] + state[TrialState.RUNNING] + paused
    return Summary(
        study=study.study_name,
        score_on=definition.score_on,
        trials=TrialCounts(
            complete=state[TrialState.COMPLETE],
            pruned=state[TrialState.PRUNED],
            failed=state[TrialState.FAIL],
            running=state[TrialState.RUNNING],
            waiting=max(state[TrialState.WAITING] - paused, tickets.goal(study)["trials"] - begun),
            paused=paused,
        ),
        best=None if best_id is None else _best(study, definition, best_id, folder),
        running=[_running(read_trial(study, trial_id), definition) for trial_id, _ in running],
    )


def _best(study: optuna.Study, definition: StudyDefinition, trial_id: int, folder: Path | None) -> BestTrial:
    trial = read_trial(study, trial_id)
    assert trial.value is not None  # the trial is complete
    name = checkpoint_of(trial)
    located = artifacts_of(study, folder).locate(name) if name else None
    mark = space.marks(definition).get(space.key(trial.params))
    return BestTrial(trial.number, mark, trial.value, trial.params, located)


def _running(trial: optuna.trial.FrozenTrial, definition: StudyDefinition) -> RunningTrial:
    step = trial.last_step
    return RunningTrial(
        number=trial.number,
        mark=space.marks(definition).get(space.key(trial.params)),
        epoch=0 if step is None else step / STEPS_PER_EPOCH,
        epochs=trial.params.get("epochs", definition.defaults.epochs),
        accuracy=None if step is None else trial.intermediate_values[step],
    )


@dataclass(frozen=True)
class Listed:
    """A study in the list of a database.

    state: running, unfinished, finished, or why it cannot be read. finished, goal: trials. best: highest accuracy of a
    single training run. winner: mean accuracy of the winning finalist.
    """

    study: str
    state: str
    finished: int | None = None
    goal: int | None = None
    best: float | None = None
    winner: float | None = None


def studies_in(storage: RDBStorage) -> list[Listed]:
    """The studies of a database by name; finalists belong to their studies."""
    names = optuna.get_all_study_names(storage)
    return [_listed(storage, name) for name in sorted(names) if name.removesuffix(FINALISTS) not in {*names} - {name}]


def _listed(storage: RDBStorage, name: str) -> Listed:
    try:
        study = load_study(storage, name)
        standings, finalists = standings_of(study), finalists_of(study)
    except StudyError:
        return Listed(name, "of another program or version")
    parts = [study, finalists] if finalists else [study]
    if any(tickets.counts(each)[TrialState.RUNNING] for each in parts):
        state = "running"
    else:
        missing = definition_of(study).finalists > 0 and finalists is None
        state = "unfinished" if missing or not all(map(tickets.is_done, parts)) else "finished"
    ended = sum(tickets.counts(study)[each] for each in FINISHED)
    values = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = max((trial.value for trial in values if trial.value is not None), default=None)
    winner = standings.winner.retrained.accuracy.mean if standings and standings.winner and standings.decided else None
    return Listed(name, state, ended, max(tickets.goal(study)["trials"], ended), best, winner)
