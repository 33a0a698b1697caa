"""Builders of studies, trials and rankings for several test modules."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.storages._rdb.models import TrialHeartbeatModel
from optuna.trial import FrozenTrial, TrialState, create_trial

from fmnist import own_network
from fmnist.data import LabelledImages
from search.database.connection import open_storage
from search.queue import tickets
from search.queue.lease import Holder, Ticket
from search.report.analysis import Analysis
from search.report.findings import Evidence, findings
from search.report.history import audit, pruning
from search.report.importance import Importances
from search.report.writeup import compare
from search.results.finalists import Finalist, Standings
from search.results.intervals import estimate
from search.results.ranking import Configuration, rank
from search.study import definition as definitions
from search.study.definition import StudyDefinition
from search.study.places import ARTIFACTS
from search.study.record import CHECKPOINT, REASON, Epoch
from search.study.space import distributions
from search.study.store import DATA, DEFINITION

HEARTBEATS = TrialHeartbeatModel.__table__


def queued(url: str, trials: int, parameters: Mapping[str, Any] | None = None) -> optuna.Study:
    """The study "s" in a new database, with waiting trials added by Optuna."""
    study = optuna.create_study(storage=open_storage(url, "create"), study_name="s", direction="maximize")
    study.set_user_attr(DEFINITION, definition().model_dump(mode="json"))
    for _ in range(trials):
        study.enqueue_trial(dict(parameters or {}))
    return study


def claimed(study: optuna.Study, token: str = "token", **holder: Any) -> Ticket:  # noqa: S107
    """Claim the next ticket of a study."""
    ticket = tickets.claim(study, Holder(**holder), token)
    assert ticket is not None
    return ticket


def forget_networks() -> None:
    """Make this process forget all user-defined networks."""
    own_network._loaded.clear()
    own_network._named.clear()


def digits(train: int = 600, test: int = 300) -> tuple[LabelledImages, LabelledImages]:
    """Training and test images: scikit-learn's 1,797 handwritten digits, enlarged to 28 x 28."""
    from sklearn.datasets import load_digits  # takes a second, and child processes import this module

    small = load_digits()
    pixels = torch.from_numpy(small.images / 16 * 255).round().to(torch.uint8)
    large = torch.nn.functional.pad(pixels.repeat_interleave(3, 1).repeat_interleave(3, 2), (2, 2, 2, 2))
    images = LabelledImages(large.unsqueeze(1), torch.from_numpy(small.target))
    index = torch.arange(len(images))
    return images[index[:train]], images[index[train : train + test]]


def definition(**changes: object) -> StudyDefinition:
    """A study of short training runs on tiny data, with changes to its keys."""
    return StudyDefinition.model_validate(
        {
            "pruner": "none",
            "defaults": {"architecture": "simple", "epochs": 2, "filters": 4, "learning_rate": 0.002},
            "space": {"filters": {"low": 2, "high": 4}, "learning_rate": {"choices": [0.001, 0.002, 0.005]}},
            **changes,
        }
    )


# Training runs that last as long as a test needs.
LONG = definition(defaults={"architecture": "simple", "epochs": 600, "filters": 4, "learning_rate": 0.002})

# Learning rates from hopeless to good, so that most trials are paused.
FREEZING = definition(
    pruner="freeze",
    sampler="random",
    defaults={"architecture": "simple", "epochs": 3, "filters": 4, "learning_rate": 0.002},
    space={"learning_rate": {"low": 1e-4, "high": 0.02, "log": True}, "epochs": {"low": 1, "high": 3}},
)


STUDY = """\
description = "two quick parameters on tiny data"
trials = 6
sampler = "random"
pruner = "none"
finalists = 0

[defaults]
architecture = "simple"
epochs = 2
learning_rate = 0.002
filters = 4
dropout = 0.0
augmentation = 0.0

[space]
learning_rate = { low = 0.0005, high = 0.01, log = true }
filters = { low = 2, high = 4 }
"""


