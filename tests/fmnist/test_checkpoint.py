import hashlib
import io
import pickle
import random
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from fmnist import archive, checkpoint
from fmnist.checkpoint import CheckpointError
from fmnist.choices import Architecture
from fmnist.data import DataSet, split
from fmnist.evaluation import evaluate
from fmnist.hyperparameters import Hyperparameters
from fmnist.training import Training

SMALL = Hyperparameters(architecture="cnn", filters=2, epochs=2)


def train(data: DataSet, epochs: int, hyperparameters: Hyperparameters = SMALL) -> Training:
    training = Training(hyperparameters, seed=4)
    iterator = training.epochs(split(data, "test"))
    for _ in range(epochs):
        next(iterator)
    return training


@pytest.fixture(scope="module")
def content(tiny: DataSet) -> bytes:
    """The checkpoint of an unfinished training run."""
    torch.set_num_threads(1)
    return checkpoint.dump(train(tiny, 1), "test", tiny)


def payload_of(content: bytes) -> dict[str, Any]:
    payload: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return payload


def without_digest(payload: dict[str, Any]) -> bytes:
    """A file in the previous format."""
    file = io.BytesIO()
    torch.save(payload | {"format": checkpoint.WITHOUT_DIGEST}, file)
    return file.getvalue()


def rejection(content: bytes) -> str:
    with pytest.raises(CheckpointError, match=r"^net\.pt: ") as error:
        checkpoint.parse(content, "net.pt")
    assert "\n" not in str(error.value)
    return str(error.value)


def peak_memory() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_loaded_checkpoint_keeps_its_provenance_and_scores(tiny: DataSet, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"weight_decay": 0.01, "l1": 0.001, "augmentation_kind": "crop+flip+erasing"},
        {"optimizer": "adamw", "weight_decay": 0.1, "residual": True},
        {"optimizer": "sgd", "weight_decay": 0.01, "kernel_size": 4, "activation": "silu"},
        {"optimizer": "sgd", "momentum": 0.0},
    ],
)
def test_an_interrupted_training_run_resumes_bit_exactly(tiny: DataSet, tmp_path: Path, values: dict[str, Any]) -> None:
    made = Hyperparameters(architecture="cnn", filters=2, epochs=2, **values)
    checkpoint.save(tmp_path / "net.pt", train(tiny, 1, made), "test", tiny)
    resumed = checkpoint.resume(checkpoint.load(tmp_path / "net.pt"), torch.device("cpu"))
    for _ in resumed.epochs(split(tiny, "test")):
        pass
    uninterrupted = train(tiny, 2, made).state_dict()
    state = resumed.state_dict()
    for name in ("averaged", "network"):
        assert all(torch.equal(uninterrupted[name][key], value) for key, value in state[name].items())
    for ours, theirs in zip(state["optimizer"]["moments"], uninterrupted["optimizer"]["moments"], strict=True):
        assert torch.equal(ours, theirs)
    assert state["optimizer"]["updates"] == uninterrupted["optimizer"]["updates"] > 0


@pytest.mark.parametrize(("optimizer", "right"), [("adam", 2), ("adamw", 2), ("sgd", 1)])
def test_a_state_must_have_the_moments_of_its_optimizer(tiny: DataSet, optimizer: Any, right: int) -> None:
    made = SMALL.model_copy(update={"optimizer": optimizer})
    payload = payload_of(checkpoint.dump(train(tiny, 1, made), "test", tiny))
    state = payload["resume"]["optimizer"]
    moments = state["moments"]
    assert len(moments) == right
    for count in {0, 1, 2, 3} - {right}:
        state["moments"] = [moments[0].clone() for _ in range(count)]
        assert "not valid" in rejection(archive.write(payload))


