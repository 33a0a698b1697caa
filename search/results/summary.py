"""The numbers of a study that status and progress show, by SQL aggregates."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.trial import TrialState

from fmnist.errors import ExpectedError
from search.database.optuna_schema import best_trial, engine_of, read_trial, trials_in
from search.formatting import marked
from search.queue import freezing, tickets
from search.results.finalists import Standings
from search.study import space
from search.study.definition import StudyDefinition
from search.study.places import artifacts_of
from search.study.record import STEPS_PER_EPOCH, checkpoint_of
from search.study.store import definition_of

if TYPE_CHECKING:
    from fmnist.data import DataSet

Stopped = Literal["interrupted", "timeout", "request"]


@dataclass(frozen=True)
class TrialCounts:
    """Trials by state; `finished` is what a budget counts."""

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
        """Trials between here and the goal; at 0 nothing is left to do."""
        return self.running + self.waiting + self.paused


@dataclass(frozen=True)
class BestTrial:
    """The complete trial of the highest accuracy.

    mark: default, or start 2 of the study's starting points; None of what was sampled. checkpoint: its file, None if it
    is gone.
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
    """A trial at work; mark: as of the best one. accuracy: after its last finished epoch, None before the first."""

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
    """A study at one moment."""

    study: str
    score_on: str
    trials: TrialCounts
    best: BestTrial | None
    running: list[RunningTrial]

    def as_json(self, standings: Standings | None) -> dict[str, Any]:
        """The record that `status --json` prints; standings: of the finalists."""
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
    """How a search ended. goal: trials it aimed at. standings: of the finalists, if any are trained.

    had_work: whether anything was left to do. stopped: by whom, before the end; None if it was reached.
    error: what the finalists failed of, though the search is done. report: the file.
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
        """The record with which `run --json` ends: that of `status --json`, and how the search ended."""
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
    """Read a study's numbers; `folder` is where its files are, if that is not where the last `run` had them."""
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