FINALISTS = "fmnist-search finalists s"
NO_IMPORTANCES = Importances(None, None, 0, 0, 0, [])


def ended(
    defined: StudyDefinition,
    value: float | None,
    curve: Mapping[float, float] | None = None,
    *,
    history: Sequence[Epoch] | None = None,
    state: TrialState = TrialState.COMPLETE,
    attributes: Mapping[str, Any] | None = None,
    seconds: float = 1.0,
    **params: Any,
) -> FrozenTrial:
    """A finished trial as stored by a worker, with default parameters except for `params`.

    Args:
        curve: accuracy by epoch; by default `value` after each epoch.
        history: all metrics, if more than the accuracy matters.
        attributes: further user attributes.
    """
    params = {name: getattr(defined.defaults, name) for name in defined.space} | params
    epochs = params.get("epochs", defined.defaults.epochs)
    if curve is None:
        curve = {float(epoch): value or 0.0 for epoch in range(1, epochs + 1)}
    rows = history or [Epoch(epoch, 0.5, accuracy, 0.5, accuracy, 1.0) for epoch, accuracy in curve.items()]
    record = {"seconds": seconds, "history": [list(row) for row in rows]} if rows else {}
    return create_trial(
        state=state,
        value=value,
        params=params,
        distributions=distributions(defined),
        intermediate_values={round(100 * row.epoch): row.accuracy for row in rows},
        user_attrs={CHECKPOINT: record, **(attributes or {})},
    )


def evidence_of(defined: StudyDefinition, trials: Sequence[FrozenTrial], **changes: Any) -> Evidence:
    trials = list(trials)
    evidence = Evidence(
        definition=defined,
        trials=trials,
        importances=NO_IMPORTANCES,
        ranking=rank(defined, trials),
        standings=None,
        pruning=pruning(defined, trials),
        audit=audit(defined, trials),
        comparison=compare(defined, trials) if defined.reference else None,
        finalists=FINALISTS,
    )
    return replace(evidence, **changes)


def said(about: str, defined: StudyDefinition, trials: Sequence[FrozenTrial] = (), **changes: Any) -> str | None:
    """The text of the finding about a subject; None if there is none."""
    found = [finding.text for finding in findings(evidence_of(defined, trials, **changes)) if finding.about == about]
    assert len(found) <= 1
    return found[0] if found else None


def standings_of(again: list[Configuration]) -> Standings:
    finalists = [Finalist(number, 0.99, configuration) for number, configuration in enumerate(again)]
    return Standings("s", "test", 6, 6, 0, False, finalists, Path("best.pt"), 0.9, None)


TWO = definition(
    defaults={"filters": 4, "dropout": 0.1},
    space={"filters": {"low": 2, "high": 8}, "dropout": {"low": 0, "high": 0.2}},
)


RATES = definition(defaults={"learning_rate": 0.1}, space={"learning_rate": {"low": 0.001, "high": 1.0, "log": True}})


DIVERGED = {REASON: "diverged: the loss is nan"}


def lost(defined: StudyDefinition, **params: Any) -> FrozenTrial:
    return ended(defined, None, curve={}, state=TrialState.PRUNED, attributes=DIVERGED, **params)


GRID = definition(sampler="grid", seeds=3, space={"filters": {"choices": [2, 3, 4]}})


def trained(*accuracies: float, filters: int = 4) -> list[FrozenTrial]:
    """Training runs of one configuration; the default has 4 filters."""
    return [ended(GRID, accuracy, filters=filters) for accuracy in accuracies]


def study_of(
    storage: optuna.storages.BaseStorage,
    name: str,
    trials: Sequence[FrozenTrial],
    defined: StudyDefinition = GRID,
    fingerprint: str = "one",
) -> tuple[optuna.Study, Path]:
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    study.set_user_attr(DEFINITION, defined.model_dump(mode="json"))
    study.set_user_attr(DATA, {"name": "Fashion-MNIST", "fingerprint": fingerprint})
    study.set_user_attr(ARTIFACTS, None)
    study.add_trials(trials)
    return study, Path()