def test_a_file_without_newer_hyperparameters_still_resumes(tiny: DataSet, content: bytes) -> None:
    payload = payload_of(content)
    known = {"architecture", "epochs", "learning_rate", "batch_size", "filters", "blocks", "dropout", "weight_decay"}
    known |= {"l1", "label_smoothing", "augmentation", "augmentation_kind"}
    payload["hyperparameters"] = {name: value for name, value in payload["hyperparameters"].items() if name in known}
    assert len(payload["hyperparameters"]) == len(known) < len(Hyperparameters.model_fields)
    resumed = checkpoint.resume(checkpoint.parse(archive.write(payload), "old.pt"), torch.device("cpu"))
    assert resumed.hyperparameters == SMALL
    for _ in resumed.epochs(split(tiny, "test")):
        pass
    uninterrupted = train(tiny, 2).scored_network.state_dict()
    assert all(torch.equal(uninterrupted[name], value) for name, value in resumed.scored_network.state_dict().items())


def test_a_finished_training_run_cannot_be_resumed(tiny: DataSet, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "net.pt", train(tiny, 2), "test", tiny)
    with pytest.raises(CheckpointError, match="finished at epoch 2"):
        checkpoint.resume(checkpoint.load(tmp_path / "net.pt"), torch.device("cpu"))


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (Path("owned"), "")  # type: ignore[return-value]


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": Malicious()}, "attack.pt")
    Path("attack.pkl").write_bytes(pickle.dumps(Malicious()))
    for file in ("attack.pt", "attack.pkl"):
        with pytest.raises(CheckpointError, match=rf"{file}: damaged, or not an fmnist-search checkpoint"):
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
def test_a_foreign_file_is_a_one_line_error(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=r"foreign\.pt: ") as error:
        checkpoint.load(tmp_path / "foreign.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"architecture = 1\n", b"\x80\x02", b"PK\x03\x04", b"\0" * 50, b"cposix\nsystem\n", b"."]
)
def test_a_file_of_another_kind_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"other\.pth: "):
        checkpoint.load(tmp_path / "other.pth")


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    checkpoint.git_commit.cache_clear()
    assert checkpoint.git_commit() is None
    checkpoint.git_commit.cache_clear()


@pytest.mark.parametrize("kept", [0, 100, -10])
def test_a_truncated_file_is_rejected(tiny: DataSet, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "net.pt"
    checkpoint.save(path, train(tiny, 1), "test", tiny)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"net\.pt: damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("path", ["absent.pt", "."])
def test_a_missing_file_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="name a checkpoint"):
        checkpoint.load(tmp_path / path)


