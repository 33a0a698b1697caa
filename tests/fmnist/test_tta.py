"""Test-time augmentation with mirrored images."""

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fmnist import archive, checkpoint
from fmnist.architectures import build
from fmnist.augmentation import augment
from fmnist.choices import Tta
from fmnist.data import DataSet, split, standardize
from fmnist.evaluation import evaluate
from fmnist.hyperparameters import Hyperparameters
from fmnist.prediction import predict
from fmnist.training import Training
from fmnist.tta import Mirrored, applied, log_mean_softmax, with_tta

KINDS = [
    "none",
    "flip",
    "rotation",
    "both",
    "crop",
    "jitter",
    "erasing",
    "crop+flip+erasing",
    "crop+both",
    "crop+jitter",
]


def trained(data: DataSet, kind: str, tta: Tta = "auto", epochs: int = 2) -> Training:
    values = {"architecture": "simple", "filters": 4, "learning_rate": 0.005, "augmentation": 0.5}
    training = Training(Hyperparameters(epochs=2, augmentation_kind=kind, **values), seed=4, tta=tta)
    iterator = training.epochs(split(data, "test"))
    for _ in range(epochs):
        next(iterator)
    return training


@torch.no_grad()
def both_sides(network: nn.Module, images: Tensor) -> Tensor:
    """The mean of two softmaxes in float64, from its definition; images: (N, 1, 28, 28) uint8."""
    one, other = (network.eval()(standardize(side.clone())).double() for side in (images, images.flip(3)))
    return (one.exp() / one.exp().sum(1, keepdim=True) + other.exp() / other.exp().sum(1, keepdim=True)) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.0, 0.01, 1.0])
def test_auto_mirrors_if_and_only_if_the_augmentation_flips(kind: str, strength: float) -> None:
    """Only a flip moves a bar from left to right in any of 2,000 augmented copies."""
    images = torch.zeros(2000, 1, 28, 28)
    images[..., 4:8] = 200
    torch.manual_seed(0)
    changed = augment(images.clone(), kind, strength)
    flipped = bool((changed[..., 14:].sum((1, 2, 3)) > changed[..., :14].sum((1, 2, 3))).any())
    hyperparameters = Hyperparameters(augmentation_kind=kind, augmentation=strength)
    assert applied("auto", hyperparameters) == ("mirror" if flipped else "none")
    assert applied("mirror", hyperparameters) == "mirror"
    assert applied("none", hyperparameters) == "none"


def test_the_output_is_the_log_mean_probability_of_both_sides(tiny: DataSet) -> None:
    training = trained(tiny, "both")
    result = evaluate(training.scored_network, tiny.test)
    expected = both_sides(training.averaged, tiny.test.images)
    assert torch.allclose(result.logits.double().exp(), expected, atol=1e-6)
    assert torch.allclose(result.logits.exp().sum(dim=1), torch.ones(len(tiny.test)), atol=1e-5)
    right = expected[torch.arange(len(tiny.test)), tiny.test.labels]
    assert result.loss == pytest.approx(-right.log().mean().item(), abs=1e-5)
    assert training.history[-1].correct == int((expected.argmax(1) == tiny.test.labels).sum())
    probabilities = torch.tensor(
        [[*each.probabilities.values()] for each in predict(training.scored_network, tiny.test.images)]
    )
    assert torch.allclose(probabilities.double(), expected, atol=1e-6)
    assert not torch.allclose(evaluate(training.averaged, tiny.test).logits.softmax(1).double(), expected, atol=1e-3)


def test_an_image_and_its_mirror_image_get_equal_predictions(tiny: DataSet) -> None:
    network = trained(tiny, "flip").scored_network
    first, second = (predict(network, side[:50]) for side in (tiny.test.images, tiny.test.images.flip(3)))
    for one, other in zip(first, second, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_without_flips_predictions_are_bit_identical(tiny: DataSet) -> None:
    training = trained(tiny, "crop")
    assert training.scored_network is training.averaged
    loaded = checkpoint.parse(checkpoint.dump(training, "test", tiny), "net.pt")
    assert not isinstance(loaded.network(), Mirrored)
    alone = build(loaded.hyperparameters)
    alone.load_state_dict(loaded.weights)
    assert torch.equal(evaluate(loaded.network(), tiny.test).logits, evaluate(alone, tiny.test).logits)
    plain = trained(tiny, "crop", "none")
    assert [replace(one, seconds=0) for one in training.history] == [replace(one, seconds=0) for one in plain.history]


def test_mirroring_changes_scores_but_not_weights(tiny: DataSet) -> None:
    plain, mirrored = (trained(tiny, "both", tta) for tta in ("none", "mirror"))
    states = [training.averaged.state_dict() for training in (plain, mirrored)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert plain.history[-1].loss != mirrored.history[-1].loss


def test_a_checkpoint_keeps_the_test_time_augmentation_of_its_training_run(tiny: DataSet) -> None:
    for kind, tta, recorded in (("both", "auto", "mirror"), ("both", "none", "none"), ("crop", "mirror", "mirror")):
        training = trained(tiny, kind, tta, epochs=1)
        saved = checkpoint.parse(checkpoint.dump(training, "test", tiny), "net.pt")
        assert saved.tta == recorded
        assert evaluate(saved.network(), tiny.test).loss == pytest.approx(training.history[-1].loss, abs=1e-5)
        resumed = checkpoint.resume(saved, torch.device("cpu"))
        (last,) = resumed.epochs(split(tiny, "test"))
        assert replace(last, seconds=0) == replace(trained(tiny, kind, tta).history[-1], seconds=0)


def test_a_checkpoint_older_than_test_time_augmentation_is_scored_without_it(tiny: DataSet) -> None:
    training = trained(tiny, "both", "none")
    payload = torch.load(io.BytesIO(checkpoint.dump(training, "test", tiny)), weights_only=True)
    del payload["tta"]
    old = checkpoint.parse(archive.write(payload), "old.pt")
    assert old.tta == "none"
    assert evaluate(old.network(), tiny.test).loss == pytest.approx(training.history[-1].loss, abs=1e-5)


class InPlace(nn.Module):
    """A network that changes its input in place."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mul_(3).flatten(1)[:, 100:110]


def test_a_network_that_modifies_its_input_gets_the_right_mirror_image() -> None:
    images = torch.rand(5, 1, 28, 28)
    expected = [side.mul(3).flatten(1)[:, 100:110].softmax(1) for side in (images, images.flip(3))]
    found = with_tta(InPlace(), "mirror")(images.clone())
    assert torch.allclose(found.exp(), (expected[0] + expected[1]) / 2, atol=1e-6)


def test_log_probabilities_do_not_underflow() -> None:
    logits = torch.tensor([[0.0, -500.0], [0.0, -300.0]]).unsqueeze(1)
    found = log_mean_softmax([*logits])
    assert found[0].tolist() == pytest.approx([0, -300 - torch.tensor(2.0).log().item()], abs=1e-4)
