import gzip
import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.datasets import FashionMNIST

from fmnist import data, source
from fmnist.data import DataSet, LabelledImages
from fmnist.errors import DataError, DataNotFound
from fmnist.source import CHECKSUMS
from tests.factories import digits

TRAIN_IMAGES = "train-images-idx3-ubyte"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    data.write(folder, *digits())
    return folder


def test_written_data_is_read_back_unchanged(own: Path) -> None:
    train, test = digits()
    loaded = data.load(own)
    assert torch.equal(loaded.train.images, train.images)
    assert torch.equal(loaded.test.labels, test.labels)
    assert loaded.train.images.dtype == torch.uint8
    assert loaded.test.labels.dtype == torch.int64


def test_another_data_set_is_never_taken_for_fashion_mnist(own: Path) -> None:
    assert data.load(own).name == "data set 'own'"
    (own / "SHA256SUMS").unlink()
    with pytest.raises(DataError, match=rf"{TRAIN_IMAGES}\.gz: altered"):
        data.load(own)


def test_an_altered_file_is_named(own: Path) -> None:
    file = own / f"{TRAIN_IMAGES}.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[5000] ^= 1
    file.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError, match=rf"{TRAIN_IMAGES}\.gz: altered.*download it again"):
        data.load(own)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_truncated_file_is_named(own: Path, kept: int) -> None:
    file = own / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: (truncated|altered)"):
        data.load(own)


def test_a_file_of_another_format_is_named_even_if_its_checksum_matches(own: Path) -> None:
    content = b"\0\0\x08\x01" + struct.pack(">I", 3) + b"abc"
    (own / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(content))
    sums = (own / "SHA256SUMS").read_text().splitlines()
    sums[0] = f"{hashlib.sha256(content).hexdigest()}  {TRAIN_IMAGES}"
    (own / "SHA256SUMS").write_text("\n".join(sums))
    with pytest.raises(DataError, match=rf"{TRAIN_IMAGES}\.gz: not uint8"):
        data.load(own)


def test_an_empty_data_set_is_rejected(tmp_path: Path) -> None:
    train, test = digits()
    data.write(tmp_path, train, test[torch.arange(0)])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: .*or empty"):
        data.load(tmp_path)


def test_an_incomplete_declaration_is_named(own: Path) -> None:
    (own / "SHA256SUMS").write_text("nonsense")
    with pytest.raises(DataError, match="SHA256SUMS: must list"):
        data.load(own)


