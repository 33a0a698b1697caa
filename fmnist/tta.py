"""Test-time augmentation: what a network makes of an image and of its mirror image, averaged.

It pays only where training showed the network mirrored images. A network that never saw one takes a bag's handle or a
sneaker's toe on the other side for another class: 91.28 % of the test images become 85.06 % (docs/log.md).
"""

import math

import torch
from torch import Tensor, nn

from fmnist.augmentation import flips
from fmnist.choices import AppliedTta, Tta
from fmnist.hyperparameters import Hyperparameters


def applied(tta: Tta, hyperparameters: Hyperparameters) -> AppliedTta:
    """What "auto" comes to in a training: the mirror image exactly where its augmentation flips."""
    if tta != "auto":
        return tta
    return "mirror" if flips(hyperparameters.augmentation_kind, hyperparameters.augmentation) else "none"


def with_tta(network: nn.Module, tta: AppliedTta) -> nn.Module:
    """The network itself for "none", so that nothing of what it computes changes by a bit."""
    return Mirrored(network) if tta == "mirror" else network


class Mirrored(nn.Module):
    """A network whose output is the logarithm of its mean probabilities for an image and its mirror image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 1, 28, 28) float32; (N, 10) float32."""
        mirrored = images.flip(3)  # before the network sees them: a user's own may change its input in place
        return log_mean_softmax([self.network(images), self.network(mirrored)])


def log_mean_softmax(logits: list[Tensor]) -> Tensor:
    """The logarithm of the mean of softmaxes: logits again, whose softmax is that mean.

    Args:
        logits: K of (N, 10) float32.
    """
    return torch.stack(logits).log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))
