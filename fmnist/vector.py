"""Tensors laid out as one vector, so that what changes them all is one operation and not one for each."""

from collections.abc import Iterable

import torch
from torch import Tensor

ALIGNMENT = 16  # elements between possible beginnings: 64 bytes of float32, a CPU's cache line


def as_vector(tensors: Iterable[Tensor]) -> Tensor:
    """Move float32 tensors into one vector; they become views of it, with their values and memory format.

    Between them are up to 15 zeros that belong to no tensor.

    Returns:
        (M,) float32 on the tensors' device; (0,) on the CPU if there are none.
    """
    tensors = list(tensors)
    starts, length = _layout(tensors)
    vector = torch.zeros(length, device=tensors[0].device if tensors else None)
    for tensor, start in zip(tensors, starts, strict=True):
        view = vector.as_strided(tensor.shape, tensor.stride(), start)
        tensor.data = view.copy_(tensor.data)
    return vector


def vector_length(tensors: Iterable[Tensor]) -> int:
    """The M of their vector."""
    return _layout(tensors)[1]


def _layout(tensors: Iterable[Tensor]) -> tuple[list[int], int]:
    """Where in the vector each begins, and the vector's length."""
    starts, length = [], 0
    for tensor in tensors:
        starts.append(length)
        length += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    return starts, length
