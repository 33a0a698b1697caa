"""The numbers of a report, gathered into one typed record. Nothing here draws."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from fmnist.checkpoint import CheckpointError, load
from fmnist.data import DataError
from fmnist.evaluation import classification_scores, confusion_matrix, evaluate
from search.study import DATA, STEPS_PER_EPOCH, definition_of
from search.summary import Summary, summarize

FEWEST_FOR_IMPORTANCE = 10  # complete trials
FEWEST_IN_TARGET = 5  # trials that PED-ANOVA compares with all; its documentation advises so


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial. curve: (epoch, accuracy) pairs; accuracy: its last, None if it had none."""

    number: int
    state: str
    accuracy: float | None
    params: dict[str, Any]
    curve: list[tuple[float, float]]
    reason: str | None


@dataclass(frozen=True)
class BestNetwork:
    """What the best checkpoint does on the images that score the study."""

    accuracy: float
    images: int
    classes: dict[str, dict[str, float]]
    confusion: list[list[int]]
    seed: int
    made_with: dict[str, Any]


@dataclass(frozen=True)
class Analysis:
    """All numbers of a report. Where a part is None, `missing` says why, under its name."""

    summary: Summary
    description: str
    data: str
    definition: dict[str, Any]
    trials: list[TrialRecord]
    importances: dict[str, float] | None
    network: BestNetwork | None
    missing: dict[str, str]


def analyse(study: optuna.Study, folder: Path, data_dir: Path | None) -> Analysis:
    """Gather a study's numbers as they are now."""
    definition = definition_of(study)
    summary = summarize(study, folder)
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    missing: dict[str, str] = {}
    return Analysis(
        summary=summary,
        description=definition.description,
        data=study.user_attrs[DATA]["name"],
        definition=definition.model_dump(mode="json"),
        trials=[_record(trial) for trial in finished],
        importances=_importances(study, summary.trials.complete, missing),
        network=_network(study, summary, data_dir, missing),
        missing=missing,
    )


def _record(trial: FrozenTrial) -> TrialRecord:
    curve = [(step / STEPS_PER_EPOCH, value) for step, value in sorted(trial.intermediate_values.items())]
    return TrialRecord(
        number=trial.number,
        state=trial.state.name.lower(),
        accuracy=trial.value if trial.value is not None else (curve[-1][1] if curve else None),
        params=trial.params,
        curve=curve,
        reason=trial.user_attrs.get("reason"),
    )


def _importances(study: optuna.Study, complete: int, missing: dict[str, str]) -> dict[str, float] | None:
    """PED-ANOVA (Watanabe et al., 2023): what it takes to be among the best complete trials."""
    if complete < FEWEST_FOR_IMPORTANCE:
        missing["importances"] = (
            f"{complete} trials are complete; below {FEWEST_FOR_IMPORTANCE} the numbers would be noise."
        )
        return None
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, FEWEST_IN_TARGET / complete))
    return dict(get_param_importances(study, evaluator=evaluator))


def _network(
    study: optuna.Study, summary: Summary, data_dir: Path | None, missing: dict[str, str]
) -> BestNetwork | None:
    from fmnist.data import load as load_data
    from fmnist.data import split

    if summary.best is None or summary.best.checkpoint is None:
        missing["network"] = "No trial is complete yet." if summary.best is None else "Its checkpoint is gone."
        return None
    try:
        checkpoint = load(Path(summary.best.checkpoint))
        data = load_data(data_dir)
        if data.fingerprint != study.user_attrs[DATA]["fingerprint"]:
            raise DataError(f"{data.name} in {data.folder} is not what the study was trained on; use --data-dir")
    except (CheckpointError, DataError) as error:
        missing["network"] = str(error)
        return None
    result = evaluate(checkpoint.network(), split(data, checkpoint.score_on).scored)
    return BestNetwork(
        accuracy=result.accuracy,
        images=result.total,
        classes=classification_scores(result),
        confusion=confusion_matrix(result).tolist(),
        seed=checkpoint.seed,
        made_with=checkpoint.made_with,
    )
