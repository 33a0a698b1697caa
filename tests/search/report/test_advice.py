"""What to try next, where the numbers carry it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from search.report.findings import NEXT, findings
from search.report.history import Audit
from search.report.importance import Importance, Importances
from search.results.finalists import Finalist, Standings
from search.results.intervals import Pooled, share
from search.results.ranking import Configuration, rank
from tests.factories import (
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

DEFAULT = trained(0.80, 0.81, 0.82)


def standing(*trials: Sequence[float]) -> Standings:
    """Finalists with 2, 3 and so on filters, and the default, which has 4."""
    others = [
        ended(GRID, one, filters=filters) for filters, values in zip((2, 3), trials, strict=False) for one in values
    ]
    return standings_of(rank(GRID, [*DEFAULT, *others]))


# A tie with the default


def test_a_winner_that_is_not_told_from_the_default_needs_so_many_seeds() -> None:
    standings = standing([0.81, 0.82, 0.84])
    text = said("tie", GRID, standings=standings)
    assert text is not None
    gain = Pooled([[0.81, 0.82, 0.84], [0.80, 0.81, 0.82]]).difference(0, 1)
    assert gain is not None
    seeds = int(text.split("--seeds ")[1].split("`")[0])
    assert text.startswith("The winner cannot be told from the default: it gains 1.33 points (95 % interval -1.")
    assert text.endswith(f"some {seeds} seeds each would tell: `fmnist-search finalists s --seeds {seeds}`.")
    enough, fewer = ((gain.high - gain.low) / 2 * (3 / n) ** 0.5 for n in (seeds, seeds - 1))
    assert enough <= gain.mean < fewer


def test_a_gain_that_no_number_of_seeds_would_show_is_not_worth_them() -> None:
    text = said("tie", GRID, standings=standing([0.79, 0.81, 0.8301]))
    assert text is not None
    assert "Even 50 seeds each would hardly tell them apart" in text


def test_a_default_that_won_calls_for_another_space() -> None:
    text = said("tie", GRID, standings=standing([0.7, 0.71, 0.72]))
    assert text is not None
    assert text.startswith("The default itself won")
    assert said("tie", GRID, standings=standing()) is None  # it was alone


def test_a_winner_that_is_better_or_not_yet_known_calls_for_nothing() -> None:
    assert said("tie", GRID, standings=standing([0.90, 0.91, 0.92])) is None
    assert said("tie", GRID, standings=replace(standing([0.81, 0.82, 0.84]), trained=5)) is None
    assert said("tie", GRID) is None


# Luck


def test_the_best_of_single_trainings_is_to_be_trained_again() -> None:
    text = said("luck", TWO, [ended(TWO, 0.8), ended(TWO, 0.9, filters=2)])
    assert text is not None
    assert text.startswith("The best is one training, chosen among 2, and so partly luck: `fmnist-search finalists`")


def test_where_there_are_finalists_or_seeds_or_no_choice_it_is_not() -> None:
    two = [ended(TWO, 0.8), ended(TWO, 0.9, filters=2)]
    assert said("luck", TWO, two, standings=standing([0.9])) is None
    assert said("luck", TWO, two[:1]) is None
    assert said("luck", GRID, trained(0.8, 0.9) + trained(0.7, filters=2)) is None


# Cheaper


def costing(*rows: tuple[int, float, Sequence[float]]) -> list[Configuration]:
    """Configurations as (filters, seconds, accuracies)."""
    trials = [ended(GRID, one, filters=filters, seconds=seconds) for filters, seconds, values in rows for one in values]
    return rank(GRID, trials)


BEST = (2, 10.0, [0.90, 0.91, 0.92])
TIE = [0.89, 0.90, 0.92]


def test_the_cheapest_that_ties_with_the_best_is_named_with_what_it_saves() -> None:
    ranking = costing(BEST, (3, 4.0, TIE), (4, 6.0, TIE))
    assert said("cheaper", GRID, ranking=ranking) == (
        "Filters=3 cannot be told from the best and takes 60 % less time to train (4.0 s in the place of 10.0 s): "
        "take it where time counts."
    )
    finalists = [Finalist(number, 0.99, one) for number, one in enumerate(ranking)]
    standings = Standings("s", "test", 9, 9, 0, False, finalists, Path("best.pt"), 0.9, None)
    text = said("cheaper", GRID, standings=standings)
    assert text is not None
    assert text.startswith("Trial 1 cannot be told")


@pytest.mark.parametrize(
    "others",
    [
        [(3, 9.0, TIE)],  # saves too little
        [(3, 4.0, [0.5, 0.51, 0.52])],  # is worse
        [(3, 4.0, [0.89])],  # who knows
        [],
    ],
)
def test_what_is_no_cheaper_or_no_tie_is_not_named(others: list[tuple[int, float, list[float]]]) -> None:
    assert said("cheaper", GRID, ranking=costing(BEST, *others)) is None


# What does not matter


LITTLE, MUCH, UNSURE = Importance(0.01, 0.0, 0.04), Importance(0.9, 0.8, 0.95), Importance(0.02, 0.0, 0.2)


def importances(**methods: dict[str, Importance]) -> Importances:
    return replace(NO_IMPORTANCES, complete=30, finished=30, **methods)


def test_what_matters_by_no_method_is_to_be_fixed() -> None:
    both = {"a": MUCH, "b": LITTLE, "c": LITTLE}
    assert said("unimportant", TWO, importances=importances(fanova=both, ped_anova=both)) == (
        "b and c explain next to nothing of the accuracy (importance below 0.05 of 1 by each method): fix them, and "
        "what is left is searched more densely."
    )
    text = said("unimportant", TWO, importances=importances(fanova=both, ped_anova=both | {"c": UNSURE}))
    assert text is not None
    assert text.startswith("b explains next to nothing")
    assert said("unimportant", TWO, importances=importances(fanova=both)) is not None


def test_what_may_matter_is_not_to_be_fixed() -> None:
    assert said("unimportant", TWO, importances=importances(fanova={"a": MUCH, "b": UNSURE})) is None
    assert said("unimportant", TWO, importances=importances(ped_anova={"a": MUCH, "b": LITTLE})) is None
    assert said("unimportant", TWO, importances=importances(fanova={"a": LITTLE, "b": LITTLE})) is None
    assert said("unimportant", TWO, importances=None) is None


# The pruner


def test_a_pruner_that_ends_good_trials_is_to_be_exchanged_for_a_patient_one() -> None:
    bad, median = Audit(20, 5, 0.9, share(5, 20)), definition(pruner="median")
    text = said("patience", TWO.model_copy(update={"pruner": "slack"}), audit=bad)
    assert text == (
        "The pruner ended good trials: 5 of 20 that were trained on all the same came to be among the best. Try a "
        "study of another `--name` with `--pruner median`."
    )
    text = said("patience", median, audit=bad)
    assert text is not None
    assert text.endswith("`--pruner none`.")


@pytest.mark.parametrize("audit", [None, Audit(5, 2, 0.9, None), Audit(20, 5, 0.9, share(1, 20))])
def test_a_pruner_of_which_that_is_not_sure_is_not_blamed(audit: Audit | None) -> None:
    assert said("patience", TWO, audit=audit) is None


# Learning rates


def test_rates_at_which_trials_diverge_and_none_is_good_are_to_be_cut() -> None:
    fine = [ended(RATES, 0.9, learning_rate=rate) for rate in (0.01, 0.02, 0.03)]
    bad = [ended(RATES, 0.5, learning_rate=0.9), *[ended(RATES, 0.8, learning_rate=0.1)] * 5]
    trials = [*fine, *bad, lost(RATES, learning_rate=0.5), lost(RATES, learning_rate=0.7)]
    assert said("rates", RATES, trials) == (
        "Trials diverged at learning rates from 0.5 on, and the best have 0.1 at the most: end the range below 0.5."
    )


def test_rates_are_kept_where_a_good_trial_has_a_higher_one_or_few_diverge() -> None:
    fine = [ended(RATES, 0.9, learning_rate=0.8), lost(RATES, learning_rate=0.5)]
    assert said("rates", RATES, fine) is None
    few = [*[ended(RATES, 0.9, learning_rate=0.01)] * 30, lost(RATES, learning_rate=0.5)]
    assert said("rates", RATES, few) is None
    assert said("rates", RATES, [lost(RATES, learning_rate=0.5)]) is None
    assert said("rates", TWO, [ended(TWO, 0.9), lost(TWO)]) is None


# More trials


def test_too_few_complete_trials_call_for_more() -> None:
    assert said("more", TWO, importances=replace(NO_IMPORTANCES, finished=9, complete=8)) == (
        "8 complete trials are too few to say what matters: 20 are needed. `fmnist-search run` with a larger "
        "`--trials` adds the difference."
    )
    for enough in (None, NO_IMPORTANCES, replace(NO_IMPORTANCES, finished=40, complete=20)):
        assert said("more", TWO, importances=enough) is None


def test_all_advice_is_among_the_findings_that_say_what_to_try() -> None:
    evidence = evidence_of(
        TWO,
        [ended(TWO, 0.5) for _ in range(9)] + [ended(TWO, 0.9, filters=8)],
        importances=replace(NO_IMPORTANCES, finished=9, complete=8),
    )
    about = [finding.about for finding in findings(evidence)]
    assert about[-3:] == ["edge", "luck", "more"]
    assert set(about[-3:]) < set(NEXT)
