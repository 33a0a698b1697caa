"""The commands that look at a study: status, best, report, dashboard."""

import json
from contextlib import ExitStack
from pathlib import Path

import click

from search.cli.completion import stored
from search.cli.options import (
    FiniteRange,
    data_dir_option,
    json_option,
    opened_study,
    storage_options,
    study_argument,
    url_of,
)


@click.command()
@study_argument
@storage_options
@click.option(
    "--watch",
    type=FiniteRange(0.1),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Show it again every so many seconds, 2 if none are given, until the search is finished.",
)
@json_option
def status(study: str, storage: str | None, output: Path | None, watch: float | None, as_json: bool) -> None:
    """Show how far a study is: trials by state, the best so far.

    With --watch it is redrawn in place on a terminal; elsewhere a line is printed whenever something changed.

    \b
    Examples:
      fmnist-search status cnn --watch
      fmnist-search status cnn --json
    """
    from search import presentation
    from search.finalists import standings_of
    from search.summary import summarize
    from search.watch import watch as keep_watching

    with opened_study(study, storage, output) as (opened, folder):
        if watch:
            keep_watching(opened, folder, presentation.terminal(), watch, as_json=as_json)
            return
        summary, standings = summarize(opened, folder), standings_of(opened, folder)
    if as_json:
        click.echo(json.dumps(summary.as_json()))
    else:
        presentation.show_status(presentation.terminal(), summary, standings)


@click.command()
@study_argument
@storage_options
@json_option
def best(study: str, storage: str | None, output: Path | None, as_json: bool) -> None:
    """Show a study's answer: the winner of its finalists, or before that its best trial, and the checkpoint.

    With --json it is the best trial in any case; `finalists --json` prints the others.

    \b
    Example:
      fmnist-search best cnn
    """
    from dataclasses import asdict

    from search import presentation
    from search.finalists import standings_of
    from search.summary import summarize

    with opened_study(study, storage, output) as (opened, folder):
        summary, standings = summarize(opened, folder), standings_of(opened, folder)
    if as_json:
        click.echo(json.dumps(asdict(summary.best) if summary.best else None))
    else:
        presentation.show_best(presentation.terminal(), summary, standings)


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...", shell_complete=stored)
@storage_options
@data_dir_option
@click.option(
    "--to",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: report.html in the study's folder, or comparison.html beside several]",
)
def report(
    studies: tuple[str, ...], storage: str | None, output: Path | None, data_dir: Path | None, to: Path | None
) -> None:
    """Write a report on a STUDY, or one that compares several: an HTML file that needs no network.

    \b
    Examples:
      fmnist-search report cnn --to report.html
      fmnist-search report grid random
    """
    from fmnist.data import load
    from search.report import write, write_comparison

    with ExitStack() as stack:
        opened = [stack.enter_context(opened_study(name, storage, output)) for name in studies or ("cnn",)]
        if len(opened) == 1:
            study, folder = opened[0]
            click.echo(write(study, folder, to or folder / "report.html", lambda: load(data_dir)))
        else:
            click.echo(write_comparison(opened, to or (output or Path("studies")) / "comparison.html"))


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
