"""Cost of a network: parameters, and multiply-adds per image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmnist.architectures import build
from fmnist.architectures.transformer import SelfAttention
from fmnist.choices import is_own
from fmnist.data import SIDE
from fmnist.hyperparameters import Hyperparameters
from fmnist.own_network import OwnNetwork, load
from fmnist.user_code import running

SHAPE = frozenset(
    {"architecture", "filters", "blocks", "kernel_size", "residual", "hidden", "network"}
)  # the hyperparameters that determine complexity


@dataclass(frozen=True)
class Complexity:
    """Costs determined by a network's shape alone.

    multiply_adds: forward pass of one image in evaluation mode: convolutions, linear layers
        and attention's two matrix products. Biases, norms, activations and pools are not counted.
    """

    parameters: int
    multiply_adds: int


def complexity(hyperparameters: Hyperparameters, own: OwnNetwork | None = None) -> Complexity:
    """Count a network's parameters and multiply-adds by passing an empty batch through it; nothing is computed.

    Args:
        own: the user's own network if already loaded; otherwise it is loaded by name.

    Raises:
        NetworkError: the user's own network cannot be loaded or built, or fails.
    """
    if is_own(hyperparameters.architecture):
        return _of_own(own or load(hyperparameters.architecture), hyperparameters.network)
    # torch's own counter, a pass on the meta device and `to_empty` would spend seconds importing its compiler or sympy.
    # Hence empty weights of the right shapes; only user networks, whose layers are unknown here, use the counter.
    with torch.device("meta"):
        network = build(hyperparameters).eval()
    shapes = network.state_dict()
    network.load_state_dict(
        {name: torch.empty(each.shape, dtype=each.dtype) for name, each in shapes.items()}, assign=True
    )
    counts: list[int] = []
    for module in network.modules():
        module.register_forward_hook(lambda *call: counts.append(_multiply_adds(*call)))
    with torch.no_grad():
        network(torch.zeros(0, 1, SIDE, SIDE))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Complexity(parameters=parameters, multiply_adds=sum(counts))


def _of_own(own: OwnNetwork, arguments: Mapping[str, Any]) -> Complexity:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.random.fork_rng([]):
        network = own.build(arguments).eval()
    # With gradients and without fused kernels, because the counter does not know a CPU's fused layers.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, running(own.architecture):
        network(torch.zeros(1, 1, SIDE, SIDE))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Complexity(parameters=parameters, multiply_adds=counter.get_total_flops() // 2)


def _multiply_adds(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    # Per image, in one call of a layer, excluding its sublayers.
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return output.shape[1:].numel() * module.weight[0].numel()
    if isinstance(module, SelfAttention):
        _, tokens, features = inputs[0].shape
        return 2 * tokens**2 * features
    return 0
