"""Sentences that are drawn from numbers, and that none is where the numbers do not carry it."""

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


def test_what_matters_is_named_by_each_method_with_its_interval() -> None:
    text = importance(ped_anova={"filters": UNCLEAR, "dropout": CLEAR}, fanova={"filters": EVEN, "dropout": EVEN})
    assert text is not None
    assert "By PED-ANOVA dropout 0.80 (0.60–0.90) matters more than an equal share (0.50)." in text
    assert (
        "By fANOVA no hyperparameter stands out: the first, filters, has 0.50 (0.10–0.90), and an equal share is 0.50."
    ) in text


def test_several_that_matter_are_named_the_first_first() -> None:
    low = Importance(0.01, 0.0, 0.1)
    two = {"a": low, "b": Importance(0.4, 0.3, 0.5), "c": Importance(0.58, 0.4, 0.7), "d": low, "e": low}
    assert importance(fanova=two) == (
        "By fANOVA c 0.58 (0.40–0.70), b 0.40 (0.30–0.50) matter more than an equal share (0.20)."
    )


def test_an_interval_that_reaches_an_equal_share_is_no_finding() -> None:
    text = importance(ped_anova={"a": Importance(0.9, 0.5, 1.0), "b": UNCLEAR})
    assert text is not None
    assert "no hyperparameter stands out" in text


def test_too_little_data_is_said() -> None:
    assert importance(missing=["Too little data for fANOVA."]) == "Too little data for fANOVA."


def early(epoch: float = 0.25, lost: int = 0, *, without_epochs: bool = False) -> str:
    found = replace(NO_IMPORTANCES, fanova={"filters": UNCLEAR, "dropout": CLEAR}, finished=50)
    text = said(
        "early",
        definition(),
        importances=replace(NO_IMPORTANCES, early=Early(epoch, lost, without_epochs, found)),
    )
    assert text is not None
    return text


def test_an_early_importance_says_of_which_accuracy_and_trials_it_is_and_what_it_does_not_tell() -> None:
    assert "after a quarter of an epoch, which all 50 trials reached" in early()
    assert "what helps early need not help in the end" in early()
    assert "By fANOVA dropout 0.80 (0.60–0.90) matters more" in early()
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
        ("filters", {"low": 1, "high": 64}, 1, None),  # no network has less
        ("filters", {"low": 8, "high": 1024}, 1024, None),
        ("filters", {"low": 8, "high": 20, "step": 4}, 20, "above 20"),
        ("filters", {"low": 8, "high": 20, "step": 4}, 16, None),
        ("filters", {"low": 8, "high": 20, "step": 4}, 8, "below 8"),
        ("filters", {"low": 3, "high": 11, "step": 4}, 3, None),
        ("filters", {"low": 8, "high": 64, "log": True}, 64, "above 64"),
        ("filters", {"low": 8, "high": 64, "log": True}, 8, "below 8"),
        ("filters", {"low": 8, "high": 64, "log": True}, 9, None),
        ("filters", {"low": 1, "high": 64, "log": True}, 1, None),
        ("batch_size", {"low": 2, "high": 64}, 2, None),  # one image has no variance
        ("kernel_size", {"low": 1, "high": 5}, 1, None),  # 0 is no size
        ("epochs", {"low": 3, "high": 7}, 7, "above 7"),
        ("learning_rate", {"low": 1e-4, "high": 1e-2, "log": True}, 0.0093, "above 0.01"),  # 2 % of the logarithms
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
        ("label_smoothing", {"low": 0.1, "high": 0.3, "step": 0.1}, 0.3 - 1e-16, "above 0.3"),  # as sums of steps are
        ("label_smoothing", {"low": 0.1, "high": 0.3, "step": 0.1}, 0.2, None),
        ("epochs", {"choices": [3, 5, 7]}, 7, "above 7"),
        ("epochs", {"choices": [7, 5, 3]}, 3, "below 3"),
        ("epochs", {"choices": [3, 5, 7]}, 5, None),
        ("epochs", {"choices": [1, 2, 3]}, 1, None),
        ("architecture", {"choices": ["cnn", "simple"]}, "simple", None),
    ],
)
def test_a_best_value_at_an_edge_that_can_be_moved_is_to_be_widened(
    name: str, parameter: dict[str, Any], value: Any, widen: str | None
) -> None:
    defined = definition(space={name: parameter}, defaults={name: value})
    worse = [ended(defined, 0.5) for _ in range(9)]
    text = said("edge", defined, [*worse, ended(defined, 0.9, **{name: value})])
    assert (text is not None) == (widen is not None)
    if text:
        assert text.endswith(f"in a study of another `--name`, widen {name} {widen}.")
    assert said("edge", defined, [*worse[1:], ended(defined, 0.9, **{name: value})]) is None  # nine trials are too few


def test_every_edge_of_the_best_trial_is_named_and_none_of_another() -> None:
    trials = [ended(TWO, 0.5, filters=2) for _ in range(9)] + [ended(TWO, 0.9, filters=8, dropout=0.2)]
    text = said("edge", TWO, trials)
    assert text is not None
    assert text.endswith(", widen filters above 8; widen dropout above 0.2.")


