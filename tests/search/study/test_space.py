import math

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.study import space
from search.study.definition import DefinitionError, StudyDefinition

ALL = StudyDefinition.model_validate(
    {
        "defaults": {"filters": 8, "dropout": 0.1, "epochs": 10, "architecture": "simple"},
        "space": {
            "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
            "label_smoothing": {"low": 0.0, "high": 0.5},
            "filters": {"low": 8, "high": 32, "step": 8},
            "architecture": {"choices": ["simple", "cnn"]},
            "dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
            "epochs": {"low": 1, "high": 100, "log": True},
        },
    }
)


@pytest.mark.parametrize("make", [space.random_point, space.quasi_random_point])
def test_points_are_in_the_space_and_depend_only_on_seed_and_index(make) -> None:  # type: ignore[no-untyped-def]
    points = [make(ALL.space, 7, index, {}) for index in range(64)]
    for point in points:
        assert point.keys() == ALL.space.keys()
        assert all(ALL.ranges[name].has(value) for name, value in point.items())
    assert points[5] == make(ALL.space, 7, 5, {})
    assert len({str(point) for point in points}) == 64
    assert make(ALL.space, 8, 5, {}) != points[5]
    for name in ("filters", "architecture", "dropout"):
        assert {point[name] for point in points} == set(ALL.ranges[name].values())
    assert make(ALL.space, 7, 5, {"epochs": 50}) == points[5] | {"epochs": 50}


def test_quasi_random_points_fill_the_space_evenly() -> None:
    points = [space.quasi_random_point(ALL.space, 1, index, {}) for index in range(64)]
    share = [(math.log10(point["learning_rate"]) + 4) / 3 for point in points]
    assert np.histogram(share, bins=16, range=(0, 1))[0].tolist() == [4] * 16


def grid_of(**keys: object) -> list[space.Point]:
    return space.grid(StudyDefinition.model_validate({"sampler": "grid", "pruner": "none", **keys}))


def test_a_grid_has_every_combination_once_and_the_default_first() -> None:
    points = grid_of(
        space={"filters": {"low": 8, "high": 32, "step": 4}, "dropout": {"low": 0.0, "high": 0.3, "step": 0.05}}
    )
    assert len(points) == 7 * 7 == len({str(point) for point in points})
    assert points[0] == {"filters": 20, "dropout": 0.05}


def test_each_part_of_a_grid_varies_alone_with_the_rest_at_defaults() -> None:
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


def test_hyperparameters_are_a_points_values_and_else_the_defaults() -> None:
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


# Three networks, each with its own range of filters; two have blocks, one has a rate.
CONDITIONAL = {
    "defaults": {"architecture": "cnn", "filters": 16, "blocks": 2, "learning_rate": 0.002, "batch_size": 64},
    "space": {
        "blocks": {"choices": [2, 3], "when": {"architecture": ["cnn", "resnet"]}},
        "architecture": {"choices": ["simple", "cnn", "resnet"]},
        "filters": [
            {"choices": [4, 6], "when": {"architecture": "simple"}},
            {"low": 8, "high": 24, "step": 8, "when": {"architecture": "cnn"}},
            {"low": 30, "high": 31, "when": {"architecture": "resnet", "blocks": 3}},
        ],
    },
}
GIVEN = StudyDefinition.model_validate({"sampler": "random", **CONDITIONAL})


def expected_points() -> list[space.Point]:
    """All valid configurations, enumerated by hand in no particular order."""
    return [
        *({"architecture": "simple", "filters": filters} for filters in (4, 6)),
        *({"architecture": "cnn", "filters": f, "blocks": b} for f in (8, 16, 24) for b in (2, 3)),
        {"architecture": "resnet", "blocks": 2},
        *({"architecture": "resnet", "blocks": 3, "filters": filters} for filters in (30, 31)),
    ]


def test_a_conditional_grid_has_each_valid_configuration_once() -> None:
    points = grid_of(**CONDITIONAL)
    assert sorted(map(space.key, points)) == sorted(map(space.key, expected_points()))
    assert points[0] == {"architecture": "cnn", "filters": 16, "blocks": 2} == space.default_point(GIVEN)


def test_points_of_grid_parts_have_only_the_hyperparameters_searched_there() -> None:
    points = grid_of(**CONDITIONAL, grid=[{"architecture": ["cnn"], "blocks": [2, 3]}, {"architecture": ["resnet"]}])
    assert points == [
        {"architecture": "cnn", "filters": 16, "blocks": 2},
        {"architecture": "cnn", "filters": 16, "blocks": 3},
        {"architecture": "resnet", "blocks": 2},
    ]


