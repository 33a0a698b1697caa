"""The default network: convolution blocks that halve the image, then fully connected layers."""

from itertools import pairwise

from torch import Tensor, nn

from fmnist.architectures.layers import ACTIVATIONS, Dropout, FlattenPixels
from fmnist.data import CLASSES, SIDE
from fmnist.hyperparameters import Hyperparameters

KERNEL_SIZE = 3  # default of `kernel_size`
RESIDUALS = 2  # blocks followed by a residual convolution; after them the image is 7 x 7 pixels


def block(
    inputs: int, outputs: int, kernel_size: int = KERNEL_SIZE, activation: type[nn.Module] = nn.ReLU
) -> list[nn.Module]:
    """Convolution that keeps the image's size, 2 x 2 max-pool, batch norm, activation.

    The pool comes before batch norm (Ioffe and Szegedy, 2015) and the activation, which then process a quarter of the
    elements.
    """
    # Equal to padding="same", which warns about even kernels.
    padding = [] if kernel_size % 2 else [nn.ZeroPad2d((0, 1, 0, 1))]
    return [
        *padding,
        nn.Conv2d(inputs, outputs, kernel_size, padding=(kernel_size - 1) // 2, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(outputs),
        activation(),
    ]


class ResidualConvolution(nn.Module):
    """A 3 x 3 convolution, batch norm and activation, added to the input."""

    def __init__(self, features: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(features, features, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(features),
            activation(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, features, S, S) to the same shape."""
        return images.add(self.residual(images))


def cnn(hyperparameters: Hyperparameters) -> nn.Sequential:
    """Blocks that halve the image (28, 14, 7, 3, 1) and double the width, then two fully connected layers.

    Args:
        hyperparameters: `filters` of the first block; number of `blocks`; `kernel_size` of their
            convolutions; whether a `residual` convolution follows the first two; `hidden` features
            between the fully connected layers; `activation`; `dropout` before each fully connected layer.
    """
    activation = ACTIVATIONS[hyperparameters.activation]
    widths = [1, *(hyperparameters.filters * 2**i for i in range(hyperparameters.blocks))]
    blocks: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        blocks += block(inputs, outputs, hyperparameters.kernel_size or KERNEL_SIZE, activation)
        if hyperparameters.residual and number < RESIDUALS:
            blocks.append(ResidualConvolution(outputs, activation))
    features = widths[-1] * (SIDE // 2**hyperparameters.blocks) ** 2
    return nn.Sequential(
        *blocks,
        FlattenPixels(),
        Dropout(hyperparameters.dropout),
        nn.Linear(features, hyperparameters.hidden),
        activation(),
        Dropout(hyperparameters.dropout),
        nn.Linear(hyperparameters.hidden, len(CLASSES)),
    )
