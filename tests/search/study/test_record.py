"""Attributes that another program changed; anyone with the database's password can, also in optuna-dashboard."""

import shutil
from pathlib import Path

import pytest

from search.database.connection import open_storage
from search.database.optuna_schema import engine_of, write_attribute
from search.database.url import default_url
from search.study.store import load_study
from tests.conftest import Command

OF_TRIAL = [
    ("attempts", "x"),
    ("attempts", []),
    ("attempts", [{"pid": 5}]),
    ("attempts", {"0": None}),
    ("checkpoint", 5),
    ("checkpoint", {"name": 3}),
    ("attempts", [{"machine": "m", "host": "h", "pid": 10**30, "device": "cpu", "threads": 1, "grace": 1.0}]),
    ("checkpoint", {"name": None, "history": [[1.0]]}),
    ("checkpoint", {"name": None, "history": [[]]}),
    ("checkpoint", {}),
    ("checkpoint", {"name": None, "confusion": "x", "history": []}),
    ("reason", 7),
    ("audit", "x"),
]
OF_STUDY = [
    ("definition", 5),
    ("definition", {"sampler": "of another schema"}),
    ("key", 5),
    ("folder", None),
    ("artifacts", 5),
    ("keep", "x"),
    ("data", {"name": "x"}),
    ("versions", "x"),
    ("goal", "x"),
    ("runs", [5]),
]
COMMANDS = [
    ("run", "tiny.toml", "--trials", "3", "--workers", "1"),
    ("worker", "tiny", "--workers", "1", "--log-level", "error"),
    ("finalists", "tiny", "--top", "1", "--seeds", "1", "--workers", "1"),
    ("status", "tiny"),
    ("studies",),
    ("best", "tiny"),
    ("report", "tiny", "--format", "json", "--to", "report.json"),
    ("reproduce", "tiny", "1"),
    ("gc", "tiny"),
    ("stop", "tiny"),
    ("delete", "tiny", "--yes"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "studies"


@pytest.fixture
def altered(finished: Path, invoke: Command, study_file: Path, tmp_path: Path) -> None:
    """A copy of a small finished search."""
    if not finished.exists():
        study_file.write_text(study_file.read_text().replace("epochs = 2", "epochs = 1"))
        assert invoke("run", "tiny.toml", "--trials", "2", "--workers", "1", "--quiet").returncode == 0
        shutil.move(tmp_path / "studies", finished)
    study_file.write_text(study_file.read_text().replace("epochs = 2", "epochs = 1"))
    shutil.copytree(finished, tmp_path / "studies")


def check(invoke: Command, command: tuple[str, ...]) -> None:
    done = invoke(*command)
    assert done.returncode in (0, 1, 2)
    if done.returncode:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith("Error: ")


@pytest.mark.parametrize(("key", "value"), OF_TRIAL, ids=str)
def test_a_changed_attribute_of_a_trial_is_a_one_line_error(
    altered: None, invoke: Command, tmp_path: Path, key: str, value: object
) -> None:
    study = load_study(open_storage(default_url(tmp_path / "studies"), "write"), "tiny")
    trial_id = study.trials[1]._trial_id
    with engine_of(study).begin() as connection:
        write_attribute(connection, trial_id, key, value)
    for command in COMMANDS:
        check(invoke, command)


@pytest.mark.parametrize(("key", "value"), OF_STUDY, ids=str)
def test_a_changed_attribute_of_a_study_is_a_one_line_error(
    altered: None, invoke: Command, tmp_path: Path, key: str, value: object
) -> None:
    study = load_study(open_storage(default_url(tmp_path / "studies"), "write"), "tiny")
    study.set_user_attr(key, value)
    for command in COMMANDS:
        check(invoke, command)
    assert (tmp_path / "studies" / "tiny" / "checkpoints").is_dir()  # files are kept if their owner is unknown
