import pytest
import torch

from fmnist.architectures import build
from fmnist.data import DataSet, split
from fmnist.hyperparameters import Hyperparameters
from fmnist.training import Training


def parameters(hyperparameters: Hyperparameters) -> int:
    return sum(parameter.numel() for parameter in build(hyperparameters).parameters())


@pytest.mark.parametrize("filters", [1, 8, 20])
def test_simple_has_one_convolution_of_kernel_5_and_three_linear_layers(filters: int) -> None:
    convolution = 25 * filters + filters
    linear = (filters * 12 * 12 + 1) * 128 + (128 + 1) * 64 + (64 + 1) * 10
    assert parameters(Hyperparameters(architecture="simple", filters=filters)) == convolution + linear


@pytest.mark.parametrize("filters", [1, 16, 32])
def test_cnn_has_three_blocks_that_double_in_width(filters: int) -> None:
    convolutions = 9 * filters + 9 * filters * 2 * filters + 9 * 2 * filters * 4 * filters
    norms = 2 * (filters + 2 * filters + 4 * filters)
    linear = (4 * filters * 3 * 3 + 1) * 128 + (128 + 1) * 10
    assert parameters(Hyperparameters(architecture="cnn", filters=filters)) == convolutions + norms + linear


@pytest.mark.parametrize("architecture", ["simple", "cnn"])
def test_it_maps_images_to_ten_logits(architecture: str) -> None:
    network = build(Hyperparameters.model_validate({"architecture": architecture, "filters": 3}))
    assert network(torch.zeros(7, 1, 28, 28)).shape == (7, 10)


@pytest.mark.parametrize(("architecture", "reached"), [("simple", 0.85), ("cnn", 0.93)])
def test_it_learns_real_images(architecture: str, reached: float, tiny: DataSet) -> None:
    hyperparameters = Hyperparameters.model_validate(
        {"architecture": architecture, "filters": 8, "epochs": 12, "learning_rate": 0.003, "augmentation": 0.0}
    )
    *_, last = Training(hyperparameters, seed=1).epochs(split(tiny, "test"))
    assert last.accuracy > reached
