"""Layers that do what torch's do, made for a CPU on which images are channels_last. docs/log.md has what they save."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmnist.choices import Activation

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class FlattenPixels(nn.Module):
    """(N, C, H, W) to (N, H * W * C): without a copy, where `nn.Flatten` makes one of images that are channels_last."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).flatten(1)


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
        least = min(round(self.probability * 2**16) - 2**15, 2**15 - 1)
        kept = (bits >= least).to(features.dtype)
        return features * kept.mul_(1 / (1 - self.probability))
