"""Selection of trials for figures."""

from search.report.history import ALWAYS_DRAWN, MOST_CURVES, MOST_TRIALS, TrialRecord, drawn_curves, drawn_trials


def trials_of(count: int) -> list[TrialRecord]:
    """Trials with decreasing accuracy, two of every three pruned."""
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


def test_all_trials_are_drawn_up_to_the_limit() -> None:
    trials = trials_of(MOST_TRIALS)
    assert drawn_trials(trials) == trials
    assert drawn_trials([]) == []


def test_beyond_the_limit_the_best_and_an_even_selection_are_drawn_in_order() -> None:
    trials = trials_of(10 * MOST_TRIALS)
    numbers = [trial.number for trial in drawn_trials(trials)]
    assert len(numbers) == MOST_TRIALS == len(set(numbers))
    assert numbers == sorted(numbers)
    assert set(range(0, 3 * ALWAYS_DRAWN, 3)) <= set(numbers)
    tenths = [sum(tenth <= number * 10 // len(trials) < tenth + 1 for number in numbers) for tenth in range(1, 10)]
    assert min(tenths) > 0.9 * max(tenths)


def test_pruned_trials_are_not_among_the_best() -> None:
    trials = trials_of(9000)
    pruned = [trial for trial in drawn_trials(trials) if trial.state == "pruned"]
    assert 0.5 < len(pruned) / MOST_TRIALS < 0.7


def test_curves_are_limited_per_state_and_need_a_report() -> None:
    trials = trials_of(6 * MOST_CURVES)
    shown = drawn_curves(trials)
    assert [sum(trial.state == state for trial in shown) for state in ("complete", "pruned")] == [MOST_CURVES] * 2
    silent = TrialRecord(0, None, "pruned", None, {}, [], [], None, 0.0)
    assert {trial.number for trial in drawn_curves([*trials[:6], silent])} == set(range(6))
    assert silent not in drawn_curves([silent, *trials[:6]])
