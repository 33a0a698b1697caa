"""Shared parts of the tests: a small real data set in Fashion-MNIST's own format."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from fmnist import data
from fmnist.data import DataSet, LabelledImages


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under CI a skipped test is a failure: every part that it needs is to be installed there."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


Command = Callable[..., subprocess.CompletedProcess[str]]


def digits() -> tuple[LabelledImages, LabelledImages]:
    """scikit-learn's 1,797 handwritten digits, enlarged to 28 x 28: 1,200 to train on, 597 to test."""
    small = load_digits()
    pixels = torch.from_numpy(small.images / 16 * 255).round().to(torch.uint8)
    large = torch.nn.functional.pad(pixels.repeat_interleave(3, 1).repeat_interleave(3, 2), (2, 2, 2, 2))
    whole = LabelledImages(large.unsqueeze(1), torch.from_numpy(small.target))
    index = torch.arange(len(whole))
    return whole[index[:1200]], whole[index[1200:]]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    data.write(folder, *digits())
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> DataSet:
    return data.load(tiny_folder)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


STUDY = """\
description = "two quick parameters on tiny data"
trials = 6
sampler = "random"
pruner = "none"

[defaults]
architecture = "simple"
epochs = 2
learning_rate = 0.002
filters = 4
dropout = 0.0
augmentation = 0.0

[space]
learning_rate = { low = 0.0005, high = 0.01, log = true }
filters = { low = 2, high = 4 }
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(STUDY)
    return file


@pytest.fixture
def command(tmp_path: Path, tiny_folder: Path) -> Command:
    """Run fmnist-search as a user would: a process of its own, in a folder of its own."""

    def run(*arguments: str | Path, data_dir: Path | None = tiny_folder) -> subprocess.CompletedProcess[str]:
        environment = {"FMNIST_DATA": str(data_dir)} if data_dir else {}
        return subprocess.run(
            [sys.executable, "-m", "search", *map(str, arguments)],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
