"""Trials as tickets: topped up to a goal, claimed once each, replaced when they fail for good.

A ticket is a WAITING trial in Optuna's own tables, made as the goal needs it. Claiming it is
one transaction, so that any number of workers on any machine drain the queue exactly. What happens to a
ticket that is held is in `lease`. A paused trial waits too, until `scheduler` chooses it or the search ends.
"""

import itertools
from collections import Counter
from collections.abc import Iterator

import optuna
from optuna.trial import TrialState
from sqlalchemy import Connection

from fmnist.errors import ExpectedError
from search.database.connection import lock
from search.database.optuna_schema import (
    FIXED_PARAMETERS,
    add_waiting,
    count_by_state,
    engine_of,
    lock_oldest_waiting,
    lock_study,
    read_attribute,
    records,
    remove_attribute,
    set_state,
    write_study_attribute,
)
from search.queue import freezing
from search.queue.lease import Holder, Ticket, begin
from search.study import space
from search.study.definition import TRIALS_OF_A_SEARCH, StudyDefinition
from search.study.record import (
    ATTEMPTS,
    FINISHED,
    PAUSED,
    parse_attempts,
    reason_of,
)
from search.study.store import DEFINITION, GOAL, NO_GOAL, attributes, definition_of
from search.study.store import goal as goal

AHEAD = 100  # tickets that are made ahead of need: Optuna reads each waiting trial again for each that is sampled
FAILURES = 3  # that a study may have beyond half of its finished trials


class TooManyFailures(ExpectedError):
    """So many trials failed that replacing them is no use; the message names the last reason."""


def counts(study: optuna.Study) -> Counter[TrialState]:
    """How many trials are in each state."""
    with engine_of(study).connect() as connection:
        return count_by_state(connection, study)


def size(study: optuna.Study) -> int:
    """How many trials count towards the goal: all but the failed."""
    state = counts(study)
    return sum(state.values()) - state[TrialState.FAIL]


def top_up(study: optuna.Study, definition: StudyDefinition, trials: int | None) -> int:
    """Let the study come to that many finished trials; returns the new goal.

    A grid gets no more than its points, and what was asked for earlier stays. Call it
    under the storage's lock: then two callers with one aim do not add up.

    Args:
        trials: None for all of a grid, TRIALS_OF_A_SEARCH of another.
    """
    if definition.sampler == "grid":
        whole = size(study) + sum(1 for _ in _points(study, definition, {}))
        trials = min(max(whole if trials is None else trials, goal(study)["trials"]), whole)
    else:
        trials = max(TRIALS_OF_A_SEARCH if trials is None else trials, goal(study)["trials"])
    _insert(study, _next_points(study, definition, trials), reach=trials, trials=trials)
    return trials


def enqueue(study: optuna.Study, definition: StudyDefinition, trials: int, fixed: space.Point) -> int:
    """Add that many tickets with some parameters fixed, of a grid those it has left; returns how many.

    Call it under the storage's lock.
    """
    added = list(itertools.islice(_points(study, definition, fixed), trials))
    _insert(study, added, trials=goal(study)["trials"] + len(added))
    return len(added)


def refill(study: optuna.Study, url: str) -> int:
    """Make the next tickets on the way to the goal, in the place of failed ones too; returns how many.

    Raises:
        TooManyFailures: as `check_failures`.
    """
    check_failures(study)
    if size(study) >= goal(study)["trials"]:
        return 0
    with lock(url):
        wanted = goal(study)
        points = _next_points(study, definition_of(study), wanted["trials"])
        _insert(study, points, reach=wanted["trials"])
        # Where a failed ticket was one beyond the points of a grid, nothing can replace it: the goal would stay
        # out of reach, and workers would be started again and again to get there.
        nothing_waits = counts(study)[TrialState.WAITING] == freezing.paused(study)
        if not points and nothing_waits and size(study) < wanted["trials"]:
            study.set_user_attr(GOAL, wanted | {"trials": size(study)})
    return len(points)


def _next_points(study: optuna.Study, definition: StudyDefinition, trials: int) -> list[space.Point]:
    """The tickets to create now on the way to that many trials."""
    state = counts(study)
    missing = min(trials - size(study), AHEAD + freezing.paused(study) - state[TrialState.WAITING])
    return list(itertools.islice(_points(study, definition, {}), max(0, missing)))


def _insert(
    study: optuna.Study, points: list[space.Point], *, reach: int | None = None, trials: int | None = None
) -> None:
    """Add tickets and, if it is given, set the goal: all of it or nothing.

    In the place of Optuna's `add_trial`, which adds a trial twice if a commit's answer is lost.

    Args:
        reach: trials that count, of which there are to be no more: the storage's lock may have been lost with its
            connection since they were counted, and another process may have added some.
        trials: the goal.
    """
    with engine_of(study).begin() as connection:
        first = lock_study(connection, study)
        state = count_by_state(connection, study)
        failed = state[TrialState.FAIL]
        room = len(points) if reach is None else max(0, reach - (state.total() - failed))
        for number, point in enumerate(points[:room], start=first):
            add_waiting(connection, study, number, point)
        if trials is not None:
            write_study_attribute(connection, study, GOAL, {"trials": trials, "failed": failed})


