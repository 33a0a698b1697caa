"""Printed commands are pasted: each must find the study, and none may contain a password."""

import json
import re
import shlex
import sys
from pathlib import Path

import optuna
import psycopg
import pytest
from optuna_dashboard import get_note
from sqlalchemy.engine import make_url

from search.cli import main
from search.cli.options import STORAGE_FILE, usual_location
from search.database.connection import opened
from search.database.url import Location, absolute, default_url, url_of
from tests.conftest import Command
from tests.factories import STUDY
from tests.postgresql import Server

SECRET = "hunter2"  # noqa: S105
QUICK = (
    STUDY.replace("epochs = 2", "epochs = 1")
    .replace("trials = 6", "trials = 2")
    .replace("finalists = 0", "finalists = 1")
)
PRINTED = re.compile(r"fmnist-search (?!run STUDY)[a-z]+ ?[^`\n]*")


@pytest.fixture
def socket(postgresql: Server) -> str:
    """The URL of an empty schema over a socket's folder; the server takes any password."""
    at = make_url(postgresql.create_database())
    with psycopg.connect(at.render_as_string(), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA mine")
    query = {"host": str(postgresql.data), "port": str(at.port), "options": "-c search_path=mine"}
    socket = at.set(query=query, password=SECRET)
    return socket.render_as_string(hide_password=False).replace(f"@{at.host}:{at.port}", "@")


def printed(text: str) -> set[str]:
    assert SECRET not in text
    assert "***" not in text
    return {command.strip() for command in PRINTED.findall(text)}


def location_of(command: str) -> str:
    """The database that a command uses."""
    _, name, *arguments = shlex.split(command)
    above = main.make_context("fmnist-search", [name, *arguments])
    parameters = main.commands[name].make_context(name, list(arguments), parent=above).params
    return url_of(parameters["storage"], parameters["output"])


def written(url: str, invoke: Command, *location: str) -> set[str]:
    """The commands of the terminal, the report and the dashboard's note."""
    found = printed(invoke("run", "tiny.toml", "--workers", "1", *location).stdout)
    Path("studies/tiny/best.pt" if "--output" not in location else "my studies/tiny/best.pt").unlink()
    for name in ("best", "status", "finalists"):
        found |= printed(invoke(name, "tiny", *location).stdout if name != "finalists" else "")
    to = ("--format", "json", "--to", "numbers.json")
    invoke("report", "tiny", *location, *to)
    invoke("report", "tiny", *location)
    report = json.loads(Path("numbers.json").read_text())
    with opened(url) as storage:
        note = get_note(optuna.load_study(storage=storage, study_name="tiny"))
    note = re.sub(r"\\([`*_~])", r"\1", note)  # as rendered
    runs = [run["command"] for run in report["provenance"]["runs"]]
    return found | printed("\n".join([report["answer"]["reproduce"], note, *runs]))


@pytest.mark.parametrize("given", ["nothing", "output", "file", "socket", "environment", "settings", "secret"])
def test_each_printed_command_finds_the_study(
    given: str,
    request: pytest.FixtureRequest,
    study_file: Path,
    invoke: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study_file.write_text(QUICK)
    monkeypatch.chdir(tmp_path)
    url, location = default_url(Path("studies")), []
    if given == "output":
        url, location = default_url(Path("my studies")), ["--output", "my studies"]
    elif given == "file":
        url = "sqlite:///else where/other.db"
    elif given != "nothing":
        url = request.getfixturevalue("socket")
    if given in ("file", "socket"):
        location = ["--storage", url]
    elif given == "environment":
        monkeypatch.setenv("FMNIST_SEARCH_STORAGE", url)
    elif given == "settings":
        Path("fmnist-search.toml").write_text(f'storage = "{url}"')
    elif given == "secret":
        Path("url").write_text(url)
        monkeypatch.setenv(STORAGE_FILE, str(tmp_path / "url"))
    monkeypatch.setattr(sys, "argv", ["fmnist-search", "run", "tiny.toml", "--workers", "1", *location])  # recorded
    found = written(url, invoke, *location)
    without_password = make_url(absolute(url).render_as_string(hide_password=False))._replace(password=None)
    assert {command.split()[1] for command in found} >= {"dashboard", "best", "report", "reproduce", "finalists", "run"}
    for command in sorted(found):
        name = command.split()[1]
        if name == "predict":
            continue  # of a file
        assert absolute(location_of(command))._replace(password=None) == without_password, command
        assert ("--storage" in command) == (given in ("file", "socket")), command
        if name != "dashboard":  # which serves until it is stopped
            done = invoke(*shlex.split(command)[1:])
            assert done.returncode == 0, done


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Location()),
        ({"FMNIST_SEARCH_STORAGE": "sqlite:///a.db"}, Location("sqlite:///a.db")),
        ({"FMNIST_SEARCH_OUTPUT": "a"}, Location(None, Path("a"))),
        ({STORAGE_FILE: "url"}, Location("sqlite:///secret.db")),
        ({STORAGE_FILE: "missing"}, None),
        ({"FMNIST_SEARCH_RUN_STORAGE": "sqlite:///a.db"}, None),  # other commands look elsewhere
    ],
)
def test_commands_omit_only_what_all_commands_are_given(
    variables: dict[str, str], expected: Location | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("url").write_text("sqlite:///secret.db")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    arguments = ["--storage", "sqlite:///other.db"]
    above = main.make_context("fmnist-search", ["status", *arguments])
    with main.commands["status"].make_context("status", list(arguments), parent=above):
        assert usual_location() == expected


def test_a_missing_password_is_explained(postgresql: Server) -> None:
    """The printed command leaves it out."""
    from search.database.connection import open_storage
    from search.database.url import StorageError

    at = make_url(postgresql.create_database())
    rules = postgresql.data / "pg_hba.conf"
    before = rules.read_text()
    with psycopg.connect(at.render_as_string(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE guarded LOGIN PASSWORD '{SECRET}'")
        rules.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{before}")
        connection.execute("SELECT pg_reload_conf()")
        with pytest.raises(StorageError, match="set PGPASSWORD"):
            open_storage(at.set(username="guarded").render_as_string())
        rules.write_text(before)
        connection.execute("SELECT pg_reload_conf()")
