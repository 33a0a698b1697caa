"""A small residual network after the CIFAR networks of He et al. (2016, CVPR, section 4.2), with one block per stage.

Unlike theirs, its stem pools, as in their ImageNet networks (table 1): a first residual block on the full 28 x 28
pixels makes an epoch on a CPU three times as long.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from fmnist.architectures.cnn import block
from fmnist.architectures.layers import Dropout
from fmnist.data import CLASSES
from fmnist.hyperparameters import Hyperparameters


def convolution(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps the image's size or divides it by the stride, then batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, added to the block's input.

    If the shape changes, the input passes through a 1 x 1 projection: option B of He et al.
    (their CIFAR networks pad with zeros instead, option A).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        changes = inputs != outputs
        stride = 2 if changes else 1
        self.residual = nn.Sequential(
            convolution(inputs, outputs, kernel_size=3, stride=stride),
            nn.ReLU(),
            convolution(outputs, outputs, kernel_size=3),
        )
        # A one-pixel pool takes every second pixel. A 1 x 1 convolution with a stride would do the same, but with few
        # channels in channels_last order it writes out of bounds on processors without AVX512 (torch 2.14).
        self.shortcut = (
            nn.Sequential(nn.AvgPool2d(1, stride), convolution(inputs, outputs, kernel_size=1))
            if changes
            else nn.Identity()
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, inputs, S, S) to (N, outputs, S, S), with S halved (rounded up) if the width changes."""
        return F.relu(self.shortcut(images) + self.residual(images))


def resnet(hyperparameters: Hyperparameters) -> nn.Sequential:
    """A stem of one convolution block, residual blocks (14, 7, 4, 2 pixels a side), average pool and a linear layer.

    Args:
        hyperparameters: `filters` of the stem and the first residual block; number of `blocks`, each after the first
            with half the size and twice the width; `dropout` before the linear layer.
    """
    filters = hyperparameters.filters
    widths = [filters, *(filters * 2**i for i in range(hyperparameters.blocks))]
    return nn.Sequential(
        *block(1, filters),
        *(ResidualBlock(inputs, outputs) for inputs, outputs in pairwise(widths)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Dropout(hyperparameters.dropout),
        nn.Linear(widths[-1], len(CLASSES)),
    )
