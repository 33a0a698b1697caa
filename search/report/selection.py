"""Which trials are drawn where there are too many for a page."""

import heapq

from search.report.course import TrialRecord

MOST_TRIALS = 1000  # trials that a figure shows
MOST_CURVES = 300  # curves of one state
ALWAYS_DRAWN = 100  # trials that are always shown


def drawn_trials(trials: list[TrialRecord], most: int = MOST_TRIALS) -> list[TrialRecord]:
    """All of them, or the best complete ones and others evenly spread over the search, in their order."""
    if len(trials) <= most:
        return trials
    complete = [trial for trial in trials if trial.state == "complete" and trial.accuracy is not None]
    best = {trial.number for trial in heapq.nlargest(ALWAYS_DRAWN, complete, key=lambda trial: trial.accuracy or 0.0)}
    others = [trial for trial in trials if trial.number not in best]
    kept = most - len(best)
    spread = {others[place * len(others) // kept].number for place in range(kept)}
    return [trial for trial in trials if trial.number in best | spread]


def drawn_curves(trials: list[TrialRecord]) -> list[TrialRecord]:
    """Of each state those whose intermediate values are drawn."""
    states = dict.fromkeys(trial.state for trial in trials)
    return [
        trial
        for state in states
        for trial in drawn_trials([each for each in trials if each.state == state and each.curve], MOST_CURVES)
    ]
