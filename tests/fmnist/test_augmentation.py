import re
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from fmnist.augmentation import augment, erase, flip, jitter, rotate, shift
from fmnist.choices import Augmentation
from fmnist.data import DataSet
from fmnist.hyperparameters import Hyperparameters


@pytest.fixture
def images(tiny: DataSet) -> torch.Tensor:
    return tiny.train.images[:64].to(torch.float32)


def test_rotation_equals_torchvision(images: torch.Tensor) -> None:
    degrees = torch.linspace(-180, 180, 64)
    expected = torch.stack(
        [
            reference.rotate(image, angle.item(), InterpolationMode.BILINEAR)
            for image, angle in zip(images, degrees, strict=True)
        ]
    )
    torch.testing.assert_close(rotate(images, degrees), expected, atol=0.02, rtol=0)  # of 255


def test_mirrored_images_are_flipped_before_rotation(images: torch.Tensor) -> None:
    degrees, mirrored = torch.linspace(-15, 15, 64), torch.arange(64) % 3 == 0
    expected = rotate(flip(images, mirrored), degrees)
    torch.testing.assert_close(rotate(images, degrees, mirrored), expected, atol=0.02, rtol=0)


def test_flip_equals_torchvision_and_changes_only_the_chosen_images(images: torch.Tensor) -> None:
    chosen = torch.arange(64) % 3 == 0
    flipped = flip(images, chosen)
    assert torch.equal(flipped[chosen], reference.hflip(images[chosen]))
    assert torch.equal(flipped[~chosen], images[~chosen])


def test_shift_moves_each_image_and_fills_with_background(images: torch.Tensor) -> None:
    down, right = torch.arange(64) % 9 - 4, torch.arange(64) // 9 % 9 - 4
    for image, shifted, dy, dx in zip(images, shift(images, down, right), down.tolist(), right.tolist(), strict=True):
        assert torch.equal(shifted, reference.affine(image, 0.0, [dx, dy], 1.0, [0.0, 0.0]))


def test_jitter_equals_torchvision(images: torch.Tensor) -> None:
    brightness, contrast = torch.linspace(0.5, 1.5, 64), torch.linspace(1.5, 0.5, 64)
    for image, changed, b, c in zip(
        images, jitter(images, brightness, contrast), brightness.tolist(), contrast.tolist(), strict=True
    ):
        expected = reference.adjust_contrast(reference.adjust_brightness(image / 255, b), c) * 255
        torch.testing.assert_close(changed, expected, atol=0.05, rtol=0)


def test_erase_clears_only_the_rectangle(images: torch.Tensor) -> None:
    nonzero = images + 1
    top, left, height, width = (torch.full((64,), value) for value in (3, 20, 5, 8))
    height[0] = 0
    erased = erase(nonzero, top, left, height, width)
    assert torch.equal(erased[0], nonzero[0])
    assert (erased[1:, :, 3:8, 20:28] == 0).all()
    assert ((erased == 0).sum(dim=(1, 2, 3))[1:] == 40).all()


KINDS = [*get_args(Augmentation), "crop+flip+erasing", "rotation+flip", "both+jitter"]


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_changes_nothing(kind: str, images: torch.Tensor) -> None:
    assert torch.equal(augment(images, kind, 0.0), images)


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_is_augmented_independently_and_reproducibly(kind: str) -> None:
    image = torch.rand(1, 1, 28, 28) * 254 + 1
    torch.manual_seed(1)
    made = augment(image.expand(200, 1, 28, 28), kind, 1.0)
    # Distinct results of 200 draws: half are not erased, and there are 81 crops.
    fewest = {"flip": 2, "erasing": 50, "crop": 50, "crop+flip+erasing": 150}.get(kind, 200)
    assert len(made.flatten(1).unique(dim=0)) >= fewest
    assert made.min() >= 0
    assert made.max() <= 255.01
    torch.manual_seed(1)
    assert torch.equal(made, augment(image.expand(200, 1, 28, 28), kind, 1.0))


