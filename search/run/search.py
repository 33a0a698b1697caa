"""A complete search: the study and its queue, its workers, its finalists, its report."""

from contextlib import ExitStack
from dataclasses import replace

import optuna
import torch
from optuna.storages import RDBStorage
from rich.console import Console

from fmnist import data as fashion
from fmnist.device import default_precision
from fmnist.errors import ExpectedError
from search.choices import SEEDS
from search.console.terminal import print_line, terminal
from search.database.connection import lock, open_storage
from search.database.retry import reported, retry
from search.database.url import StorageError, displayed, warnings_for
from search.formatting import count
from search.outputs import REPORT, check_name, check_outputs
from search.queue import tickets
from search.queue.reaper import held, release
from search.results.finalists import standings_of
from search.results.summary import RunResult, Stopped, Summary, summarize
from search.results.wording import listed
from search.run.finalists import retrain
from search.run.supervise import RunSettings, drain
from search.study import space, store
from search.study.definition import StudyDefinition
from search.study.places import artifacts_of, folder_of
from search.study.store import check_precision, load_study, open_study
from search.worker.retention import drop_partial
from search.worker.trial import try_network


def run_search(definition: StudyDefinition, settings: RunSettings, console: Console | None = None) -> RunResult:
    """Run or resume a search until its goal or timeout, train its finalists, and write the report.

    If an earlier run queued more trials, those are run too. Workers are processes that import the main module, so a
    script must call this below `if __name__ == "__main__":`.

    Args:
        console: where progress is shown; standard output if None.

    Raises:
        DataError, StorageError, StudyError, ArtifactError, NotOurs: the search was not started.
        NetworkError, DefinitionError: the user's own network cannot be searched; the search was not started.
        WorkersDied, ClusterError, TooManyFailures: the search cannot continue.
        OSError: the report cannot be written.
    """
    console = console or terminal()
    definition = definition.loaded()
    try_network(definition)
    settings = replace(settings, trials=settings.trials or definition.trials).of_network(definition.own)
    worker, deadline = settings.worker, settings.deadline()
    data = fashion.load(worker.data_dir)
    fashion.check_split(data, definition.score_on)
    with reported(worker.storage), ExitStack() as stack:
        storage = retry(lambda: open_storage(worker.storage, "create"), reached=False)
        stack.callback(storage.engine.dispose)
        study, goal = retry(lambda: _top_up(storage, definition, settings, data))
        view = retry(lambda: load_study(open_storage(worker.storage), worker.study))
        folder = retry(lambda: folder_of(view))
        settings = replace(settings, place=replace(settings.place, folder=folder, named=True))
        summary = retry(lambda: summarize(view, folder))
        if summary.trials.left and not settings.quiet:
            _announce(console, study, definition, data, settings, summary, goal)
        had_work, stopped, error = False, None, None
        while True:
            worked, stopped, error = _advance(study, view, definition, settings, data, console, deadline)
            had_work |= worked
            standings = retry(lambda: standings_of(view, folder))
            goal = retry(lambda: tickets.goal(view)["trials"])  # before the summary that is compared with it
            summary = retry(lambda: summarize(view, folder))
            if stopped or error or not summary.trials.left:
                break  # else another command has raised the goal meanwhile
        report = folder / REPORT
        if had_work or not report.is_file():
            from search.report import write  # takes a second, which must not delay the start

            retry(lambda: write(view, folder, report, lambda: data, worker.storage, usual=settings.usual))
    return RunResult(view, data, summary, goal, standings, had_work, stopped, error, report)


def _top_up(
    storage: RDBStorage, definition: StudyDefinition, settings: RunSettings, data: fashion.DataSet
) -> tuple[optuna.Study, int]:
    worker = settings.worker
    with lock(worker.storage):
        if worker.study not in optuna.get_all_study_names(storage):
            check_name(worker.study)
        study = open_study(storage, worker.study, definition, data, settings.place, allow_mixed=worker.allow_mixed)
        if settings.engine == "local":  # on a cluster each worker checks its machine's precision
            check_precision(study, default_precision(torch.device(worker.device)), allow_mixed=worker.allow_mixed)
        check_outputs(folder_of(study))
        if settings.command:
            store.note(study, settings.command)
        release(study)
        drop_partial(study, artifacts_of(study, folder_of(study)))
        return study, tickets.top_up(study, definition, settings.trials)


def _advance(
    study: optuna.Study,
    view: optuna.Study,
    definition: StudyDefinition,
    settings: RunSettings,
    data: fashion.DataSet,
    console: Console,
    deadline: float | None,
) -> tuple[bool, Stopped | None, ExpectedError | None]:
    # Run the search's trials, then its finalists if it reached its goal. Returns whether anything was left to do, what
    # stopped it, and the error of the finalists. The search's workers leave the finalists of an earlier run alone, as
    # this run may choose others.
    searching = replace(settings, worker=replace(settings.worker, finalists=False))
    trials = retry(lambda: summarize(view, settings.place.folder)).trials
    stopped: Stopped | None = None
    if trials.left:
        stopped = drain(study, view, searching, trials.finished + trials.left, console, deadline)
    if not definition.finalists:
        done = retry(lambda: tickets.is_done(view))  # it may have been stopped just when it finished
        return trials.left > 0, None if done else stopped, None
    if stopped:
        return True, stopped, None
    try:
        trained, stopped = retrain(study, definition.finalists, SEEDS, settings, data, console, deadline)
    except StorageError:
        raise  # the report needs the database too
    except ExpectedError as failure:
        return True, None, failure
    return trained or trials.left > 0, stopped, None


def _announce(
    console: Console,
    study: optuna.Study,
    definition: StudyDefinition,
    data: fashion.DataSet,
    settings: RunSettings,
    summary: Summary,
    goal: int,
) -> None:
    worker = settings.worker
    where = f" on the Ray cluster at {settings.address}" if settings.engine == "ray" else ""
    before = f" ({summary.trials.finished} already finished)" if summary.trials.finished else ""
    if settings.trials and goal > settings.trials:
        before += f", the goal of an earlier run instead of {settings.trials},"
    pruner = retry(lambda: store.definition_of(study).pruner)
    lines = [
        f"Study {worker.study}: {goal} trials{before} of {_networks(definition)} on {data.name} "
        f"({len(data.train):,} + {len(data.test):,} images), scored on {definition.score_on}.",
        f"{_sampler(definition)}, {pruner} pruner, seed {definition.seed}; "
        f"{count(settings.workers, 'worker')}{where}, torch threads each: {settings.each()[0].threads}, "
        f"device: {worker.device}; {displayed(worker.storage)}",
        *(f"Already running: {holder}." for holder in retry(lambda: held(study))),
        *warnings_for(worker.storage, settings.workers, cluster=settings.engine == "ray"),
    ]
    for line in lines:
        print_line(console, line)


def _networks(definition: StudyDefinition) -> str:
    searched = definition.ranges.get("architecture")
    return listed(searched.values() if searched else [definition.defaults.architecture])


def _sampler(definition: StudyDefinition) -> str:
    if definition.sampler != "grid":
        return f"{definition.sampler} sampler"
    seeds = f", {definition.seeds} seeds each" if definition.seeds > 1 else ""
    return f"grid of {count(len(space.grid(definition)), 'configuration')}{seeds}"