def test_a_failed_write_keeps_the_previous_file(tiny: DataSet, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    checkpoint.save(path, train(tiny, 1), "test", tiny)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # fails a write half-way, like a full disk
    try:
        with pytest.raises(OSError, match=r"net\.pt|too large"):
            checkpoint.save(path, train(tiny, 2), "test", tiny)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_and_zip_readers_can_open_the_file(content: bytes, tmp_path: Path, mapped: bool) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    loaded = torch.load(path, weights_only=True, mmap=mapped)
    assert loaded["format"] == checkpoint.FORMAT
    with zipfile.ZipFile(path) as zipped:
        assert zipped.testzip() is None
        assert zipped.comment.decode() == f"sha256:{archive.digest_of(content)}"
    assert checkpoint.load(path).digest == archive.digest_of(content)


def test_any_flipped_bit_is_detected(content: bytes) -> None:
    """Random bits of weights, resume state and metadata; every bit of the archive's ends, with digest and format."""
    bits = len(content) * 8
    ends = [*range(1600), *range(bits - 3000, bits)]
    draw = random.Random(16)
    for bit in [*ends, *(draw.randrange(bits) for _ in range(200))]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        assert "damaged" in rejection(bytes(damaged)), bit


def test_truncated_or_extended_files_are_rejected(content: bytes) -> None:
    comment = len(archive.PREFIX) + archive.DIGEST
    draw = random.Random(16)
    kept = [
        *range(100),
        *(draw.randrange(len(content)) for _ in range(50)),
        *(len(content) - cut for cut in (1, 64, comment)),
    ]
    for length in kept:
        rejection(content[:length])
    bare = content[: -comment - 2] + b"\0\0"
    assert payload_of(bare)  # only the digest is missing
    for other in (bare, content + b"\0", b"\0" + content, content + content, b""):
        rejection(other)


def test_only_the_previous_format_may_lack_a_digest(content: bytes) -> None:
    payload = payload_of(content)
    old = checkpoint.parse(without_digest(payload), "old.pt")
    assert old.digest is None
    assert checkpoint.resume(old, torch.device("cpu")).quarters == 4
    unsealed = io.BytesIO()
    torch.save(payload, unsealed)
    assert f"format '{checkpoint.WITHOUT_DIGEST}' not found" in rejection(unsealed.getvalue())
    assert f"format '{checkpoint.FORMAT}' not found" in rejection(
        archive.write(payload | {"format": checkpoint.WITHOUT_DIGEST})
    )


def put(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(payload: dict[str, Any]) -> None:
        inner: Any = payload
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


NAN = float("nan")


@pytest.mark.parametrize(
    "change",
    [
        put("format", value=torch.zeros(2)),
        put("seed", value=-1),
        put("seed", value="0"),
        put("score_on", value="train"),
        put("tta", value="auto"),
        put("tta", value=None),
        put("score_on", value=[]),
        put("history", value=[]),
        put("history", value=None),
        put("history", value=[1]),
        put("history", 0, "epoch", value=NAN),
        put("history", 0, "epoch", value=2),
        put("history", 0, "train_loss", value="low"),
        put("history", 0, "seconds", value=float("inf")),
        put("history", 0, "total", value=0),
        put("history", 0, "correct", value=10**6),
        put("history", 0, "confusion", value=[[1]]),
        put("history", 0, "confusion", 0, 0, value=-5),
        put("data_set", value=torch.zeros(2)),
        put("data_fingerprint", value=None),
        put("made_with", value=None),
        put("made_with", "threads", value=100_000),
        put("made_with", "threads", value=-1),
        put("made_with", "threads", value="1"),
        put("made_with", "precision", value="float64"),
        put("made_with", "device", value=torch.zeros(1)),
        put("hyperparameters", "filters", value=3),
        put("hyperparameters", "epochs", value=0),
        put("weights", value=None),
        put("weights", value={}),
        put("weights", "0.weight", value=torch.zeros(1)),
        put("weights", "0.weight", value=[0.0]),
        put("weights", "other", value=torch.zeros(1)),
        put("weights", "0.weight", value=torch.zeros(2, 1, 3, 3, dtype=torch.int64)),
        put("resume", value=[]),
        put("resume", "network", value={}),
        put("resume", "optimizer", "moments", value=[torch.zeros(1)] * 2),
        put("resume", "optimizer", "moments", value=[]),
        put("resume", "optimizer", "updates", value=1.0),
        put("resume", "quarters", value=8),
        put("resume", "quarters", value=10**30),
        put("resume", "steps", value=-1),
        put("resume", "steps", value=1.5),
        put("resume", value=None),
        put("other", value=1),
        put(1, value=1),
    ],
)
def test_invalid_content_with_a_valid_digest_is_rejected(
    content: bytes, change: Callable[[dict[str, Any]], None]
) -> None:
    payload = payload_of(content)
    change(payload)
    rejection(archive.write(payload))
    if payload.get("format") == checkpoint.FORMAT:
        rejection(without_digest(payload))


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_a_network_larger_than_its_weights_is_rejected_before_it_is_built(content: bytes, architecture: str) -> None:
    payload, before = payload_of(content), peak_memory()
    payload["hyperparameters"] |= {"architecture": architecture, "filters": 1024, "blocks": 4}
    assert "not valid" in rejection(archive.write(payload))
    assert peak_memory() - before < 200e6


def test_weights_that_share_memory_are_rejected_before_a_network_is_built(content: bytes) -> None:
    """For example, one zero expanded to the shape of every weight."""
    payload, before = payload_of(content), peak_memory()
    payload["hyperparameters"] |= {"filters": 512, "blocks": 4}
    with torch.device("meta"):
        shapes = {
            name: (t.shape, t.dtype)
            for name, t in checkpoint.build(Hyperparameters(**payload["hyperparameters"])).state_dict().items()
        }
    payload["weights"] = {name: torch.zeros((), dtype=dtype).expand(shape) for name, (shape, dtype) in shapes.items()}
    payload["resume"] = None
    payload["history"][0]["epoch"] = 2.0
    sealed = archive.write(payload)
    assert len(sealed) < 100_000
    assert "not valid" in rejection(sealed)
    assert peak_memory() - before < 200e6


def rewritten(content: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with other entries, the end records of torch.save, and a valid digest."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
        size = len(new.infolist())
    written = file.getvalue()
    directory = struct.unpack_from("<II", written, len(written) - 10)
    start = len(written) - 22
    body = written[:start]
    body += struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, size, size, *directory)
    body += struct.pack("<4sIQI", b"PK\6\7", 0, start, 1) + written[start:]
    sealed = body[:-2] + struct.pack("<H", 71) + archive.PREFIX
    return sealed + hashlib.sha256(sealed).hexdigest().encode()


def test_a_compressed_archive_is_rejected_before_decompression(content: bytes) -> None:
    assert checkpoint.parse(rewritten(content, lambda _, old: old), "net.pt")  # the archive itself is valid
    before = peak_memory()
    bomb = rewritten(
        content, lambda name, old: bytes(400_000_000) if name == "archive/data/0" else old, zipfile.ZIP_DEFLATED
    )
    grown = peak_memory() - before  # by creating the archive
    assert len(bomb) < 2_000_000
    rejection(bomb)
    assert peak_memory() - before < grown + 100e6


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x77\x85R.",  # bytearray(2 * 10**9)
        b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x77\x85R.",
        b"\x80\x02ctorch\nFloatTensor\nJ\x00\x00\x00\x77\x85R.",
        b"\x80\x02" + b"]" * 2**20 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02}r\xff\xff\xff\x7f.",
    ],
)
def test_a_malicious_pickle_cannot_allocate_memory(content: bytes, pickled: bytes) -> None:
    before = peak_memory()
    rejection(rewritten(content, lambda name, old: pickled if name == "archive/data.pkl" else old))
    assert peak_memory() - before < 200e6


