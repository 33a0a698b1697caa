"""Try a network of the user's own on noise, so that what is wrong with it is said before a training begins."""

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
SEED = 20_170_825_001  # of the weights and the noise; nobody sets this one by accident


def try_out(network: OwnNetwork, given: Mapping[str, Any], precision: Precision = "float32") -> None:
    """Do once, on noise, what a training does with a network, so that it fails before the training and not in it.

    Args:
        given: arguments of the constructor.
        precision: of the training.

    Raises:
        NetworkError: it cannot be trained, scored or saved as it is.
    """
    where = network.architecture
    with torch.random.fork_rng([]):
        first, again = _seeded(network, given), _seeded(network, given)
        in_forward = line_of(type(first).forward, where)
        _check_state(where, first, again)
        parameters = dict(first.named_parameters())
        images, labels = torch.randn(2, 1, SIDE, SIDE), torch.tensor([0, 1])
        with running(where):
            logits = first.train()(images)
        if torch.initial_seed() != SEED:
            raise NetworkError(f"{in_forward}: sets torch's seed, so that its randomness repeats itself; remove that")
        _check_logits(in_forward, logits, 2)
        if added := [name for name, _ in first.named_parameters() if name not in parameters]:
            raise NetworkError(f"{in_forward}: makes the parameter {added[0]}; make it in the constructor")
        if not logits.requires_grad:
            raise NetworkError(f"{in_forward}: its logits have no gradient; compute them with its parameters")
        with running(where):
            F.cross_entropy(logits.float(), labels).backward()
            if precision == "bfloat16":
                with torch.autocast("cpu", torch.bfloat16):
                    reduced = first(images)
                F.cross_entropy(reduced.float(), labels).backward()
        gradients = [each.grad for each in parameters.values() if each.grad is not None]
        if not all(torch.isfinite(gradient).all() for gradient in gradients):
            raise NetworkError(f"{in_forward}: its gradients are not finite; look for a division or logarithm of 0")
        with running(where):
            loaded = _seeded(network, given, SEED + 1)  # which draws whatever is not in the state anew
        with torch.no_grad(), running(where):
            loaded.load_state_dict(first.state_dict())
            alone, repeated, other = (each.eval()(images[:1]) for each in (first, first, loaded))
        _check_logits(in_forward, alone, 1)
        if not torch.equal(alone, repeated):
            raise NetworkError(
                f"{in_forward}: is random in evaluation mode; write F.dropout(x, p, self.training), or nn.Dropout"
            )
        if not torch.equal(alone, other):
            raise NetworkError(
                f"{where}: predictions change after saving and loading; keep all that is drawn or learned "
                "in parameters and buffers"
            )


def _seeded(network: OwnNetwork, given: Mapping[str, Any], seed: int = SEED) -> nn.Module:
    torch.manual_seed(seed)
    made = network.build(given)
    if torch.initial_seed() != seed:
        place = line_of(type(made).__init__, network.architecture)
        raise NetworkError(f"{place}: sets torch's seed, so that every seed has the same weights; remove that")
    return made


def _check_state(where: str, first: nn.Module, again: nn.Module) -> None:
    where = line_of(type(first).__init__, where)
    parameters = dict(first.named_parameters())
    if any(isinstance(each, UninitializedParameter | UninitializedBuffer) for each in first.state_dict().values()):
        raise NetworkError(f"{where}: has lazy layers, whose size is not known before an image; give it to them")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise NetworkError(f"{where}: has no parameter to train; assign its layers to attributes of self")
    if wrong := next((name for name, each in parameters.items() if each.dtype != torch.float32), None):
        raise NetworkError(f"{where}: {wrong} is not float32; leave the precision to the training")
    if len({each.data_ptr() for each in parameters.values() if each.numel()}) < sum(
        each.numel() > 0 for each in parameters.values()
    ):
        raise NetworkError(f"{where}: two parameters share their memory; assign the same nn.Parameter to both")
    states = [network.state_dict() for network in (first, again)]
    if strange := next((name for name, each in states[0].items() if not isinstance(each, Tensor)), None):
        raise NetworkError(f"{where}: {strange} of its state is no tensor; keep it in parameters and buffers")
    if states[0].keys() != states[1].keys() or not all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    ):
        raise NetworkError(
            f"{where}: initial weights differ between two runs of one seed; draw them from torch's generator"
        )


def _check_logits(where: str, logits: object, images: int) -> None:
    expected = f"logits of shape ({images}, {len(CLASSES)}) for images of shape ({images}, 1, {SIDE}, {SIDE})"
    if not isinstance(logits, Tensor):
        raise NetworkError(f"{where}: returns a {type(logits).__name__}; return {expected}")
    if logits.shape != (images, len(CLASSES)) or not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise NetworkError(f"{where}: returns {kind} of shape {tuple(logits.shape)}; return {expected}")
    shares = logits.detach().float()
    if (shares >= 0).all() and torch.allclose(shares.sum(dim=1), torch.ones(images), atol=1e-3):
        raise NetworkError(f"{where}: returns probabilities; return logits, without the softmax, which the loss has")
    if not torch.isfinite(logits).all():
        raise NetworkError(f"{where}: returns infinity or NaN; look for a division or logarithm of 0")
