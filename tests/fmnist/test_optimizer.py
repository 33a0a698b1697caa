from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from fmnist.architectures import build
from fmnist.hyperparameters import Hyperparameters
from fmnist.optimizer import AveragedOptimizer, as_vector

RATES = [0.003, 0.01, 0.02, 0.005, 0.004, 0.05]  # one per step


def weights_of(network: nn.Module) -> list[nn.Parameter]:
    """The penalized parameters: without biases and batch norm."""
    return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def trained_by_torch(network: nn.Module, gradients: list[list[torch.Tensor]], values: dict[str, Any]) -> None:
    """Train with torch's optimizer, adding the L1 penalty to the gradients."""
    weights = weights_of(network)
    known = {id(weight) for weight in weights}
    others = [parameter for parameter in network.parameters() if id(parameter) not in known]
    momentum = values.get("momentum", 0.0)
    options = {"momentum": momentum, "nesterov": momentum > 0} if values["optimizer"] == "sgd" else {}
    groups = [
        {"params": weights, "weight_decay": values.get("weight_decay", 0.0)},
        {"params": others, "weight_decay": 0.0},
    ]
    theirs = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[values["optimizer"]]
    optimizer = theirs(groups, lr=1.0, **options)
    for rate, given in zip(RATES, gradients, strict=True):
        for parameter, gradient in zip(network.parameters(), given, strict=True):
            penalty = values.get("l1", 0.0) * parameter.detach().sign() if id(parameter) in known else 0.0
            parameter.grad = gradient + penalty
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


@pytest.mark.parametrize("penalties", [{}, {"weight_decay": 0.3}, {"l1": 0.2}, {"weight_decay": 0.3, "l1": 0.2}])
@pytest.mark.parametrize(
    "rule",
    [{"optimizer": "adam"}, {"optimizer": "adamw"}, *({"optimizer": "sgd", "momentum": m} for m in (0.0, 0.5, 0.9))],
)
def test_steps_equal_torchs_optimizers(rule: dict[str, Any], penalties: dict[str, float]) -> None:
    torch.manual_seed(0)
    values = rule | penalties
    hyperparameters = Hyperparameters.model_validate({"filters": 2, "blocks": 2, **values})
    network, averaged = build(hyperparameters), build(hyperparameters)
    reference = deepcopy(network)
    gradients = [[torch.randn_like(parameter) for parameter in network.parameters()] for _ in RATES]
    trained_by_torch(reference, gradients, values)
    optimizer = AveragedOptimizer(network, averaged, hyperparameters)
    for rate, given in zip(RATES, gradients, strict=True):
        optimizer.zero_grad()
        for parameter, gradient in zip(network.parameters(), given, strict=True):
            assert parameter.grad is not None
            parameter.grad += gradient
        optimizer.step(rate)
    assert optimizer.updates == len(RATES)
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_slices_in_one_vector_do_not_overlap() -> None:
    slices = [torch.rand(10, 20)[:, ::2] for _ in range(3)]
    before = [each.clone() for each in slices]
    as_vector(slices)
    assert all(map(torch.equal, slices, before))
