"""The numbers of a report, gathered into one typed record. Nothing here draws."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from fmnist.checkpoint import CheckpointError, load, parse
from fmnist.data import DataSet, split
from fmnist.errors import DataError
from fmnist.evaluation import classification_scores, evaluate
from search.finalists import Standings, standings_of
from search.lease import REASON
from search.ranking import Configuration, rank
from search.record import Epoch, checkpoint_of, history_of
from search.report.cost import Cost, costs
from search.report.findings import Evidence, Finding, findings
from search.report.importance import Importances, importances
from search.report.pruning import audit, pruning
from search.report.writeup import Comparison, compare
from search.sampling import STEPS_PER_EPOCH
from search.study import DATA, artifacts_of, definition_of
from search.summary import Summary, summarize


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial.

    accuracy: its last, None if it had none. curve: (epoch, accuracy) pairs. history: the same with the
    training's own, and beyond a pruning where it was audited.
    """

    number: int
    state: str
    accuracy: float | None
    params: dict[str, Any]
    curve: list[tuple[float, float]]
    history: list[Epoch]
    reason: str | None


@dataclass(frozen=True)
class BestNetwork:
    """What the best checkpoint does: the winner's if there are finalists, on test images, else the best trial's.

    path: its file or URL. scored_on: the images.
    """

    path: str
    scored_on: str
    accuracy: float
    images: int
    classes: dict[str, dict[str, float]]
    confusion: list[list[int]]
    seed: int
    made_with: dict[str, Any]


@dataclass(frozen=True)
class Analysis:
    """All numbers of a report. Where `network` is None, `missing` says why."""

    summary: Summary
    description: str
    data: str
    definition: dict[str, Any]
    trials: list[TrialRecord]
    findings: list[Finding]
    standings: Standings | None
    ranking: list[Configuration]
    comparison: Comparison | None
    importances: Importances | None
    costs: list[Cost]
    network: BestNetwork | None
    missing: str | None

    @property
    def repeated(self) -> bool:
        """Whether the study's question is about configurations that are trained several times each."""
        return bool(self.definition["seeds"] > 1)


def analyse(study: optuna.Study, folder: Path, data: Callable[[], DataSet]) -> Analysis:
    """Gather a study's numbers as they are now."""
    definition, summary = definition_of(study), summarize(study, folder)
    trials = study.get_trials(deepcopy=False)
    loaded, missing = _load(study, data)
    standings = standings_of(study, folder)
    network = None
    if loaded:
        network, missing = _network(study, folder, summary, standings, loaded)
    evidence = Evidence(
        definition=definition,
        trials=trials,
        importances=importances(trials) if definition.seeds == 1 else None,
        ranking=rank(definition, trials),
        standings=standings,
        pruning=pruning(definition, trials),
        audit=audit(definition, trials),
        comparison=compare(definition, trials) if definition.reference else None,
    )
    return Analysis(
        summary=summary,
        description=definition.description,
        data=study.user_attrs[DATA]["name"],
        definition=definition.model_dump(mode="json"),
        trials=[_record(trial) for trial in trials if trial.state.is_finished()],
        findings=findings(evidence),
        standings=standings,
        ranking=evidence.ranking,
        comparison=evidence.comparison,
        importances=evidence.importances,
        costs=costs(definition, evidence.ranking),
        network=network,
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
        history=history_of(trial),
        reason=trial.user_attrs.get(REASON),
    )


def _load(study: optuna.Study, data: Callable[[], DataSet]) -> tuple[DataSet | None, str | None]:
    """The study's data set; None and the reason if it cannot be had here."""
    try:
        loaded = data()
    except DataError as error:
        return None, str(error)
    if loaded.fingerprint != study.user_attrs[DATA]["fingerprint"]:
        where = f"{loaded.name} in {loaded.folder}"
        return None, f"{where} is not what the study was trained on; name that with --data-dir."
    return loaded, None


def _network(
    study: optuna.Study, folder: Path, summary: Summary, standings: Standings | None, data: DataSet
) -> tuple[BestNetwork | None, str | None]:
    """What the best checkpoint does; None and the reason if it cannot be told."""
    try:
        if standings and standings.checkpoint:
            path, checkpoint = str(standings.checkpoint), load(standings.checkpoint)
            splits = split(data, "test")
        elif summary.best and summary.best.checkpoint:
            name = checkpoint_of(study.trials[summary.best.number]) or ""
            path = summary.best.checkpoint
            checkpoint = parse(artifacts_of(study, folder).read(name) or b"", path)
            splits = split(data, checkpoint.score_on)
        else:
            return None, "Its checkpoint is gone." if summary.best else "No trial is complete yet."
    except CheckpointError as error:
        return None, str(error)
    result = evaluate(checkpoint.network(), splits.scored)
    network = BestNetwork(
        path=path,
        scored_on=splits.score_on,
        accuracy=result.accuracy,
        images=result.total,
        classes=classification_scores(result),
        confusion=result.confusion.tolist(),
        seed=checkpoint.seed,
        made_with=checkpoint.made_with,
    )
    return network, None
