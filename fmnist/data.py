"""Fashion-MNIST as tensors: find the files, verify them, fetch them, split them.

The four files are read once and kept whole: a batch is an index into a tensor.
A folder may hold another data set in the same format, such as a tiny one for
tests, if a file `SHA256SUMS` beside the four names the check-sums of their
contents (`write` makes both); it is called by its folder's name and never passes
for Fashion-MNIST.
"""

import gzip
import hashlib
import math
import os
import socket
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from fmnist.errors import ExpectedError
from fmnist.hyperparameters import ScoreOn

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIDE = 28  # pixels

# SHA-256 of the uncompressed files. Not of the .gz: Debian rewrites their headers. With the
# header of the original put back, Debian's files have the md5 that torchvision checks.
CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DECLARATION = "SHA256SUMS"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

# Mean and standard deviation of the 60,000 training images' pixels, scaled to [0, 1].
PIXEL_MEAN = 0.2860
PIXEL_STD = 0.3530

MIRROR_TIMEOUT = 30  # seconds without a byte

VALIDATION_SHARE = 1 / 6  # 10,000 of the 60,000 training images
VALIDATION_SEED = 20170825  # fixed, so that every training holds out the same images


class DataError(ExpectedError):
    """The data set is absent, truncated or altered; the message says what to do."""


class DataAbsent(DataError):
    """The data set is nowhere on this machine and no mirror answers."""

    exit_code = 3


@dataclass(frozen=True)
class LabelledImages:
    """images: (N, 1, 28, 28) uint8, 0 is the background; labels: (N,) int64 in 0..9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "LabelledImages":
        return LabelledImages(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "LabelledImages":
        return LabelledImages(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class DataSet:
    """A data set in memory; `fingerprint` is the SHA-256 of its files' check-sums."""

    name: str
    folder: Path
    train: LabelledImages
    test: LabelledImages
    fingerprint: str


@dataclass(frozen=True)
class Splits:
    """What a training learns from, and what scores it after each epoch."""

    train: LabelledImages
    scored: LabelledImages
    score_on: ScoreOn


def standardize(images: Tensor) -> Tensor:
    """Scale pixels to zero mean and unit deviation over the training images.

    Args:
        images: (N, 1, 28, 28) uint8, or float32 in [0, 255].

    Returns:
        (N, 1, 28, 28) float32.
    """
    return images.to(torch.float32).sub_(255 * PIXEL_MEAN).div_(255 * PIXEL_STD)


def split(data: DataSet, score_on: ScoreOn) -> Splits:
    """Choose the images that score a training.

    `test` scores on the test images. `validation` holds a stratified sixth of the
    training images out, the same one each time, and leaves the test images unread.
    """
    if score_on == "test":
        return Splits(data.train, data.test, score_on)
    from sklearn.model_selection import train_test_split

    kept, held_out = train_test_split(
        np.arange(len(data.train)),
        test_size=VALIDATION_SHARE,
        stratify=data.train.labels.numpy(),
        random_state=VALIDATION_SEED,
    )
    return Splits(data.train[torch.from_numpy(kept)], data.train[torch.from_numpy(held_out)], score_on)


def cache_folder() -> Path:
    """Where a fetched data set is kept for this user."""
    return Path(user_cache_path("fmnist-search")) / "FashionMNIST" / "raw"


def find(folder: Path | None = None) -> Path | None:
    """Find the folder that holds the four files; None where there is none.

    Looks in `folder`, else in the environment's FMNIST_DATA, and only there if one is
    given; otherwise in the user's cache, then where Debian's package puts them.

    Raises:
        DataError: a folder was given and does not hold the four files.
    """
    given = folder or (Path(os.environ["FMNIST_DATA"]) if os.environ.get("FMNIST_DATA") else None)
    if given is None:
        return next((known for known in (cache_folder(), DEBIAN_FOLDER) if not _missing(known)), None)
    if missing := _missing(given):
        raise DataError(
            f"{given}: no {missing[0]} in it; name the folder that holds {', '.join(map(_compressed, CHECKSUMS))}"
        )
    return given


