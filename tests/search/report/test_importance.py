"""Importance by both methods, on accuracies whose cause is known."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.report import importance
from search.report.fanova import fanova
from search.report.importance import Importance, importances
from search.study.record import PAUSED
from tests.factories import DIVERGED

CUBE = {name: FloatDistribution(0, 1) for name in ("a", "b", "c")}


def trials_of(
    n: int,
    accuracy: Callable[[Mapping[str, float]], float],
    space: Mapping[str, BaseDistribution] = CUBE,
    pruned: Callable[[int], bool] = lambda _: False,
) -> list[FrozenTrial]:
    """Trials at random points of the cube."""
    draw = np.random.default_rng(0)
    points = [{name: float(draw.random()) for name in space} for _ in range(n)]
    return [
        create_trial(
            state=TrialState.PRUNED if pruned(number) else TrialState.COMPLETE,
            value=accuracy(point),
            params=point,
            distributions=dict(space),
        )
        for number, point in enumerate(points)
    ]


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "RESAMPLES", 15)
    monkeypatch.setattr(importance, "TREES", 4)


def width(found: Importance) -> float:
    return found.high - found.low


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("cause", ["a", "c"])
def test_both_methods_find_the_important_hyperparameter(cause: str) -> None:
    found = importances(trials_of(60, lambda point: point[cause]))
    assert found.missing == []
    for shares in (found.ped_anova, found.fanova):
        assert shares is not None
        assert shares.keys() == CUBE.keys()
        assert sum(one.share for one in shares.values()) == pytest.approx(1)
        assert shares[cause].share > 0.8
        assert shares[cause].low > 1 / 3
        for other in CUBE.keys() - {cause}:
            assert shares[other].share < 0.15
            assert shares[other].low < 0.05


@pytest.mark.usefixtures("_quick")
def test_the_stronger_of_two_causes_has_the_larger_share() -> None:
    found = importances(trials_of(80, lambda point: 2 * point["a"] + point["b"]))
    for shares in (found.ped_anova, found.fanova):
        assert shares is not None
        assert shares["a"].share > shares["b"].share > shares["c"].share


@pytest.mark.usefixtures("_quick")
def test_ped_anova_measures_what_the_best_trials_have_in_common() -> None:
    found = importances(trials_of(60, lambda point: 2 + point["a"] if point["a"] > 0.75 else point["b"]))
    assert found.ped_anova is not None
    assert found.ped_anova["a"].share > 0.8
    assert found.ped_anova["b"].share < 0.1


@pytest.mark.usefixtures("_quick")
def test_categorical_hyperparameters_can_be_important() -> None:
    words = {"kind": CategoricalDistribution(["flip", "crop"]), "b": FloatDistribution(0, 1)}
    draw = np.random.default_rng(0)
    trials = []
    for number in range(40):
        kind = ("flip", "crop")[number % 2]
        value = (0.9 if kind == "crop" else 0.5) + draw.random() / 1000
        trials.append(create_trial(value=value, params={"kind": kind, "b": draw.random()}, distributions=words))
    found = importances(trials)
    for shares in (found.ped_anova, found.fanova):
        assert shares is not None
        assert shares["kind"].share > 0.6


@pytest.mark.usefixtures("_quick")
def test_more_trials_narrow_the_intervals() -> None:
    few, many = (importances(trials_of(n, lambda point: point["a"])) for n in (20, 100))
    for less, more in ((few.ped_anova, many.ped_anova), (few.fanova, many.fanova)):
        assert less is not None
        assert more is not None
        assert 0 < width(more["a"]) < 0.6 * width(less["a"])


@pytest.mark.usefixtures("_quick")
def test_neither_method_finds_importance_in_noise() -> None:
    draw = np.random.default_rng(1)
    found = importances(trials_of(40, lambda _: float(draw.normal())))
    for shares in (found.ped_anova, found.fanova):
        assert shares is not None
        assert all(one.low < 1 / 3 for one in shares.values())
        assert all(0 <= one.low <= one.share <= one.high <= 1 for one in shares.values())


@pytest.mark.usefixtures("_quick")
def test_results_are_deterministic() -> None:
    trials = trials_of(25, lambda point: point["a"])
    assert importances(trials) == importances(trials)


@pytest.mark.usefixtures("_quick")
def test_pruned_trials_count_for_ped_anova_and_not_for_fanova() -> None:
    trials = trials_of(60, lambda point: point["b"], pruned=lambda number: number % 2 == 0)
    found = importances(trials)
    assert (found.finished, found.complete, found.best) == (60, 30, 12)
    assert found.ped_anova is not None
    assert found.ped_anova["b"].share > 0.8
    assert found.fanova == importances([trial for trial in trials if trial.state == TrialState.COMPLETE]).fanova


def test_each_method_reports_too_few_trials() -> None:
    nine = importances(trials_of(9, lambda point: point["a"]))
    assert (nine.ped_anova, nine.fanova) == (None, None)
    assert nine.missing == [
        "Too few trials for PED-ANOVA: 10 finished and 5 complete ones are needed, of 9 and 9 so far.",
        "Too few trials for fANOVA: 20 complete ones are needed, 9 exist so far.",
    ]
    nineteen = importances(trials_of(19, lambda point: point["a"]))
    assert nineteen.ped_anova is not None
    assert nineteen.fanova is None
    assert nineteen.missing == ["Too few trials for fANOVA: 20 complete ones are needed, 19 exist so far."]
    four = importances(trials_of(30, lambda point: point["a"], pruned=lambda number: number >= 4))
    assert four.ped_anova is None
    assert "of 30 and 4 so far." in four.missing[0]
    assert len(importances([]).missing) == 2


def test_trials_without_a_value_and_unfinished_trials_are_ignored() -> None:
    lost = create_trial(state=TrialState.PRUNED, params={}, distributions={})
    running = create_trial(state=TrialState.RUNNING, params={}, distributions={})
    found = importances([*trials_of(9, lambda point: point["a"]), lost, running])
    assert (found.finished, found.complete, found.ped_anova) == (9, 9, None)


def test_identical_trials_have_no_importance() -> None:
    one = create_trial(value=0.9, params={"a": 0.5}, distributions={"a": CUBE["a"]})
    other = create_trial(value=0.8, params={"a": 0.5}, distributions={"a": CUBE["a"]})
    for trials in ([one, other] * 15, trials_of(30, lambda _: 0.9)):
        found = importances(trials)
        assert (found.ped_anova, found.fanova) == (None, None)
        assert [reason.split()[0] for reason in found.missing] == ["PED-ANOVA", "fANOVA"]
        assert all("is undefined" in reason for reason in found.missing)


@pytest.mark.usefixtures("_quick")
def test_one_different_trial_among_identical_ones_raises_nothing() -> None:
    """Many resamples of the bootstrap lack it, so all their accuracies are equal."""
    trials = trials_of(30, lambda _: 0.9)
    different = create_trial(value=0.5, params=trials[0].params, distributions=dict(CUBE))
    found = importances([different, *trials[1:]])
    assert found.ped_anova is not None
    assert found.fanova is not None


@pytest.mark.usefixtures("_quick")
def test_shares_equal_optunas_for_the_same_trials() -> None:
    trials = trials_of(40, lambda point: 2 * point["a"] + point["b"])
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    found = importances(trials)
    for shares, evaluator in (
        (found.ped_anova, PedAnovaImportanceEvaluator(target_quantile=8 / 40)),
        (found.fanova, FanovaImportanceEvaluator(n_trees=importance.TREES, seed=0)),
    ):
        assert shares is not None
        expected = optuna.importance.get_param_importances(study, evaluator=evaluator)
        assert {name: one.share for name, one in shares.items()} == pytest.approx(expected)


def test_fanova_equals_optunas_for_hyperparameters_of_all_kinds() -> None:
    draw = np.random.default_rng(0)
    space: dict[str, BaseDistribution] = {
        "rate": FloatDistribution(1e-4, 0.1, log=True),
        "width": IntDistribution(8, 32, step=8),
        "kind": CategoricalDistribution(["a", "b", "c"]),
        "flag": CategoricalDistribution([False, True]),
        "fixed": IntDistribution(3, 3),
    }
    study = optuna.create_study(direction="maximize")
    for _ in range(40):
        kind, flag = ("a", "b", "c")[draw.integers(3)], bool(draw.integers(2))
        point = {"rate": 10 ** draw.uniform(-4, -1), "width": int(8 * draw.integers(1, 5)), "kind": kind, "flag": flag}
        value = point["width"] * (kind == "b") - 5 * np.log10(point["rate"]) + 10 * flag
        study.add_trial(create_trial(value=value, params=point | {"fixed": 3}, distributions=space))
    expected = FanovaImportanceEvaluator(n_trees=8, seed=1).evaluate(study)
    assert fanova(study.trials, trees=8, seed=1) == pytest.approx(expected)
    assert min(expected[name] for name in ("rate", "width", "kind", "flag")) > 0.01


@pytest.mark.usefixtures("_quick")
def test_fanova_uses_the_newest_complete_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "NEWEST_COMPLETE", 25)
    old, new = trials_of(30, lambda point: point["a"]), trials_of(25, lambda point: point["b"])
    both = importances(old + new)
    assert both.fanova == importances(new).fanova
    assert both.ped_anova != importances(new).ped_anova
    assert (both.finished, both.complete) == (55, 25)


@pytest.mark.usefixtures("_quick")
def test_only_the_newest_trials_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "NEWEST", 25)
    old, new = trials_of(30, lambda point: point["a"]), trials_of(25, lambda point: point["b"])
    assert importances(old + new) == importances(new)


def with_some(trials: list[FrozenTrial], having: Callable[[int], bool]) -> list[FrozenTrial]:
    """The trials, some of them with a further hyperparameter `d`."""
    draw = np.random.default_rng(7)
    return [
        create_trial(
            state=trial.state,
            value=trial.value,
            params=trial.params | ({"d": float(draw.random())} if having(number) else {}),
            distributions=trial.distributions | ({"d": FloatDistribution(0, 1)} if having(number) else {}),
        )
        for number, trial in enumerate(trials)
    ]


@pytest.mark.usefixtures("_quick")
def test_a_conditional_hyperparameter_does_not_change_the_importance_of_others() -> None:
    """Including their intervals, although all trials of a resample may have it."""
    trials = trials_of(40, lambda point: 2 * point["a"] + point["b"])
    found = importances(with_some(trials, lambda number: number > 0))
    assert replace(found, conditional={}) == importances(trials)
    assert found.conditional.keys() == {"d"}
    assert found.conditional["d"].finished == 39
    within = importances(with_some(trials, lambda number: number > 0)[1:])
    assert within.fanova is not None
    assert found.conditional["d"].fanova is not None
    assert found.conditional["d"].fanova.share == pytest.approx(within.fanova["d"].share)


@pytest.mark.usefixtures("_quick")
def test_a_single_varying_hyperparameter_has_no_importance() -> None:
    lone = {"a": CUBE["a"]}
    trials = trials_of(30, lambda point: point["a"], space=lone)
    assert importances(trials).fanova is None
    found = importances(with_some(trials_of(60, lambda point: point["a"]), lambda number: number % 2 == 0))
    assert found.conditional["d"].ped_anova is not None
    alone = [
        create_trial(value=0.1 * n, params={"c": 1.0 * (n % 2)}, distributions={"c": CUBE["a"]}) for n in range(30)
    ]
    found = importances(with_some(alone, lambda number: number % 2 == 0))  # c is 0 in all trials that have d
    assert found.conditional["d"].ped_anova is None


def paused_early(n: int = 40, complete: int = 6) -> list[FrozenTrial]:
    """Trials paused after a quarter of an epoch, where `a` decides; the first ones complete, where `b` decides."""
    trials = trials_of(n, lambda point: point["b"], space=CUBE | {"epochs": FloatDistribution(0, 1)})
    for number, trial in enumerate(trials):
        reports = {25: trial.params["a"], **({50: trial.params["b"], 100: trial.value} if number < complete else {})}
        trial.intermediate_values = {step: value or 0.0 for step, value in reports.items()}
        trial.state = TrialState.COMPLETE if number < complete else TrialState.PRUNED
        if number >= complete:
            trial.value = trial.params["a"]
    return trials


@pytest.mark.usefixtures("_quick")
def test_with_few_complete_trials_importance_is_measured_at_the_step_that_all_reached() -> None:
    found = importances(paused_early())
    assert found.fanova is None
    assert found.early is not None
    assert (found.early.epoch, found.early.lost, found.early.importances.finished) == (0.25, 0, 40)
    for shares in (found.early.importances.fanova, found.early.importances.ped_anova):
        assert shares is not None
        assert shares["a"].share > 0.8


@pytest.mark.usefixtures("_quick")
def test_epochs_are_left_out_of_early_importance() -> None:
    early = importances(paused_early()).early
    assert early is not None
    assert early.without_epochs
    assert early.importances.fanova is not None
    assert early.importances.ped_anova is not None
    assert early.importances.fanova.keys() == early.importances.ped_anova.keys() == CUBE.keys()
    without = importances(trials_of(10, lambda point: point["a"])).early
    assert without is None


@pytest.mark.usefixtures("_quick")
def test_no_step_is_used_before_which_trials_were_pruned() -> None:
    trials = paused_early()
    for trial in trials[6:30]:
        trial.intermediate_values[50] = trial.params["b"]
    early = importances(trials).early
    assert early is not None
    assert early.epoch == 0.25
    for trial in trials[30:]:
        trial.intermediate_values[50] = trial.params["b"]
    early = importances(trials).early
    assert early is not None
    assert early.epoch == 0.5
    assert early.importances.fanova is not None
    assert early.importances.fanova["b"].share > 0.8


@pytest.mark.usefixtures("_quick")
def test_paused_trials_limit_the_early_step_but_running_and_diverged_ones_do_not() -> None:
    trials = paused_early()
    for trial in trials:
        trial.intermediate_values[50] = trial.params["b"]
    running, interrupted, diverged, later, failed = trials[-5:]
    running.state, running.intermediate_values = TrialState.RUNNING, {25: 0.1}
    interrupted.state, interrupted.intermediate_values = TrialState.WAITING, {25: 0.1}
    diverged.user_attrs, diverged.intermediate_values = DIVERGED, {25: 0.1}
    later.user_attrs = DIVERGED
    failed.state, failed.intermediate_values = TrialState.FAIL, {25: 0.1}
    for trial in trials[6:20]:
        trial.state, trial.user_attrs = TrialState.WAITING, {PAUSED: {"step": 50}}
    early = importances(trials).early
    assert early is not None
    assert (early.epoch, early.lost, early.importances.finished) == (0.5, 1, 36)
    trials[10].intermediate_values = {25: 0.1}
    paused = importances(trials).early
    assert paused is not None
    assert paused.epoch == 0.25


@pytest.mark.usefixtures("_quick")
def test_early_importance_needs_few_complete_and_enough_started_trials() -> None:
    assert importances(paused_early(complete=19)).early is not None
    assert importances(paused_early(complete=20)).early is None
    assert importances(paused_early(n=20)).early is not None
    assert importances(paused_early(n=19)).early is None
    assert importances(trials_of(12, lambda point: point["a"])).early is None  # without reports


@pytest.mark.usefixtures("_quick")
def test_early_importance_covers_conditional_hyperparameters() -> None:
    trials = paused_early(60)
    for trial, other in zip(trials, with_some(trials, lambda number: number % 2 == 0), strict=True):
        trial.params, trial.distributions = other.params, other.distributions
    early = importances(trials).early
    assert early is not None
    assert early.importances.conditional.keys() == {"d"}
    assert early.importances.conditional["d"].finished == 30


@pytest.mark.usefixtures("_quick")
def test_a_trial_outside_its_stored_ranges_is_left_out() -> None:
    trials = trials_of(40, lambda point: point["a"])
    outside = copy.copy(trials[5])
    outside.params = outside.params | {"a": 5.0}
    assert importances([*trials, outside]) == importances(trials)
