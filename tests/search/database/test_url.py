import os
import shlex
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import example, given
from hypothesis import strategies as st
from optuna.storages import RDBStorage

from search.cli import main
from search.database.url import (
    Location,
    StorageError,
    _file_system,
    absolute,
    default_url,
    displayed,
    file_of,
    options_for,
    parse,
    password_note,
    url_of,
    warnings_for,
)
from search.study.store import command_line

SECRET = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "malformed"),
        (f"mysql://user:{SECRET}@host/db", "mysql: unsupported database; use sqlite"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        (f"postgresql://user:{SECRET}@host:port/db", "malformed"),
    ],
)
def test_a_wrong_url_is_explained(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as error:
        parse(url)
    assert SECRET not in str(error.value)


def test_postgresql_means_psycopg_3() -> None:
    assert parse("postgresql://me@host/db").drivername == "postgresql+psycopg"


def test_an_unescaped_at_sign_in_a_password_is_an_error() -> None:
    with pytest.raises(StorageError, match=r"more than one @; write one .* as %40") as error:
        displayed("postgresql://me:hun@ter2@host/db")
    assert "ter2" not in str(error.value)
    with pytest.raises(StorageError, match="more than one @"):
        displayed("postgresql://me:hun@t/er2@host/db")


@pytest.mark.parametrize(("workers", "warned"), [(8, False), (9, True)])
def test_many_workers_on_sqlite_cause_a_warning(tmp_path: Path, workers: int, warned: bool) -> None:
    warnings = warnings_for(default_url(tmp_path), workers)
    assert any("more than 8 workers" in warning for warning in warnings) == warned
    assert warnings_for("postgresql://db/x", workers) == []


def test_a_network_file_system_causes_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.database.url.NETWORKED", (_file_system(tmp_path),))
    assert any("network file system" in warning for warning in warnings_for(default_url(tmp_path), 1))
    assert _file_system(Path("/proc/self")) == "proc"


HERE = "sqlite:///studies/studies.db"
SERVER = f"postgresql://me:{SECRET}@host/db"


@pytest.mark.parametrize(
    ("url", "output", "usual", "options"),
    [
        (HERE, "studies", Location(), ""),
        ("sqlite:///my studies/studies.db", "my studies", Location(), " --output 'my studies'"),
        ("sqlite:///elsewhere/other.db", "studies", Location(), " --storage sqlite:///elsewhere/other.db"),
        # --output alone would name the database too
        ("sqlite:///elsewhere/studies.db", "studies", Location(), " --storage sqlite:///elsewhere/studies.db"),
        (SERVER, "/far/studies", Location(), " --storage postgresql://me@host/db"),
        # from the environment or a file
        (SERVER, "/far/studies", Location(SERVER), ""),
        (SERVER, "/far/studies", Location(SERVER, Path("/far/studies")), ""),
        (SERVER, "studies", Location(SERVER, Path("/far/studies")), " --output studies"),
        ("sqlite:///a/studies.db", "a", Location(None, Path("a")), ""),
        (HERE, "studies", Location(None, Path("a")), " --output studies"),
        (HERE, "studies", Location(SERVER), f" --storage {HERE}"),
        (SERVER, "studies", Location("postgresql://me@host/other"), " --storage postgresql://me@host/db"),
        # unknown
        (HERE, "studies", None, f" --storage {HERE}"),
    ],
)
def test_printed_options_lead_to_the_same_database(url: str, output: str, usual: Location | None, options: str) -> None:
    assert options_for(url, Path(output), usual) == options


@pytest.mark.parametrize(
    ("url", "usual", "options"),
    [
        (HERE, Location(), ["--output", "{}/studies"]),
        (HERE, Location(HERE), ["--storage", "sqlite:///{}/studies/studies.db"]),
        (HERE, Location(None, Path("studies")), ["--output", "{}/studies"]),
        (SERVER, Location(SERVER), []),
        (SERVER, Location(SERVER, Path("studies")), ["--output", "{}/studies"]),
    ],
)
def test_options_for_another_folder_have_absolute_paths(
    url: str, usual: Location, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = shlex.split(options_for(url, Path("studies"), usual, anywhere=True))
    assert found == [option.format(tmp_path) for option in options]


SOCKET = {"host": "/tmp/my socket", "port": "5433", "options": "-c search_path=mine", "sslmode": "disable"}  # noqa: S108


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@/db?host=/tmp/my socket&port=5433&options=-c search_path%3Dmine&sslmode=disable",
        f"postgresql://me@%2Ftmp%2Fmy%20socket:5433/db?options=-csearch_path%3Dmine&sslmode=disable&password={SECRET}",
    ],
)
def test_a_printed_url_keeps_its_options_but_no_password(url: str) -> None:
    option, printed = shlex.split(options_for(url, Path("studies"), Location()))
    assert option == "--storage"
    kept = parse(printed)
    assert (kept.username, kept.host, kept.database) == ("me", None, "db")
    assert {**kept.query, "options": kept.query["options"].replace("-cs", "-c s")} == SOCKET
    assert kept.password is None
    assert SECRET not in printed
    assert "PGPASSWORD" in str(password_note(url, f" --storage {printed}"))
    assert password_note(url, "") is None
    assert password_note(printed, f" --storage {printed}") is None


# Valid file names: no slash, no NUL, only UTF-8.
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(st.lists(NAMES, min_size=1, max_size=3), st.booleans())
@example(["per%20cent"], False)
@example(["what?"], False)
@example(["a{b}c#d"], False)
@example(["{SCHEMA_VERSION}", "new\nline", "me:you@host"], True)
@example(["..", "a+b &c=d;", "~"], False)
@example([":memory:"], False)
@example(["~"], False)
def test_any_path_survives_conversion_to_a_url_and_back(names: list[str], from_root: bool) -> None:
    output = Path(*(["/"] if from_root else []), *names)
    url, file = default_url(output), output / "studies.db"
    assert Path(str(parse(url).database)) == file
    assert file_of(displayed(url)) == file  # a printed URL can be typed
    assert file_of(RDBStorage._fill_storage_url_template(url)) == file
    resolved = absolute(url).render_as_string(hide_password=False)
    assert sqlalchemy.create_engine(resolved).url.database == str(file.resolve())
    context = main.commands["status"].make_context("status", shlex.split(options_for(url, output, Location())))
    assert file_of(url_of(context.params["storage"], context.params["output"])) == file
    *_, storage = shlex.split(command_line(["run", "--storage", url]))
    assert file_of(storage) == file


def test_a_path_that_is_not_utf_8_is_a_one_line_error() -> None:
    for refused in (lambda: default_url(Path(os.fsdecode(b"\xff"))), lambda: parse("sqlite:///\udcff")):
        with pytest.raises(StorageError, match=r"not valid UTF-8; name another .*--") as error:
            refused()
        str(error.value).encode()


def test_reserved_characters_in_a_users_url_are_decoded() -> None:
    assert file_of("sqlite:///per%20cent/what?timeout=5#x") == Path("per cent/what")


def test_paths_through_symbolic_links_are_resolved_as_by_the_operating_system(tmp_path: Path) -> None:
    (tmp_path / "far" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "below")
    assert absolute(default_url(tmp_path / "link" / "..")).database == str(tmp_path / "far" / "studies.db")
