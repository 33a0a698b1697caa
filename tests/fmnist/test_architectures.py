from io import BytesIO
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmnist.architectures import ARCHITECTURES, build
from fmnist.architectures.resnet import ResidualBlock
from fmnist.architectures.transformer import EncoderLayer, Transformer
from fmnist.data import DataSet, Splits, split
from fmnist.hyperparameters import Hyperparameters
from fmnist.training import Training
from tests.factories import digits

SIZES = [(1, 1), (8, 2), (16, 3), (5, 4)]  # filters and blocks


def parameters(architecture: str, filters: int, blocks: int = 3) -> int:
    network = build(hyperparameters(architecture, filters=filters, blocks=blocks))
    return sum(parameter.numel() for parameter in network.parameters())


def hyperparameters(architecture: str, **values: Any) -> Hyperparameters:
    return Hyperparameters.model_validate({"architecture": architecture, **values})


@pytest.mark.parametrize(("filters", "blocks"), SIZES)
def test_simple_has_one_convolution_of_kernel_5_and_three_linear_layers(filters: int, blocks: int) -> None:
    convolution = 25 * filters + filters
    linear = (filters * 12 * 12 + 1) * 128 + (128 + 1) * 64 + (64 + 1) * 10
    assert parameters("simple", filters, blocks) == convolution + linear


@pytest.mark.parametrize("filters", [1, 16, 32])
def test_cnn_has_three_blocks_that_double_in_width(filters: int) -> None:
    convolutions = 9 * filters + 9 * filters * 2 * filters + 9 * 2 * filters * 4 * filters
    norms = 2 * (filters + 2 * filters + 4 * filters)
    linear = (4 * filters * 3 * 3 + 1) * 128 + (128 + 1) * 10
    assert parameters("cnn", filters) == convolutions + norms + linear


@pytest.mark.parametrize(("filters", "blocks"), SIZES)
def test_cnn_has_as_many_blocks_as_it_is_told(filters: int, blocks: int) -> None:
    widths = [filters, 2 * filters, 4 * filters, 8 * filters][:blocks]
    convolutions = 9 * filters + sum(9 * width * 2 * width for width in widths[:-1])
    side = {1: 14, 2: 7, 3: 3, 4: 1}[blocks]
    linear = (widths[-1] * side**2 + 1) * 128 + (128 + 1) * 10
    assert parameters("cnn", filters, blocks) == convolutions + 2 * sum(widths) + linear


@pytest.mark.parametrize(("filters", "blocks"), SIZES)
def test_resnet_has_two_convolutions_a_block_and_projections_where_it_widens(filters: int, blocks: int) -> None:
    widths = [filters, 2 * filters, 4 * filters, 8 * filters][:blocks]
    stem = 9 * filters + 2 * filters
    first = 2 * 9 * filters**2 + 2 * 2 * filters
    later = sum(9 * w * 2 * w + 9 * (2 * w) ** 2 + w * 2 * w + 3 * 2 * 2 * w for w in widths[:-1])
    assert parameters("resnet", filters, blocks) == stem + first + later + (widths[-1] + 1) * 10


