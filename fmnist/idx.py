"""The IDX format of the data set's files: uint8 tensors, gzipped.

Two zero bytes, the type (8 is uint8), the rank, the sizes as big-endian 32-bit integers,
then the values (LeCun, the MNIST database).
"""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmnist.errors import DataError


def encode(values: Tensor) -> bytes:
    """A uint8 tensor as the content of a file, not compressed yet."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    return header + values.numpy().tobytes()


def read(path: Path, checksum: str, shape: tuple[int, ...]) -> Tensor:
    """Verify and read a file.

    Args:
        checksum: SHA-256 of its uncompressed content.
        shape: of one of its values: (28, 28) of an image, () of a label.

    Returns:
        (N, *shape) uint8.

    Raises:
        DataError: it is truncated, altered, of another format, or empty.
    """
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
