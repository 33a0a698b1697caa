"""Output files of commands, and foreign files that they must not overwrite."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fmnist import checkpoint
from fmnist.data import DataSet
from search.outputs import BEST, REPORT, check_outputs
from search.report import write
from search.study.store import load_study
from search.worker import retention
from search.worker.loop import work
from tests.conftest import Command, Make
from tests.factories import definition

MINE = b"my own work\n"
TRAIN = ("train", "--architecture", "simple", "--filters", "2", "--epochs", "1")
ONE_EPOCH = definition(defaults={"architecture": "simple", "epochs": 1, "filters": 4, "learning_rate": 0.002})


@pytest.fixture
def written(make: Make, tmp_path: Path, invoke: Command) -> Command:
    """Commands in a folder with study s (one trial) in studies.db and the checkpoint net.pth."""
    study, settings = make(ONE_EPOCH, 1)
    work(settings, lambda: False)
    name = study.trials[0].user_attrs["checkpoint"]["name"]
    (tmp_path / "net.pth").write_bytes((tmp_path / "s" / "checkpoints" / name).read_bytes())
    return invoke


@pytest.mark.parametrize(
    ("file", "arguments", "option"),
    [
        ("digits_cnn_full.pth", TRAIN, "--save"),
        ("mine.pth", (*TRAIN, "--save", "mine.pth"), "--save"),
        ("net.onnx", ("export", "net.pth"), "--to"),
        ("s/report.html", ("report", "s", "--output", "."), "--to"),
        ("s/report.json", ("report", "s", "--output", ".", "--format", "json"), "--to"),
        ("mine.html", ("report", "s", "--output", ".", "--to", "mine.html"), "--to"),
        ("comparison.html", ("report", "s", "s", "--output", "."), "--to"),
        ("comparison.json", ("report", "s", "s", "--output", ".", "--format", "json"), "--to"),
    ],
)
def test_a_foreign_file_is_overwritten_only_with_force(
    written: Command, tmp_path: Path, file: str, arguments: tuple[str, ...], option: str
) -> None:
    """It is refused before training. Once overwritten with --force, it needs no --force again."""
    path = tmp_path / file
    path.write_bytes(MINE)
    result = written(*arguments)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert (result.returncode, result.stdout) == (2, "")
    assert all(word in line for word in (path.name, "--force", option))
    assert path.read_bytes() == MINE
    for force in (["--force"], []):
        result = written(*arguments, *force)
        assert result.returncode == 0, result.stderr
        assert path.read_bytes() != MINE


def test_the_checkpoint_is_named_after_the_data_set(invoke: Command, tiny_folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "My Boots: 2nd/try…"
    odd.parent.mkdir()
    odd.symlink_to(tiny_folder)
    assert "Saved digits_cnn_full.pth" in invoke(*TRAIN, data_dir=odd).stdout  # symbolic links are resolved
    odd.unlink()
    odd.mkdir()
    for file in tiny_folder.iterdir():
        (odd / file.name).symlink_to(file)
    assert "Saved try_cnn_full.pth" in invoke(*TRAIN, data_dir=odd).stdout
    assert checkpoint.load(tmp_path / "try_cnn_full.pth").data_set == "data set 'try…'"


def test_a_folder_at_the_output_path_is_reported_before_training(invoke: Command, tmp_path: Path) -> None:
    (tmp_path / "digits_cnn_full.pth").mkdir()
    for force in ([], ["--force"]):
        result = invoke(*TRAIN, *force)
        assert (result.returncode, result.stdout) == (1, "")
        assert "digits_cnn_full.pth: Is a directory" in result.stderr


def test_empty_files_devices_and_pipes_are_written_without_force(written: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.html").touch()
    for to in ("empty.html", "/dev/null"):
        assert written("report", "s", "--output", ".", "--to", to).returncode == 0
    assert (tmp_path / "empty.html").stat().st_size > 0
    assert Path("/dev/null").is_char_device()
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    result = written("report", "s", "s", "--output", ".", "--format", "json", "--to", "pipe.json")
    assert result.returncode == 0
    assert os.read(reader, 10) == b'{"answers"'
    os.close(reader)


@pytest.mark.parametrize("name", [REPORT, BEST])
@pytest.mark.parametrize("command", [("run", "tiny.toml"), ("finalists", "s")])
def test_a_search_that_would_overwrite_foreign_files_does_not_start(
    written: Command, study_file: Path, tmp_path: Path, name: str, command: tuple[str, ...]
) -> None:
    assert study_file.exists()
    folder = tmp_path / ("tiny" if command[0] == "run" else "s")
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(MINE)
    result = written(*command, "--output", ".")
    assert result.returncode == 2
    assert name in result.stderr
    assert "--output" in result.stderr
    assert (folder / name).read_bytes() == MINE
    assert "no study named 'tiny'" in written("status", "tiny", "--output", ".").stderr


def _keep(_folder: Path) -> None: ...


def _replace(folder: Path) -> None:
    for name in (REPORT, BEST):
        (folder / name).write_bytes(MINE)


@pytest.mark.parametrize("change", [_keep, _replace])
def test_deleting_a_study_deletes_only_its_own_files(
    make: Make, tmp_path: Path, tiny: DataSet, change: Callable[[Path], None]
) -> None:
    study, settings = make(ONE_EPOCH, 1)
    work(settings, lambda: False)
    folder = tmp_path / "s"
    write(study, folder, folder / REPORT, lambda: tiny, settings.storage)
    (folder / BEST).write_bytes(next((folder / "checkpoints").glob("*.pt")).read_bytes())
    check_outputs(folder)
    change(folder)
    for files in retention.files_of(load_study(study._storage, "s"), folder):
        retention.delete(files, [str(tmp_path)])
    left = {file.name for file in folder.iterdir()} if folder.exists() else set()
    assert left == ({REPORT, BEST} if change is _replace else set())
