"""Which trials are drawn where there are too many."""

from search.report.history import ALWAYS_DRAWN, MOST_CURVES, MOST_TRIALS, TrialRecord, drawn_curves, drawn_trials


def trials_of(count: int) -> list[TrialRecord]:
    """Of three trials two are pruned; the later, the worse."""
    return [
        TrialRecord(
            number,
            str(number),
            "pruned" if number % 3 else "complete",
            1 - number / count,
            {},
            [(1.0, 0.5)],
            [],
            None,
            0.0,
        )
        for number in range(count)
    ]


def test_as_many_as_fit_are_all_drawn() -> None:
    trials = trials_of(MOST_TRIALS)
    assert drawn_trials(trials) == trials
    assert drawn_trials([]) == []


def test_of_more_the_best_and_others_evenly_spread_are_drawn_in_their_order() -> None:
    trials = trials_of(10 * MOST_TRIALS)
    numbers = [trial.number for trial in drawn_trials(trials)]
    assert len(numbers) == MOST_TRIALS == len(set(numbers))
    assert numbers == sorted(numbers)
    assert set(range(0, 3 * ALWAYS_DRAWN, 3)) <= set(numbers)
    tenths = [sum(tenth <= number * 10 // len(trials) < tenth + 1 for number in numbers) for tenth in range(1, 10)]
    assert min(tenths) > 0.9 * max(tenths)


def test_the_best_are_not_the_pruned_ones() -> None:
    trials = trials_of(9000)
    pruned = [trial for trial in drawn_trials(trials) if trial.state == "pruned"]
    assert 0.5 < len(pruned) / MOST_TRIALS < 0.7


def test_of_each_state_so_many_curves_are_drawn_and_none_of_a_trial_without_a_report() -> None:
    trials = trials_of(6 * MOST_CURVES)
    shown = drawn_curves(trials)
    assert [sum(trial.state == state for trial in shown) for state in ("complete", "pruned")] == [MOST_CURVES] * 2
    silent = TrialRecord(0, None, "pruned", None, {}, [], [], None, 0.0)
    assert {trial.number for trial in drawn_curves([*trials[:6], silent])} == set(range(6))
    assert silent not in drawn_curves([silent, *trials[:6]])
