"""The finalists stage: train the best configurations again, then publish the winner and its ensemble."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from fmnist import ensemble
from fmnist.checkpoint import Checkpoint, CheckpointError
from fmnist.data import DataSet, LabelledImages, load, split
from fmnist.ensemble import Ensemble
from fmnist.evaluation import Evaluation, evaluate, milliseconds_per_image
from fmnist.files import write_atomically
from fmnist.hyperparameters import ScoreOn
from fmnist.training import EpochMetrics
from fmnist.user_code import running
from search.console.terminal import print_line
from search.database.connection import lock, open_storage
from search.database.retry import reported, retry
from search.formatting import count
from search.outputs import BEST, ENSEMBLE, check_outputs
from search.queue import tickets
from search.queue.reaper import release
from search.results import finalists, ranking
from search.results.finalists import SETTLED, Published, Scored, Standings
from search.results.intervals import share
from search.results.ranking import RACE
from search.results.summary import Stopped
from search.run.supervise import RunSettings, drain
from search.study.definition import StudyDefinition
from search.study.places import artifacts_of, check_artifacts
from search.study.record import read_checkpoint
from search.study.store import (
    ELIMINATED,
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
    """Train a study's `top` best configurations and its default again, with `seeds` fresh seeds each.

    Returns:
        The standings, and what stopped the stage early, if anything did.

    Raises:
        DataError, StorageError, StudyError, NetworkError, ArtifactError, NotOurs: nothing was started.
        WorkersDied, ClusterError, TooManyFailures: the workers cannot continue.
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
    """Train the missing finalist trials and publish the result.

    Args:
        settings: of the search.
        deadline: as in `RunSettings.deadline`.
        early: also choose finalists while the search is unfinished. Otherwise that is a no-op.

    Returns:
        Whether there was anything to do, and what stopped it early, if anything did.
    """
    folder = settings.place.folder
    worker = replace(settings.worker, study=finalists_name(study.study_name))
    place = retry(lambda: finalists.place_of(study, folder))
    settings = replace(settings, worker=worker, place=place)
    chosen = retry(lambda: _choose(study, top, seeds, settings, data, early=early))
    if chosen is None:
        return False, None
    finalist_study = chosen.study
    view = retry(lambda: load_study(open_storage(worker.storage), worker.study))
    had_work, stopped = False, None
    while stopped is None and not retry(lambda: tickets.is_done(view)):
        if not settings.quiet:
            print_line(console, _race(chosen) if had_work else _announcement(chosen, top))
        had_work = True
        stopped = drain(finalist_study, view, settings, chosen.goal, console, deadline)
        if stopped is None:  # the next seeds, of those that may still win
            chosen = retry(lambda: _choose(study, top, seeds, settings, data, early=early)) or chosen
    if had_work and not stopped and not settings.quiet:
        print_line(console, "Scoring the winner and the ensemble.")
    published = retry(lambda: _publish_if_decided(study, finalist_study, folder, worker.storage, data))
    return had_work or published, stopped


@dataclass(frozen=True)
class _Chosen:
    """The finalists' study, its definition and goal; how many configurations are eliminated."""

    study: optuna.Study
    definition: StudyDefinition
    goal: int
    eliminated: int
    unfinished: bool


def _choose(
    study: optuna.Study, top: int, seeds: int, settings: RunSettings, data: DataSet, *, early: bool
) -> _Chosen | None:
    """Create or extend the finalists' study and its queue; None while the search is unfinished, unless `early`.

    All configurations are first trained with RACE seeds. Those that hardly have a chance to win get no more.

    Args:
        settings: of the finalists' study.
    """
    worker = settings.worker
    with lock(worker.storage):
        # Under the lock, because a command that raises the goal holds it too. Otherwise finalists chosen before and
        # after the change would both be trained.
        unfinished = not tickets.is_done(study)
        definition = finalists.define(study, top, seeds) if early or not unfinished else None
        if definition is None:
            return None
        storage = open_storage(worker.storage, "write")
        if own := own_network_of(study):
            definition = definition.of_network(own)
        finalist_study = open_study(
            storage, worker.study, definition, data, settings.place, allow_mixed=worker.allow_mixed
        )
        release(finalist_study)
        drop_partial(finalist_study, artifacts_of(finalist_study))
        if (precision := study.user_attrs.get(PRECISION)) and PRECISION not in finalist_study.user_attrs:
            finalist_study.set_user_attr(PRECISION, precision)  # so that only machines of that precision train them
        trials = finalist_study.get_trials(deepcopy=False)
        eliminated = ranking.eliminated(definition, trials, finalists.points_of(definition, trials))
        if eliminated is None:
            queued = definition.model_copy(update={"seeds": min(RACE, definition.seeds)})
        else:
            queued = definition
            finalist_study.set_user_attr(ELIMINATED, eliminated)
        goal = tickets.top_up(finalist_study, queued, None)
        return _Chosen(finalist_study, definition, goal, len(eliminated or []), unfinished)


def _publish_if_decided(
    study: optuna.Study, finalist_study: optuna.Study, folder: Path, url: str, data: DataSet
) -> bool:
    """Publish the winner and its ensemble unless that has been done; returns whether it did."""
    # Under the lock: of two commands that end together, the slower one could otherwise overwrite the winner's file
    # with that of an earlier winner.
    with lock(url):
        standings = finalists.standings_of(study, folder)
        if standings is None or standings.winner is None or not standings.unsettled:
            return False
        whole = publish_winner(study, finalist_study, standings, folder, data)
    if whole:
        publish_ensemble(finalist_study, folder, url, data)
    return whole


