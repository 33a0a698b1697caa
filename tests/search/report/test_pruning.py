"""Savings by pruning, and the audit of the pruner."""

import math

import pytest
from optuna.trial import FrozenTrial, TrialState

from search.report.history import audit, pruning
from search.study.definition import StudyDefinition
from search.study.record import AUDIT, REASON
from tests.factories import definition, ended

DEFINED = definition(pruner="halving", audit=0.2)  # of two epochs
LONGER = definition(space={"epochs": {"low": 1, "high": 8}})
DIVERGED = {REASON: "diverged: the loss is nan"}


def pruned(last: float, **attributes: object) -> FrozenTrial:
    """A trial that was pruned after epoch `last`."""
    return ended(DEFINED, 0.1, curve={last: 0.1}, state=TrialState.PRUNED, attributes=attributes)


def audited(accuracy: float | None, since: float = 0.5) -> FrozenTrial:
    """A trial that was pruned and then trained to its end, or diverged (accuracy None)."""
    if accuracy is None:
        return pruned(1, **{AUDIT: {"since": since}, **DIVERGED})
    return pruned(2, **{AUDIT: {"since": since, "accuracy": accuracy}})


def test_savings_are_the_share_of_planned_epochs_that_were_not_trained() -> None:
    found = pruning(DEFINED, [ended(DEFINED, 0.9), pruned(0.25), pruned(0.5), pruned(1)])
    assert found is not None
    assert (found.trained, found.planned) == (2 + 0.25 + 0.5 + 1, 4 * 2)
    assert found.saved == pytest.approx(1 - 3.75 / 8)


def test_planned_epochs_are_those_of_each_trial() -> None:
    short = ended(LONGER, 0.9, epochs=3)
    stopped = ended(LONGER, 0.1, curve={1.0: 0.1}, state=TrialState.PRUNED, epochs=8)
    found = pruning(LONGER, [short, stopped])
    assert found is not None
    assert (found.trained, found.planned) == (3 + 1, 3 + 8)


def test_epochs_trained_by_the_audit_do_not_count() -> None:
    found = pruning(DEFINED, [audited(0.9, since=0.25), audited(None, since=0.5)])
    assert found is not None
    assert (found.trained, found.planned) == (0.25 + 0.5, 4)


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [ended(DEFINED, 0.9)],
        [ended(DEFINED, 0.9), pruned(1, **DIVERGED)],  # not stopped by the pruner
        [ended(DEFINED, 0.9), ended(DEFINED, None, curve={0.5: 0.1}, state=TrialState.FAIL)],
        [ended(DEFINED, 0.9), ended(DEFINED, None, curve={0.5: 0.1}, state=TrialState.RUNNING)],
        [ended(DEFINED, 0.9), ended(DEFINED, None, curve={}, state=TrialState.PRUNED)],
    ],
)
def test_without_pruned_trials_there_are_no_savings(trials: list[FrozenTrial]) -> None:
    assert pruning(DEFINED, trials) is None


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval, by the formula of his paper."""
    z, p = 1.959963984540054, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


COMPLETE = [ended(DEFINED, value) for value in (0.8, 0.95, 0.7, 0.9, 0.85)]  # the third best is 0.85


@pytest.mark.parametrize(
    ("accuracies", "hits"),
    [
        ([0.5] * 10, 0),
        ([0.85] * 10, 10),  # equal to the third best counts
        ([0.849] * 9 + [0.86], 1),
        ([0.9, 0.99, 0.86, *[0.2] * 9], 3),
        ([0.9, *[None] * 11], 1),  # diverged
    ],
)
def test_false_prunes_are_those_that_reach_the_third_best(accuracies: list[float | None], hits: int) -> None:
    found = audit(DEFINED, COMPLETE + [audited(accuracy) for accuracy in accuracies])
    assert found is not None
    assert (found.audited, found.bar) == (len(accuracies), 0.85)
    assert found.false is not None
    assert (found.false.hits, found.false.n) == (hits, len(accuracies))
    low, high = wilson(hits, len(accuracies))
    assert (found.false.low, found.false.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_pruned_trials_without_audit_and_unfinished_audits_do_not_count() -> None:
    running = ended(DEFINED, None, state=TrialState.RUNNING, attributes={AUDIT: {"since": 0.5}})
    found = audit(DEFINED, [*COMPLETE, pruned(1), running, *[audited(0.1)] * 10])
    assert found is not None
    assert found.audited == 10


def test_nine_audited_trials_give_no_rate() -> None:
    found = audit(DEFINED, COMPLETE + [audited(0.9)] * 9)
    assert found is not None
    assert (found.audited, found.false) == (9, None)


@pytest.mark.parametrize(("defined", "complete"), [(definition(), COMPLETE), (DEFINED, [])])
def test_there_is_no_audit_without_audited_or_complete_trials(
    defined: StudyDefinition, complete: list[FrozenTrial]
) -> None:
    assert audit(defined, [*complete, *[audited(0.9)] * 12]) is None
