from pathlib import Path

import pytest

from search.url import StorageError, _file_system, default_url, masked, options_for, parse, warnings_for

SECRET = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "malformed"),
        (f"mysql://user:{SECRET}@host/db", "mysql: no such storage; use sqlite"),
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


def test_an_unescaped_at_sign_is_not_taken_for_a_host() -> None:
    with pytest.raises(StorageError, match=r"more than one @; write one .* as %40") as error:
        masked("postgresql://me:hun@ter2@host/db")
    assert "ter2" not in str(error.value)
    with pytest.raises(StorageError, match="more than one @"):
        masked("postgresql://me:hun@t/er2@host/db")


@pytest.mark.parametrize(("workers", "warned"), [(8, False), (9, True)])
def test_many_workers_on_sqlite_are_warned_of(tmp_path: Path, workers: int, warned: bool) -> None:
    said = warnings_for(default_url(tmp_path), workers)
    assert any("more than 8 workers" in warning for warning in said) == warned
    assert warnings_for("postgresql://db/x", workers) == []


def test_a_network_file_system_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.url.NETWORKED", (_file_system(tmp_path),))
    assert any("network file system" in warning for warning in warnings_for(default_url(tmp_path), 1))
    assert _file_system(Path("/proc/self")) == "proc"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("sqlite:///studies/studies.db", ""),
        ("sqlite:///my studies/studies.db", " --output 'my studies'"),
        ("sqlite:///elsewhere/other.db", " --storage sqlite:///elsewhere/other.db"),
        (f"postgresql://me:{SECRET}@host/db", " --storage 'postgresql+psycopg://me:***@host/db'"),
    ],
)
def test_commands_are_led_to_the_database(url: str, options: str) -> None:
    assert options_for(url) == options