def publish_winner(
    study: optuna.Study, finalist_study: optuna.Study, standings: Standings, folder: Path, data: DataSet
) -> bool:
    """Publish the winner once all finalists are trained; returns False if its checkpoint was deleted.

    Copies the winner's first training, whatever its score, to BEST in the study's folder. If the validation images
    chose it, this is when the test images are used. Records the publication and the search results it is based on.

    Args:
        study: the search; finalist_study: the study of its finalists.
        standings: with a winner.

    Raises:
        CheckpointError: a checkpoint is damaged, or differs from its record.
        NetworkError: the user's own network cannot score the test images.
        OSError, ArtifactError: a file cannot be written or read.
    """
    assert standings.winner is not None
    artifacts, trials = artifacts_of(finalist_study), finalist_study.get_trials(deepcopy=False)
    numbers, former = standings.winner.retrained.trials, finalist_study.user_attrs.get(SETTLED, {})
    trainings = [read_checkpoint(trials[number], artifacts) for number in numbers]
    found = asdict(finalists.search_results(study, finalists.points_of(definition_of(finalist_study), trials)))
    known = former["test"] if former.get("trials") == numbers else []  # the test images are used once
    if trainings[0] is None:
        finalist_study.set_user_attr(SETTLED, {"trials": numbers, "test": known, "found": found, "removed": True})
        return False
    content, first = trainings[0]
    write_atomically(folder / BEST, content)
    kept = [read for _, read in filter(None, trainings)]
    tests = [] if standings.score_on == "test" else _evaluations(kept if not known else kept[:1], data.test)
    record = {
        "trials": numbers,
        "test": known or ([result.accuracy for result in tests] if len(kept) == len(trainings) else []),
        "found": found,
        "single": asdict(_single(numbers[0], content, first, tests, data)),
        "ensemble": {"members": standings.members},  # fixed before any ensemble is scored
    }
    finalist_study.set_user_attr(SETTLED, record)
    return True


def _evaluations(trainings: list[Checkpoint], images: LabelledImages) -> list[Evaluation]:
    networks = [saved.network() for saved in trainings]
    with running(trainings[0].architecture):
        return [evaluate(network, images) for network in networks]


def _single(trial: int, content: bytes, saved: Checkpoint, tests: list[Evaluation], data: DataSet) -> Published:
    # The network in BEST is the first of `tests`.
    network, scores = saved.network(), {str(saved.score_on): _scored(saved.history[-1])}
    if tests:
        scores["test"] = _scored(tests[0])
    with running(saved.architecture):
        milliseconds = milliseconds_per_image(network, data.test.images)
    return Published([trial], saved.digest, len(content) / 1e6, milliseconds, scores)


def publish_ensemble(finalist_study: optuna.Study, folder: Path, url: str, data: DataSet) -> None:
    """Build the ensemble whose members `publish_winner` has recorded, score it once, and write it to ENSEMBLE.

    Raises:
        CheckpointError: a checkpoint is damaged, or differs from its record.
        NetworkError: the user's own network cannot score images.
        OSError, ArtifactError: a file cannot be written or read.
    """
    settled = finalist_study.user_attrs[SETTLED]
    members = settled["ensemble"]["members"]
    made = _ensemble(finalist_study, members, data)  # without the lock: workers of other studies need it
    with lock(url):
        if finalist_study.user_attrs[SETTLED] != settled:
            return  # meanwhile another command has published the same ensemble or a later winner
        if isinstance(made, str):
            (folder / ENSEMBLE).unlink(missing_ok=True)  # of an earlier winner
            outcome: dict[str, Any] = {"without": made}
        else:
            content, published = made
            write_atomically(folder / ENSEMBLE, content)
            outcome = {"published": asdict(published)}
        finalist_study.set_user_attr(SETTLED, settled | {"ensemble": {"members": members, **outcome}})


def _ensemble(finalist_study: optuna.Study, members: list[int], data: DataSet) -> tuple[bytes, Published] | str:
    """The file of an ensemble and its scores, or why there is none."""
    if len(members) == 1:
        return "the winner was trained once, and no other configuration is tied with it"
    if len(members) > ensemble.MAX_MEMBERS:
        return f"{len(members)} networks are tied, and an ensemble has at most {ensemble.MAX_MEMBERS}"
    artifacts, trials = artifacts_of(finalist_study), finalist_study.get_trials(deepcopy=False)
    read = [read_checkpoint(trials[number], artifacts) for number in members]
    if None in read:
        return f"the checkpoint of finalist trial {members[read.index(None)]} was deleted"
    content = ensemble.dump([saved for _, saved in filter(None, read)], members)
    try:
        made = ensemble.parse(content, ENSEMBLE)  # score exactly what a user will load
    except CheckpointError as error:  # trained on other images (--allow-mixed), or too many tensors
        return f"its networks do not fit in one file ({error})"
    assert isinstance(made, Ensemble)
    return content, _of_ensemble(made, len(content), definition_of(finalist_study).score_on, data)


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


def _announcement(chosen: _Chosen, top: int) -> str:
    size, seeds = len(chosen.definition.grid), chosen.definition.seeds
    which = "the best, the default and earlier finalists" if size > top + 1 else "the best and the default"
    warning = " The search is unfinished and may still find better ones." if chosen.unfinished else ""
    return (
        f"Finalists: training {count(size, 'configuration')} ({which}) again "
        f"with {'up to ' if seeds > RACE else ''}{count(seeds, 'fresh seed')} each.{warning}"
    )


def _race(chosen: _Chosen) -> str:
    size, out = len(chosen.definition.grid), chosen.eliminated
    no_more = f"{out} of {size} can hardly win and {'gets' if out == 1 else 'get'} no more"
    return f"Finalists: after {RACE} seeds each, {no_more if out else 'all may still win'}."
