"""Positions on axes, and the map of the mean accuracy over two hyperparameters."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState

from search.report.importance import FEWEST, SIDE, Importance, Importances, foremost, landscape, position
from search.study.definition import Parameter
from tests.factories import definition, ended

SPACE = definition(
    defaults={"architecture": "cnn", "learning_rate": 0.01, "dropout": 0.2, "filters": 8},
    space={
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
        "filters": {"low": 4, "high": 64, "step": 4},
        "architecture": {"choices": ["cnn", "simple"]},
        "batch_size": {"choices": [128, 32, 64]},
    },
)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("learning_rate", [1e-4, 1e-3, 1e-2, 1e-1]),
        ("dropout", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        ("filters", [4, 24, 44, 64]),
        ("architecture", ["cnn", "simple"]),
        ("batch_size", [32, 64, 128]),  # by size, evenly spaced
    ],
)
def test_positions_are_evenly_spaced_from_0_to_1(name: str, values: list[Any]) -> None:
    places = [position(SPACE.ranges[name], value) for value in values]
    assert places == pytest.approx(np.linspace(0, 1, len(values)).tolist())


def test_a_single_choice_has_a_position() -> None:
    assert position(Parameter(choices=["flip"]), "flip") == 0.0


def shares(**values: float) -> dict[str, Importance]:
    return {name: Importance(value, value, value) for name, value in values.items()}


def test_the_two_most_important_are_chosen_by_fanova_or_else_by_ped_anova() -> None:
    by_ped_anova, by_fanova = shares(dropout=0.9, filters=0.1, epochs=0.0), shares(dropout=0.1, filters=0.4, epochs=0.5)
    both = Importances(by_ped_anova, by_fanova, 5, 30, 30, [])
    space = dict.fromkeys(("dropout", "filters", "epochs"), SPACE.ranges["dropout"])
    assert foremost(space, both) == ["epochs", "filters"]
    only = Importances(both.ped_anova, None, 5, 12, 12, [])
    assert foremost(space, only) == ["dropout", "filters"]
    for unknown in (None, Importances(None, None, 0, 0, 0, [])):
        assert foremost(space, unknown) == []
    assert foremost({"b": space["dropout"], "a": space["dropout"]}, None) == ["b", "a"]


def trials_of(accuracy: Any, count: int = 200) -> list[FrozenTrial]:
    draw = np.random.default_rng(0)
    made = []
    for _ in range(count):
        point = {"dropout": float(draw.uniform(0, 0.5)), "learning_rate": 10 ** float(draw.uniform(-4, -1))}
        made.append(ended(SPACE, accuracy(point), **point))
    return made


def test_the_map_follows_the_accuracy() -> None:
    found = landscape(SPACE, ["dropout", "learning_rate"], trials_of(lambda trial: 0.9 - trial["dropout"]))
    assert found is not None
    assert (found.x, found.y, len(found.xs), len(found.ys)) == ("dropout", "learning_rate", SIDE, SIDE)
    assert (found.xs[0], found.xs[-1], found.ys[0]) == (0.0, 0.5, 1e-4)
    assert len(found.points) == 200
    means = [np.mean([row[place] for row in found.z if row[place] is not None]) for place in range(SIDE)]
    assert all(one > other for one, other in pairwise(means))
    assert means[SIDE // 2] == pytest.approx(0.65, abs=0.02)


def test_the_grid_of_a_logarithmic_range_is_logarithmic() -> None:
    trials = trials_of(lambda trial: 0.5 - math.log10(trial["learning_rate"]) / 10)
    found = landscape(SPACE, ["dropout", "learning_rate"], trials)
    assert found is not None
    assert found.ys[SIDE // 2] == pytest.approx(10**-2.5)
    row = [mean for mean in found.z[SIDE // 2] if mean is not None]
    assert np.mean(row) == pytest.approx(0.75, abs=0.02)


def test_there_is_no_mean_without_nearby_trials() -> None:
    trials = [ended(SPACE, 0.9, dropout=0.05 + place / 1000, learning_rate=1e-3) for place in range(20)]
    found = landscape(SPACE, ["dropout", "learning_rate"], trials)
    assert found is not None
    known = {(x, y) for y, row in enumerate(found.z) for x, mean in enumerate(row) if mean is not None}
    assert known
    assert all(abs(found.xs[x] - 0.06) <= 0.1 for x, _ in known)
    assert all(abs(math.log10(found.ys[y]) + 3) <= 0.5 for _, y in known)
    assert [found.z[y][x] for x, y in known] == [pytest.approx(0.9)] * len(known)


def test_all_choices_are_on_the_grid_and_do_not_mix() -> None:
    trials = [
        ended(SPACE, 0.9 if one == "cnn" else 0.5, architecture=one, batch_size=size)
        for one, size in (("cnn", 32), ("cnn", 128), ("simple", 32), ("simple", 64))
        for _ in range(3)
    ]
    found = landscape(SPACE, ["architecture", "batch_size"], trials)
    assert found is not None
    assert (found.xs, found.ys) == (["cnn", "simple"], [32, 64, 128])
    assert found.z == [[pytest.approx(0.9), pytest.approx(0.5)], [None, pytest.approx(0.5)], [pytest.approx(0.9), None]]


def test_the_grid_of_a_range_with_few_steps_has_only_these() -> None:
    found = landscape(SPACE, ["filters", "dropout"], [ended(SPACE, 0.9) for _ in range(FEWEST)])
    assert found is not None
    assert found.xs == list(range(4, 65, 4))


def test_the_map_needs_two_hyperparameters_and_ten_complete_trials() -> None:
    enough = [ended(SPACE, 0.9) for _ in range(FEWEST)]
    names = ["dropout", "learning_rate"]
    assert landscape(SPACE, names, enough) is not None
    assert landscape(SPACE, names, enough[1:]) is None
    assert landscape(SPACE, names[:1], enough) is None
    pruned = [ended(SPACE, 0.9, state=TrialState.PRUNED) for _ in range(5)]
    assert landscape(SPACE, names, enough[1:] + pruned) is None
