"""Findings, and that they are omitted where the numbers do not support them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.report.findings import findings
from search.report.history import Audit, Pruning
from search.report.importance import Early, Importance
from search.results.intervals import share
from search.results.ranking import rank
from search.study.definition import StudyDefinition
from search.study.record import REASON, Epoch
from tests.factories import (
    DIVERGED,
    GRID,
    NO_IMPORTANCES,
    RATES,
    TWO,
    definition,
    ended,
    evidence_of,
    lost,
    said,
    standings_of,
    trained,
)

# Importance


def importance(**changes: Any) -> str | None:
    return said("importance", definition(), importances=replace(NO_IMPORTANCES, **changes))


CLEAR, EVEN = Importance(0.8, 0.6, 0.9), Importance(0.5, 0.1, 0.9)
UNCLEAR = Importance(0.1, 0.0, 0.4)


def test_important_hyperparameters_are_named_by_method_with_intervals() -> None:
    text = importance(ped_anova={"filters": UNCLEAR, "dropout": CLEAR}, fanova={"filters": EVEN, "dropout": EVEN})
    assert text is not None
    assert "PED-ANOVA: dropout 0.80 (0.60–0.90) is more important than an equal share (0.50)." in text
    assert (
        "fANOVA: no hyperparameter stands out. The first, filters, has 0.50 (0.10–0.90); an equal share is 0.50."
    ) in text


def test_important_hyperparameters_are_named_in_descending_order() -> None:
    low = Importance(0.01, 0.0, 0.1)
    two = {"a": low, "b": Importance(0.4, 0.3, 0.5), "c": Importance(0.58, 0.4, 0.7), "d": low, "e": low}
    assert importance(fanova=two) == (
        "fANOVA: c 0.58 (0.40–0.70), b 0.40 (0.30–0.50) are more important than an equal share (0.20)."
    )


def test_an_interval_that_contains_an_equal_share_is_no_finding() -> None:
    text = importance(ped_anova={"a": Importance(0.9, 0.5, 1.0), "b": UNCLEAR})
    assert text is not None
    assert "no hyperparameter stands out" in text


def test_too_few_trials_are_reported() -> None:
    assert importance(missing=["Too few trials for fANOVA."]) == "Too few trials for fANOVA."


def early(epoch: float = 0.25, lost: int = 0, *, without_epochs: bool = False) -> str:
    found = replace(NO_IMPORTANCES, fanova={"filters": UNCLEAR, "dropout": CLEAR}, finished=50)
    text = said(
        "early",
        definition(),
        importances=replace(NO_IMPORTANCES, early=Early(epoch, lost, without_epochs, found)),
    )
    assert text is not None
    return text


def test_an_early_importance_states_its_accuracy_trials_and_limits() -> None:
    assert "after a quarter of an epoch, which all 50 trials reached" in early()
    assert "What helps early may not help in the end" in early()
    assert "fANOVA: dropout 0.80 (0.60–0.90) is more important" in early()
    assert "after 2 epochs, which all" in early(2.0)
    assert "`epochs` is left out" in early(without_epochs=True)
    assert "`epochs`" not in early()


def test_trials_that_diverged_before_an_early_importance_are_counted() -> None:
    assert "which 50 trials reached; 3 more diverged before" in early(lost=3)
    assert "all 50" not in early(lost=3)


def test_a_single_hyperparameter_has_no_importance() -> None:
    assert importance(ped_anova={"filters": Importance(1.0, 1.0, 1.0)}) is None
    assert said("importance", definition(), importances=None) is None


# Edges


@pytest.mark.parametrize(
    ("name", "parameter", "value", "widen"),
    [
        ("filters", {"low": 8, "high": 64}, 64, "above 64"),
        ("filters", {"low": 8, "high": 64}, 63, None),
        ("filters", {"low": 8, "high": 64}, 8, "below 8"),
        ("filters", {"low": 1, "high": 64}, 1, None),  # a network needs one
        ("filters", {"low": 8, "high": 1024}, 1024, None),
        ("filters", {"low": 8, "high": 20, "step": 4}, 20, "above 20"),
        ("filters", {"low": 8, "high": 20, "step": 4}, 16, None),
        ("filters", {"low": 8, "high": 20, "step": 4}, 8, "below 8"),
        ("filters", {"low": 3, "high": 11, "step": 4}, 3, None),
        ("filters", {"low": 8, "high": 64, "log": True}, 64, "above 64"),
        ("filters", {"low": 8, "high": 64, "log": True}, 8, "below 8"),
        ("filters", {"low": 8, "high": 64, "log": True}, 9, None),
        ("filters", {"low": 1, "high": 64, "log": True}, 1, None),
        ("batch_size", {"low": 2, "high": 64}, 2, None),  # batch norm needs two images
        ("kernel_size", {"low": 1, "high": 5}, 1, None),  # 0 means the default size
        ("epochs", {"low": 3, "high": 7}, 7, "above 7"),
        ("learning_rate", {"low": 1e-4, "high": 1e-2, "log": True}, 0.0093, "above 0.01"),  # 2 %, logarithmic
        ("learning_rate", {"low": 1e-4, "high": 1e-2, "log": True}, 0.009, None),
        ("learning_rate", {"low": 1e-4, "high": 1e-2, "log": True}, 0.000105, "below 0.0001"),
        ("learning_rate", {"low": 1e-4, "high": 1e-2, "log": True}, 0.00015, None),
        ("learning_rate", {"low": 1e-4, "high": 1.0, "log": True}, 1.0, None),
        ("learning_rate", {"low": 0.001, "high": 0.01}, 0.00985, "above 0.01"),
        ("learning_rate", {"low": 0.001, "high": 0.01}, 0.0095, None),
        ("learning_rate", {"low": 0.001, "high": 0.01}, 0.00115, "below 0.001"),
        ("dropout", {"low": 0.0, "high": 0.5}, 0.0, None),
        ("dropout", {"low": 0.0, "high": 0.5}, 0.495, "above 0.5"),
        ("augmentation", {"low": 0.0, "high": 1.0}, 1.0, None),
        ("augmentation", {"low": 0.0, "high": 1.0}, 0.0, None),
        ("augmentation", {"low": 0.0, "high": 0.5}, 0.5, "above 0.5"),
        ("label_smoothing", {"low": 0.1, "high": 0.3, "step": 0.1}, 0.3 - 1e-16, "above 0.3"),  # rounding error
        ("label_smoothing", {"low": 0.1, "high": 0.3, "step": 0.1}, 0.2, None),
        ("epochs", {"choices": [3, 5, 7]}, 7, "above 7"),
        ("epochs", {"choices": [7, 5, 3]}, 3, "below 3"),
        ("epochs", {"choices": [3, 5, 7]}, 5, None),
        ("epochs", {"choices": [1, 2, 3]}, 1, None),
        ("architecture", {"choices": ["cnn", "simple"]}, "simple", None),
    ],
)
def test_widening_is_suggested_for_a_best_value_at_a_movable_edge(
    name: str, parameter: dict[str, Any], value: Any, widen: str | None
) -> None:
    defined = definition(space={name: parameter}, defaults={name: value})
    worse = [ended(defined, 0.5) for _ in range(9)]
    text = said("edge", defined, [*worse, ended(defined, 0.9, **{name: value})])
    assert (text is not None) == (widen is not None)
    if text:
        assert text.endswith(f"in a new study (`--name`), widen {name} {widen}.")
    assert said("edge", defined, [*worse[1:], ended(defined, 0.9, **{name: value})]) is None  # nine trials are too few


def test_every_edge_of_the_best_trial_is_named_and_no_other() -> None:
    trials = [ended(TWO, 0.5, filters=2) for _ in range(9)] + [ended(TWO, 0.9, filters=8, dropout=0.2)]
    text = said("edge", TWO, trials)
    assert text is not None
    assert text.endswith(", widen filters above 8; widen dropout above 0.2.")


def test_with_finalists_the_winners_edges_count() -> None:
    trials = [ended(TWO, 0.5) for _ in range(9)] + [ended(TWO, 0.9, filters=8)]
    winner = rank(TWO, [ended(TWO, 0.9, filters=2)])
    text = said("edge", TWO, trials, standings=standings_of(winner))
    assert text is not None
    assert text.endswith(", widen filters below 2.")
    assert said("edge", TWO, trials, standings=standings_of(rank(TWO, [ended(TWO, 0.9)]))) is None


# Diverged


def test_the_share_of_diverged_trials_is_stated_with_their_learning_rates() -> None:
    fine = [ended(RATES, 0.9) for _ in range(6)]
    trials = [*fine, lost(RATES, learning_rate=0.9), lost(RATES, learning_rate=0.25)]
    assert said("diverged", RATES, trials) == "2 of 8 trials (25.0 %) diverged, at learning rates from 0.25 to 0.9."
    assert said("diverged", RATES, trials[:-1]) == "1 of 7 trials (14.3 %) diverged, at a learning rate of 0.9."
    assert said("diverged", TWO, [ended(TWO, 0.9), lost(TWO)]) == "1 of 2 trials (50.0 %) diverged."


def test_without_diverged_trials_there_is_no_such_finding() -> None:
    other = ended(RATES, 0.1, state=TrialState.PRUNED, attributes={REASON: "pruned after epoch 1 of 2"})
    failed = ended(RATES, None, curve={}, state=TrialState.FAIL, attributes=DIVERGED)  # replaced by another trial
    assert said("diverged", RATES, [ended(RATES, 0.9), other, failed]) is None
    assert said("diverged", RATES) is None


# Overfitting


def curves(losses: Sequence[float], training: Sequence[float], gap: float = 0.05) -> FrozenTrial:
    """A trial with these losses by epoch; gap: final training accuracy minus scored accuracy."""
    rows = [
        Epoch(epoch, train_loss, 0.9 + gap, loss, 0.9, 1.0)
        for epoch, (loss, train_loss) in enumerate(zip(losses, training, strict=True), start=1)
    ]
    return ended(TWO, 0.9, history=rows)


FALLING = (0.6, 0.5, 0.4)
FITS = curves((0.6, 0.5, 0.45), FALLING)


def test_a_loss_that_rises_while_the_training_loss_falls_is_overfitting() -> None:
    text = said("overfitting", TWO, [FITS, FITS, curves((0.6, 0.4, 0.5), FALLING), curves((0.6, 0.4, 0.46), FALLING)])
    assert text == (
        "2 of the best 4 trials overfit: their test loss ends 20 % above its lowest while the training loss still "
        "falls. At the end the training accuracy (with dropout and augmentation, if any) is 5.00 points above the test "
        "accuracy, on average over the best 4."
    )


@pytest.mark.parametrize(
    "trial",
    [
        FITS,
        curves((0.6, 0.5, 0.505), FALLING),  # rises by 1 %: noise
        curves((0.6, 0.4, 0.5), (0.6, 0.4, 0.5)),  # the training loss rises too
        curves((0.6, 0.5, float("nan")), FALLING),
        curves((float("nan"), 0.5, 0.6), FALLING),
        curves((0.6, 0.5, float("inf")), FALLING),
        curves((0.6, 0.0, 0.5), FALLING),
        curves((0.6,), (0.5,)),
    ],
)
def test_trials_that_do_not_overfit_give_no_finding(trial: FrozenTrial) -> None:
    assert said("overfitting", TWO, [trial] * 6) is None


def test_a_single_overfitting_trial_is_described_in_the_singular() -> None:
    over = curves((0.6, 0.4, 0.5), FALLING, gap=-0.02)
    text = said("overfitting", TWO.model_copy(update={"score_on": "validation"}), [over])
    assert text is not None
    assert text.startswith("The best trial overfits: its validation loss ends 25 % above")
    assert text.endswith("is 2.00 points below the validation accuracy.")
    text = said("overfitting", TWO, [FITS, over])
    assert text is not None
    assert text.startswith("1 of the best 2 trials overfits: its test loss")


def test_only_the_best_five_trials_are_analysed() -> None:
    over = curves((0.6, 0.4, 0.5), FALLING)
    worse = create_trial(value=0.1, params=over.params, distributions=over.distributions, user_attrs=over.user_attrs)
    assert said("overfitting", TWO, [worse, *[FITS] * 4]) is not None
    assert said("overfitting", TWO, [worse, *[FITS] * 5]) is None


# Improving


def rising(*accuracies: float) -> FrozenTrial:
    return ended(TWO, accuracies[-1], curve={float(epoch): one for epoch, one in enumerate(accuracies, start=1)})


def test_significant_gains_in_the_last_epoch_are_reported() -> None:
    trials = [rising(0.5, 0.80, 0.82), rising(0.5, 0.80, 0.83), rising(0.5, 0.80, 0.84)]
    text = said("improving", TWO, trials)
    assert text is not None
    assert "still improved in it, by 3.00 points on average (95 % interval 0.52 to 5.48)" in text
    short = ended(TWO, 0.81, curve={0.25: 0.2, 0.5: 0.3, 1.0: 0.81})  # a single whole epoch
    assert said("improving", TWO, [*trials, short]) == said("improving", TWO, trials)


def test_trials_on_a_plateau_are_not_reported_as_improving() -> None:
    """Fifty trials that no longer improve and differ only by noise per epoch."""
    draw = np.random.default_rng(0)
    reports = 0
    for _ in range(60):
        trials = [rising(0.5, *(0.9 + 0.0015 * draw.standard_normal(2))) for _ in range(50)]
        reports += said("improving", TWO, trials) is not None
    assert reports <= 2


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [rising(0.5, 0.80, 0.82), rising(0.5, 0.80, 0.82)],  # two are too few
        [rising(0.5, 0.80, 0.82), rising(0.5, 0.84, 0.83), rising(0.5, 0.80, 0.84)],  # noise
        [rising(0.5, 0.83, 0.82), rising(0.5, 0.84, 0.82), rising(0.5, 0.85, 0.82)],
        [ended(TWO, 0.8, curve={0.25: 0.2, 0.5: 0.5, 1.0: 0.8})] * 5,  # within their first epoch
    ],
)
def test_last_gains_that_may_be_noise_are_not_reported(trials: list[FrozenTrial]) -> None:
    assert said("improving", TWO, trials) is None


# The noise floor


FLOOR = "Noise floor: the default configuration's accuracy varies by 1.00 points (standard deviation over 3 seeds)."


def test_the_best_gain_is_stated_with_the_deviation_of_the_default() -> None:
    text = said("noise", GRID, trained(0.80, 0.81, 0.82) + trained(0.90, 0.91, 0.92, filters=2))
    assert text == f"{FLOOR} The best configuration scores 10.00 points higher (95 % interval 7.73 to 12.27)."
    text = said("noise", GRID, trained(0.80, 0.81, 0.82) + trained(0.81, 0.82, 0.83, filters=2))
    gain = "The best configuration scores 1.00 points higher (95 % interval -1.27 to 3.27), which may be noise."
    assert text == f"{FLOOR} {gain}"


def test_an_unbeaten_default_is_reported() -> None:
    default = trained(0.80, 0.81, 0.82)
    assert said("noise", GRID, default + trained(0.7, 0.71, filters=2)) == (
        f"{FLOOR} No other configuration trained with as many seeds scored higher."
    )
    assert said("noise", GRID, default) == FLOOR
    assert said("noise", GRID, default + trained(0.99, filters=2)) == FLOOR  # a single training run gives no gain


def test_a_default_with_fewer_than_two_training_runs_gives_no_noise_floor() -> None:
    assert said("noise", GRID, trained(0.8) + trained(0.9, 0.91, filters=2)) is None
    assert said("noise", GRID, trained(0.9, 0.91, filters=2)) is None
    assert said("noise", GRID) is None


def test_with_finalists_their_fresh_seeds_give_the_noise_floor() -> None:
    again = rank(GRID, trained(0.80, 0.81, 0.82) + trained(0.90, 0.91, 0.92, filters=2))
    text = said("noise", GRID, trained(0.5, 0.9) + trained(0.95, 0.96, filters=3), standings=standings_of(again))
    assert text is not None
    assert text.startswith(f"{FLOOR} The best configuration scores 10.00 points higher")
    assert said("noise", GRID, trained(0.5, 0.9), standings=standings_of(again[:1])) is None  # no default yet


# The ranking


def test_a_ranking_states_how_many_are_tied_with_the_best() -> None:
    best, tie = trained(0.90, 0.91, 0.92), trained(0.89, 0.91, 0.90, filters=2)
    worse = trained(0.50, 0.51, 0.52, filters=3)
    tie_too = trained(0.88, 0.91, 0.90, filters=3)
    for others, sentence in (
        (tie + worse, "1 of the other 2 is statistically tied with it."),
        (tie + tie_too, "The other 2 are all statistically tied with it."),
        (tie, "The other is statistically tied with it."),
        (worse, "The other is significantly worse."),
    ):
        text = str(said("ranking", GRID, best + others))
        assert text.startswith("Best: filters=4 (default), 91.00 % (95 % interval ")
        assert f" %). No configuration is better than the default. {sentence} " in text
        assert "pooled over all configurations" in text
    assert said("ranking", GRID, best) is None
    once = definition(sampler="grid", space={"filters": {"choices": [2, 3, 4]}})
    assert said("ranking", once, best + tie + worse) is None


def test_no_best_is_named_while_a_configuration_with_one_training_run_leads() -> None:
    trials = trained(0.90, 0.91) + trained(0.80, 0.81, filters=2)
    assert said("ranking", GRID, trials) is not None
    assert said("ranking", GRID, [*trials, *trained(0.99, filters=3)]) is None


# Pruning and its audit


def test_savings_by_pruning_are_stated_with_their_epochs() -> None:
    assert said("pruning", TWO, pruning=Pruning(12.5, 50)) == (
        "Pruning saved 75 % of the search's epochs: "
        "12.5 epochs were trained instead of the 50 that running every trial to its end would have taken."
    )
    text = said("pruning", TWO, pruning=Pruning(12.5, 50, 2.0))
    assert text is not None
    assert "12.5 epochs were trained (without 2 epochs of" in text
    assert said("pruning", TWO) is None


def test_an_audit_states_the_false_prune_rate_or_that_it_has_too_few_trials() -> None:
    assert said("audit", TWO, audit=Audit(12, 5, 0.8765, share(3, 12))) == (
        "Pruner audit: of 12 pruned trials that were trained to the end anyway, 3 would have been among the study's "
        "best three (87.65 % or more), a false-prune rate of 25 % (95 % interval 9 % to 53 %)."
    )
    assert said("audit", TWO, audit=Audit(9, 2, 0.9, None)) == (
        "Pruner audit: too few trials for a false-prune rate, 9 audited and 2 complete (10 and 3 are needed)."
    )
    assert said("audit", TWO) is None


# Edge cases

TEXT = definition(
    sampler="grid",
    seeds=2,
    grid=[{"architecture": ["cnn", "simple"]}, {"augmentation_kind": ["flip", "crop"], "filters": [4, 8]}],
    space={
        "architecture": {"choices": ["cnn", "simple"]},
        "augmentation_kind": {"choices": ["both", "flip", "crop"]},
        "filters": {"choices": [4, 8]},
    },
)


@pytest.mark.parametrize(
    ("defined", "trials"),
    [
        (TWO, []),
        (TWO, [ended(TWO, 0.9)]),
        (TWO, [lost(TWO)]),
        (TWO, [ended(TWO, 0.9)] * 12),
        (TWO, [ended(TWO, 0.0, filters=2 + number % 4) for number in range(12)]),
        (TEXT, [ended(TEXT, 0.9, architecture=one) for one in ("cnn", "simple") for _ in range(6)]),
        (TEXT, [ended(TEXT, 0.8, augmentation_kind=one) for one in ("both", "crop", "flip")] * 4),
        (definition(reference="write-up", pruner="halving", audit=0.5), [ended(definition(), 0.9), lost(definition())]),
    ],
)
def test_edge_case_studies_give_complete_sentences(defined: StudyDefinition, trials: list[FrozenTrial]) -> None:
    for finding in findings(evidence_of(defined, trials)):
        assert finding.text.endswith(".")
        for wrong in ("nan", "None", "inf%", "-0.00", " 1 trials", "1 seeds"):
            assert wrong not in finding.text.replace("None of", "")
