"""The command that checks this machine: doctor."""

import json
from pathlib import Path

import click

from search.choices import OUTPUT
from search.cli.options import artifacts_option, data_dir_option, json_option, storage_options, workers_option

PARTS = ("python", "torch", "data", "storage", "artifacts", "disk", "report")  # of search.doctor, which imports Optuna


@click.command(short_help="Check that this machine can run a search.")
@storage_options
@artifacts_option
@data_dir_option
@workers_option
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Check only this part; repeatable.")
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
    """Check that this machine can run a search, and print how to fix what fails.

    Checks Python, torch and its threads, the data set, the database, checkpoint storage, free disk space and the
    report. Creates no database and downloads nothing. The exit code is 1 if a check failed, and 0 with warnings only.

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
