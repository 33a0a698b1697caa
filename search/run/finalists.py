"""The finalists' stage: their study made or extended, its queue drained, the winner's file put in place."""

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from fmnist import ensemble
from fmnist.checkpoint import Checkpoint, CheckpointError
from fmnist.data import DataSet, LabelledImages, load, split
from fmnist.ensemble import Ensemble
from fmnist.evaluation import Evaluation, evaluate, milliseconds_per_image
from fmnist.files import write_whole
from fmnist.hyperparameters import ScoreOn
from fmnist.training import EpochMetrics
from fmnist.user_code import running
from search.database.connection import lock, open_storage
from search.database.retry import reported, retry
from search.formatting import count
from search.outputs import BEST, ENSEMBLE, check_outputs
from search.queue import tickets
from search.queue.reaper import release
from search.results import finalists
from search.results.finalists import SETTLED, Published, Scored, Standings
from search.results.intervals import share
from search.results.summary import Stopped
from search.run.supervise import RunSettings, drain
from search.study.definition import StudyDefinition
from search.study.places import artifacts_of, check_artifacts
from search.study.record import read_checkpoint
from search.study.store import (
    PRECISION,
    check_alike,
    definition_of,
    finalists_name,
    load_study,
    open_study,
    own_network_of,
)
from search.worker.retention import drop_partial


def run_finalists(
    settings: RunSettings, top: int, seeds: int, console: Console
) -> tuple[Standings | None, Stopped | None]:
    """Train the best `top` configurations of a study, and its default, with `seeds` fresh seeds each.

    Returns:
        How they stand, and what stopped it before the end.

    Raises:
        DataError, StorageError, StudyError, NetworkError, ArtifactError, NotOurs: nothing was started.
        WorkersDied, ClusterError, TooManyFailures: the workers cannot go on.
    """
    worker = settings.worker
    check_outputs(settings.place.folder)
    data = load(worker.data_dir)
    with reported(worker.storage), ExitStack() as stack:
        storage = retry(lambda: open_storage(worker.storage), reached=False)
        stack.callback(storage.engine.dispose)
        study = retry(lambda: load_study(storage, worker.study))
        retry(lambda: check_alike(study, data, allow_mixed=worker.allow_mixed))
        retry(lambda: check_artifacts(study, settings.place.folder))
        settings = settings.of_network(retry(lambda: own_network_of(study)))
        _, stopped = retrain(study, top, seeds, settings, data, console, settings.deadline(), early=True)
        return retry(lambda: finalists.standings_of(study, settings.place.folder)), stopped


def retrain(
    study: optuna.Study,
    top: int,
    seeds: int,
    settings: RunSettings,
    data: DataSet,
    console: Console,
    deadline: float | None,
    *,
    early: bool = False,
) -> tuple[bool, Stopped | None]:
    """Train what is missing of the finalists; returns whether anything was, and what stopped it.

    Args:
        settings: the search's own.
        deadline: as `RunSettings.deadline` has it.
        early: choose them from an unfinished search too. Otherwise nothing is done before the goal is reached.
    """
    folder = settings.place.folder
    worker = replace(settings.worker, study=finalists_name(study.study_name))
    place = retry(lambda: finalists.place_of(study, folder))
    settings = replace(settings, worker=worker, place=place)
    chosen = retry(lambda: _choose(study, top, seeds, settings, data, early=early))
    if chosen is None:
        return False, None
    again, definition, goal, unfinished = chosen
    view = retry(lambda: load_study(open_storage(worker.storage), worker.study))
    had_work, stopped = False, None
    while stopped is None and not retry(lambda: tickets.is_done(view)):
        if not settings.quiet and not had_work:
            console.print(_announcement(definition, top, unfinished=unfinished), soft_wrap=True)
        had_work = True
        stopped = drain(again, view, settings, goal, console, deadline)
    if had_work and not stopped and not settings.quiet:
        console.print("Scoring the winner and the ensemble.")
    published = retry(lambda: _publish_if_decided(study, again, folder, worker.storage, data))
    return had_work or published, stopped


