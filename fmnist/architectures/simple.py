"""The write-up's network: one convolution, then fully connected layers."""

from torch import nn

from fmnist.architectures.layers import ACTIVATIONS, Dropout, FlattenPixels
from fmnist.data import CLASSES, SIDE
from fmnist.hyperparameters import Hyperparameters

KERNEL_SIZE = 5  # default of `kernel_size`


def simple(hyperparameters: Hyperparameters) -> nn.Sequential:
    """Convolution, max-pool, activation, and three fully connected layers.

    The write-up specifies the convolution (kernel 5, 8 filters), ReLU, and "several fully connected layers"; the
    default widths of 128 and 64 are ours. Pooling before ReLU gives the same result as after it, on a quarter of the
    elements; this does not hold for gelu and silu, which are not monotonic.

    Args:
        hyperparameters: `filters` of the convolution (8 in the write-up) and its `kernel_size`; `hidden` features of
            the first fully connected layer, half of them in the second; `activation`; `dropout` before each fully
            connected layer but the first. `blocks` is ignored.
    """
    filters, dropout, hidden = hyperparameters.filters, hyperparameters.dropout, hyperparameters.hidden
    activation = ACTIVATIONS[hyperparameters.activation]
    kernel_size = hyperparameters.kernel_size or KERNEL_SIZE
    pooled, half = (SIDE - kernel_size + 1) // 2, max(1, hidden // 2)
    return nn.Sequential(
        nn.Conv2d(1, filters, kernel_size),
        nn.MaxPool2d(2),
        activation(),
        FlattenPixels(),
        nn.Linear(filters * pooled**2, hidden),
        activation(),
        Dropout(dropout),
        nn.Linear(hidden, half),
        activation(),
        Dropout(dropout),
        nn.Linear(half, len(CLASSES)),
    )