@pytest.mark.parametrize("kind", ["crop+flip+erasing", "erasing+flip+crop", "jitter+both", "rotation+flip"])
def test_a_combination_applies_its_parts_in_order(kind: str, images: torch.Tensor) -> None:
    torch.manual_seed(5)
    expected = images
    for part in kind.split("+"):
        expected = augment(expected, part, 0.8)
    torch.manual_seed(5)
    assert torch.equal(augment(images, kind, 0.8), expected)


def test_the_order_of_parts_matters(images: torch.Tensor) -> None:
    made = []
    for kind in ("crop+jitter", "jitter+crop"):
        torch.manual_seed(5)
        made.append(augment(images, kind, 0.8))
    assert not torch.equal(*made)


@pytest.mark.parametrize(
    ("long", "short"), [("flip+rotation", "both"), ("crop+flip+rotation+jitter", "crop+both+jitter")]
)
def test_both_means_flip_and_rotation(long: str, short: str, images: torch.Tensor) -> None:
    made = []
    for kind in (long, short):
        torch.manual_seed(5)
        made.append(augment(images, kind, 0.8))
    assert torch.equal(*made)


def test_none_changes_and_draws_nothing(images: torch.Tensor) -> None:
    before = torch.get_rng_state()
    assert torch.equal(augment(images, "none", 1.0), images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("blur", "'blur' is not an augmentation"),
        ("crop+blur", "'blur' is not an augmentation"),
        ("", "'' is not an augmentation"),
        ("crop+", "'' is not an augmentation"),
        ("crop + flip", "'crop ' is not an augmentation"),
        ("Crop", "'Crop' is not an augmentation"),
        ("none+crop", "'none' is not an augmentation; write none alone"),
        ("crop+flip+crop", "crop appears twice"),
        ("both+flip", "flip appears twice"),
        ("rotation+crop+both", "rotation appears twice"),
        ("both+both", "flip appears twice"),
    ],
)
def test_invalid_combinations_are_rejected(kind: str, reason: str, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        augment(images, kind, 0.5)
    with pytest.raises(ValidationError, match=re.escape(reason)):
        Hyperparameters(augmentation_kind=kind)


@pytest.mark.parametrize("kind", ["none", *KINDS, "flip+rotation", "erasing+jitter+crop+rotation+flip"])
def test_a_combination_is_stored_as_written(kind: str) -> None:
    assert Hyperparameters(augmentation_kind=kind).augmentation_kind == kind


def test_strength_scales_the_other_kinds() -> None:
    torch.manual_seed(0)
    white = torch.full((20_000, 1, 28, 28), 200.0)
    for strength in (0.25, 1.0):
        moved = (augment(white, "crop", strength) == 0).all(dim=3).sum(dim=(1, 2))
        assert moved.max() == 4 * strength
        darker = augment(white, "jitter", strength).amin(dim=(1, 2, 3)) / 200
        assert abs(darker.min() - (1 - 0.5 * strength)) < 0.01
        share = (augment(white, "erasing", strength) == 0).any(dim=(1, 2, 3)).float().mean()
        assert abs(share - 0.5 * strength) < 0.02
    areas = (augment(white, "erasing", 1.0) == 0).float().mean(dim=(1, 2, 3))
    assert abs(areas[areas > 0].mean() - (0.02 + 0.33) / 2) < 0.01


def test_strength_scales_the_share_of_flips_and_the_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.Tensor] = {}

    def record_arguments(images: torch.Tensor, degrees: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        seen.update(flip=mirrored, rotate=degrees)
        return images

    monkeypatch.setattr("fmnist.augmentation.rotate", record_arguments)
    torch.manual_seed(0)
    images = torch.zeros(20_000, 1, 1, 1)
    for strength in (0.2, 1.0):
        augment(images, "both", strength)
        assert abs(seen["flip"].float().mean().item() - 0.5 * strength) < 0.02
        assert 0.95 * 15 * strength < seen["rotate"].abs().max().item() <= 15 * strength
        assert abs(seen["rotate"].mean().item()) < 0.5 * strength