def _choose(
    study: optuna.Study, top: int, seeds: int, settings: RunSettings, data: DataSet, *, early: bool
) -> tuple[optuna.Study, StudyDefinition, int, bool] | None:
    """Create or extend the finalists' study; None while the search has not reached its goal, unless `early`.

    Args:
        settings: of the finalists' study.

    Returns:
        The study, its definition, its goal, and whether the search is unfinished.
    """
    worker = settings.worker
    with lock(worker.storage):
        # Checked under the lock, because a command that raises the goal holds it too: finalists chosen before and
        # after that would both be trained.
        unfinished = not tickets.is_done(study)
        definition = finalists.define(study, top, seeds) if early or not unfinished else None
        if definition is None:
            return None
        storage = open_storage(worker.storage, "write")
        if own := own_network_of(study):
            definition = definition.of_network(own)
        again = open_study(storage, worker.study, definition, data, settings.place, allow_mixed=worker.allow_mixed)
        release(again)
        drop_partial(again, artifacts_of(again))
        if (precision := study.user_attrs.get(PRECISION)) and PRECISION not in again.user_attrs:
            again.set_user_attr(PRECISION, precision)  # else a machine of another might train the finalists alone
        return again, definition, tickets.top_up(again, definition, None), unfinished


def _publish_if_decided(study: optuna.Study, again: optuna.Study, folder: Path, url: str, data: DataSet) -> bool:
    """Publish the winner and its ensemble if that is still to be done; returns whether it was."""
    # Under the lock: of two commands that end together, one could otherwise put the file of an earlier winner in the
    # place of the present one's, which the other has just put on record.
    with lock(url):
        standings = finalists.standings_of(study, folder)
        if standings is None or standings.winner is None or not standings.unsettled:
            return False
        whole = publish_winner(study, again, standings, folder, data)
    if whole:
        publish_ensemble(again, folder, url, data)
    return whole


def publish_winner(study: optuna.Study, again: optuna.Study, standings: Standings, folder: Path, data: DataSet) -> bool:
    """Publish the winner, once all finalists are trained; returns False if its checkpoint was removed.

    Its first training, whatever that scored, is copied to BEST in the study's folder. If other images chose
    it, the test images are looked at now. That it is done is put on record, and what the search had found.

    Args:
        study: the search; again: the study of its finalists.
        standings: with a winner.

    Raises:
        CheckpointError: a training's file is damaged or not the one on record.
        NetworkError: the user's own network cannot score the test images.
        OSError, ArtifactError: a file cannot be written or read.
    """
    assert standings.winner is not None
    artifacts, trials = artifacts_of(again), again.get_trials(deepcopy=False)
    numbers, former = standings.winner.again.trials, again.user_attrs.get(SETTLED, {})
    trainings = [read_checkpoint(trials[number], artifacts) for number in numbers]
    found = asdict(finalists.find(study, finalists.points_of(definition_of(again), trials)))
    known = former["test"] if former.get("trials") == numbers else []  # looked at once is enough
    if trainings[0] is None:
        again.set_user_attr(SETTLED, {"trials": numbers, "test": known, "found": found, "removed": True})
        return False
    content, first = trainings[0]
    write_whole(folder / BEST, content)
    kept = [read for _, read in filter(None, trainings)]
    tests = [] if standings.score_on == "test" else _evaluations(kept if not known else kept[:1], data.test)
    record = {
        "trials": numbers,
        "test": known or ([result.accuracy for result in tests] if len(kept) == len(trainings) else []),
        "found": found,
        "single": asdict(_single(numbers[0], content, first, tests, data)),
        "ensemble": {"members": standings.members},  # fixed before any ensemble is scored
    }
    again.set_user_attr(SETTLED, record)
    return True


def _evaluations(trainings: list[Checkpoint], images: LabelledImages) -> list[Evaluation]:
    networks = [saved.network() for saved in trainings]
    with running(trainings[0].architecture):
        return [evaluate(network, images) for network in networks]


