"""The numbers of a report, gathered into one typed record. Nothing here draws."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, create_trial

from fmnist.checkpoint import CheckpointError, parse
from fmnist.data import DataSet, split
from fmnist.errors import DataError
from fmnist.evaluation import classification_scores, evaluate
from search.lease import REASON
from search.sampling import STEPS_PER_EPOCH
from search.study import DATA, artifacts_of, checkpoint_of, definition_of
from search.summary import Summary, summarize

FEWEST_FINISHED = 10  # trials below which importances are noise
FEWEST_BEST = 5  # trials that PED-ANOVA sets against all; its documentation advises so
BEST_SHARE = 0.2  # of the finished trials


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
class Importances:
    """How much each hyperparameter decides whether a trial is among the `best` ones of `trials`."""

    shares: dict[str, float]
    best: int
    trials: int


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
    importances: Importances | None
    network: BestNetwork | None
    missing: dict[str, str]


def analyse(study: optuna.Study, folder: Path, data: Callable[[], DataSet]) -> Analysis:
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
        importances=_importances(finished, summary, missing),
        network=_network(study, folder, summary, data, missing),
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
        reason=trial.user_attrs.get(REASON),
    )


def _importances(finished: list[FrozenTrial], summary: Summary, missing: dict[str, str]) -> Importances | None:
    """PED-ANOVA (Watanabe et al., 2023): what sets the best trials apart from all others.

    Pruned trials take part, with the value they had when they were pruned: it is below
    those of the best, and more is not asked of it.
    """
    valued = [trial for trial in finished if trial.value is not None]
    if len(valued) < FEWEST_FINISHED or summary.trials.complete < FEWEST_BEST:
        missing["importances"] = (
            f"{len(valued)} trials are finished and {summary.trials.complete} of them complete; "
            f"below {FEWEST_FINISHED} and {FEWEST_BEST} the numbers would be noise."
        )
        return None
    best = min(max(FEWEST_BEST, round(BEST_SHARE * len(valued))), summary.trials.complete)
    scratch = optuna.create_study(direction="maximize")
    scratch.add_trials([create_trial(value=t.value, params=t.params, distributions=t.distributions) for t in valued])
    shares = get_param_importances(scratch, evaluator=PedAnovaImportanceEvaluator(target_quantile=best / len(valued)))
    return Importances(dict(shares), best, len(valued))


def _network(
    study: optuna.Study, folder: Path, summary: Summary, data: Callable[[], DataSet], missing: dict[str, str]
) -> BestNetwork | None:
    if summary.best is None or summary.best.checkpoint is None:
        missing["network"] = "No trial is complete yet." if summary.best is None else "Its checkpoint is gone."
        return None
    try:
        name = checkpoint_of(study.trials[summary.best.number]) or ""
        checkpoint = parse(artifacts_of(study, folder).read(name) or b"", summary.best.checkpoint)
        loaded = data()
        if loaded.fingerprint != study.user_attrs[DATA]["fingerprint"]:
            raise DataError(f"{loaded.name} in {loaded.folder} is not what the study was trained on; use --data-dir")
    except (CheckpointError, DataError) as error:
        missing["network"] = str(error)
        return None
    result = evaluate(checkpoint.network(), split(loaded, checkpoint.score_on).scored)
    return BestNetwork(
        accuracy=result.accuracy,
        images=result.total,
        classes=classification_scores(result),
        confusion=result.confusion.tolist(),
        seed=checkpoint.seed,
        made_with=checkpoint.made_with,
    )
