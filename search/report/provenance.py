"""Provenance of a report: data, versions, machines, and the commands that reproduce it."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from fmnist import source
from fmnist.choices import Tta
from fmnist.data import DataSet
from fmnist.hyperparameters import Hyperparameters, ScoreOn
from fmnist.own_network import Source
from search.database.optuna_schema import engine_of
from search.database.url import Location, command, displayed, file_of, options_for, password_note
from search.formatting import written
from search.study.definition import StudyDefinition
from search.study.record import attempts_of
from search.study.store import DATA, VERSIONS, Run, runs, source_of


@dataclass(frozen=True)
class Provenance:
    """What is needed to reproduce a study.

    written: time of the report (ISO 8601, UTC). by: program and version that wrote it. runs: commands that ran the
    search. database: its file, or its URL without the password. options: command-line options that select the study's
    database. password_note: what to do if commands lack its password. data_options: options that select the data set,
    if it is not in a default folder. study_file: the definition as TOML. versions: of the packages with which the study
    was started. workers: number of attempts by host, device and thread count. fingerprint: SHA-256 of the data files'
    checksums. checksums: by file; empty if the data set is not available here. architecture: name of the network.
    network: its source, if it is the user's own.
    """

    written: str
    by: str
    runs: list[Run]
    database: str
    options: str
    password_note: str | None
    data_options: str
    study_file: str
    versions: dict[str, str]
    workers: dict[str, int]
    data: str
    fingerprint: str
    checksums: dict[str, str]
    architecture: str
    network: Source | None

    def command(self, words: str, *names: str | int, data: bool = True) -> str:
        """A command on the study that works in any folder; data: whether it reads the data set."""
        options = self.options + (self.data_options if data else "")
        return command(*words.split(), *names, options=options)

    def training(self, hyperparameters: Hyperparameters, seed: int, score_on: ScoreOn, tta: Tta) -> str:
        """The `train` command of a configuration, to be run in the folder of the network's file, if it has one."""
        words = ["fmnist-search", "train", "--seed", str(seed)]
        defaults = Hyperparameters()
        for name, value in hyperparameters.model_dump(exclude={"network"}).items():
            if value != getattr(defaults, name):
                words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        for name, value in hyperparameters.network.items():
            words += ["--set", f"{name}={written(value)}"]
        words += [] if score_on == "test" else ["--score-on", score_on]
        words += [] if tta == "auto" else ["--tta", tta]
        return shlex.join(words) + self.data_options


def provenance(
    study: optuna.Study,
    definition: StudyDefinition,
    folder: Path,
    trials: Iterable[FrozenTrial],
    data: DataSet | None,
    usual: Location | None = None,
) -> Provenance:
    """Gather the provenance of a study.

    Args:
        folder: of the study's files.
        trials: of the search and the finalists.
        data: the study's data set; None if it is not available here.
        usual: as in `options_for`.
    """
    url = engine_of(study).url.render_as_string(hide_password=False)
    options = options_for(url, folder.resolve().parent, usual, anywhere=True)
    attempts = [attempt for trial in trials for attempt in attempts_of(trial)]
    stored = study.user_attrs
    return Provenance(
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        by=f"fmnist-search {version('fmnist-search')}",
        runs=runs(study),
        database=str(file.resolve()) if (file := file_of(url)) else displayed(url),
        options=options,
        password_note=password_note(url, options),
        data_options=_data_options(data),
        study_file=as_toml(definition),
        versions=stored[VERSIONS],
        workers=dict(Counter(f"{each.host}, {each.device}, threads: {each.threads}" for each in attempts)),
        data=stored[DATA]["name"],
        fingerprint=stored[DATA]["fingerprint"],
        checksums=source.declared_checksums(data.folder) if data else {},
        architecture=definition.defaults.architecture,
        network=source_of(study),
    )


def _data_options(data: DataSet | None) -> str:
    # Commands look in these folders by themselves.
    if data is None or data.folder in (source.cache_folder(), source.DEBIAN_FOLDER):
        return ""
    return f" {shlex.join(['--data-dir', str(data.folder.resolve())])}"


def as_toml(definition: StudyDefinition) -> str:
    """The definition as a study file for `fmnist-search run`, without keys that have their default value."""
    given = definition.model_dump(mode="json", exclude_defaults=True, exclude={"defaults", "start", "space", "grid"})
    lines = _lines(given)
    lines += ["", "[defaults]", *_lines(definition.default_values)]
    for values in definition.start:
        lines += ["", "[[start]]", *_lines(values)]
    space = definition.model_dump(mode="json", exclude_defaults=True, include={"space"})["space"]
    lines += ["", "[space]", *_lines({name: tables for name, tables in space.items() if isinstance(tables, dict)})]
    for name, tables in space.items():
        for table in tables if isinstance(tables, list) else ():
            lines += ["", f"[[space.{_key(name)}]]", *_lines(table)]
    for part in definition.grid:
        lines += ["", "[[grid]]", *_lines(part)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_toml(value)}" for key, value in table.items()]


def _key(name: str) -> str:
    # Python names may contain letters that TOML needs in quotes.
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name, ensure_ascii=False)


def _toml(value: Any) -> str:
    # Strings, numbers, booleans and lists of them are the same in JSON and TOML.
    if isinstance(value, dict):
        return f"{{ {', '.join(_lines(value))} }}"
    return json.dumps(value, ensure_ascii=False)
