"""Shell completion, as a shell runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from search.database.connection import open_storage
from search.database.url import default_url
from search.study import definition
from tests.conftest import Make
from tests.factories import definition as defined
from tests.postgresql import Server

SHIPPED = [path.stem for path in definition.bundled()]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """An environment in which the shell finds fmnist-search."""
    program = tmp_path / "bin" / "fmnist-search"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m search "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(tmp_path), **more}


def completed(tmp_path: Path, line: str, **more: str) -> list[str]:
    """Completions of the last word of a command line, as click's shell script gets them."""
    *_, last = words = line.split(" ")
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_FMNIST_SEARCH_COMPLETE": "bash_complete"}
    result = subprocess.run(
        ["fmnist-search"], cwd=tmp_path, env=environment(tmp_path, **variables, **more), capture_output=True, text=True
    )
    assert result.stderr == ""
    found = [row.split(",", 1) for row in result.stdout.split()]
    assert all(value.startswith(last) for _, value in found)
    return [value for kind, value in found if kind == "plain"]


@pytest.fixture
def there(make: Make, tmp_path: Path) -> str:
    """The URL of a database with the study "s"."""
    make(defined(), 1)
    return default_url(tmp_path)


def test_bash_completes_commands_options_choices_and_studies(there: str, tmp_path: Path) -> None:
    """In a real bash, with the line from docs/command-line.md."""
    script = """
        eval "$(_FMNIST_SEARCH_COMPLETE=bash_source fmnist-search)"
        complete -p fmnist-search
        tried() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _fmnist_search_completion fmnist-search
            echo "${COMPREPLY[@]}"
        }
        tried fmnist-search fin
        tried fmnist-search run --fin
        tried fmnist-search run --sampler q
        tried fmnist-search best s
        tried fmnist-search run c
    """
    result = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=tmp_path,
        env=environment(tmp_path, FMNIST_SEARCH_STORAGE=there),
        capture_output=True,
        text=True,
        check=True,
    )
    first, *tried = result.stdout.splitlines()
    assert first == "complete -o nosort -F _fmnist_search_completion fmnist-search"
    assert tried == ["finalists", "--finalists", "qmc", "s", "cnn"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_have_completion_scripts(shell: str, tmp_path: Path) -> None:
    variables = environment(tmp_path, _FMNIST_SEARCH_COMPLETE=f"{shell}_source")
    result = subprocess.run(["fmnist-search"], env=variables, capture_output=True, text=True, check=True)
    assert f"{shell}_complete" in result.stdout


def test_studies_are_completed_from_the_configured_database(there: str, tmp_path: Path) -> None:
    assert completed(tmp_path, f"fmnist-search status --output {tmp_path} ") == ["s"]
    assert completed(tmp_path, "fmnist-search status ", FMNIST_SEARCH_STORAGE=there) == ["s"]
    (tmp_path / "fmnist-search.toml").write_text(f'storage = "{there}"')
    assert completed(tmp_path, "fmnist-search report s") == ["s"]
    assert completed(tmp_path, "fmnist-search enqueue ") == ["s", *SHIPPED]
    assert completed(tmp_path, "fmnist-search status x") == []


def test_studies_in_postgresql_are_completed(postgresql: Server, tmp_path: Path) -> None:
    import optuna

    url = postgresql.create_database()
    optuna.create_study(storage=open_storage(url, "create"), study_name="far")
    assert completed(tmp_path, "fmnist-search stop ", FMNIST_SEARCH_STORAGE=url) == ["far"]


def test_without_a_usable_database_completion_is_silent_and_creates_nothing(tmp_path: Path) -> None:
    """A missing, unreachable or foreign database, an invalid URL, and a broken settings file."""
    assert completed(tmp_path, "fmnist-search status ") == []
    assert completed(tmp_path, "fmnist-search run ") == SHIPPED
    (tmp_path / "other.db").write_bytes(b"something else")
    for url in ("sqlite:///other.db", "postgresql://127.0.0.1:9/x", "nonsense"):
        assert completed(tmp_path, "fmnist-search status ", FMNIST_SEARCH_STORAGE=url) == []
    (tmp_path / "fmnist-search.toml").write_text("= =")
    assert completed(tmp_path, "fmnist-search sta") == ["status"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "fmnist-search.toml", "other.db"]


def test_completion_does_not_import_torch_or_optuna(there: str, tmp_path: Path) -> None:
    program = (
        "import sys; from search.cli import main, completion; "
        "context = main.commands['run'].make_context('run', [], resilient_parsing=True); "
        "names = [item.value for item in completion.startable(context, context.command.params[0], '')]; "
        "assert 's' in names and not {'torch', 'optuna'} & sys.modules.keys()"
    )
    call = [sys.executable, "-c", program]
    subprocess.run(call, cwd=tmp_path, env=environment(tmp_path, FMNIST_SEARCH_STORAGE=there), check=True)
