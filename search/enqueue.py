"""Tickets by hand: into the queue of a study, which is made if there is none of that name."""

from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from fmnist import data as fashion
from search.database.connection import lock, opened
from search.database.retry import reported
from search.queue import tickets
from search.study import definition, space
from search.study.places import Place, check_stays
from search.study.store import definition_of, load_study, open_study


@dataclass(frozen=True)
class Enqueued:
    """A study's queue afterwards. waiting: tickets in it. goal: trials that the study comes to."""

    study: str
    added: int
    waiting: int
    goal: int


def enqueue(
    study: str,
    trials: int,
    assignments: tuple[str, ...],
    url: str,
    place: Place,
    name: str,
    data_dir: Path | None,
) -> Enqueued:
    """Add tickets to a study.

    Args:
        study: the name or file of a definition to make it from, if there is none of that name in the database.
        assignments: NAME=VALUE, hyperparameters that these tickets fix.
        place: where a study that is made here has its files.
        name: of the study in the database.

    Raises:
        DefinitionError, StudyError, DataError, StorageError: nothing was added.
    """
    with opened(url, "create") as storage, reported(url), lock(url):
        target = _opened(storage, name, study, place, data_dir)
        defined = definition_of(target)
        fixed = dict(space.parse_assignment(defined, assignment) for assignment in assignments)
        added = tickets.enqueue(target, defined, trials, fixed)
        return Enqueued(name, added, tickets.counts(target)[TrialState.WAITING], tickets.goal(target)["trials"])


def _opened(storage: RDBStorage, named: str, study: str, place: Place, data_dir: Path | None) -> optuna.Study:
    if named in optuna.get_all_study_names(storage):
        opened = load_study(storage, named)
        if place.artifacts:
            check_stays(opened, place.artifacts)
        return opened
    defined = definition.read(study)
    return open_study(storage, named, defined, fashion.load(data_dir), place)