def test_where_there_are_finalists_the_winners_edge_counts() -> None:
    trials = [ended(TWO, 0.5) for _ in range(9)] + [ended(TWO, 0.9, filters=8)]
    winner = rank(TWO, [ended(TWO, 0.9, filters=2)])
    text = said("edge", TWO, trials, standings=standings_of(winner))
    assert text is not None
    assert text.endswith(", widen filters below 2.")
    assert said("edge", TWO, trials, standings=standings_of(rank(TWO, [ended(TWO, 0.9)]))) is None


# Diverged


def test_the_share_that_diverged_is_said_and_at_which_learning_rates() -> None:
    fine = [ended(RATES, 0.9) for _ in range(6)]
    trials = [*fine, lost(RATES, learning_rate=0.9), lost(RATES, learning_rate=0.25)]
    assert said("diverged", RATES, trials) == "2 trials of 8 (25.0 %) diverged, at learning rates from 0.25 to 0.9."
    assert said("diverged", RATES, trials[:-1]) == "1 trial of 7 (14.3 %) diverged, at a learning rate of 0.9."
    assert said("diverged", TWO, [ended(TWO, 0.9), lost(TWO)]) == "1 trial of 2 (50.0 %) diverged."


def test_where_none_diverged_nothing_is_said_of_it() -> None:
    other = ended(RATES, 0.1, state=TrialState.PRUNED, attributes={REASON: "pruned after epoch 1 of 2"})
    failed = ended(RATES, None, curve={}, state=TrialState.FAIL, attributes=DIVERGED)  # and was replaced
    assert said("diverged", RATES, [ended(RATES, 0.9), other, failed]) is None
    assert said("diverged", RATES) is None


# Overfitting


def curves(losses: Sequence[float], training: Sequence[float], gap: float = 0.05) -> FrozenTrial:
    """A trial with these losses by epoch, whose training accuracy ends so far above its accuracy."""
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
        curves((0.6, 0.5, 0.505), FALLING),  # by 1 %: noise
        curves((0.6, 0.4, 0.5), (0.6, 0.4, 0.5)),  # the training itself went wrong
        curves((0.6, 0.5, float("nan")), FALLING),
        curves((float("nan"), 0.5, 0.6), FALLING),
        curves((0.6, 0.5, float("inf")), FALLING),
        curves((0.6, 0.0, 0.5), FALLING),
        curves((0.6,), (0.5,)),
    ],
)
def test_what_does_not_overfit_is_not_said_to(trial: FrozenTrial) -> None:
    assert said("overfitting", TWO, [trial] * 6) is None


def test_one_that_overfits_is_spoken_of_in_the_singular() -> None:
    over = curves((0.6, 0.4, 0.5), FALLING, gap=-0.02)
    text = said("overfitting", TWO.model_copy(update={"score_on": "validation"}), [over])
    assert text is not None
    assert text.startswith("The best trial overfits: its validation loss ends 25 % above")
    assert text.endswith("is 2.00 points below the validation accuracy.")
    text = said("overfitting", TWO, [FITS, over])
    assert text is not None
    assert text.startswith("1 of the best 2 trials overfits: its test loss")


def test_only_the_best_five_are_looked_at() -> None:
    over = curves((0.6, 0.4, 0.5), FALLING)
    worse = create_trial(value=0.1, params=over.params, distributions=over.distributions, user_attrs=over.user_attrs)
    assert said("overfitting", TWO, [worse, *[FITS] * 4]) is not None
    assert said("overfitting", TWO, [worse, *[FITS] * 5]) is None


# Improving


def rising(*accuracies: float) -> FrozenTrial:
    return ended(TWO, accuracies[-1], curve={float(epoch): one for epoch, one in enumerate(accuracies, start=1)})


def test_the_best_still_improve_if_their_last_gains_are_more_than_noise() -> None:
    trials = [rising(0.5, 0.80, 0.82), rising(0.5, 0.80, 0.83), rising(0.5, 0.80, 0.84)]
    text = said("improving", TWO, trials)
    assert text is not None
    assert "still improved in it, by 3.00 points on average (95 % interval 0.52 to 5.48)" in text
    short = ended(TWO, 0.81, curve={0.25: 0.2, 0.5: 0.3, 1.0: 0.81})  # has no epoch before its last
    assert said("improving", TWO, [*trials, short]) == said("improving", TWO, trials)


def test_a_plateau_is_not_said_to_improve_though_the_best_of_it_are_so_by_their_last_epoch() -> None:
    """Fifty trials that no longer improve, and differ by the noise of each epoch alone."""
    draw = np.random.default_rng(0)
    spoken = 0
    for _ in range(60):
        trials = [rising(0.5, *(0.9 + 0.0015 * draw.standard_normal(2))) for _ in range(50)]
        spoken += said("improving", TWO, trials) is not None
    assert spoken <= 2


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
def test_where_the_last_gains_may_be_noise_nothing_is_said_of_them(trials: list[FrozenTrial]) -> None:
    assert said("improving", TWO, trials) is None