def _points(study: optuna.Study, definition: StudyDefinition, fixed: space.Point) -> Iterator[space.Point]:
    """The parameters of the tickets that come next, those that are fixed among them; the sampler fills in the rest."""
    if definition.sampler == "grid":
        for point in _points_of_grid(study, definition):
            yield space.with_defaults(definition, point | fixed) if fixed else point
        return
    make = {"random": space.random_point, "qmc": space.quasi_random_point}.get(definition.sampler)
    numbers = itertools.count(sum(counts(study).values()))
    if not fixed:
        # By what there is and not by number: tickets with fixed values may have come first.
        there = {space.key(trial.system_attrs.get(FIXED_PARAMETERS, {})) for trial in study.get_trials(deepcopy=False)}
        named = (space.with_defaults(definition, values) for values in ({}, *definition.start))
        for point, _ in zip((point for point in named if space.key(point) not in there), numbers, strict=False):
            yield point
    for number in numbers:
        if number == 0:
            yield space.with_defaults(definition, fixed)
        else:
            yield make(definition.space, definition.seed, number - 1, fixed) if make else fixed


def _points_of_grid(study: optuna.Study, definition: StudyDefinition) -> Iterator[space.Point]:
    """What is missing of a grid: each configuration once before any of them again."""
    made = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
    trainings = Counter(space.key(trial.system_attrs.get(FIXED_PARAMETERS, {})) for trial in made)
    points = space.grid(definition)
    for repetition in range(definition.seeds):
        yield from (point for point in points if trainings[space.key(point)] <= repetition)


def check_failures(study: optuna.Study) -> None:
    """Raise TooManyFailures if failed trials outnumber half the finished ones.

    Raises:
        TooManyFailures: since the goal was set, more than half as many trials failed as
            the study has finished or paused, and a few.
    """
    state = counts(study)
    failed = state[TrialState.FAIL] - goal(study)["failed"]
    if failed <= FAILURES:
        return
    if failed > FAILURES + (state[TrialState.COMPLETE] + state[TrialState.PRUNED] + freezing.paused(study)) // 2:
        last = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))[-1]
        reason = reason_of(last) or "no reason is recorded"
        raise TooManyFailures(f"{failed} trials failed, the last of them: {reason}. Run it again once that is fixed.")


def claim(study: optuna.Study, holder: Holder, token: str) -> Ticket | None:
    """Take the oldest ticket, or a paused trial that the scheduler chooses: WAITING to RUNNING, with a new attempt and
    its heartbeat, in one transaction.

    Args:
        token: new for each claim. A claim whose answer was lost may be repeated with it.

    Returns:
        None where nothing waits, or nothing that is worth training for now.
    """
    # Before the transaction: it holds the lock that any other connection of this engine would wait for.
    known = attributes(study)
    wanted = known.get(GOAL, NO_GOAL)["trials"]
    with engine_of(study).begin() as connection:
        if claimed := _claimed(connection, study, token):
            return claimed
        trial = lock_oldest_waiting(connection, study, without=PAUSED, first=ATTEMPTS)
        if known[DEFINITION].get("pruner") == "freeze":
            # Read in any case: an altered record is to end the worker, and not each trial that it claims.
            queue = freezing.Queue.of(connection, study, wanted)
            # An interrupted trial has attempts, and comes before any choice.
            if trial is None or read_attribute(connection, trial.trial_id, ATTEMPTS) is None:
                trial = freezing.choose(connection, study, known, queue, trial)
        if trial is None:
            return None
        remove_attribute(connection, trial.trial_id, PAUSED)
        set_state(connection, trial.trial_id, TrialState.RUNNING)
        return begin(connection, trial, holder, token)


def _claimed(connection: Connection, study: optuna.Study, token: str) -> Ticket | None:
    """The ticket that was claimed with that token already."""
    held = records(connection, study, ATTEMPTS, state=TrialState.RUNNING)
    mine = [each for each in held if parse_attempts(each.stored, each.number)[-1].get("token") == token]
    return next((Ticket(each.trial_id, each.number, each.stored) for each in mine), None)


def is_empty(study: optuna.Study) -> bool:
    """Whether no ticket waits and none is held. If then `refill` has nothing to add, the goal is reached."""
    state = counts(study)
    return state[TrialState.WAITING] == state[TrialState.RUNNING] == 0


def is_done(study: optuna.Study) -> bool:
    """Whether the goal is reached, and no ticket waits or is held.

    Raises:
        StudyError: the study was deleted.
    """
    wanted, state = goal(study)["trials"], counts(study)
    finished = sum(state[each] for each in FINISHED)
    return state[TrialState.WAITING] == state[TrialState.RUNNING] == 0 and finished >= wanted
