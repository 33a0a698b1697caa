"""The commands that start a search: run, finalists; and studies, which lists what can be run and what was."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from search import logs
from search.choices import KEEP, PRUNERS, SAMPLERS, SEEDS, TOP, Engine
from search.cli.options import (
    FiniteRange,
    artifacts_option,
    check_engine,
    cluster_options,
    finalists_command,
    json_option,
    location_options,
    log_options,
    network_dir_option,
    new_study_argument,
    opened_study,
    own_network_options,
    score_on_option,
    storage_options,
    study_argument,
    usual_location,
    worker_options,
)
from search.cli.settings import as_arguments
from search.logs import Level


@click.command(short_help="Run the search of a STUDY.")
@new_study_argument
@click.option("--trials", type=click.IntRange(1), help="Finished trials to reach.  [default: the study's]")
@click.option(
    "--timeout",
    type=FiniteRange(0, min_open=True),
    help="Seconds after which trials stop at their next intermediate value.",
)
@storage_options
@artifacts_option
@click.option("--keep", type=click.IntRange(1), default=KEEP, show_default=True, help="Best checkpoints to keep.")
@click.option("--name", help="Name of the study in the database.  [default: the study file's]")
@click.option("--seed", type=click.IntRange(0), help="Seed of every random choice.  [default: the study's]")
@click.option("--sampler", type=click.Choice(SAMPLERS), help="How configurations are chosen.  [default: the study's]")
@click.option("--pruner", type=click.Choice(PRUNERS), help="How trials are pruned.  [default: the study's]")
@score_on_option("the study's")
@click.option(
    "--finalists",
    type=click.IntRange(0, 100),
    help=f"Best configurations to train again at the end, with up to {SEEDS} fresh seeds each.  "
    f"[default: the study's, or {TOP}]",
)
@click.option(
    "--audit",
    type=FiniteRange(0, 1),
    help="Share of pruned trials to train to the end anyway, to measure what pruning misses.  [default: 0]",
)
@network_dir_option("the study file's")
@worker_options
@log_options("warning")
@cluster_options
@click.option("--quiet", is_flag=True, help="Print only the result.")
@click.option("--json", "as_json", is_flag=True, help="Print only JSON: one line per trial, then the result.")
def run(
    study: str,
    trials: int | None,
    timeout: float | None,
    storage: str | None,
    output: Path | None,
    artifacts: str | None,
    keep: int,
    name: str | None,
    workers: int | None,
    data_dir: Path | None,
    device: str,
    grace: float,
    allow_mixed: bool,
    log_level: Level,
    log_file: Path | None,
    engine: Engine,
    address: str,
    quiet: bool,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Run STUDY (a name or a .toml file) until --trials trials are finished, then train the best again.

    The same command resumes an interrupted search; a larger --trials adds the difference.

    \b
    Examples:
      fmnist-search run --trials 50
      fmnist-search run my-study.toml --workers 4 --timeout 600
      fmnist-search run cnn --json > trials.jsonl
      fmnist-search run --engine ray --workers 16 --storage postgresql://me@db/studies
    """
    from search.console.status import show
    from search.console.terminal import terminal
    from search.database.retry import reported
    from search.database.url import password_note
    from search.run.search import run_search
    from search.run.supervise import RunSettings
    from search.study import definition
    from search.study.store import command_line

    check_engine(engine, workers)
    path = definition.locate(study)
    wanted = definition.read(path, trials=trials, **overrides)
    settings = RunSettings.of(
        name or path.stem,
        output=output,
        storage=storage,
        artifacts=artifacts,
        keep=keep,
        workers=workers,
        data_dir=data_dir,
        device=device,
        grace=grace,
        allow_mixed=allow_mixed,
        log_level=log_level,
        timeout=timeout,
        quiet=quiet or as_json,
        as_json=as_json,
        engine=engine,
        address=address,
        command=command_line(["run", *as_arguments(click.get_current_context()), *sys.argv[2:]]),
        usual=usual_location(),
    )
    logs.configure(log_level, log_file)
    console = terminal()
    result = run_search(wanted, settings, console)
    if as_json:
        click.echo(json.dumps(result.as_json()))
    else:
        url, folder = settings.worker.storage, result.report.parent
        options = location_options(url, folder)
        with reported(url):
            again = finalists_command(result.summary.study, url, folder)
            show(console, result, again, options, password_note(url, options))
    if result.error:
        raise result.error
    if result.stopped == "interrupted":
        raise SystemExit(130)


