"""The commands that distribute and maintain a study: worker, enqueue, stop, delete, gc, reproduce."""

from pathlib import Path
from typing import Any

import click

from search import logs
from search.choices import OUTPUT
from search.cli.options import (
    artifacts_option,
    data_dir_option,
    deleting_from_option,
    log_options,
    network_dir_option,
    new_study_argument,
    opened_study,
    own_network_options,
    storage_options,
    study_argument,
    worker_options,
)
from search.logs import Level


@click.command(short_help="Work on a STUDY that another process started.")
@study_argument
@storage_options
@click.option("--follow", is_flag=True, help="Keep waiting for the study and for tickets when the queue is empty.")
@own_network_options
@worker_options
@log_options("info")
def worker(
    study: str,
    storage: str | None,
    output: Path | None,
    follow: bool,
    workers: int | None,
    data_dir: Path | None,
    device: str,
    grace: float,
    allow_mixed: bool,
    log_level: Level,
    log_file: Path | None,
) -> None:
    """Work on a STUDY that another process started, from any machine that can reach its database.

    The study's definition is read from the database. On SIGTERM or Ctrl-C, workers finish their epoch, save a
    checkpoint, and return their trials to the queue.

    \b
    Examples:
      fmnist-search worker cnn --storage postgresql://me@db/studies
      fmnist-search worker cnn --follow --workers 1
    """
    from fmnist.device import device_of
    from search.database.url import url_of
    from search.run.local import workers_for
    from search.run.supervise import join
    from search.worker.loop import WorkerSettings

    settings = WorkerSettings(
        storage=url_of(storage, output),
        study=study,
        data_dir=data_dir,
        output=output,
        device=device_of(device).type,
        grace=grace,
        follow=follow,
        allow_mixed=allow_mixed,
        log_level=log_level,
    )
    logs.configure(log_level, log_file)
    if join(settings, workers or workers_for(settings.device), say=click.echo):
        raise SystemExit(130)


