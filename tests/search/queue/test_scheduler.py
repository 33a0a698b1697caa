"""The choice of the trial that trains next, as a pure function: held against properties, and against one by hand."""

import math
import random
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.queue.scheduler import CONTENDERS, OPTIMISM, Progress, choose, promise

STEPS = (25, 50, 100, 200, 300, 400, 500, 600, 700)


class Choice:
    """The arguments of a choice: a search of some trials, each with its curve up to where it is."""

    def __init__(self, curves: list[tuple[int, list[float]]], states: list[str], begun: int, tickets: int) -> None:
        self.best: dict[int, float] = {}
        found: dict[str, list[Progress]] = {"complete": [], "paused": [], "ended": []}
        for number, ((epochs, accuracies), state) in enumerate(zip(curves, states, strict=True)):
            steps = [step for step in STEPS if step <= 100 * epochs]
            steps = steps if state == "complete" else steps[:-1]
            reports = dict(zip(steps, accuracies, strict=False))
            for step, accuracy in reports.items():
                self.best[step] = max(self.best.get(step, 0.0), accuracy)
            last = max(reports)
            found[state].append(Progress(number, last, reports[last], 100 * epochs))
            if state == "complete" and last < 100 * epochs:  # its curve was too short
                found["complete"].pop()
        self.complete, self.paused = found["complete"], found["paused"]
        self.begun, self.tickets = begun, tickets

    def make(self, **changes: Any) -> Progress | Literal["new"] | None:
        arguments = {name: getattr(self, name) for name in ("best", "complete", "paused", "begun", "tickets")}
        return choose(**arguments | changes)


CURVE = st.tuples(st.integers(1, 7), st.lists(st.floats(0, 1), min_size=9, max_size=9), st.integers(1, 9))


ANY = st.integers(0, 3)


@st.composite
def choices(draw: st.DrawFn, tickets: st.SearchStrategy[int] = ANY) -> Choice:
    curves = draw(st.lists(CURVE, min_size=1, max_size=12))
    states = [draw(st.sampled_from(["complete", "paused", "paused", "ended"])) for _ in curves]
    cut = [
        (epochs, accuracies if state == "complete" else accuracies[:length])
        for (epochs, accuracies, length), state in zip(curves, states, strict=True)
    ]
    begun = draw(st.integers(len(curves), 60))  # others are at work, or reported nothing
    return Choice(cut, states, begun, draw(tickets))


def leads(trial: Progress, best: dict[int, float]) -> bool:
    return trial.accuracy == best[trial.step]


@given(choices(tickets=st.integers(1, 3)))
def test_leaders_go_on_before_tickets_and_tickets_come_before_others(choice: Choice) -> None:
    chosen = choice.make()
    if any(leads(trial, choice.best) for trial in choice.paused):
        assert isinstance(chosen, Progress)
        assert leads(chosen, choice.best)
    else:
        assert chosen == "new"


@given(choices(tickets=st.just(0)))
def test_without_tickets_the_most_promising_goes_on_or_none(choice: Choice) -> None:
    chosen = choice.make()
    assert chosen != "new"
    if isinstance(chosen, Progress):
        assert promise(chosen, choice.best) == min(promise(trial, choice.best) for trial in choice.paused)


@given(choices(tickets=st.just(0)))
def test_a_trial_goes_on_until_enough_complete_ones_are_better_than_it_may_become(choice: Choice) -> None:
    """Also: with too few complete trials, something always goes on."""
    wanted = max(1, round(CONTENDERS * choice.begun))
    chosen = choice.make()
    for trial in choice.paused:
        hope = promise(trial, choice.best)
        better = sum(promise(each, choice.best) < hope for each in choice.complete)
        if better >= wanted:
            assert chosen != trial
        else:
            assert chosen is not None
    assert choice.paused or chosen is None


@given(choices())
def test_with_nothing_complete_there_is_always_something_to_do(choice: Choice) -> None:
    assert (choice.make(complete=[]) is not None) == bool(choice.paused or choice.tickets)


@given(choices(), st.randoms(use_true_random=False))
def test_the_order_of_its_arguments_does_not_matter(choice: Choice, chance: random.Random) -> None:
    changed = {
        name: chance.sample(getattr(choice, name), len(getattr(choice, name))) for name in ("complete", "paused")
    }
    best = dict(chance.sample([*choice.best.items()], len(choice.best)))
    assert choice.make(**changed, best=best) == choice.make()


@given(choices())
def test_what_is_chosen_is_chosen_again_beside_the_others(choice: Choice) -> None:
    """A worker that took the chosen trial asks at once whether it is to go on with it: it is."""
    chosen = choice.make()
    if isinstance(chosen, Progress):
        others = [trial for trial in choice.paused if trial != chosen]
        assert choice.make(paused=[*others, chosen]) == chosen


@given(choices(), st.integers(0, 11))
def test_a_higher_accuracy_never_promises_less(choice: Choice, place: int) -> None:
    if choice.paused:
        trial = choice.paused[place % len(choice.paused)]
        accuracies = sorted({0.0, trial.accuracy / 2, trial.accuracy})
        raised = [Progress(trial.number, trial.step, accuracy, trial.end) for accuracy in accuracies]
        for low, high in pairwise(raised):
            assert promise(high, choice.best) <= promise(low, choice.best)


def test_of_a_complete_trial_the_promise_is_what_it_came_to() -> None:
    best = {100: 0.8, 200: 0.9}
    assert promise(Progress(0, 200, 0.9, 200), best) == 0
    assert promise(Progress(1, 200, 0.8, 200), best) == pytest.approx(math.log(2))  # twice the error
    assert promise(Progress(2, 100, 0.8, 100), best) == pytest.approx(math.log(2))  # of a short one, too


def test_of_a_paused_trial_it_is_an_optimistic_guess_by_hand() -> None:
    """Half trained, with twice the error of the best: (1/2)^0.3 of the distance is left at the end, and some hope."""
    best = {100: 0.8, 200: 0.9}
    found = promise(Progress(0, 100, 0.6, 200), best)
    assert found == pytest.approx(math.log(2) * 0.5**0.3 - OPTIMISM * math.sqrt(math.log(2)))


def test_the_first_trial_of_a_search_goes_on_and_the_next_begins_if_it_falls_behind() -> None:
    leader, laggard = Progress(0, 100, 0.8, 300), Progress(1, 25, 0.3, 300)
    assert choose({25: 0.5, 100: 0.8}, [], [laggard, leader], begun=2, tickets=5) == leader
    assert choose({25: 0.5, 100: 0.8}, [], [laggard], begun=2, tickets=5) == "new"


def test_more_contenders_are_trained_to_the_end_in_a_larger_search() -> None:
    best = {100: 0.8, 200: 0.9}
    complete, hopeless = [Progress(0, 200, 0.9, 200)], Progress(1, 100, 0.1, 200)
    assert choose(best, complete, [hopeless], begun=round(1 / CONTENDERS), tickets=0) is None
    assert choose(best, complete, [hopeless], begun=round(2 / CONTENDERS), tickets=0) == hopeless
    poor = Progress(2, 200, 0.05, 200)
    assert choose(best, [*complete, poor], [hopeless], begun=round(2 / CONTENDERS), tickets=0) == hopeless
