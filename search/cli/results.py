"""The commands that read a study: status, best, report."""

import gc
import json
import webbrowser
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import click

from search.choices import OUTPUT
from search.cli.options import (
    STUDY,
    FiniteRange,
    UserPath,
    data_dir_option,
    finalists_command,
    force_option,
    json_option,
    opened_study,
    own_network_options,
    storage_options,
    studies_argument,
    study_argument,
    usual_location,
)


class Pause(FiniteRange):
    """An interval in seconds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            float(value)
        except ValueError:  # in `status --watch cnn`, click takes the study for the option's value
            self.fail(f"{value!r} is not a number of seconds; put the study first: status {value} --watch", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@study_argument
@storage_options
@click.option(
    "--watch",
    type=Pause(0.1),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Refresh every SECONDS, 2 by default, until the search is finished.",
)
@json_option
def status(study: str, storage: str | None, output: Path | None, watch: float | None, as_json: bool) -> None:
    """Show a study's progress: trials by state, best trial so far.

    With --watch, a terminal is redrawn in place; elsewhere each change prints a line.

    \b
    Examples:
      fmnist-search status cnn --watch
      fmnist-search status cnn --json
    """
    if not watch:
        gc.disable()  # short-lived process: the final collection alone takes a tenth of its time

    from search.console.status import show_status
    from search.console.terminal import terminal
    from search.database.url import url_of
    from search.results.finalists import standings_of
    from search.results.summary import summarize

    with opened_study(study, storage, output) as (opened, folder):
        finalists = finalists_command(study, url_of(storage, output), folder)
        if watch:
            from search.console.status import watch as keep_watching

            keep_watching(opened, folder, terminal(), watch, finalists, as_json=as_json)
            return
        summary, standings = summarize(opened, folder), standings_of(opened, folder)
    if as_json:
        click.echo(json.dumps(summary.as_json(standings)))
    else:
        show_status(terminal(), summary, standings, finalists)


@click.command(short_help="Show a study's winner or best trial.")
@study_argument
@storage_options
@json_option
def best(study: str, storage: str | None, output: Path | None, as_json: bool) -> None:
    """Show the winner among a study's finalists, or its best trial if there is none yet, and the checkpoint.

    With --json it prints both: the best single trial, and the winner, null until the finalists are trained.

    \b
    Examples:
      fmnist-search best cnn
      fmnist-search best cnn --json
    """
    from search.console.status import show_best
    from search.console.terminal import terminal
    from search.database.url import url_of
    from search.results.finalists import standings_of
    from search.results.ranking import rank
    from search.results.summary import summarize
    from search.study.places import location_of
    from search.study.store import definition_of

    with opened_study(study, storage, output) as (opened, folder):
        summary, standings, definition = summarize(opened, folder), standings_of(opened, folder), definition_of(opened)
        location = location_of(opened, folder)
        ranking = rank(definition, opened.get_trials(deepcopy=False)) if definition.seeds > 1 else None
    if as_json:
        click.echo(json.dumps(summary.answer_as_json(standings)))
    else:
        finalists = finalists_command(study, url_of(storage, output), folder)
        show_best(terminal(), summary, standings, location, finalists, ranking)


@click.command(short_help="Write the report of a STUDY.")
@studies_argument
@storage_options
@own_network_options
@data_dir_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "json"]),
    default="html",
    show_default=True,
    help="A web page, or all its numbers for programs.",
)
@click.option(
    "--to",
    type=UserPath(dir_okay=False),
    help="File to write.  [default: report.html in the study's folder, comparison.html for several; .json for JSON]",
)
@force_option
@click.option("--open", "in_browser", is_flag=True, help="Open the page in the browser.")
def report(
    studies: tuple[str, ...],
    storage: str | None,
    output: Path | None,
    data_dir: Path | None,
    form: Literal["html", "json"],
    to: Path | None,
    force: bool,
    in_browser: bool,
) -> None:
    """Write the report of a STUDY, or a comparison of several, as one self-contained file.

    Works at any time, also while the study runs. A single study's answer and main figures are stored in the database
    too, for the dashboard.

    \b
    Examples:
      fmnist-search report cnn --open
      fmnist-search report cnn --format json --to numbers.json
      fmnist-search report grid random
    """
    from fmnist.data import load
    from search.database.url import url_of
    from search.outputs import REPORT_MARKS, check_replaceable
    from search.report import write, write_comparison

    if in_browser and form == "json":
        raise click.UsageError("--open needs a web page; omit it with --format json")
    with ExitStack() as stack:
        opened = [stack.enter_context(opened_study(name, storage, output)) for name in studies or (STUDY,)]
        study, folder = opened[0]
        several = len(opened) > 1
        usual = (output or OUTPUT) / f"comparison.{form}" if several else folder / f"report.{form}"
        at = to or usual
        check_replaceable(at, REPORT_MARKS, "overwrite it with --force, or name another with --to", force=force)
        if several:
            written = write_comparison(opened, at, form)
        else:
            url = url_of(storage, output)
            written = write(study, folder, at, lambda: load(data_dir), url, form, usual_location())
    click.echo(written)
    if in_browser and not webbrowser.open(written.resolve().as_uri()):
        raise click.ClickException(f"no browser found; open {written} in one")