@click.command(short_help="Add tickets to the queue of a STUDY.")
@new_study_argument
@click.option("--trials", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Tickets to add.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Fix a hyperparameter; repeatable.")
@storage_options
@artifacts_option
@click.option("--name", help="Name of the study in the database.  [default: the study file's]")
@network_dir_option("the study file's")
@data_dir_option
def enqueue(
    study: str,
    trials: int,
    assignments: tuple[str, ...],
    storage: str | None,
    output: Path | None,
    artifacts: str | None,
    name: str | None,
    data_dir: Path | None,
) -> None:
    """Add tickets to the queue of STUDY for workers to run; create the study if it does not exist.

    \b
    Examples:
      fmnist-search enqueue cnn --trials 20
      fmnist-search enqueue cnn --set learning_rate=0.003 --set epochs=5
    """
    from search.artifacts import located
    from search.database.url import url_of
    from search.run.supervise import enqueue as add
    from search.study.places import Place

    named = name or Path(study).stem
    place = Place((output or OUTPUT) / named, located(artifacts))
    result = add(study, trials, assignments, url_of(storage, output), place, named, data_dir)
    click.echo(f"Study {result.study}: {result.added} added, {result.waiting} waiting, {result.goal} in total.")


@click.command(short_help="Ask all workers of a STUDY to stop.")
@study_argument
@storage_options
def stop(study: str, storage: str | None, output: Path | None) -> None:
    """Ask all workers of STUDY, on every machine, to finish their epoch and stop.

    \b
    Example:
      fmnist-search stop cnn
    """
    from search.queue.reaper import held
    from search.study.store import finalists_of, request_stop

    with opened_study(study, storage, output, mode="write") as (opened, _):
        finalists = finalists_of(opened)
        holders = [*held(opened), *(held(finalists) if finalists else [])]
        request_stop(opened)
    for holder in holders:
        click.echo(f"asked: {holder}")
    click.echo(f"Workers of study {study} stop after their current epochs; resume with `run` or `worker`.")


@click.command()
@study_argument
@storage_options
@deleting_from_option
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete(study: str, storage: str | None, output: Path | None, artifacts: str | None, yes: bool) -> None:
    """Delete STUDY: its trials, finalists, checkpoints and report.

    Only files below --output and --artifacts, or beside an SQLite database, are deleted. The study's other files are
    kept, and their locations printed.

    \b
    Examples:
      fmnist-search delete cnn
      fmnist-search delete cnn --storage postgresql://me@db/studies --output studies
    """
    from search.artifacts import located
    from search.database.connection import lock
    from search.database.url import url_of
    from search.results.summary import summarize
    from search.study.places import deletable_roots, is_within
    from search.worker import retention

    url = url_of(storage, output)
    with opened_study(study, storage, output, mode="write") as (opened, folder):
        trials, roots = summarize(opened, folder).trials, deletable_roots(opened, output, located(artifacts))
        files = retention.files_of(opened, folder, located(artifacts))
        places = [place for each in files for place in each.places]
        kept = [place for place in places if not is_within(place, roots)]
        note = f" Files in {' and '.join(kept)} are kept; to delete them, name --output or --artifacts." if kept else ""
        if not yes:
            deleted = " and ".join(place for place in places if place not in kept)
            click.confirm(
                f"Delete study {study} with {trials.finished} finished and {trials.running} running trials, "
                f"its finalists{f' and their files in {deleted}' if deleted else ''}?{note}",
                abort=True,
            )
        with lock(url):
            for each in reversed(files):  # the finalists first: the study's record leads to them
                retention.delete(each, roots)
    click.echo(f"Deleted study {study}.")
    if kept:
        click.echo(f"Kept its files in {' and '.join(kept)}.")


@click.command(short_help="Remove checkpoints of outperformed trials.")
@study_argument
@storage_options
@deleting_from_option
@click.option("--keep", type=click.IntRange(1), help="Best checkpoints to keep.  [default: the --keep of the last run]")
def gc(study: str, storage: str | None, output: Path | None, artifacts: str | None, keep: int | None) -> None:
    """Remove checkpoints of STUDY, except those of the best trials and those that unfinished trials need.

    Only files below --output and --artifacts, or beside an SQLite database, are removed.

    \b
    Example:
      fmnist-search gc cnn --keep 1
    """
    from search.artifacts import located, open_artifacts
    from search.formatting import count
    from search.study.places import KEEP, check_within, deletable_roots
    from search.worker import retention

    with opened_study(study, storage, output, mode="write") as (opened, folder):
        location = retention.files_of(opened, folder, located(artifacts))[0].location
        check_within(opened, location, deletable_roots(opened, output, located(artifacts)))
        store = open_artifacts(location)
        outperformed = retention.drop_outperformed(opened, store, keep or opened.user_attrs[KEEP])
        orphans = retention.drop_orphans(opened, store)
    removed = f"{count(outperformed, 'checkpoint')} of outperformed trials and {count(orphans, 'orphaned file')}"
    click.echo(f"Removed {removed}.")


@click.command(short_help="Train a trial again and compare it bit by bit.")
@study_argument
@click.argument("number", type=click.IntRange(0))
@storage_options
@own_network_options
@data_dir_option
def reproduce(study: str, number: int, storage: str | None, output: Path | None, data_dir: Path | None) -> None:
    """Train trial NUMBER of STUDY again and report whether metrics and weights are bit-identical.

    \b
    Example:
      fmnist-search reproduce cnn 0
    """
    from fmnist.data import load
    from search.formatting import percent
    from search.study.definition import differences
    from search.study.store import VERSIONS, versions
    from search.worker.reproduce import reproduce as reproduce_trial

    def show(compared: Any) -> None:
        verdict = "the same" if compared.recorded == compared.found else "DIFFERENT"
        click.echo(
            f"epoch {compared.epoch:g}: recorded {percent(compared.recorded)}, now {percent(compared.found)}, {verdict}"
        )

    with opened_study(study, storage, output) as (opened, _):
        result = reproduce_trial(opened, number, load(data_dir), show)
        changed = differences(opened.user_attrs[VERSIONS], versions())
    click.echo(f"Metrics: {_verdict(result.same_metrics)}. Weights: {_verdict(result.same_weights)}.")
    if not (result.same_metrics and result.same_weights):
        if changed:
            click.echo(f"Note: the study was started with other versions ({'; '.join(changed)}).", err=True)
        raise SystemExit(1)


def _verdict(same: bool) -> str:
    return "bit-identical" if same else "different"
