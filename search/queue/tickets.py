"""Tickets (queued trials): created up to a goal, claimed exactly once, replaced if they fail.

A ticket is a WAITING trial in Optuna's tables. A claim is one transaction, so any number of workers on any machines
can share the queue. `lease` handles claimed tickets. A paused trial is WAITING too, until `scheduler` chooses it or
the search ends.
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
from search.study.store import DEFINITION, ELIMINATED, GOAL, NO_GOAL, attributes, definition_of
from search.study.store import goal as goal

AHEAD = 100  # tickets in advance; Optuna reads every waiting trial again for each trial that it samples
FAILURES = 3  # failed trials that a study may have in addition to half of its finished ones


class TooManyFailures(ExpectedError):
    """Too many trials failed to keep replacing them; the message contains the last reason."""


def counts(study: optuna.Study) -> Counter[TrialState]:
    """Number of trials in each state."""
    with engine_of(study).connect() as connection:
        return count_by_state(connection, study)


def size(study: optuna.Study) -> int:
    """Number of trials that count towards the goal: all but failed ones."""
    state = counts(study)
    return sum(state.values()) - state[TrialState.FAIL]


def top_up(study: optuna.Study, definition: StudyDefinition, trials: int | None) -> int:
    """Raise the study's goal to `trials` finished trials and add tickets; return the new goal.

    The goal never decreases, and never exceeds the size of a grid. Requires the database's lock, so that two callers
    with the same goal do not both add tickets.

    Args:
        trials: None for the whole grid, or TRIALS_OF_A_SEARCH with another sampler.
    """
    if definition.sampler == "grid":
        available = size(study) + sum(1 for _ in _points(study, definition, {}))
        trials = min(max(available if trials is None else trials, goal(study)["trials"]), available)
    else:
        trials = max(TRIALS_OF_A_SEARCH if trials is None else trials, goal(study)["trials"])
    _insert(study, _next_points(study, definition, trials), reach=trials, trials=trials)
    return trials


def enqueue(study: optuna.Study, definition: StudyDefinition, trials: int, fixed: space.Point) -> int:
    """Add tickets with some parameters fixed, at most as many as a grid has left; return their number.

    Requires the database's lock.
    """
    added = list(itertools.islice(_points(study, definition, fixed), trials))
    _insert(study, added, trials=goal(study)["trials"] + len(added))
    return len(added)


def refill(study: optuna.Study, url: str) -> int:
    """Add the next tickets towards the goal, including replacements of failed ones; return their number.

    Raises:
        TooManyFailures: as in `check_failures`.
    """
    check_failures(study)
    if size(study) >= goal(study)["trials"]:
        return 0
    with lock(url):
        wanted = goal(study)
        points = _next_points(study, definition_of(study), wanted["trials"])
        _insert(study, points, reach=wanted["trials"])
        # A failed ticket that was added beyond a grid's points cannot be replaced. Lower the goal, which would stay
        # out of reach while workers are restarted forever.
        nothing_waits = counts(study)[TrialState.WAITING] == freezing.paused(study)
        if not points and nothing_waits and size(study) < wanted["trials"]:
            study.set_user_attr(GOAL, wanted | {"trials": size(study)})
    return len(points)


def _next_points(study: optuna.Study, definition: StudyDefinition, trials: int) -> list[space.Point]:
    state = counts(study)
    missing = min(trials - size(study), AHEAD + freezing.paused(study) - state[TrialState.WAITING])
    return list(itertools.islice(_points(study, definition, {}), max(0, missing)))


def _insert(
    study: optuna.Study, points: list[space.Point], *, reach: int | None = None, trials: int | None = None
) -> None:
    # One transaction for the tickets and, if given, the new goal `trials`. Optuna's `add_trial` would add a trial twice
    # if the answer to a commit is lost. `reach` limits the number of counted trials: the database's lock may have been
    # lost with its connection since they were counted, and another process may have added some.
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
    # The parameters of the next tickets, including `fixed`; the sampler adds the rest.
    if definition.sampler == "grid":
        for point in _points_of_grid(study, definition):
            yield space.with_defaults(definition, point | fixed) if fixed else point
        return
    make = {"random": space.random_point, "qmc": space.quasi_random_point}.get(definition.sampler)
    numbers = itertools.count(sum(counts(study).values()))
    if not fixed:
        # Compare points, not numbers: tickets with fixed values may have been added first.
        trials = study.get_trials(deepcopy=False)
        queued = {space.key(trial.system_attrs.get(FIXED_PARAMETERS, {})) for trial in trials}
        named = (space.with_defaults(definition, values) for values in ({}, *definition.start))
        for point, _ in zip((point for point in named if space.key(point) not in queued), numbers, strict=False):
            yield point
    for number in numbers:
        if number == 0:
            yield space.with_defaults(definition, fixed)
        else:
            yield make(definition.space, definition.seed, number - 1, fixed) if make else fixed


def _points_of_grid(study: optuna.Study, definition: StudyDefinition) -> Iterator[space.Point]:
    # The missing points: each configuration once before any is repeated.
    existing = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
    trainings = Counter(space.key(trial.system_attrs.get(FIXED_PARAMETERS, {})) for trial in existing)
    eliminated = {space.key(point) for point in attributes(study).get(ELIMINATED, [])}
    points = [point for point in space.grid(definition) if space.key(point) not in eliminated]
    for repetition in range(definition.seeds):
        yield from (point for point in points if trainings[space.key(point)] <= repetition)


def check_failures(study: optuna.Study) -> None:
    """Check that failed trials do not outnumber half of the finished ones.

    Raises:
        TooManyFailures: since the goal was set, more trials failed than FAILURES plus half of those that are finished
            or paused.
    """
    state = counts(study)
    failed = state[TrialState.FAIL] - goal(study)["failed"]
    if failed <= FAILURES:
        return
    if failed > FAILURES + (state[TrialState.COMPLETE] + state[TrialState.PRUNED] + freezing.paused(study)) // 2:
        last = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))[-1]
        reason = reason_of(last) or "no reason is recorded"
        raise TooManyFailures(f"{failed} trials failed, the last one with: {reason}. Fix that and run again.")


def claim(study: optuna.Study, holder: Holder, token: str) -> Ticket | None:
    """Claim the oldest ticket, or the paused trial that the scheduler chooses, in one transaction.

    Args:
        token: new for each claim; a claim whose answer was lost can be repeated with the same token.

    Returns:
        The claimed ticket; None if nothing is waiting, or nothing that is worth training now.
    """
    # Before the transaction, whose lock another connection of this engine would wait for.
    known = attributes(study)
    wanted = known.get(GOAL, NO_GOAL)["trials"]
    with engine_of(study).begin() as connection:
        if claimed := _claimed(connection, study, token):
            return claimed
        trial = lock_oldest_waiting(connection, study, without=PAUSED, first=ATTEMPTS)
        if known[DEFINITION].get("pruner") == "freeze":
            # Read it always: an altered record must stop the worker here, instead of failing each trial it claims.
            queue = freezing.Queue.of(connection, study, wanted)
            # An interrupted trial has attempts, and comes first without a choice.
            if trial is None or read_attribute(connection, trial.trial_id, ATTEMPTS) is None:
                trial = freezing.choose(connection, study, known, queue, trial)
        if trial is None:
            return None
        remove_attribute(connection, trial.trial_id, PAUSED)
        set_state(connection, trial.trial_id, TrialState.RUNNING)
        return begin(connection, trial, holder, token)


def _claimed(connection: Connection, study: optuna.Study, token: str) -> Ticket | None:
    running = records(connection, study, ATTEMPTS, state=TrialState.RUNNING)
    mine = [each for each in running if parse_attempts(each.stored, each.number)[-1].get("token") == token]
    return next((Ticket(each.trial_id, each.number, each.stored) for each in mine), None)


def is_empty(study: optuna.Study) -> bool:
    """Whether no trial is waiting or running. If `refill` then has nothing to add, the goal is reached."""
    state = counts(study)
    return state[TrialState.WAITING] == state[TrialState.RUNNING] == 0


def is_done(study: optuna.Study) -> bool:
    """Whether the goal is reached and no trial is waiting or running.

    Raises:
        StudyError: the study was deleted.
    """
    wanted, state = goal(study)["trials"], counts(study)
    finished = sum(state[each] for each in FINISHED)
    return state[TrialState.WAITING] == state[TrialState.RUNNING] == 0 and finished >= wanted
