from collections.abc import Callable
from io import BytesIO
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmnist.architectures import ARCHITECTURES, build
from fmnist.architectures.resnet import ResidualBlock
from fmnist.architectures.transformer import EncoderLayer, Transformer
from fmnist.choices import Activation
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
def test_cnn_has_the_given_number_of_blocks(filters: int, blocks: int) -> None:
    widths = [filters, 2 * filters, 4 * filters, 8 * filters][:blocks]
    convolutions = 9 * filters + sum(9 * width * 2 * width for width in widths[:-1])
    side = {1: 14, 2: 7, 3: 3, 4: 1}[blocks]
    linear = (widths[-1] * side**2 + 1) * 128 + (128 + 1) * 10
    assert parameters("cnn", filters, blocks) == convolutions + 2 * sum(widths) + linear


@pytest.mark.parametrize(("filters", "blocks"), SIZES)
def test_resnet_has_two_convolutions_per_block_and_projections_where_it_widens(filters: int, blocks: int) -> None:
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


@pytest.mark.parametrize("kernel_size", range(1, 16))
def test_any_kernel_size_keeps_the_image_size_in_cnn_and_crops_it_in_simple(kernel_size: int) -> None:
    def count(architecture: str) -> int:
        network = build(hyperparameters(architecture, filters=3, blocks=2, kernel_size=kernel_size))
        assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
        return sum(parameter.numel() for parameter in network.parameters())

    head = (128 + 1) * 10
    assert count("cnn") == kernel_size**2 * (3 + 3 * 6) + 2 * (3 + 6) + (6 * 7 * 7 + 1) * 128 + head
    side = (28 - kernel_size + 1) // 2
    assert count("simple") == (kernel_size**2 + 1) * 3 + (3 * side**2 + 1) * 128 + (128 + 1) * 64 + (64 + 1) * 10


@pytest.mark.parametrize("hidden", [1, 2, 33, 400])
def test_hidden_sets_the_width_of_the_fully_connected_layers(hidden: int) -> None:
    shapes = {
        architecture: [module.weight.shape for module in network.modules() if isinstance(module, nn.Linear)]
        for architecture in ("cnn", "simple")
        for network in [build(hyperparameters(architecture, filters=2, hidden=hidden))]
    }
    half = {1: 1, 2: 1, 33: 16, 400: 200}[hidden]
    assert shapes["cnn"] == [(hidden, 8 * 3 * 3), (10, hidden)]
    assert shapes["simple"] == [(hidden, 2 * 12 * 12), (half, hidden), (10, half)]


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


