import subprocess
import sys

import pytest
import torch

from fmnist.architectures import ARCHITECTURES, build
from fmnist.complexity import SHAPE, Complexity, complexity
from fmnist.hyperparameters import Hyperparameters


def complexity_of(architecture: str, filters: int, blocks: int) -> Complexity:
    values = {"architecture": architecture, "filters": filters, "blocks": blocks}
    return complexity(Hyperparameters.model_validate(values))


@pytest.mark.parametrize("filters", [1, 8, 20])
def test_simple_matches_a_count_by_hand(filters: int) -> None:
    convolution = 24 * 24 * 25 * filters
    linear = filters * 12 * 12 * 128 + 128 * 64 + 64 * 10
    assert complexity_of("simple", filters, 3).multiply_adds == convolution + linear


def test_cnn_matches_a_count_by_hand() -> None:
    convolutions = 28 * 28 * 9 * 16 + 14 * 14 * 9 * 16 * 32 + 7 * 7 * 9 * 32 * 64
    assert complexity_of("cnn", 16, 3).multiply_adds == convolutions + 64 * 3 * 3 * 128 + 128 * 10
    fourth = 3 * 3 * 9 * 64 * 128
    assert complexity_of("cnn", 16, 4).multiply_adds == convolutions + fourth + 128 * 128 + 128 * 10


def test_kernel_size_hidden_and_residual_match_a_count_by_hand() -> None:
    made = Hyperparameters(architecture="cnn", filters=8, blocks=3, kernel_size=4, hidden=50, residual=True)
    convolutions = 28 * 28 * 16 * 8 + 14 * 14 * 16 * 8 * 16 + 7 * 7 * 16 * 16 * 32
    residual = 14 * 14 * 9 * 8 * 8 + 7 * 7 * 9 * 16 * 16
    weights = 16 * (8 + 8 * 16 + 16 * 32) + 9 * (8 * 8 + 16 * 16)
    norms = 2 * (8 + 16 + 32) + 2 * (8 + 16)
    assert complexity(made) == Complexity(
        parameters=weights + norms + (32 * 9 + 1) * 50 + (50 + 1) * 10,
        multiply_adds=convolutions + residual + 32 * 9 * 50 + 50 * 10,
    )
    simple = Hyperparameters(architecture="simple", filters=8, kernel_size=4, hidden=50)  # 25 pixels a side, then 12
    assert complexity(simple).multiply_adds == 25 * 25 * 16 * 8 + 8 * 12 * 12 * 50 + 50 * 25 + 25 * 10


# For each hyperparameter, a value other than the default.
CHANGED = {
    "architecture": "simple",
    "epochs": 7,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.5,
    "batch_size": 32,
    "filters": 7,
    "blocks": 2,
    "kernel_size": 4,
    "residual": True,
    "hidden": 50,
    "activation": "gelu",
    "dropout": 0.5,
    "weight_decay": 0.1,
    "l1": 0.1,
    "label_smoothing": 0.1,
    "augmentation": 0.5,
    "augmentation_kind": "crop",
}


@pytest.mark.parametrize("name", [name for name in Hyperparameters.model_fields if name != "network"])
def test_only_hyperparameters_of_the_shape_change_complexity(name: str) -> None:
    changed = Hyperparameters.model_validate({name: CHANGED[name]})
    assert (complexity(changed) != complexity(Hyperparameters())) == (name in SHAPE)


def test_resnet_matches_a_count_by_hand() -> None:
    stem = 28 * 28 * 9 * 8
    first = 14 * 14 * 2 * 9 * 8 * 8
    second = 7 * 7 * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16)
    third = 4 * 4 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    assert complexity_of("resnet", 8, 3).multiply_adds == stem + first + second + third + 32 * 10
    assert complexity_of("resnet", 8, 1).multiply_adds == stem + first + 8 * 10


@pytest.mark.parametrize(("filters", "blocks"), [(1, 1), (8, 2), (16, 4)])
def test_transformer_matches_a_count_by_hand(filters: int, blocks: int) -> None:
    tokens, features = 50, 4 * filters
    linear = tokens * (3 + 1 + 2 + 2) * features**2
    products = 2 * 4 * tokens * tokens * filters  # scores, and the weighted sum of values, in 4 heads
    patches = 49 * 16 * features
    assert (
        complexity_of("transformer", filters, blocks).multiply_adds
        == patches + blocks * (linear + products) + features * 10
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_equal_those_of_the_built_network(architecture: str) -> None:
    network = build(Hyperparameters.model_validate({"architecture": architecture, "filters": 3, "blocks": 2}))
    assert complexity_of(architecture, 3, 2).parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_counting_draws_nothing_and_does_not_change_torchs_state(architecture: str) -> None:
    before = torch.get_rng_state()
    complexity_of(architecture, 1024, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert torch.empty(1).device.type == "cpu"


def test_counting_imports_neither_the_compiler_nor_sympy() -> None:
    program = (
        "import sys; from fmnist.complexity import complexity; from fmnist.hyperparameters import Hyperparameters; "
        "complexity(Hyperparameters()); assert not {'torch._dynamo', 'sympy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
