import math

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.study import space
from search.study.definition import StudyDefinition

SPACE = {
    "a": FloatDistribution(1e-4, 1e-1, log=True),
    "b": FloatDistribution(-1.0, 2.0),
    "c": IntDistribution(8, 32, step=8),
    "d": CategoricalDistribution(["x", "y"]),
    "e": FloatDistribution(0.0, 0.3, step=0.1),
    "f": IntDistribution(1, 100, log=True),
}


@pytest.mark.parametrize("make", [space.random_point, space.quasi_random_point])
def test_points_are_in_the_space_and_decided_by_seed_and_index(make) -> None:  # type: ignore[no-untyped-def]
    points = [make(SPACE, 7, index) for index in range(64)]
    for point in points:
        for name, distribution in SPACE.items():
            assert distribution._contains(distribution.to_internal_repr(point[name]))
    assert points[5] == make(SPACE, 7, 5)
    assert len({str(point) for point in points}) == 64
    assert make(SPACE, 8, 5) != points[5]
    for name in ("c", "d", "e"):
        assert {point[name] for point in points} == set(space.values_of(SPACE[name]))


def test_quasi_random_points_fill_the_space_evenly() -> None:
    points = [space.quasi_random_point(SPACE, 1, index) for index in range(64)]
    share = [(math.log10(point["a"]) + 4) / 3 for point in points]
    assert np.histogram(share, bins=16, range=(0, 1))[0].tolist() == [4] * 16


def grid_of(**keys: object) -> list[space.Point]:
    return space.grid(StudyDefinition.model_validate({"sampler": "grid", "pruner": "none", **keys}))


def test_a_grid_has_every_combination_once_and_the_default_first() -> None:
    points = grid_of(
        space={"filters": {"low": 8, "high": 32, "step": 4}, "dropout": {"low": 0.0, "high": 0.3, "step": 0.05}}
    )
    assert len(points) == 7 * 7 == len({str(point) for point in points})
    assert points[0] == {"filters": 20, "dropout": 0.05}
    with pytest.raises(ValueError, match="continuous"):
        space.values_of(SPACE["a"])


def test_a_grid_in_parts_varies_each_part_alone_with_the_rest_as_in_defaults() -> None:
    points = grid_of(
        defaults={"dropout": 0.0, "l1": 0.0},
        grid=[{"dropout": [0.0, 0.2]}, {"l1": [0.0, 1e-4]}, {"dropout": [0.5], "l1": [1e-5, 1e-4]}],
    )
    assert points == [
        {"dropout": 0.0, "l1": 0.0},
        {"dropout": 0.2, "l1": 0.0},
        {"dropout": 0.0, "l1": 1e-4},
        {"dropout": 0.5, "l1": 1e-5},
        {"dropout": 0.5, "l1": 1e-4},
    ]


def test_a_point_holds_the_searched_values_and_the_rest_are_the_defaults() -> None:
    definition = StudyDefinition.model_validate(
        {
            "defaults": {"architecture": "simple", "batch_size": 32, "epochs": 3, "filters": 8, "learning_rate": 0.01},
            "space": {
                "epochs": {"low": 2, "high": 6},
                "filters": {"choices": [8, 16]},
                "learning_rate": {"low": 0.001, "high": 0.1, "log": True},
            },
        }
    )
    chosen = space.hyperparameters_of(definition, {"epochs": 4, "filters": 8, "learning_rate": 0.01})
    assert (chosen.epochs, chosen.filters, chosen.learning_rate) == (4, 8, 0.01)
    assert (chosen.architecture, chosen.batch_size) == ("simple", 32)
    ranges = space.distributions(definition)
    assert ranges["epochs"] == IntDistribution(2, 6)
    assert ranges["filters"] == CategoricalDistribution([8, 16])
    assert ranges["learning_rate"] == FloatDistribution(0.001, 0.1, log=True)
