import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from fmnist.augmentation import augment, flip, rotate
from fmnist.data import DataSet


@pytest.fixture
def images(tiny: DataSet) -> torch.Tensor:
    return tiny.train.images[:64].to(torch.float32)


def test_rotation_equals_torchvisions(images: torch.Tensor) -> None:
    degrees = torch.linspace(-180, 180, 64)
    expected = torch.stack(
        [
            reference.rotate(image, angle.item(), InterpolationMode.BILINEAR)
            for image, angle in zip(images, degrees, strict=True)
        ]
    )
    torch.testing.assert_close(rotate(images, degrees), expected, atol=0.02, rtol=0)  # of 255


def test_flip_equals_torchvisions_on_the_chosen_images_only(images: torch.Tensor) -> None:
    chosen = torch.arange(64) % 3 == 0
    flipped = flip(images, chosen)
    assert torch.equal(flipped[chosen], reference.hflip(images[chosen]))
    assert torch.equal(flipped[~chosen], images[~chosen])


def test_strength_zero_changes_nothing(images: torch.Tensor) -> None:
    assert torch.equal(augment(images, 0.0), images)


def test_each_image_has_a_draw_of_its_own() -> None:
    same = torch.rand(1, 1, 28, 28).expand(200, 1, 28, 28)
    assert len(augment(same, 1.0).flatten(1).unique(dim=0)) == 200


def test_strength_scales_the_share_of_flips_and_the_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def stand_in(images: torch.Tensor, argument: torch.Tensor) -> torch.Tensor:
            seen[name] = argument
            return images

        return stand_in

    monkeypatch.setattr("fmnist.augmentation.flip", keep("flip"))
    monkeypatch.setattr("fmnist.augmentation.rotate", keep("rotate"))
    torch.manual_seed(0)
    images = torch.zeros(20_000, 1, 1, 1)
    for strength in (0.2, 1.0):
        augment(images, strength)
        assert abs(seen["flip"].float().mean().item() - 0.5 * strength) < 0.02
        assert 0.95 * 15 * strength < seen["rotate"].abs().max().item() <= 15 * strength
        assert abs(seen["rotate"].mean().item()) < 0.5 * strength
