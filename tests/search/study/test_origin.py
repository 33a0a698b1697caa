"""The runs that a study records."""

import shlex
from dataclasses import replace

import pytest

from search.study import store
from search.study.store import command_line, machine, note, runs
from tests.conftest import Make
from tests.factories import definition


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["run", "cnn", "--trials", "50"], "fmnist-search run cnn --trials 50"),
        (["run", "my study.toml"], "fmnist-search run 'my study.toml'"),
        (
            ["run", "--storage", "postgresql://me:hunter2@db/studies"],
            "fmnist-search run --storage postgresql://me@db/studies",
        ),
        (
            ["run", "--storage=postgresql://me:hunter2@db/studies"],
            "fmnist-search run --storage=postgresql://me@db/studies",
        ),
        (
            ["run", "--storage", "postgresql://me@db/studies?password=hunter2&sslmode=require"],
            "fmnist-search run --storage 'postgresql://me@db/studies?sslmode=require'",
        ),
        (["run", "--artifacts", "s3://bucket/x"], "fmnist-search run --artifacts s3://bucket/x"),
    ],
)
def test_a_recorded_command_has_no_password(given: list[str], shown: str) -> None:
    assert command_line(given) == shown
    assert "hunter2" not in command_line(given)
    assert len(shlex.split(shown)) == len(given) + 1


def test_repeated_runs_are_recorded_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study, _ = make(definition(), 1)
    assert runs(study) == []
    for command in ("run a", "run a", "run b", "run a"):
        note(study, command)
    assert [run.command for run in runs(study)] == ["run a", "run b", "run a"]
    assert {run.machine for run in runs(study)} == {machine()}
    monkeypatch.setattr(store, "machine", lambda: "another")
    note(study, "run a")
    assert [run.machine for run in runs(study)[-2:]] == [machine(), "another"]
    first, *_ = runs(study)
    assert replace(first, at="") == replace(runs(study)[2], at="")
