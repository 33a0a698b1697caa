"""The numbers of a study that status and progress show, by SQL aggregates."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages._rdb.models import TrialValueModel
from optuna.trial import TrialState
from sqlalchemy import func, select

from search.queue import TRIALS, backend
from search.study import STEPS_PER_EPOCH, checkpoint_path, definition_of

VALUES = TrialValueModel.__table__


@dataclass(frozen=True)
class TrialCounts:
    """Trials by state; `finished` is what a budget counts."""

    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int

    @property
    def finished(self) -> int:
        return self.complete + self.pruned


@dataclass(frozen=True)
class BestTrial:
    """The complete trial of the highest accuracy; checkpoint: its file, None if it is gone."""

    number: int
    value: float
    params: dict[str, Any]
    checkpoint: str | None


@dataclass(frozen=True)
class RunningTrial:
    """A trial at work; accuracy: after its last finished epoch, None before the first."""

    number: int
    epoch: float
    epochs: int | None
    accuracy: float | None


@dataclass(frozen=True)
class Summary:
    """A study at one moment."""

    study: str
    score_on: str
    trials: TrialCounts
    best: BestTrial | None
    running: list[RunningTrial]

    def as_json(self) -> dict[str, Any]:
        """The record that `status --json` prints."""
        return {
            "study": self.study,
            "direction": "maximize",
            "trials": asdict(self.trials),
            "best": asdict(self.best) if self.best else None,
        }


def summarize(study: optuna.Study, folder: Path) -> Summary:
    """Read a study's numbers; `folder` is where its checkpoints are."""
    of_study = TRIALS.c.study_id == study._study_id
    with backend(study).engine.connect() as connection:
        counted = select(TRIALS.c.state, func.count().label("trials")).where(of_study).group_by(TRIALS.c.state)
        by_state = {row.state: row.trials for row in connection.execute(counted)}
        running_ids = list(
            connection.scalars(
                select(TRIALS.c.trial_id)
                .where(of_study, TRIALS.c.state == TrialState.RUNNING)
                .order_by(TRIALS.c.number)
            )
        )
        best_id = connection.scalar(
            select(TRIALS.c.trial_id)
            .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
            .where(of_study, TRIALS.c.state == TrialState.COMPLETE)
            .order_by(VALUES.c.value.desc(), TRIALS.c.number)
            .limit(1)
        )
    definition = definition_of(study)
    return Summary(
        study=study.study_name,
        score_on=definition.score_on,
        trials=TrialCounts(
            complete=by_state.get(TrialState.COMPLETE, 0),
            pruned=by_state.get(TrialState.PRUNED, 0),
            failed=by_state.get(TrialState.FAIL, 0),
            running=by_state.get(TrialState.RUNNING, 0),
            waiting=by_state.get(TrialState.WAITING, 0),
        ),
        best=None if best_id is None else _best(study._storage.get_trial(best_id), folder),
        running=[_running(study._storage.get_trial(trial_id), definition.defaults.epochs) for trial_id in running_ids],
    )


def _best(trial: optuna.trial.FrozenTrial, folder: Path) -> BestTrial:
    assert trial.value is not None  # the trial is complete
    file = checkpoint_path(folder, trial.number)
    return BestTrial(trial.number, trial.value, trial.params, str(file) if file.is_file() else None)


def _running(trial: optuna.trial.FrozenTrial, default_epochs: int) -> RunningTrial:
    step = trial.last_step
    return RunningTrial(
        number=trial.number,
        epoch=0 if step is None else step / STEPS_PER_EPOCH,
        epochs=trial.params.get("epochs", default_epochs),
        accuracy=None if step is None else trial.intermediate_values[step],
    )