@pytest.mark.parametrize(("filters", "blocks"), SIZES)
def test_transformer_has_four_heads_of_filters_features(filters: int, blocks: int) -> None:
    features = 4 * filters
    embedding = (16 + 1) * features + features + 50 * features
    attention = (features + 1) * 3 * features + (features + 1) * features
    mlp = (features + 1) * 2 * features + (2 * features + 1) * features
    layer = attention + mlp + 2 * 2 * features
    head = 2 * features + (features + 1) * 10
    assert parameters("transformer", filters, blocks) == embedding + blocks * layer + head


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_maps_images_to_ten_logits(architecture: str, blocks: int) -> None:
    network = build(hyperparameters(architecture, filters=3, blocks=blocks))
    logits = network(torch.zeros(7, 1, 28, 28))
    assert logits.shape == (7, 10)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_image_is_judged_by_itself_whatever_its_memory_format(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(hyperparameters(architecture, filters=3)).eval()
    images = torch.randn(7, 1, 28, 28)
    alone = torch.cat([network(image) for image in images.split(1)])
    network.to(memory_format=torch.channels_last)
    together = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert together.std(dim=0).min() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_dropped_in_training_alone(architecture: str) -> None:
    images = torch.randn(7, 1, 28, 28)
    for dropout in (0.0, 0.5):
        network = build(hyperparameters(architecture, filters=3, dropout=dropout))
        assert torch.equal(network(images), network(images)) == (dropout == 0)
        network.eval()
        assert torch.equal(network(images), network(images))


@pytest.mark.parametrize(
    ("architecture", "blocks", "reached"),
    [
        ("simple", 3, 0.85),
        ("cnn", 1, 0.9),
        ("cnn", 3, 0.93),
        ("cnn", 4, 0.93),
        ("resnet", 3, 0.9),
        ("resnet", 4, 0.9),
        ("transformer", 1, 0.87),
    ],
)
def test_it_learns_real_images(architecture: str, blocks: int, reached: float) -> None:
    learner = hyperparameters(architecture, filters=8, blocks=blocks, epochs=12, learning_rate=0.003, augmentation=0.0)
    *_, last = Training(learner, seed=1).epochs(Splits(*digits(1200, 597), "test"))
    assert last.accuracy > reached


@pytest.mark.parametrize("architecture", ["resnet", "transformer"])
def test_a_restored_training_goes_on_bit_for_bit(architecture: str, tiny: DataSet) -> None:
    learner = hyperparameters(architecture, filters=2, blocks=2, epochs=2, dropout=0.3, augmentation=0.7)
    splits = split(tiny, "test")
    whole, begun, restored = (Training(learner, 0) for _ in range(3))
    for _ in whole.epochs(splits, early=True):
        pass
    next(begun.epochs(splits, early=True))
    file = BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True), begun.history)
    for _ in restored.epochs(splits, early=True):
        pass
    assert [metrics.epoch for metrics in restored.history] == [0.25, 0.5, 1, 2]
    assert [metrics.loss for metrics in restored.history] == [metrics.loss for metrics in whole.history]
    for name in ("network", "averaged"):
        expected = whole.state_dict()[name]
        assert all(torch.equal(value, expected[key]) for key, value in restored.state_dict()[name].items())


def zero(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


def test_a_residual_block_adds_its_input() -> None:
    block = ResidualBlock(3, 3).eval()
    images = torch.randn(2, 3, 7, 7)
    first, second = (weight for weight in block.residual.parameters() if weight.ndim == 4)
    added = F.conv2d(F.relu(F.conv2d(images, first, padding=1)), second, padding=1)
    torch.testing.assert_close(block(images), F.relu(images + added), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(block(images), F.relu(images), atol=1e-3)
    zero(block.residual)
    assert torch.equal(block(images), F.relu(images))


def test_a_residual_block_that_widens_adds_a_projection_of_its_input() -> None:
    block = ResidualBlock(3, 6).eval()
    images = torch.randn(2, 3, 7, 7)
    zero(block.residual)
    weights = next(weight for weight in block.shortcut.parameters() if weight.ndim == 4)
    projected = torch.einsum("oi,nihw->nohw", weights[:, :, 0, 0], images[:, :, ::2, ::2])
    assert projected.shape == (2, 6, 4, 4)
    torch.testing.assert_close(block(images), F.relu(projected), atol=1e-4, rtol=1e-4)


def test_an_encoder_layer_is_torchs() -> None:
    ours = EncoderLayer(features=8, dropout=0.0)
    theirs = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    order = ("norm1", "self_attn", "norm2", "linear1", "linear2")
    values = [value for name in order for value in theirs.get_submodule(name).parameters()]
    with torch.no_grad():
        for parameter, value in zip(ours.parameters(), values, strict=True):
            parameter.copy_(value)
    tokens = torch.randn(2, 50, 8)
    torch.testing.assert_close(ours(tokens), theirs(tokens), atol=1e-5, rtol=1e-4)


def shuffle_patches(images: Tensor) -> Tensor:
    """(N, 1, 28, 28) with its 49 patches in another order."""
    patches = F.unfold(images, kernel_size=4, stride=4)  # (N, 16, 49)
    order = torch.randperm(49, generator=torch.Generator().manual_seed(1))
    return F.fold(patches[:, :, order], (28, 28), kernel_size=4, stride=4)


def test_transformer_knows_the_places_of_patches_by_their_positions_alone() -> None:
    torch.manual_seed(0)
    network = build(hyperparameters("transformer", filters=4)).eval()
    assert isinstance(network, Transformer)
    images = torch.randn(3, 1, 28, 28)
    assert (network(shuffle_patches(images)) - network(images)).abs().max() > 1e-3
    with torch.no_grad():
        network.position.zero_()
    torch.testing.assert_close(network(shuffle_patches(images)), network(images), atol=1e-5, rtol=0)
    assert (network(-images) - network(images)).abs().max() > 1e-3