def test_a_tensor_larger_than_its_storage_is_rejected(content: bytes) -> None:
    """Neither the storage nor the view may exceed the archive's entry."""
    size = payload_of(content)["resume"]["optimizer"]["moments"][0].numel()
    actual, larger = b"M" + struct.pack("<H", size), b"J" + struct.pack("<i", 2**30)
    for count in (1, -1):

        def change(name: str, old: bytes, count: int = count) -> bytes:
            assert name != "archive/data.pkl" or actual in old
            return old.replace(actual, larger, count) if name == "archive/data.pkl" else old

        rejection(rewritten(content, change))


def test_an_endless_file_is_rejected() -> None:
    with pytest.raises(CheckpointError, match="/dev/zero: damaged"):
        checkpoint.load("/dev/zero")


def test_the_longest_history_fits(content: bytes) -> None:
    payload = payload_of(content)
    scores = payload["history"][0] | {"total": 60_000, "correct": 6_000, "confusion": [[600] * 10] * 10}
    epochs = [0.25, 0.5, *map(float, range(1, 1001))]
    payload["hyperparameters"]["epochs"] = 1000
    payload["history"] = [scores | {"epoch": epoch, "confusion": [[600] * 10 for _ in range(10)]} for epoch in epochs]
    payload["resume"] = None
    assert len(checkpoint.parse(archive.write(payload), "net.pt").history) == 1002
