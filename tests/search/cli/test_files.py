"""Files with byte order marks, paths with tildes, and long names."""

from pathlib import Path

import pytest

from fmnist.files import expand
from search.cli.options import STORAGE_FILE
from search.cli.serving import _password
from search.database.url import default_url, file_of
from tests.conftest import Command

BOM = b"\xef\xbb\xbf"


def mark(file: Path) -> None:
    """Convert a file to Windows conventions: byte order mark and CRLF."""
    file.write_bytes(BOM + file.read_bytes().replace(b"\n", b"\r\n"))


def test_a_byte_order_mark_is_ignored(
    invoke: Command, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark(study_file)
    settings, secret, password = (tmp_path / name for name in ("fmnist-search.toml", "url", "password"))
    settings.write_text("[run]\nworkers = 1\ntrials = 1\n")
    secret.write_text(default_url(tmp_path / "elsewhere") + "\n")
    password.write_text("boots\n")
    for file in (settings, secret, password):
        mark(file)
    monkeypatch.setenv(STORAGE_FILE, str(secret))
    done = invoke("run", "tiny.toml", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "elsewhere" / "studies.db").is_file()
    assert _password("me", password) == "boots"


def test_a_tilde_is_expanded_in_every_path(
    invoke: Command, study_file: Path, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "data").symlink_to(tiny_folder)
    study_file.rename(home / "tiny.toml")
    monkeypatch.setenv("HOME", str(home))
    settings = tmp_path / "fmnist-search.toml"
    settings.write_text('output = "~/studies"\n[run]\nlog-file = "~/log"\n')
    places = ("--artifacts=~/files", "--data-dir=~/data")
    done = invoke("run", "~/tiny.toml", "--workers=1", "--trials=1", "--quiet", *places, data_dir=None, home=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert invoke("report", "tiny", "--to=~/report.html", home=home).returncode == 0
    made = {path.relative_to(home).parts[0] for path in home.iterdir()}
    assert made == {"data", "files", "log", "report.html", "studies", "tiny.toml"}
    assert invoke("status", "tiny", "--storage=sqlite:///~/studies/studies.db", home=home).returncode == 0
    assert not (tmp_path / "~").exists()


def test_other_tildes_are_not_expanded(tmp_path: Path) -> None:
    for name in ("a~b", "~nobody-of-that-name/x", "x/~"):
        assert expand(name) == Path(name)
    assert file_of("sqlite:///~nobody-of-that-name/x.db") == Path("~nobody-of-that-name/x.db")


def test_the_longest_name_works_for_all_files(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    study_file.write_text(study_file.read_text().replace("epochs = 2", "epochs = 1"))
    name = "é" * 122 + "x"  # 245 bytes
    done = invoke("run", "tiny.toml", "--name", name, "--trials", "1", "--workers", "1", "--finalists", "1", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "studies" / name / "best.pt").is_file()
