"""Layers that give what torch's give, made for how a CPU trains: images channels_last, batches small.

Each falls back on torch's own where that is not the case. docs/log.md has what they save.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class FlattenPixels(nn.Module):
    """(N, C, H, W) to (N, H * W * C): without a copy, where `nn.Flatten` makes one of images that are channels_last."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).flatten(1)


class MaxPool(nn.Module):
    """Max-pool of 2 x 2 pixels, equal to `nn.MaxPool2d(2)`: in training without its table of indices.

    Of equal pixels in a window the gradient may go to another one than torch's.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H // 2, W // 2)."""
        if not (self.training and images.is_cpu) or images.shape[2] % 2 or images.shape[3] % 2:
            return F.max_pool2d(images, 2)
        pooled: Tensor = _MaxPool.apply(images.permute(0, 2, 3, 1))
        return pooled.permute(0, 3, 1, 2)


class _MaxPool(torch.autograd.Function):
    """Rows first, then columns: what is left to do is compare neighbours in long runs of memory."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        """(N, H, W, C) with even H and W to (N, H / 2, W / 2, C)."""
        rows = torch.maximum(*_pairs(pixels, 1))
        ctx.save_for_backward(pixels, rows)
        return torch.maximum(*_pairs(rows, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        pixels, rows = ctx.saved_tensors
        return _to_larger(pixels, _to_larger(rows, gradient, 2), 1)


def _pairs(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Views of the even and of the odd entries along a dimension."""
    even, odd = values.unflatten(dim, (-1, 2)).unbind(dim + 1)
    return even, odd


def _to_larger(values: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """Give each pair's gradient to the larger of the two, to the first if they are equal; 0 to the other."""
    given = torch.empty_like(values)
    (first, second), (to_first, to_second) = _pairs(values, dim), _pairs(given, dim)
    # ReLU's backward is `where(second - first > 0, gradient, 0)`, which with a mask takes 15 times as long.
    torch.ops.aten.threshold_backward.grad_input(gradient, second - first, 0, grad_input=to_second)
    torch.sub(gradient, to_second, out=to_first)
    return given


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) from 16 random bits an element, which are drawn four elements at a time.

    Args:
        probability: of an element to become 0, in [0, 1); the rest is scaled up. Kept to a 65,536th.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, features: Tensor) -> Tensor:
        if not (self.training and features.is_cpu and self.probability):
            return F.dropout(features, self.probability, self.training)
        words = torch.empty((features.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: features.numel()].view(features.shape)
        kept = (bits >= round(self.probability * 2**16) - 2**15).to(features.dtype)
        return features * kept.mul_(1 / (1 - self.probability))