LOW, HIGH = [0.80, 0.81, 0.82], [0.90, 0.91, 0.92]


def luminance(colour: list[float]) -> float:
    """Relative luminance of sRGB values up to 255 (WCAG 2.2)."""
    shares = (one / 255 for one in colour)
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    first, second = (luminance([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) for colour in (one, other))
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


def report_standings(again: list[Configuration], trained: int = 6, *, tested: bool = False) -> Standings:
    """Standings in which the first finalist was trial 7 and the default was pruned in the search."""
    finalists = [Finalist(None if one.is_default else 7, None if one.is_default else 0.95, one) for one in again]
    test = estimate([0.88, 0.89]) if tested else None
    score_on, best = "validation" if tested else "test", Path("best.pt")
    return Standings("s", score_on, trained, 6, 0, False, finalists, best, 0.91, test, searched=12)


def ranking_of(*values: tuple[int, list[float]]) -> list[Configuration]:
    return rank(GRID, [ended(GRID, one, filters=filters) for filters, accuracies in values for one in accuracies])


BETTER = ranking_of((2, [0.90, 0.91, 0.92]), (4, [0.80, 0.81, 0.82]))


TIE = ranking_of((2, [0.90, 0.91, 0.92]), (4, [0.89, 0.91, 0.90]))


def with_ranking(analysis: Analysis, ranking: list[Configuration]) -> Analysis:
    """The analysis of a grid with several seeds."""
    definition = analysis.definition | {"seeds": 3}
    return replace(analysis, definition=definition, ranking=ranking, standings=None, importances=None)


EPOCHS = definitions.read(definitions.locate("epochs"))


def confusion(seed: int) -> list[list[int]]:
    """Confusion matrix of a good network: one class is never predicted, one has no images, one has neither."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, 20, (10, 10)) + 100 * np.eye(10, dtype=int)
    counts[:, [2, 5]] = 0
    counts[[5, 7]] = 0
    return [[int(count) for count in row] for row in counts]


def writeup_trial(
    epochs: int,
    last: float,
    matrix: list[list[int]] | None = None,
    state: TrialState = TrialState.COMPLETE,
    **params: Any,
) -> FrozenTrial:
    """A training run whose accuracy rises by 0.01 per epoch up to `last`."""
    curve = {float(epoch): last - (epochs - epoch) / 100 for epoch in range(1, epochs + 1)}
    made = ended(EPOCHS, last, curve={0.25: 0.1, **curve}, state=state, epochs=epochs, **params)
    made.user_attrs[CHECKPOINT]["confusion"] = matrix or confusion(0)
    return made


def writeup_trials(finals: Mapping[int, Sequence[float]]) -> list[FrozenTrial]:
    return [writeup_trial(epochs, final) for epochs, values in finals.items() for final in values]


def around(mean: float) -> list[float]:
    return [mean - 0.001, mean, mean + 0.001]


REVERSED = {3: around(0.84), 7: around(0.88), 5: around(0.86)}


# Two networks with different ranges of filters; one optimizer has a momentum, one network a residual variant.
CONDITIONAL: dict[str, Any] = {
    "defaults": {"architecture": "simple", "epochs": 2, "filters": 4, "learning_rate": 0.005, "blocks": 2},
    "start": [{"architecture": "cnn", "filters": 3}, {"optimizer": "sgd", "learning_rate": 0.05}],
    "space": {
        "architecture": {"choices": ["simple", "cnn"]},
        "optimizer": {"choices": ["adam", "sgd"]},
        "learning_rate": {"low": 1e-3, "high": 0.1, "log": True},
        "batch_size": {"choices": [32, 64]},
        "momentum": {"low": 0.5, "high": 0.95, "when": {"optimizer": "sgd"}},
        "residual": {"choices": [False, True], "when": {"architecture": "cnn"}},
        "filters": [
            {"low": 3, "high": 8, "when": {"architecture": "simple"}},
            {"choices": [2, 3, 4], "when": {"architecture": "cnn"}},
        ],
    },
}
