"""The finalists' stage: their study made or extended, its queue drained, the winner's file put in place."""

from dataclasses import replace

import optuna
from rich.console import Console

from fmnist.data import DataSet, load
from search import finalists, queue
from search.definition import StudyDefinition
from search.drain import RunSettings, Stopped, drain
from search.finalists import Standings
from search.outage import persistently, reported
from search.reaper import release
from search.storage import lock, open_storage
from search.study import check_alike, finalists_name, load_study, open_study
from search.summary import summarize
from search.text import count


def run_finalists(
    settings: RunSettings, top: int, seeds: int, console: Console
) -> tuple[Standings | None, Stopped | None]:
    """Train the best `top` configurations of a study, and its default, with `seeds` fresh seeds each.

    Returns:
        How they stand, and what stopped it before the end.

    Raises:
        DataError, StorageError, StudyError, ArtifactError: nothing was started.
        WorkersDied, ClusterError, TooManyFailures: the workers cannot go on.
    """
    worker = settings.worker
    data = load(worker.data_dir)
    with reported(worker.storage):
        study = load_study(open_storage(worker.storage), worker.study)
        check_alike(study, data, allow_mixed=worker.allow_mixed)
        _, stopped = retrain(study, top, seeds, settings, data, console, settings.deadline())
        return persistently(lambda: finalists.standings_of(study, settings.place.folder)), stopped


def retrain(
    study: optuna.Study,
    top: int,
    seeds: int,
    settings: RunSettings,
    data: DataSet,
    console: Console,
    deadline: float | None,
) -> tuple[bool, Stopped | None]:
    """Train what is missing of the finalists; returns whether anything was, and what stopped it.

    Args:
        settings: the search's own.
        deadline: as `RunSettings.deadline` has it.
    """
    worker = replace(settings.worker, study=finalists_name(study.study_name))
    place = finalists.place_of(study, settings.place.folder)
    with lock(worker.storage):
        definition = finalists.define(study, top, seeds)
        if definition is None:
            return False, None
        storage = open_storage(worker.storage, "write")
        again = open_study(storage, worker.study, definition, data, place, allow_mixed=worker.allow_mixed)
        release(again)
        goal = queue.top_up(again, definition, None)
    view = load_study(open_storage(worker.storage), worker.study)
    stopped = None
    if had_work := summarize(view, place.folder).trials.finished < goal:
        if not settings.quiet:
            console.print(_announcement(definition), highlight=False, soft_wrap=True)
        stopped = drain(again, view, replace(settings, worker=worker, place=place), goal, console, deadline)
    standings = persistently(lambda: finalists.standings_of(study, settings.place.folder))
    if standings and standings.unsettled:
        persistently(lambda: finalists.settle(again, standings.winner, settings.place.folder, data))
        had_work = True
    return had_work, stopped


def _announcement(definition: StudyDefinition) -> str:
    return (
        f"Finalists: {count(len(definition.grid), 'configuration')}, the best and the default, "
        f"trained again with {count(definition.seeds, 'fresh seed')} each."
    )
