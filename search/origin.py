"""What a study keeps of the runs that made it: their commands, machines and commits."""

import os
import platform
import shlex
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import optuna

from search.database.url import StorageError, masked

RUNS = "runs"  # a user attribute of a study: each `Run` whose command or machine is not that of the one before


@dataclass(frozen=True)
class Run:
    """One `run`: when it first began (ISO 8601, UTC), its command, on what machine, of what commit."""

    at: str
    command: str
    machine: str
    git_commit: str | None


def note(study: optuna.Study, command: str) -> None:
    """Put a run on record; call it under the storage's lock."""
    from fmnist.checkpoint import git_commit

    run = Run(datetime.now(UTC).isoformat(timespec="seconds"), command, machine(), git_commit())
    noted = runs(study)
    if not noted or asdict(noted[-1]) | {"at": ""} != asdict(run) | {"at": ""}:
        study.set_user_attr(RUNS, [asdict(each) for each in [*noted, run]])


def runs(study: optuna.Study) -> list[Run]:
    """The runs on record, the first one first."""
    return [Run(**each) for each in study.user_attrs.get(RUNS, [])]


def command_line(arguments: Sequence[str]) -> str:
    """A command of fmnist-search for a shell, without the password of any database in it."""
    return shlex.join(["fmnist-search", *map(_without_password, arguments)])


def _without_password(argument: str) -> str:
    option, separator, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if "://" not in value:
        return argument
    try:
        return f"{option}{separator}{masked(value)}"
    except StorageError:  # no database
        return argument


def machine() -> str:
    """This machine: host, processor, cores, system."""
    return f"{socket.gethostname()}: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def processor() -> str:
    """The processor's model as Linux has it, else what Python knows."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown processor"
