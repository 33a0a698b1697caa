"""The commands on studies: run, status, best, report, dashboard."""

import json
from pathlib import Path
from typing import Any, Literal

import click

from search.cli.options import (
    artifacts_option,
    data_dir_option,
    device_of,
    json_option,
    opened_study,
    score_on_option,
    storage_options,
    study_argument,
    study_name,
    url_of,
    worker_options,
    worker_settings,
)

SAMPLERS = ("tpe", "gp", "random", "grid", "qmc")
PRUNERS = ("halving", "hyperband", "median", "percentile", "none")


@click.command()
@study_argument
@click.option("--trials", type=click.IntRange(1), help="Finished trials to reach.  [default: as the study says]")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), help="Seconds after which trials stop at their next report."
)
@storage_options
@artifacts_option
@click.option("--keep", type=click.IntRange(1), default=5, show_default=True, help="Best checkpoints to keep.")
@click.option("--name", callback=study_name, help="Name of the study in the database.  [default: the study file's]")
@click.option("--seed", type=click.IntRange(0), help="Seed of every random choice.  [default: as the study says]")
@click.option("--sampler", type=click.Choice(SAMPLERS), help="How parameters are chosen.  [default: as the study says]")
@click.option("--pruner", type=click.Choice(PRUNERS), help="How trials are pruned.  [default: as the study says]")
@score_on_option("as the study says")
@worker_options
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where workers run: on this machine, or on a Ray cluster, which needs --workers.",
)
@click.option("--address", default="auto", show_default=True, help="Ray cluster to use, as HOST:PORT of its head.")
@click.option("--quiet", is_flag=True, help="Print only the result.")
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
    engine: Literal["local", "ray"],
    address: str,
    quiet: bool,
    **overrides: Any,
) -> None:
    """Search: bring STUDY (a name or a .toml file) to a number of finished trials.

    Run it again to go on where it was: the same number of trials finishes what was
    begun, a larger one adds the difference.

    \b
    Examples:
      fmnist-search run --trials 50
      fmnist-search run my-study.toml --workers 4 --timeout 600
      fmnist-search run --engine ray --workers 16 --storage postgresql://me@db/studies
    """
    from rich.console import Console

    from search import definition, presentation
    from search.artifacts import located
    from search.engines.local import cores
    from search.outage import reported
    from search.report import write
    from search.run import RunSettings, run_search
    from search.study import Place

    if engine == "ray" and workers is None:
        raise click.UsageError("--engine ray needs --workers: a cluster may grow to the number that is asked for")
    path = definition.locate(study)
    wanted = definition.read(path, trials=trials, **overrides)
    folder = (output or Path("studies")) / (name or path.stem)
    url = url_of(storage, output)
    if engine == "local" or device == "auto":  # whether a cluster has a device is not for this machine to say
        device = device_of(device).type
    settings = RunSettings(
        trials=wanted.trials,
        place=Place(folder, located(artifacts), keep),
        workers=workers or cores(),
        worker=worker_settings(folder.name, url, data_dir, device, grace, allow_mixed),
        timeout=timeout,
        quiet=quiet,
        engine=engine,
        address=address,
    )
    console = Console()
    result = run_search(wanted, settings, console)
    with reported(url):
        report = folder / "report.html"
        if result.had_work or not report.is_file():
            write(result.study, folder, report, lambda: result.data)
        presentation.show(console, result, settings, report)
    if result.stopped == "interrupted":
        raise SystemExit(130)


@click.command()
@study_argument
@storage_options
@json_option
def status(study: str, storage: str | None, output: Path | None, as_json: bool) -> None:
    """Show how far a study is: trials by state, the best so far.

    \b
    Example:
      fmnist-search status cnn --json
    """
    from rich.console import Console

    from search import presentation
    from search.summary import summarize

    with opened_study(study, storage, output) as (opened, folder):
        summary = summarize(opened, folder)
    if as_json:
        click.echo(json.dumps(summary.as_json()))
    else:
        presentation.show_status(Console(), summary)


@click.command()
@study_argument
@storage_options
@json_option
def best(study: str, storage: str | None, output: Path | None, as_json: bool) -> None:
    """Show a study's best complete trial and where its checkpoint is.

    \b
    Example:
      fmnist-search best cnn
    """
    from dataclasses import asdict

    from rich.console import Console

    from search import presentation
    from search.summary import summarize

    with opened_study(study, storage, output) as (opened, folder):
        summary = summarize(opened, folder)
    if as_json:
        click.echo(json.dumps(asdict(summary.best) if summary.best else None))
    else:
        presentation.show_best(Console(), summary)


@click.command()
@study_argument
@storage_options
@data_dir_option
@click.option(
    "--to",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: report.html in the study's folder]",
)
def report(study: str, storage: str | None, output: Path | None, data_dir: Path | None, to: Path | None) -> None:
    """Write a study's report: one HTML file that needs no network.

    \b
    Example:
      fmnist-search report cnn --to report.html
    """
    from fmnist.data import load
    from search.report import write

    with opened_study(study, storage, output) as (opened, folder):
        click.echo(write(opened, folder, to or folder / "report.html", lambda: load(data_dir)))


@click.command()
@storage_options
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port on 127.0.0.1.")
def dashboard(storage: str | None, output: Path | None, port: int) -> None:
    """Serve optuna-dashboard for the database, to this machine only.

    \b
    Example:
      fmnist-search dashboard --port 8080
    """
    from search.dashboard import serve

    serve(url_of(storage, output), port, lambda address: click.echo(f"{address}  (Ctrl-C ends it)"))
