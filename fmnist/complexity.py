"""What a network costs: its parameters, and the multiply-adds of one image."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from fmnist.architectures import build
from fmnist.data import SIDE
from fmnist.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class Complexity:
    """Costs that follow from a network's shape alone.

    parameters: trained numbers.
    multiply_adds: one image's forward pass in evaluation mode: convolutions, linear layers
        and attention's two matrix products. Biases, norms, activations and pools are not counted.
    """

    parameters: int
    multiply_adds: int


def complexity(hyperparameters: Hyperparameters) -> Complexity:
    """Count on the meta device, where nothing is computed or drawn.

    Attention is counted there, as matrix products; torch's counter misses the CPU's fused kernel.
    """
    with torch.device("meta"):
        network = build(hyperparameters).eval()
        image = torch.empty(1, 1, SIDE, SIDE)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return Complexity(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        multiply_adds=counter.get_total_flops() // 2,
    )
