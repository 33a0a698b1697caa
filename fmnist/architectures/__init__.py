"""The networks. Each maps (N, 1, 28, 28) float32 standardized images to (N, 10) logits."""

from torch import nn

from fmnist.architectures.cnn import cnn
from fmnist.architectures.simple import simple
from fmnist.hyperparameters import Hyperparameters


def build(hyperparameters: Hyperparameters) -> nn.Module:
    """Make the network that the hyperparameters name, with fresh random weights."""
    architecture = {"simple": simple, "cnn": cnn}[hyperparameters.architecture]
    return architecture(hyperparameters.filters, hyperparameters.dropout)