@click.command(short_help="Train the best configurations again with fresh seeds.")
@study_argument
@click.option(
    "--top", type=click.IntRange(0, 100), default=TOP, show_default=True, help="Best configurations to train again."
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=SEEDS, show_default=True, help="Training runs of each, at most."
)
@storage_options
@own_network_options
@worker_options
@log_options("warning")
@cluster_options
@click.option("--quiet", is_flag=True, help="Print only the result.")
@json_option
def finalists(
    study: str,
    top: int,
    seeds: int,
    storage: str | None,
    output: Path | None,
    workers: int | None,
    data_dir: Path | None,
    device: str,
    grace: float,
    allow_mixed: bool,
    log_level: Level,
    log_file: Path | None,
    engine: Engine,
    address: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train the best configurations of STUDY, and its default, again with fresh seeds.

    Existing training runs count: a larger --top or --seeds adds the difference. In an unfinished search, the best so
    far are trained.

    \b
    Example:
      fmnist-search finalists cnn --top 5 --seeds 5
    """
    from fmnist.data import load
    from search.console.status import show_finalists
    from search.console.terminal import print_line, terminal
    from search.database.url import url_of
    from search.outputs import REPORT
    from search.report import write
    from search.run.finalists import run_finalists
    from search.run.supervise import RunSettings

    check_engine(engine, workers)
    with opened_study(study, storage, output) as (_, folder):
        settings = RunSettings.of(
            study,
            output=folder.parent,
            storage=url_of(storage, output),
            workers=workers,
            data_dir=data_dir,
            device=device,
            grace=grace,
            allow_mixed=allow_mixed,
            log_level=log_level,
            quiet=quiet or as_json,
            engine=engine,
            address=address,
        )
    logs.configure(log_level, log_file)
    console = terminal()
    standings, stopped = run_finalists(settings, top, seeds, console)
    url = url_of(storage, output)
    with opened_study(study, storage, output) as (opened, folder):
        written = write(opened, folder, folder / REPORT, lambda: load(data_dir), url, usual=usual_location())
    if as_json:
        click.echo(json.dumps(standings.as_json() if standings else None))
    else:
        show_finalists(console, study, standings, finalists_command(study, url, folder))
        print_line(console, "Report           ", str(written))
    if stopped == "interrupted":
        raise SystemExit(130)


@click.command(short_help="List the included studies, and those in the database.")
@storage_options
@json_option
def studies(storage: str | None, output: Path | None, as_json: bool) -> None:
    """List the studies that can be run by name, those of the package and in ./studies, and those in the database.

    \b
    Examples:
      fmnist-search studies
      fmnist-search studies --storage postgresql://me@db/studies --json
    """
    from search.console.status import show_catalogue, show_studies
    from search.console.terminal import terminal
    from search.database.connection import opened
    from search.database.retry import reported
    from search.database.url import NoStudies, displayed, file_of, url_of
    from search.results.summary import studies_in
    from search.study import catalogue

    console, url, entries, found = terminal(), url_of(storage, output), catalogue.entries(), []
    if not as_json:
        show_catalogue(console, entries)
    try:
        with opened(url) as database, reported(url):
            found = studies_in(database)
    except NoStudies:  # yet
        pass
    if as_json:
        included = [asdict(entry) for entry in entries]
        click.echo(json.dumps({"included": included, "studies": [asdict(each) for each in found]}))
    else:
        show_studies(console, found, str(file_of(url) or displayed(url)))