# The noise floor


FLOOR = "Noise floor: the default configuration's accuracy varies by 1.00 points (standard deviation over 3 seeds)."


def test_the_best_ones_gain_stands_beside_the_deviation_of_the_default() -> None:
    text = said("noise", GRID, trained(0.80, 0.81, 0.82) + trained(0.90, 0.91, 0.92, filters=2))
    assert text == f"{FLOOR} The best one gains 10.00 points on it (95 % interval 7.73 to 12.27)."
    text = said("noise", GRID, trained(0.80, 0.81, 0.82) + trained(0.81, 0.82, 0.83, filters=2))
    assert text == f"{FLOOR} The best one gains 1.00 points on it (95 % interval -1.27 to 3.27), which may be noise."


def test_a_default_that_nothing_beats_is_said_to_be_so() -> None:
    default = trained(0.80, 0.81, 0.82)
    assert said("noise", GRID, default + trained(0.7, 0.71, filters=2)) == (
        f"{FLOOR} Nothing that was trained as often beats it."
    )
    assert said("noise", GRID, default) == FLOOR
    assert said("noise", GRID, default + trained(0.99, filters=2)) == FLOOR  # one training is no gain


def test_a_default_that_was_trained_once_or_never_shows_no_noise() -> None:
    assert said("noise", GRID, trained(0.8) + trained(0.9, 0.91, filters=2)) is None
    assert said("noise", GRID, trained(0.9, 0.91, filters=2)) is None
    assert said("noise", GRID) is None


def test_fresh_seeds_are_the_floor_where_there_are_finalists() -> None:
    again = rank(GRID, trained(0.80, 0.81, 0.82) + trained(0.90, 0.91, 0.92, filters=2))
    text = said("noise", GRID, trained(0.5, 0.9) + trained(0.95, 0.96, filters=3), standings=standings_of(again))
    assert text is not None
    assert text.startswith(f"{FLOOR} The best one gains 10.00 points")
    assert said("noise", GRID, trained(0.5, 0.9), standings=standings_of(again[:1])) is None  # not trained again yet


# The ranking


def test_a_ranking_says_how_many_cannot_be_told_from_the_best() -> None:
    best, tie = trained(0.90, 0.91, 0.92), trained(0.89, 0.91, 0.90, filters=2)
    worse = trained(0.50, 0.51, 0.52, filters=3)
    tie_too = trained(0.88, 0.91, 0.90, filters=3)
    for others, told in (
        (tie + worse, "1 of the other 2 cannot be told from it."),
        (tie + tie_too, "None of the other 2 can be told from it."),
        (tie, "The other cannot be told from it."),
        (worse, "The other is worse by more than noise."),
    ):
        text = str(said("ranking", GRID, best + others))
        assert text.startswith("Best: filters=4 (default), 91.00 % (95 % interval ")
        assert f" %). Nothing found is better than the default configuration. {told} " in text
        assert "pooled over all configurations" in text
    assert said("ranking", GRID, best) is None
    once = definition(sampler="grid", space={"filters": {"choices": [2, 3, 4]}})
    assert said("ranking", once, best + tie + worse) is None


def test_nothing_is_called_the_best_while_one_that_was_trained_once_is_ahead() -> None:
    trials = trained(0.90, 0.91) + trained(0.80, 0.81, filters=2)
    assert said("ranking", GRID, trials) is not None
    assert said("ranking", GRID, [*trials, *trained(0.99, filters=3)]) is None


# Pruning and its audit


def test_what_pruning_saved_is_said_with_its_epochs() -> None:
    assert said("pruning", TWO, pruning=Pruning(12.5, 50)) == (
        "Pruning saved 75 % of the search's work: 12.5 epochs were trained, in the place of 50 to every trial's end."
    )
    text = said("pruning", TWO, pruning=Pruning(12.5, 50, 2.0))
    assert text is not None
    assert "12.5 epochs were trained (2 more by" in text
    assert said("pruning", TWO) is None


def test_an_audit_gives_the_false_prune_rate_or_says_that_it_has_too_few() -> None:
    assert said("audit", TWO, audit=Audit(12, 5, 0.8765, share(3, 12))) == (
        "Audit of the pruner: of 12 pruned trials that were trained to the end all the same, 3 would have been among "
        "the study's best three (87.65 % or more): a false-prune rate of 25 % (95 % interval 9 % to 53 %)."
    )
    assert said("audit", TWO, audit=Audit(9, 2, 0.9, None)) == (
        "The audit of the pruner has too few trials for a rate: 9 audited and 2 completed; 10 and 3 are needed."
    )
    assert said("audit", TWO) is None


# Odd studies

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
def test_odd_studies_raise_nothing_and_their_sentences_are_whole(
    defined: StudyDefinition, trials: list[FrozenTrial]
) -> None:
    for finding in findings(evidence_of(defined, trials)):
        assert finding.text.endswith(".")
        for wrong in ("nan", "None", "inf%", "-0.00", " 1 trials", "1 seeds"):
            assert wrong not in finding.text.replace("None of", "")
