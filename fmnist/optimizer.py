"""Adam, AdamW, SGD and the moving average of the weights, each in a few operations on all weights at once."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from fmnist.choices import Optimizer
from fmnist.hyperparameters import Hyperparameters

MOMENTS: dict[Optimizer, int] = {"adam": 2, "adamw": 2, "sgd": 1}  # state vectors


class AveragedOptimizer:
    """Train a network, and keep a moving average of its weights in a second network.

    Adam (Kingma and Ba, 2015) and AdamW (Loshchilov and Hutter, 2019) use their usual constants, SGD uses Nesterov
    momentum as in Sutskever et al. (2013). Penalties and decay apply to weights, not to biases and norms.

    The tensors of both networks become views of vectors, one each for weights, gradients and batch norm's statistics.

    Args:
        network: to train.
        averaged: holds the average; same architecture and initial weights.
        hyperparameters: `optimizer`, `momentum`, `weight_decay`, `l1`.
    """

    def __init__(self, network: nn.Module, averaged: nn.Module, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters = hyperparameters
        parameters = _trainable(network)
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self.weights, self.gradients = as_vector(parameters), as_vector(gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.penalized: list[Tensor] = [parameter for parameter in parameters if parameter.ndim > 1]
        self.penalized_gradients = [gradient for gradient in gradients if gradient.ndim > 1]
        self.moments = [torch.zeros_like(self.weights) for _ in range(MOMENTS[hyperparameters.optimizer])]
        self.updates = torch.zeros((), device=self.weights.device)  # number of steps
        self.averaged_weights = as_vector(_trainable(averaged))
        self.statistics, self.averaged_statistics = (as_vector(_statistics(each)) for each in (network, averaged))
        self.copied = [(averaged.get_submodule(path), module) for path, module in _with_other_buffers(network)]

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self.gradients.zero_()

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the weights from the gradients of the loss and the penalties."""
        self._penalize(learning_rate)
        if self.hyperparameters.optimizer == "sgd":
            self._sgd(learning_rate)
        else:
            self._adam(learning_rate)

    def _penalize(self, learning_rate: float) -> None:
        weight_decay, l1 = self.hyperparameters.weight_decay, self.hyperparameters.l1
        if weight_decay and self.hyperparameters.optimizer == "adamw":
            torch._foreach_mul_(self.penalized, 1 - learning_rate * weight_decay)
        elif weight_decay:
            torch._foreach_add_(self.penalized_gradients, self.penalized, alpha=weight_decay)
        if l1:
            torch._foreach_add_(self.penalized_gradients, torch._foreach_sign(self.penalized), alpha=l1)

    def _adam(self, learning_rate: float) -> None:
        adam(
            [self.weights],
            [self.gradients],
            [self.moments[0]],
            [self.moments[1]],
            [],
            [self.updates],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def _sgd(self, learning_rate: float) -> None:
        momentum = self.hyperparameters.momentum
        self.updates += 1  # adam() does this itself
        sgd(
            [self.weights],
            [self.gradients],
            [self.moments[0]],  # zeros at first, so the first step has no momentum
            fused=True,
            weight_decay=0.0,
            momentum=momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=momentum > 0,
            maximize=False,
        )

    @torch.no_grad()
    def average(self, share: float) -> None:
        """Move the averages towards the current weights and statistics by `share` of the difference."""
        self.averaged_weights.lerp_(self.weights, share)
        self.averaged_statistics.lerp_(self.statistics, share)
        for averaged, module in self.copied:
            for name, buffer in module._buffers.items():  # looked up, as forward may have replaced it
                if buffer is not None:
                    averaged.get_buffer(name).copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        """The state that is not in the networks' state dicts."""
        return {"moments": self.moments, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        for moment, saved in zip(self.moments, state["moments"], strict=True):
            moment.copy_(saved)
        self.updates.copy_(state["updates"])


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    # Without the parameters that a user has frozen: decay must not change them either.
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _statistics(network: nn.Module) -> list[Tensor]:
    # Running means and variances of batch norm, without its counters.
    norms = (module for module in network.modules() if isinstance(module, _NormBase))
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False) if buffer.is_floating_point()]


def _with_other_buffers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    # Buffers of a user's modules that may have no mean: counters, masks of bool or infinity.
    return [
        (path, module)
        for path, module in network.named_modules()
        if not isinstance(module, _NormBase) and next(module.buffers(recurse=False), None) is not None
    ]


ALIGNMENT = 16  # elements: 64 bytes of float32, a CPU's cache line


def as_vector(tensors: Iterable[Tensor]) -> Tensor:
    """Move float32 tensors into one vector; they become views of it and keep their values and memory format.

    Up to 15 zeros pad each of them to ALIGNMENT.

    Returns:
        (M,) float32 on the tensors' device; (0,) on the CPU if there are none.
    """
    tensors = list(tensors)
    starts, length = _layout(tensors)
    vector = torch.zeros(length, device=tensors[0].device if tensors else None)
    for tensor, start in zip(tensors, starts, strict=True):
        # empty_like has the tensor's strides, or dense ones if the tensor has gaps, like a slice
        view = vector.as_strided(tensor.shape, torch.empty_like(tensor).stride(), start)
        tensor.data = view.copy_(tensor.data)
    return vector


def vector_length(tensors: Iterable[Tensor]) -> int:
    """Length M of the vector that `as_vector` returns."""
    return _layout(tensors)[1]


def _layout(tensors: Iterable[Tensor]) -> tuple[list[int], int]:
    starts, length = [], 0
    for tensor in tensors:
        starts.append(length)
        length += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    return starts, length