def fetch() -> Path:
    """Download the data set with torchvision into the user's cache; returns its folder.

    Raises:
        DataAbsent: no mirror answered.
    """
    from torchvision.datasets import FashionMNIST

    folder = cache_folder()
    for file in CHECKSUMS:  # torchvision fetches nothing where it finds unpacked files
        (folder / file).unlink(missing_ok=True)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(MIRROR_TIMEOUT)
    try:
        FashionMNIST(str(folder.parent.parent), download=True)
    except (OSError, RuntimeError) as error:
        raise DataAbsent(
            "Fashion-MNIST is not on this machine and could not be downloaded "
            f"({str(error).strip().splitlines()[0]}). "
            "Install Debian's package (apt-get install dataset-fashion-mnist), "
            "or copy the four .gz files here and name their folder with --data-dir or FMNIST_DATA."
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    return folder


def load(folder: Path | None = None) -> DataSet:
    """Find, or else fetch, the data set; verify and read it.

    Raises:
        DataError: it is absent, or a file is truncated, altered or malformed.
    """
    found = find(folder) or fetch()
    checksums = _declared(found)
    train, test = (_read(found, prefix, checksums) for prefix in ("train", "t10k"))
    name = "Fashion-MNIST" if checksums == CHECKSUMS else f"data set {found.resolve().name!r}"
    fingerprint = hashlib.sha256(" ".join(checksums[file] for file in CHECKSUMS).encode()).hexdigest()
    return DataSet(name, found, train, test, fingerprint)


def write(folder: Path, train: LabelledImages, test: LabelledImages) -> None:
    """Write a data set of one's own in the format of Fashion-MNIST, with its check-sums."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = []
    for prefix, part in (("train", train), ("t10k", test)):
        for kind, values in (("images-idx3-ubyte", part.images.squeeze(1)), ("labels-idx1-ubyte", part.labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
            content = header + values.to(torch.uint8).numpy().tobytes()
            (folder / _compressed(f"{prefix}-{kind}")).write_bytes(gzip.compress(content, mtime=0))
            sums.append(f"{hashlib.sha256(content).hexdigest()}  {prefix}-{kind}\n")
    (folder / DECLARATION).write_text("".join(sums))


def _compressed(file: str) -> str:
    return f"{file}.gz"


def _missing(folder: Path) -> list[str]:
    return [_compressed(file) for file in CHECKSUMS if not (folder / _compressed(file)).is_file()]


def _declared(folder: Path) -> dict[str, str]:
    """The SHA-256 that the content of each of the folder's files must have."""
    declaration = folder / DECLARATION
    if not declaration.is_file():
        return CHECKSUMS
    rows = [line.split() for line in declaration.read_text(errors="replace").splitlines()]
    declared = {row[1].lstrip("*"): row[0] for row in rows if len(row) == 2}
    if not CHECKSUMS.keys() <= declared.keys():
        raise DataError(
            f"{declaration}: must name {', '.join(CHECKSUMS)}; unpack the files and write it with sha256sum"
        )
    return {file: declared[file] for file in CHECKSUMS}


def _read(folder: Path, prefix: str, checksums: dict[str, str]) -> LabelledImages:
    image_file, label_file = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    images = _parse(folder / _compressed(image_file), checksums[image_file], (SIDE, SIDE)).unsqueeze(1)
    labels = _parse(folder / _compressed(label_file), checksums[label_file], ()).to(torch.int64)
    if len(images) != len(labels) or int(labels.max()) >= len(CLASSES):
        raise DataError(f"{folder / _compressed(label_file)}: its labels do not fit {image_file}; replace both files")
    return LabelledImages(images, labels)


def _parse(path: Path, checksum: str, shape: tuple[int, ...]) -> Tensor:
    """Verify and read an IDX file: two zero bytes, the type (8 is uint8), the rank, the sizes."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: truncated or unreadable ({error}); delete it and fetch it again") from error
    if hashlib.sha256(content).hexdigest() != checksum:
        raise DataError(f"{path}: altered, its check-sum is not the one that is known; delete it and fetch it again")
    header = 4 + 4 * (1 + len(shape))
    sizes = np.frombuffer(content[4:header].ljust(header - 4, b"\0"), dtype=">u4").tolist()
    right_start = content[:4] == bytes([0, 0, 8, 1 + len(shape)]) and tuple(sizes[1:]) == shape
    if not right_start or len(content) != header + math.prod(sizes) or len(content) == header:
        raise DataError(f"{path}: not uint8 values of shape {('N', *shape)} in IDX format, or empty; replace it")
    # A copy, as torch wants memory that may be written to.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(sizes)