def test_only_the_given_folder_is_searched(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz not found"):
        source.find(tmp_path)
    monkeypatch.setenv("FMNIST_DATA", str(own))
    assert source.find() == own
    with pytest.raises(DataError, match="name the folder"):
        source.find(tmp_path)


def decompress(folder: Path) -> None:
    for file in folder.glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()


def test_files_may_be_uncompressed_and_in_torchvisions_folder(own: Path, tmp_path: Path) -> None:
    compressed = data.load(own)
    decompress(own)
    root = tmp_path / "root"
    (root / "FashionMNIST").mkdir(parents=True)
    own.rename(root / "FashionMNIST" / "raw")
    loaded = data.load(root)
    assert loaded.fingerprint == compressed.fingerprint
    assert torch.equal(loaded.test.images, compressed.test.images)


def test_checksum_files_from_other_systems_are_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a byte order mark, checksums in capitals, other line endings, and names as printed by `sha256sum ./*`."""
    declaration = own / source.DECLARATION
    rows = [line.split() for line in declaration.read_text().splitlines()]
    lines = [f"{checksum.upper()} *./{name}\r\n" for checksum, name in rows]
    declaration.write_text("\ufeff" + "".join(lines), encoding="utf-8", newline="")
    monkeypatch.setenv("HOME", str(own.parent))
    monkeypatch.setenv("FMNIST_DATA", f"~/{own.name}")
    assert len(data.load().train) == 600


def test_the_cache_comes_before_debians_folder(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FMNIST_DATA", raising=False)
    monkeypatch.setattr(source, "DEBIAN_FOLDER", own)
    monkeypatch.setattr(source, "cache_folder", lambda: tmp_path / "cache")
    assert source.find() == own
    data.write(tmp_path / "cache", *digits())
    assert source.find() == tmp_path / "cache"


def test_a_failed_download_suggests_both_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FMNIST_DATA", raising=False)
    monkeypatch.setattr(source, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    leftover = source.cache_folder() / TRAIN_IMAGES  # torchvision skips the download if it finds these
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"")
    with pytest.raises(DataNotFound, match=r"apt-get install dataset-fashion-mnist.*--data-dir"):
        data.load()
    assert not leftover.exists()


def test_the_validation_split_is_stratified_disjoint_and_fixed(tiny: DataSet) -> None:
    splits = data.split(tiny, "validation")
    assert len(splits.scored) == 100
    assert len(splits.train) == 500
    rows = torch.cat([splits.train.images, splits.scored.images]).flatten(1)
    original = tiny.train.images.flatten(1)
    assert sorted(map(bytes, rows.numpy())) == sorted(map(bytes, original.numpy()))
    expected = torch.bincount(tiny.train.labels) / 6
    assert (torch.bincount(splits.scored.labels) - expected).abs().max() <= 1
    assert torch.equal(splits.scored.images, data.split(tiny, "validation").scored.images)


def test_scoring_on_test_trains_on_all_training_images(tiny: DataSet) -> None:
    splits = data.split(tiny, "test")
    assert len(splits.train) == 600
    assert torch.equal(splits.scored.labels, tiny.test.labels)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([0] * 50 + [1], "class 1 has only one training image"),
        (list(range(10)) * 2, "a sixth of 20 training images is too few .* 10 classes"),
    ],
)
def test_too_few_images_for_validation_are_a_one_line_error(tiny: DataSet, labels: list[int], reason: str) -> None:
    few = replace(tiny, train=LabelledImages(tiny.train.images[: len(labels)], torch.tensor(labels)))
    with pytest.raises(DataError, match=reason):
        data.split(few, "validation")
    assert data.split(few, "test").train is few.train
    enough = replace(tiny, train=LabelledImages(tiny.train.images[:60], torch.arange(60) % 10))
    assert data.split(enough, "validation").scored.labels.unique().tolist() == list(range(10))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_standardizing_does_not_change_its_argument(dtype: torch.dtype) -> None:
    images = torch.arange(784).reshape(1, 1, 28, 28).remainder(256).to(dtype)
    before = images.clone()
    assert data.standardize(images).dtype == torch.float32
    assert torch.equal(images, before)


@pytest.mark.fashion_mnist
def test_fashion_mnist_is_complete_and_standardizes_to_zero_mean_and_unit_deviation() -> None:
    loaded = data.load()
    assert loaded.name == "Fashion-MNIST"
    assert (len(loaded.train), len(loaded.test)) == (60_000, 10_000)
    assert torch.bincount(loaded.train.labels).tolist() == [6000] * 10
    standardized = data.standardize(loaded.train.images)
    assert abs(standardized.mean().item()) < 1e-3
    assert abs(standardized.std().item() - 1) < 1e-3


@pytest.mark.fashion_mnist
def test_the_verified_content_matches_torchvisions_checksums() -> None:
    """torchvision has the md5 of the published .gz; Debian only removed name and time from their headers."""
    folder = data.load().folder
    header = b"\x1f\x8b\x08\x08"
    times = {"train": 1504176606, "t10k": 1504176627}  # 31 August 2017, from the published headers
    for name, md5 in FashionMNIST.resources:
        compressed = (folder / name).read_bytes()
        if compressed[3] == 0:
            time = struct.pack("<I", times[name.split("-")[0]])
            compressed = header + time + compressed[8:10] + name.removesuffix(".gz").encode() + b"\0" + compressed[10:]
        assert hashlib.md5(compressed, usedforsecurity=False).hexdigest() == md5
    assert {f"{name}.gz" for name in CHECKSUMS} == {name for name, _ in FashionMNIST.resources}
