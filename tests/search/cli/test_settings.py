"""Options from the command line, the environment and the settings file."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from search.cli import main, settings
from search.cli.options import STORAGE_FILE


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def context_of(command: str, *arguments: str) -> click.Context:
    above = main.make_context("fmnist-search", [command, *arguments])
    return main.commands[command].make_context(command, list(arguments), parent=above)


def parameters(command: str, *arguments: str) -> dict[str, Any]:
    """The arguments that a command would be called with."""
    return context_of(command, *arguments).params


def write(content: str) -> None:
    settings.FILE.write_text(content)


def error(*arguments: str) -> str:
    """The last line of a usage error."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    *_, last = result.output.splitlines()
    return last


def test_precedence_is_flag_environment_file_default_and_one_command_before_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parameters("run")["keep"] == 5
    write("keep = 11")
    assert parameters("run")["keep"] == parameters("gc")["keep"] == 11
    write("keep = 11\n[run]\nkeep = 12")
    assert (parameters("run")["keep"], parameters("gc")["keep"]) == (12, 11)
    monkeypatch.setenv("FMNIST_SEARCH_KEEP", "13")
    assert parameters("run")["keep"] == parameters("gc")["keep"] == 13
    monkeypatch.setenv("FMNIST_SEARCH_RUN_KEEP", "14")
    assert (parameters("run")["keep"], parameters("gc")["keep"]) == (14, 13)
    assert parameters("run", "--keep", "15")["keep"] == 15
    assert parameters("run", "--keep", "15")["grace"] == 120.0


def test_options_of_each_kind_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        'data-dir = "digits"\nstorage = "sqlite:///a.db"\njson = true\nfinalists = 0\ngrace = 2\n'
        '[run]\nquiet = true\nsampler = "qmc"\ntimeout = 1.5\n[enqueue]\nset = ["epochs=2", "filters=4"]\n'
        "[status]\nwatch = 5"
    )
    run = parameters("run")
    assert (run["data_dir"], run["storage"], run["quiet"]) == (Path("digits"), "sqlite:///a.db", True)
    assert (run["sampler"], run["timeout"], run["grace"], run["finalists"]) == ("qmc", 1.5, 2.0, 0)
    assert parameters("enqueue")["assignments"] == ("epochs=2", "filters=4")
    assert (parameters("status")["as_json"], parameters("status")["watch"]) == (True, 5.0)
    monkeypatch.setenv("FMNIST_SEARCH_DATA_DIR", "elsewhere")
    monkeypatch.setenv("FMNIST_SEARCH_JSON", "0")
    monkeypatch.setenv("FMNIST_SEARCH_SET", "dropout=0.1 epochs=3")
    assert parameters("run")["data_dir"] == Path("elsewhere")
    assert parameters("status")["as_json"] is False
    assert parameters("enqueue")["assignments"] == ("dropout=0.1", "epochs=3")


def test_settings_can_be_written_as_command_line_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    write('data-dir = "my digits"\njson = true\n[run]\nallow-mixed = false\nquiet = true\nworkers = 2\nseed = 3')
    monkeypatch.setenv("FMNIST_SEARCH_TIMEOUT", "1.5")
    monkeypatch.setenv("FMNIST_SEARCH_JSON", "0")
    context = context_of("run", "--seed", "4", "mine.toml")
    written = settings.as_arguments(context)
    assert written == ["--timeout", "1.5", "--workers", "2", "--data-dir", "my digits", "--quiet"]
    settings.FILE.unlink()
    monkeypatch.delenv("FMNIST_SEARCH_TIMEOUT")
    monkeypatch.delenv("FMNIST_SEARCH_JSON")
    assert parameters("run", *written, "--seed", "4", "mine.toml") == context.params


