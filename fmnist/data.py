"""Fashion-MNIST as tensors: loaded, split, standardized.

The four files are read into memory once, so a batch is an index into a tensor. A folder may hold another data set in
the same format, such as a tiny one for tests, if a file `SHA256SUMS` beside the four lists the checksums of their
contents (`write` creates both); that data set is named after its folder.
"""

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmnist import source
from fmnist.classes import CLASSES as CLASSES  # re-exported for callers
from fmnist.errors import DataError
from fmnist.hyperparameters import ScoreOn

SIDE = 28  # pixels

# Mean and standard deviation of the 60,000 training images' pixels, scaled to [0, 1].
PIXEL_MEAN = 0.2860
PIXEL_STD = 0.3530

GZIP = b"\x1f\x8b"  # first bytes of a compressed file
VALIDATION_SHARE = 1 / 6  # 10,000 of the 60,000 training images
VALIDATION_SEED = 20170825  # fixed, so that every training run holds out the same images


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
    """A data set in memory; `fingerprint` is the SHA-256 of its files' checksums."""

    name: str
    folder: Path
    train: LabelledImages
    test: LabelledImages
    fingerprint: str


@dataclass(frozen=True)
class Splits:
    """Images to train on, and images that score each epoch."""

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
    return images.to(torch.float32, copy=True).sub_(255 * PIXEL_MEAN).div_(255 * PIXEL_STD)


def split(data: DataSet, score_on: ScoreOn) -> Splits:
    """Choose the images that score a training run.

    `test` scores on the test images. `validation` holds out a stratified sixth of the
    training images, always the same, and does not use the test images.

    Raises:
        DataError: a class has too few images to hold any out.
    """
    check_split(data, score_on)
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


def check_split(data: DataSet, score_on: ScoreOn) -> None:
    """Check that `split` can succeed.

    Raises:
        DataError: a class has too few images to hold any out.
    """
    if score_on == "test":
        return
    counts = torch.bincount(data.train.labels, minlength=len(CLASSES))
    for label, count in enumerate(counts.tolist()):
        if count == 1:
            raise DataError(
                f"{data.folder}: class {label} has only one training image, so none can be held out for validation; "
                "add images, or score on the test images"
            )
    present = int((counts > 0).sum())
    if math.ceil(len(data.train) * VALIDATION_SHARE) < present:
        raise DataError(
            f"{data.folder}: a sixth of {len(data.train)} training images is too few for a validation set with "
            f"{present} classes; add images, or score on the test images"
        )


def load(folder: Path | str | None = None) -> DataSet:
    """Find the data set, or download it; verify and read it.

    Args:
        folder: of its four files; None searches as `source.find` does.

    Raises:
        DataError: the data set is missing, or a file is truncated, altered or malformed.
    """
    found = source.find(Path(folder) if folder else None) or source.fetch()
    checksums = source.declared_checksums(found)
    train, test = (_read(found, prefix, checksums) for prefix in ("train", "t10k"))
    name = "Fashion-MNIST" if checksums == source.CHECKSUMS else f"data set {found.resolve().name!r}"
    return DataSet(name, found, train, test, fingerprint_of(checksums))


def fingerprint_of(checksums: dict[str, str]) -> str:
    """SHA-256 of the checksums of a data set's files."""
    return hashlib.sha256(" ".join(checksums[file] for file in source.CHECKSUMS).encode()).hexdigest()


def write(folder: Path, train: LabelledImages, test: LabelledImages) -> None:
    """Write a data set in Fashion-MNIST's format, with its checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = []
    for prefix, part in (("train", train), ("t10k", test)):
        for kind, values in (("images-idx3-ubyte", part.images.squeeze(1)), ("labels-idx1-ubyte", part.labels)):
            content = _encode_idx(values.to(torch.uint8))
            (folder / source.compressed(f"{prefix}-{kind}")).write_bytes(gzip.compress(content, mtime=0))
            sums.append(f"{hashlib.sha256(content).hexdigest()}  {prefix}-{kind}\n")
    (folder / source.DECLARATION).write_text("".join(sums))


def _read(folder: Path, prefix: str, checksums: dict[str, str]) -> LabelledImages:
    image_file, label_file = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    image_path, label_path = source.path_of(folder, image_file), source.path_of(folder, label_file)
    images = _read_idx(image_path, checksums[image_file], (SIDE, SIDE)).unsqueeze(1)
    labels = _read_idx(label_path, checksums[label_file], ()).to(torch.int64)
    if prefix == "train" and len(images) == 1:
        raise DataError(f"{image_path}: one image is too few to train on; replace the files")
    if len(images) != len(labels) or int(labels.max()) >= len(CLASSES):
        raise DataError(f"{label_path}: labels do not match {image_file}; replace both files")
    return LabelledImages(images, labels)


def _encode_idx(values: Tensor) -> bytes:
    # Two zero bytes, the type (8 is uint8), the rank, the sizes as big-endian 32-bit integers, then the values.
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    return header + values.numpy().tobytes()


def _read_idx(path: Path, checksum: str, shape: tuple[int, ...]) -> Tensor:
    # shape: (28, 28) for images, () for labels; returns (N, *shape) uint8
    try:
        content = path.read_bytes()
        if content.startswith(GZIP):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: truncated or unreadable ({error}); delete it and download it again") from error
    if hashlib.sha256(content).hexdigest() != checksum:
        raise DataError(f"{path}: altered (its checksum is wrong); delete it and download it again")
    header = 4 + 4 * (1 + len(shape))
    sizes = np.frombuffer(content[4:header].ljust(header - 4, b"\0"), dtype=">u4").tolist()
    valid_header = content[:4] == bytes([0, 0, 8, 1 + len(shape)]) and tuple(sizes[1:]) == shape
    if not valid_header or len(content) != header + math.prod(sizes) or len(content) == header:
        raise DataError(f"{path}: not uint8 values of shape {('N', *shape)} in IDX format, or empty; replace it")
    # A copy, because torch needs writable memory.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(sizes)