def test_every_activation_has_a_reference_formula() -> None:
    assert list(ACTIVATIONS) == list(get_args(Activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kernel_size", [1, 4, 5])
def test_simple_equals_its_formula(activation: str, kernel_size: int) -> None:
    made = hyperparameters("simple", filters=3, hidden=12, kernel_size=kernel_size, activation=activation, dropout=0.0)
    network, images, f = build(made), torch.randn(2, 1, 28, 28), ACTIVATIONS[activation]
    kernels, offsets, *linear = network.parameters()
    features = f(F.max_pool2d(F.conv2d(images, kernels, offsets), 2)).permute(0, 2, 3, 1).flatten(1)
    for weight, bias in zip(linear[0:4:2], linear[1:4:2], strict=True):
        features = f(features @ weight.T + bias)
    torch.testing.assert_close(network(images), features @ linear[4].T + linear[5], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("blocks", "kernel_size", "residual"), [(3, 0, True), (4, 4, True), (1, 2, True), (2, 5, False), (4, 14, False)]
)
def test_cnn_equals_its_formula(activation: str, blocks: int, kernel_size: int, residual: bool) -> None:
    made = hyperparameters(
        "cnn", filters=2, blocks=blocks, kernel_size=kernel_size, residual=residual, activation=activation, dropout=0.0
    )
    torch.manual_seed(0)
    network, features, f = build(made), torch.randn(16, 1, 28, 28), ACTIVATIONS[activation]
    logits, weights = network(features), iter(network.parameters())
    before = ((kernel_size or 3) - 1) // 2
    after = (kernel_size or 3) - 1 - before

    def normalized(values: Tensor) -> Tensor:
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0, keepdim=True)
        scale, offset = (next(weights)[:, None, None] for _ in range(2))
        return (values - mean) / (variance + 1e-5).sqrt() * scale + offset

    for number in range(blocks):
        padded = F.pad(features, (before, after, before, after))
        features = f(normalized(F.max_pool2d(F.conv2d(padded, next(weights)), 2)))
        if residual and number < 2:
            features = features + f(normalized(F.conv2d(features, next(weights), padding=1)))
    features = f(F.linear(features.permute(0, 2, 3, 1).flatten(1), next(weights), next(weights)))
    torch.testing.assert_close(logits, F.linear(features, next(weights), next(weights)), atol=1e-4, rtol=1e-3)
    assert list(weights) == []


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_networks_map_images_to_ten_logits(architecture: str, blocks: int) -> None:
    network = build(hyperparameters(architecture, filters=3, blocks=blocks))
    logits = network(torch.zeros(7, 1, 28, 28))
    assert logits.shape == (7, 10)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predictions_do_not_depend_on_batch_or_memory_format(architecture: str) -> None:
    torch.manual_seed(0)
    network = build(hyperparameters(architecture, filters=3)).eval()
    images = torch.randn(7, 1, 28, 28)
    alone = torch.cat([network(image) for image in images.split(1)])
    network.to(memory_format=torch.channels_last)
    together = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert together.std(dim=0).min() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_dropped_only_in_training(architecture: str) -> None:
    images = torch.randn(7, 1, 28, 28)
    for dropout in (0.0, 0.5):
        network = build(hyperparameters(architecture, filters=3, dropout=dropout))
        assert torch.equal(network(images), network(images)) == (dropout == 0)
        network.eval()
        assert torch.equal(network(images), network(images))


@pytest.mark.parametrize(
    ("architecture", "blocks", "minimum"),
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
def test_networks_learn_real_images(architecture: str, blocks: int, minimum: float) -> None:
    learner = hyperparameters(architecture, filters=8, blocks=blocks, epochs=12, learning_rate=0.003, augmentation=0.0)
    *_, last = Training(learner, seed=1).epochs(Splits(*digits(1200, 597), "test"))
    assert last.accuracy > minimum


@pytest.mark.parametrize("architecture", ["resnet", "transformer"])
def test_a_restored_training_run_resumes_bit_exactly(architecture: str, tiny: DataSet) -> None:
    learner = hyperparameters(architecture, filters=2, blocks=2, epochs=2, dropout=0.3, augmentation=0.7)
    splits = split(tiny, "test")
    uninterrupted, interrupted, restored = (Training(learner, 0) for _ in range(3))
    for _ in uninterrupted.epochs(splits, early=True):
        pass
    next(interrupted.epochs(splits, early=True))
    file = BytesIO()
    torch.save(interrupted.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True), interrupted.history)
    for _ in restored.epochs(splits, early=True):
        pass
    assert [metrics.epoch for metrics in restored.history] == [0.25, 0.5, 1, 2]
    assert [metrics.loss for metrics in restored.history] == [metrics.loss for metrics in uninterrupted.history]
    for name in ("network", "averaged"):
        expected = uninterrupted.state_dict()[name]
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


def test_an_encoder_layer_equals_torchs() -> None:
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
    """(N, 1, 28, 28) with its 49 patches reordered."""
    patches = F.unfold(images, kernel_size=4, stride=4)  # (N, 16, 49)
    order = torch.randperm(49, generator=torch.Generator().manual_seed(1))
    return F.fold(patches[:, :, order], (28, 28), kernel_size=4, stride=4)


def test_transformer_locates_patches_only_by_position_embeddings() -> None:
    torch.manual_seed(0)
    network = build(hyperparameters("transformer", filters=4)).eval()
    assert isinstance(network, Transformer)
    images = torch.randn(3, 1, 28, 28)
    assert (network(shuffle_patches(images)) - network(images)).abs().max() > 1e-3
    with torch.no_grad():
        network.position.zero_()
    torch.testing.assert_close(network(shuffle_patches(images)), network(images), atol=1e-5, rtol=0)
    assert (network(-images) - network(images)).abs().max() > 1e-3