@pytest.mark.parametrize("make", [space.random_point, space.quasi_random_point])
def test_points_under_conditions_are_uniform_where_they_are_searched(make) -> None:  # type: ignore[no-untyped-def]
    points = [make(GIVEN.space, 3, index, {}) for index in range(768)]
    known = [space.key(point) for point in expected_points()]
    drawn = [space.key(point) for point in points]
    assert set(drawn) == set(known)
    by_hand = {"simple": 1 / 3 / 2, "cnn": 1 / 3 / 6}
    for point in expected_points()[:8]:
        share = drawn.count(space.key(point)) / len(points)
        assert share == pytest.approx(by_hand[point["architecture"]], abs=0.04)


def test_fixed_values_decide_which_other_hyperparameters_are_searched() -> None:
    points = [space.random_point(GIVEN.space, 3, index, {"architecture": "resnet", "blocks": 3}) for index in range(9)]
    assert {space.key(point) for point in points} == {space.key(point) for point in expected_points()[-2:]}
    # The default's 16 filters are not valid for that network.
    assert space.with_defaults(GIVEN, {"architecture": "simple"}) == {"architecture": "simple"}


def test_a_stored_distribution_contains_the_values_of_all_conditions() -> None:
    ranges = space.distributions(GIVEN)
    assert ranges["filters"] == IntDistribution(4, 31)
    assert ranges["blocks"] == CategoricalDistribution([2, 3])
    alike = [{"low": 1, "high": 4, "log": True}, {"low": 2, "high": 32, "log": True}]
    either = [{"choices": [4, 8]}, {"choices": [8, 16]}]
    steps = [{"low": 8, "high": 16, "step": 8}, {"low": 24, "high": 40, "step": 8}]
    for tables, stored in (
        (alike, IntDistribution(1, 32, log=True)),
        (either, CategoricalDistribution([4, 8, 16])),
        (steps, IntDistribution(8, 40, step=8)),
        ([*either, *steps], IntDistribution(4, 40)),
    ):
        names = ["simple", "cnn", "resnet", "transformer"]
        tables = [table | {"when": {"architecture": name}} for table, name in zip(tables, names, strict=False)]
        defaults = {"architecture": names[1], "filters": tables[1].get("low", 8)}
        given = {"architecture": {"choices": names}, "filters": tables}
        read = StudyDefinition.model_validate({"defaults": defaults, "space": given})
        assert space.distributions(read)["filters"] == stored


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["architecture=simple"], {"architecture": "simple"}),
        (["filters=31", "blocks=3", "architecture=resnet"], {"architecture": "resnet", "blocks": 3, "filters": 31}),
        (
            ["filters=8"],
            "filters=8: filters is searched only where architecture is simple or where architecture is cnn",
        ),
        (["architecture=simple", "blocks=2"], "blocks=2: blocks is searched only where architecture is cnn or resnet"),
        (["architecture=cnn", "filters=6"], "filters=6: filters is searched in 8 to 24, step 8, where architecture is"),
        (["architecture=cnn", "filters=x"], "filters=x: filters must be a whole number"),
        (["architecture=cnnn"], "architecture=cnnn: architecture is searched in simple, cnn, resnet"),
        (["epochs=4"], "epochs=4: the study searches blocks, architecture, filters"),
    ],
)
def test_assignments_must_fit_the_space_together(assignments: list[str], expected: space.Point | str) -> None:
    if isinstance(expected, dict):
        assert space.parse_assignments(GIVEN, assignments) == expected
        return
    with pytest.raises(DefinitionError) as error:
        space.parse_assignments(GIVEN, assignments)
    assert str(error.value).startswith(f"--set {expected}")


def test_the_default_configuration_and_starting_points_have_marks() -> None:
    start = [{"architecture": "simple", "filters": 4}, {"architecture": "resnet"}]
    given = StudyDefinition.model_validate({**CONDITIONAL, "start": start})
    for point, mark in (
        ({"architecture": "cnn", "filters": 16, "blocks": 2}, "default"),
        ({"filters": 4, "architecture": "simple"}, "start 1"),
        ({"architecture": "resnet", "blocks": 2}, "start 2"),
        ({"architecture": "resnet", "blocks": 3, "filters": 30}, None),
    ):
        assert space.marks(given).get(space.key(point)) == mark
