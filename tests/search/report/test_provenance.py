"""Provenance of a report, and its commands."""

import hashlib
import shlex
import tomllib
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from fmnist import source
from fmnist.data import DataSet
from search.database.url import Location, absolute, file_of
from search.report.provenance import Provenance, as_toml, provenance
from search.study import definition as definitions
from search.study.definition import StudyDefinition
from search.study.places import folder_of
from search.study.store import versions
from search.worker.loop import work
from tests.conftest import Make
from tests.factories import definition


@pytest.mark.parametrize("path", definitions.bundled(), ids=lambda path: path.stem)
def test_a_definition_survives_a_round_trip_through_its_study_file(path: Path) -> None:
    defined = definitions.read(path)
    assert StudyDefinition.model_validate(tomllib.loads(as_toml(defined))) == defined


def test_special_characters_and_small_numbers_survive_the_round_trip() -> None:
    defined = definition(
        description='</script> "quotes", \\ and \n ünïcode',
        audit=0.25,
        pruner="slack",
        seed=7,
        space={"weight_decay": {"low": 1e-9, "high": 1e-3, "log": True}, "filters": {"choices": [4, 8]}},
        defaults={"weight_decay": 1e-7, "filters": 4},
    )
    assert StudyDefinition.model_validate(tomllib.loads(as_toml(defined))) == defined


def gathered(make: Make, tiny: DataSet, *, trials: int = 1, data: bool = True) -> tuple[Provenance, Path]:
    defined = definition(defaults={"architecture": "simple", "epochs": 1, "filters": 4, "learning_rate": 0.002})
    study, settings = make(defined, trials)
    work(settings, lambda: False)
    folder = folder_of(study)
    return provenance(study, defined, folder, study.trials, tiny if data else None, Location()), folder


def test_provenance_has_versions_workers_and_checksums(make: Make, tiny: DataSet) -> None:
    found, _ = gathered(make, tiny, trials=2)
    assert found.versions == versions()
    assert list(found.workers.values()) == [2]
    assert next(iter(found.workers)).endswith(", cpu, threads: 1")
    assert (found.data, found.fingerprint) == (tiny.name, tiny.fingerprint)
    assert found.checksums.keys() == source.CHECKSUMS.keys()
    together = hashlib.sha256(" ".join(found.checksums.values()).encode()).hexdigest()
    assert together == found.fingerprint


def test_commands_name_database_and_data_set_by_absolute_paths(make: Make, tiny: DataSet) -> None:
    found, folder = gathered(make, tiny)
    assert shlex.split(found.command("reproduce", "my study", 3)) == [
        *("fmnist-search", "reproduce", "my study", "3"),
        *("--output", str(folder.parent), "--data-dir", str(tiny.folder)),
    ]
    assert shlex.split(found.command("best", "s", data=False)) == [
        *("fmnist-search", "best", "s", "--output", str(folder.parent)),
    ]
    assert found.database == str(folder.parent / "studies.db")


def test_without_the_data_set_commands_do_not_name_its_folder(make: Make, tiny: DataSet) -> None:
    found, _ = gathered(make, tiny, data=False)
    assert "--data-dir" not in found.command("reproduce", "s", 3)
    assert found.checksums == {}


def test_a_password_appears_neither_in_commands_nor_as_stars(make: Make, url: str, tmp_path: Path) -> None:
    parsed = make_url(url)
    secret = parsed if parsed.drivername == "sqlite" else parsed.set(password="hunter2")  # noqa: S106
    study, _ = make(definition(), 1, secret.render_as_string(hide_password=False))
    found = provenance(study, definition(), tmp_path / "elsewhere" / "s", [], None)
    option, value = shlex.split(found.options)
    assert option == "--storage"
    assert absolute(value) == absolute(url)
    assert found.database == (str(file_of(url)) if file_of(url) else value)
    assert ("PGPASSWORD" in str(found.password_note)) == (parsed.drivername != "sqlite")
    assert "hunter2" not in str(found)
    assert "***" not in str(found)
