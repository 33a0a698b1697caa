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
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + -(-tensor.numel() // ALIGNMENT) * ALIGNMENT)
    vector = torch.zeros(starts[-1], device=tensors[0].device if tensors else None)
    for tensor, start in zip(tensors, starts, strict=False):
        view = vector.as_strided(tensor.shape, tensor.stride(), start)
        tensor.data = view.copy_(tensor.data)
    return vector
