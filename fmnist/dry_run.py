"""Test the user's own network on noise, to report its errors before training begins."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fmnist.classes import CLASSES
from fmnist.device import Precision
from fmnist.errors import NetworkError
from fmnist.own_network import OwnNetwork
from fmnist.user_code import line_of, running

SIDE = 28  # pixels of an image
SEED = 20_170_825_001  # for weights and noise; unlikely to be set by user code


def dry_run(network: OwnNetwork, arguments: Mapping[str, Any], precision: Precision = "float32") -> None:
    """Build, train, score, save and load a network once, on noise.

    Args:
        arguments: of the constructor.
        precision: of the training run.

    Raises:
        NetworkError: the network cannot be trained, scored or saved.
    """
    where = network.architecture
    with torch.random.fork_rng([]):
        first, second = _seeded(network, arguments), _seeded(network, arguments)
        in_forward = line_of(type(first).forward, where)
        _check_state(where, first, second)
        parameters = dict(first.named_parameters())
        images, labels = torch.randn(2, 1, SIDE, SIDE), torch.tensor([0, 1])
        with running(where):
            logits = first.train()(images)
        if torch.initial_seed() != SEED:
            raise NetworkError(f"{in_forward}: sets torch's seed, so its random numbers repeat; remove that call")
        _check_logits(in_forward, logits, 2)
        if added := [name for name, _ in first.named_parameters() if name not in parameters]:
            raise NetworkError(f"{in_forward}: creates parameter {added[0]}; create it in the constructor")
        if not logits.requires_grad:
            raise NetworkError(f"{in_forward}: its logits have no gradient; compute them from its parameters")
        with running(where):
            F.cross_entropy(logits.float(), labels).backward()
            if precision == "bfloat16":
                with torch.autocast("cpu", torch.bfloat16):
                    reduced = first(images)
                F.cross_entropy(reduced.float(), labels).backward()
        gradients = [each.grad for each in parameters.values() if each.grad is not None]
        if not all(torch.isfinite(gradient).all() for gradient in gradients):
            raise NetworkError(f"{in_forward}: gradients are not finite; look for a division by 0 or a logarithm of 0")
        with running(where):
            loaded = _seeded(network, arguments, SEED + 1)  # draws anything that is not in the state again
        with torch.no_grad(), running(where):
            loaded.load_state_dict(first.state_dict())
            logits, repeated, reloaded = (each.eval()(images[:1]) for each in (first, first, loaded))
        _check_logits(in_forward, logits, 1)
        if not torch.equal(logits, repeated):
            raise NetworkError(
                f"{in_forward}: is random in evaluation mode; use nn.Dropout, or F.dropout(x, p, self.training)"
            )
        if not torch.equal(logits, reloaded):
            raise NetworkError(
                f"{where}: predictions change after saving and loading; keep all drawn or learned values "
                "in parameters and buffers"
            )


def _seeded(network: OwnNetwork, arguments: Mapping[str, Any], seed: int = SEED) -> nn.Module:
    torch.manual_seed(seed)
    module = network.build(arguments)
    if torch.initial_seed() != seed:
        place = line_of(type(module).__init__, network.architecture)
        raise NetworkError(f"{place}: sets torch's seed, so every seed gives the same weights; remove that call")
    return module


def _check_state(where: str, first: nn.Module, second: nn.Module) -> None:
    where = line_of(type(first).__init__, where)
    parameters = dict(first.named_parameters())
    if any(isinstance(each, UninitializedParameter | UninitializedBuffer) for each in first.state_dict().values()):
        raise NetworkError(f"{where}: has lazy layers, which have no size before the first image; give their sizes")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise NetworkError(f"{where}: has no trainable parameter; assign its layers to attributes of self")
    if wrong := next((name for name, each in parameters.items() if each.dtype != torch.float32), None):
        raise NetworkError(f"{where}: {wrong} is not float32; remove the conversion, training chooses the precision")
    if len({each.data_ptr() for each in parameters.values() if each.numel()}) < sum(
        each.numel() > 0 for each in parameters.values()
    ):
        raise NetworkError(f"{where}: two parameters share memory; assign the same nn.Parameter to both")
    states = [network.state_dict() for network in (first, second)]
    if other := next((name for name, each in states[0].items() if not isinstance(each, Tensor)), None):
        raise NetworkError(f"{where}: {other} in its state is not a tensor; use parameters and buffers only")
    if states[0].keys() != states[1].keys() or not all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    ):
        raise NetworkError(
            f"{where}: initial weights differ between two runs with one seed; draw them from torch's generator"
        )


def _check_logits(where: str, logits: object, images: int) -> None:
    expected = f"logits of shape ({images}, {len(CLASSES)}) for images of shape ({images}, 1, {SIDE}, {SIDE})"
    if not isinstance(logits, Tensor):
        raise NetworkError(f"{where}: returns a {type(logits).__name__}; return {expected}")
    if logits.shape != (images, len(CLASSES)) or not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise NetworkError(f"{where}: returns {kind} of shape {tuple(logits.shape)}; return {expected}")
    values = logits.detach().float()
    if (values >= 0).all() and torch.allclose(values.sum(dim=1), torch.ones(images), atol=1e-3):
        raise NetworkError(f"{where}: returns probabilities; remove the softmax, which the loss applies")
    if not torch.isfinite(logits).all():
        raise NetworkError(f"{where}: returns infinity or NaN; look for a division by 0 or a logarithm of 0")
