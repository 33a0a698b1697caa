import pickle
import resource
from pathlib import Path

import pytest
import torch

from fmnist import checkpoint
from fmnist.checkpoint import CheckpointError
from fmnist.data import DataSet, split
from fmnist.evaluation import evaluate
from fmnist.hyperparameters import Hyperparameters
from fmnist.training import Training

SMALL = Hyperparameters(architecture="cnn", filters=2, epochs=2)


def train(data: DataSet, epochs: int) -> Training:
    training = Training(SMALL, seed=4)
    iterator = training.epochs(split(data, "test"))
    for _ in range(epochs):
        next(iterator)
    return training


def test_it_says_what_made_it_and_scores_as_before(tiny: DataSet, tmp_path: Path) -> None:
    training = train(tiny, 2)
    path = tmp_path / "folder" / "net.pt"
    checkpoint.save(path, training, "test", tiny)
    loaded = checkpoint.load(path)
    assert loaded.hyperparameters == SMALL
    assert (loaded.seed, loaded.score_on, loaded.data_set) == (4, "test", "data set 'digits'")
    assert loaded.data_fingerprint == tiny.fingerprint
    assert loaded.history == training.history
    assert loaded.made_with["torch"] == torch.__version__
    assert loaded.made_with["threads"] == 1
    assert evaluate(loaded.network(), tiny.test).correct == training.history[-1].correct


def test_a_resumed_training_goes_on_bit_for_bit(tiny: DataSet, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "net.pt", train(tiny, 1), "test", tiny)
    resumed = checkpoint.resume(checkpoint.load(tmp_path / "net.pt"), torch.device("cpu"))
    for _ in resumed.epochs(split(tiny, "test")):
        pass
    whole = train(tiny, 2).scored_network.state_dict()
    assert all(torch.equal(whole[name], value) for name, value in resumed.scored_network.state_dict().items())


def test_a_finished_training_cannot_be_resumed(tiny: DataSet, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "net.pt", train(tiny, 2), "test", tiny)
    with pytest.raises(CheckpointError, match="at its end"):
        checkpoint.resume(checkpoint.load(tmp_path / "net.pt"), torch.device("cpu"))


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (Path("owned"), "")  # type: ignore[return-value]


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": Malicious()}, "attack.pt")
    Path("attack.pkl").write_bytes(pickle.dumps(Malicious()))
    for file in ("attack.pt", "attack.pkl"):
        with pytest.raises(CheckpointError, match=rf"{file}: damaged, or not a checkpoint"):
            checkpoint.load(Path(file))
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        [1, 2],
        {"format": checkpoint.FORMAT},
        {"format": checkpoint.FORMAT, "hyperparameters": {"filters": 0}},
        {"format": checkpoint.FORMAT, "hyperparameters": {}, "history": [{"epoch": 1}]},
    ],
)
def test_a_foreign_file_is_refused_in_one_line(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=r"foreign\.pt: ") as error:
        checkpoint.load(tmp_path / "foreign.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"architecture = 1\n", b"\x80\x02", b"PK\x03\x04", b"\0" * 50, b"cposix\nsystem\n", b"."]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.pth: "):
        checkpoint.load(tmp_path / "other.pth")


def test_no_git_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    checkpoint.git_commit.cache_clear()
    assert checkpoint.git_commit() is None
    checkpoint.git_commit.cache_clear()


@pytest.mark.parametrize("kept", [0, 100, -10])
def test_a_truncated_file_is_refused(tiny: DataSet, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "net.pt"
    checkpoint.save(path, train(tiny, 1), "test", tiny)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"net\.pt: damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("path", ["absent.pt", "."])
def test_an_absent_file_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="name a checkpoint"):
        checkpoint.load(tmp_path / path)


def test_a_failed_write_leaves_the_former_file_whole(tiny: DataSet, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    checkpoint.save(path, train(tiny, 1), "test", tiny)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # as a full disk does, it fails a write half-way
    try:
        with pytest.raises(OSError, match=r"net\.pt|too large"):
            checkpoint.save(path, train(tiny, 2), "test", tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