def test_every_option_has_two_variables_and_a_key() -> None:
    for name, command in main.commands.items():
        for key, option in settings.options_of(command).items():
            assert f"--{key}" in option.opts
            capitals = key.replace("-", "_").upper()
            assert list(option.envvar or [])[:2] == [
                f"FMNIST_SEARCH_{name.upper()}_{capitals}",
                f"FMNIST_SEARCH_{capitals}",
            ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("wrokers = 3", "wrokers: is an unknown key; did you mean 'workers'?"),
        ("[run]\ntrails = 3", "run.trails: is an unknown key; did you mean 'trials'?"),
        ("[worker]\ntrials = 3", "worker.trials: is an unknown key; use one of"),
        ("[wroker]\ngrace = 3", "wroker: is an unknown key; did you mean 'worker'?"),
        ("[storage]\nurl = 'x'", "storage: is an unknown key"),
        ("workers = true", "workers: should be a whole number"),
        ("workers = 2.0", "workers: should be a whole number"),
        ('workers = "2"', "workers: should be a whole number"),
        ("workers = 0", "workers: 0 is not in the range 1<=x<=256"),
        ("grace = nan", "grace: nan is not a finite number"),
        ("timeout = inf", "timeout: inf is not a finite number"),
        ("output = 3", "output: should be text in quotes"),
        ("output = 2026-11-26", "output: should be text in quotes"),
        ('output = "a\\u0000"', "output: should be text in quotes"),
        ("[run]\nquiet = 1", "run.quiet: should be true or false"),
        ("[run]\nsampler = 'best'", "run.sampler: 'best' is not one of"),
        ("[enqueue]\nset = []", "enqueue.set: should be text, or a list of texts"),
        ("[enqueue]\nset = ['a=1', 2]", "enqueue.set: should be text, or a list of texts"),
        ("run = 3", "run: is a command; write [run], and its options below"),
        ("workers = = 3", "not TOML: Invalid value (at line 1, column 11)"),
        ("a = " + 5000 * "[", "not TOML: "),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_file_and_key(content: str, message: str) -> None:
    write(content)
    assert error("status").startswith(f"Error: fmnist-search.toml: {message}")


def test_an_unreadable_file_is_a_one_line_error(folder: Path) -> None:
    settings.FILE.write_bytes(b"\xff\xfe")
    assert error("status").startswith("Error: fmnist-search.toml: not TOML: ")
    settings.FILE.unlink()
    settings.FILE.mkdir()
    assert error("status") == "Error: fmnist-search.toml: Is a directory; make it readable, or move it away"


def test_a_password_in_the_file_is_never_shown() -> None:
    write('storage = ["postgresql://me:hunter2@127.0.0.1:9/db"]')
    assert "hunter2" not in error("status")
    write('storage = "postgresql://me:hunter2@127.0.0.1:9/db?connect_timeout=2"')
    result = CliRunner().invoke(main, ["status"])
    assert (result.exit_code, "hunter2" in result.output) == (1, False)


def test_the_storage_url_may_come_from_a_file_named_in_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = folder / "secret"
    monkeypatch.setenv(STORAGE_FILE, str(secret))
    secret.write_text("postgresql://me:hunter2@127.0.0.1:9/db?connect_timeout=2\nmore\n")
    write('storage = "sqlite:///file.db"')
    assert parameters("status")["storage"] == "postgresql://me:hunter2@127.0.0.1:9/db?connect_timeout=2"
    assert parameters("status", "--storage", "sqlite:///flag.db")["storage"] == "sqlite:///flag.db"
    result = CliRunner().invoke(main, ["status"])
    assert (result.exit_code, "hunter2" in result.output) == (1, False)
    monkeypatch.setenv("FMNIST_SEARCH_STORAGE", "sqlite:///variable.db")
    assert parameters("status")["storage"] == "sqlite:///variable.db"


def test_a_storage_file_without_url_is_a_one_line_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_FILE, "secret")
    assert error("status").startswith(f"Error: {STORAGE_FILE}: secret cannot be read (")
    (folder / "secret").write_text("\npostgresql://me@db/studies\n")
    assert error("status") == f"Error: {STORAGE_FILE}: the first line of secret is empty; write the URL there"


@pytest.mark.parametrize("name", ["FMNIST_SEARCH_WORKERS", "FMNIST_SEARCH_RUN_WORKERS"])
def test_an_invalid_environment_value_is_reported_with_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "many")
    assert error("run").startswith(f"Error: Invalid value for {name}: 'many' is not a valid integer")
    assert error("run", "--workers", "x").startswith("Error: Invalid value for '--workers': 'x'")


def test_help_works_despite_a_broken_settings_file() -> None:
    write("= =")
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "FMNIST_SEARCH_" in result.output
    assert "fmnist-search.toml" in result.output


def test_help_shows_defaults_from_the_settings_file() -> None:
    write("keep = 77")
    assert "[default: 77; x>=1]" in " ".join(CliRunner().invoke(main, ["run", "--help"]).output.split())