def _single(trial: int, content: bytes, saved: Checkpoint, tests: list[Evaluation], data: DataSet) -> Published:
    """The network in BEST: the first of those that were tested, if other images chose it."""
    network, scores = saved.network(), {str(saved.score_on): _scored(saved.history[-1])}
    if tests:
        scores["test"] = _scored(tests[0])
    with running(saved.architecture):
        milliseconds = milliseconds_per_image(network, data.test.images)
    return Published([trial], saved.digest, len(content) / 1e6, milliseconds, scores)


def publish_ensemble(again: optuna.Study, folder: Path, url: str, data: DataSet) -> None:
    """Make the ensemble whose members `publish_winner` has put on record, score it once, and write it to ENSEMBLE.

    Raises:
        CheckpointError: a training's file is damaged or not the one on record.
        NetworkError: the user's own network cannot score images.
        OSError, ArtifactError: a file cannot be written or read.
    """
    settled = again.user_attrs[SETTLED]
    members = settled["ensemble"]["members"]
    made = _ensemble(again, members, data)  # without the lock, for which workers of other studies would wait
    with lock(url):
        if again.user_attrs[SETTLED] != settled:
            return  # another command has published the same meanwhile, or a later winner
        if isinstance(made, str):
            (folder / ENSEMBLE).unlink(missing_ok=True)  # of an earlier winner
            outcome: dict[str, Any] = {"without": made}
        else:
            content, published = made
            write_whole(folder / ENSEMBLE, content)
            outcome = {"published": asdict(published)}
        again.set_user_attr(SETTLED, settled | {"ensemble": {"members": members, **outcome}})


def _ensemble(again: optuna.Study, members: list[int], data: DataSet) -> tuple[bytes, Published] | str:
    """The file of an ensemble and its scores, or why there is none."""
    if len(members) == 1:
        return "there is one training of the winner, and nothing ties with it"
    if len(members) > ensemble.MOST_MEMBERS:
        return f"{len(members)} trainings tie, and an ensemble has {ensemble.MOST_MEMBERS} at the most"
    artifacts, trials = artifacts_of(again), again.get_trials(deepcopy=False)
    read = [read_checkpoint(trials[number], artifacts) for number in members]
    if None in read:
        return f"the checkpoint of training {members[read.index(None)]} was removed"
    content = ensemble.dump([saved for _, saved in filter(None, read)], members)
    try:
        made = ensemble.parse(content, ENSEMBLE)  # what is scored is what will be read
    except CheckpointError as error:  # of other images with --allow-mixed, or a network of thousands of tensors
        return f"its trainings cannot be in one file ({error})"
    assert isinstance(made, Ensemble)
    return content, _of_ensemble(made, len(content), definition_of(again).score_on, data)


def _of_ensemble(made: Ensemble, size: int, score_on: ScoreOn, data: DataSet) -> Published:
    network = made.network()
    images = {str(score_on): split(data, score_on).scored, "test": data.test}
    with running(made.architecture):
        scores = {name: _scored(evaluate(network, each)) for name, each in images.items()}
        milliseconds = milliseconds_per_image(network, data.test.images)
    return Published(made.trials, made.digest, size / 1e6, milliseconds, scores)


def _scored(result: Evaluation | EpochMetrics) -> Scored:
    interval = share(result.correct, result.total)
    return Scored(result.accuracy, result.correct, result.total, interval.low, interval.high)


def _announcement(definition: StudyDefinition, top: int, *, unfinished: bool) -> str:
    size = len(definition.grid)
    whom = "the best, the default and those of before" if size > top + 1 else "the best and the default"
    warning = " The search is unfinished, so it may still find others." if unfinished else ""
    return (
        f"Finalists: {count(size, 'configuration')}, {whom}, "
        f"trained again with {count(definition.seeds, 'fresh seed')} each.{warning}"
    )
