"""The command that looks at what a search needs of this machine: doctor."""

import json
from pathlib import Path

import click

from search.choices import OUTPUT
from search.cli.options import artifacts_option, data_dir_option, json_option, storage_options, workers_option

PARTS = ("python", "torch", "data", "storage", "artifacts", "disk", "report")  # of search.doctor, which imports Optuna


@click.command(short_help="Check what a search needs here.")
@storage_options
@artifacts_option
@data_dir_option
@workers_option
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Look at this part alone; repeatable.")
@json_option
@click.pass_context
def doctor(
    context: click.Context,
    storage: str | None,
    output: Path | None,
    artifacts: str | None,
    data_dir: Path | None,
    workers: int | None,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check this machine for what a search needs, and say how to fix what is missing.

    Python, torch and its threads, the data set, the database, the place of checkpoints, free disk, the report. It
    makes no database and downloads nothing. The exit code is 1 if something failed; warnings do not count.

    \b
    Examples:
      fmnist-search doctor
      fmnist-search doctor --storage postgresql://me@db/studies --artifacts s3://bucket/prefix --json
    """
    from dataclasses import asdict

    from search.doctor import Plan, examine

    checks = []
    for check in examine(Plan(storage, output or OUTPUT, artifacts, data_dir, workers, only)):
        checks.append(check)
        if not as_json:
            fix = f"; {check.fix}" if check.fix else ""
            mark = check.status.upper() if check.status == "failed" else check.status
            click.echo(f"{mark:<8} {check.name:<10} {check.found}{fix}")
    failed = any(check.status == "failed" for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": list(map(asdict, checks))}))
    context.exit(int(failed))
