"""Random augmentation of whole batches, drawn separately for each image.

Each function takes and returns (N, 1, 28, 28) float32 in [0, 255] with 0 as background, and
draws from torch's default generator of the images' device.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fmnist.choices import augmentations

# Values at strength 1.
FLIP_PROBABILITY = 0.5
MAX_DEGREES = 15.0
MAX_SHIFT = 4  # pixels
MAX_JITTER = 0.5  # relative change of brightness and of contrast
ERASE_PROBABILITY = 0.5

ERASED_AREA = (0.02, 0.33)  # share of the image, at every strength
ERASED_RATIO = 3.3  # maximum ratio of a rectangle's longer side to its shorter one


def augment(images: Tensor, kind: str, strength: float) -> Tensor:
    """Augment images at random.

    Args:
        images: (N, 1, 28, 28) float32.
        kind: none, or one or more of these, joined by + in the order of application:
            flip (mirror with probability 0.5 at strength 1), rotation (uniform in ±15°), both
            (flip and rotation in one, the write-up's), crop (by up to 4 pixels), jitter
            (brightness and contrast by up to a half), erasing (of a rectangle, with
            probability 0.5).
        strength: in [0, 1]; scales these probabilities and ranges. 0 returns `images` itself.

    Raises:
        ValueError: the kind has an unknown name, or an augmentation twice.
    """
    if strength == 0:
        return images
    for name in augmentations(kind):
        images = _augment(images, name, strength)
    return images


def flips(kind: str, strength: float) -> bool:
    """Whether `augment` may mirror images."""
    return strength > 0 and not {"flip", "both"}.isdisjoint(augmentations(kind))


def _augment(images: Tensor, name: str, strength: float) -> Tensor:
    if name == "flip":
        return flip(images, _uniform(images) < strength * FLIP_PROBABILITY)
    if name in ("rotation", "both"):
        degrees = (2 * _uniform(images) - 1) * strength * MAX_DEGREES
        mirrored = _uniform(images) < strength * FLIP_PROBABILITY if name == "both" else None
        return rotate(images, degrees, mirrored)
    if name == "crop":
        down, right = (((2 * _uniform(images) - 1) * strength * MAX_SHIFT).round().long() for _ in range(2))
        return shift(images, down, right)
    if name == "jitter":
        brightness, contrast = (1 + (2 * _uniform(images) - 1) * strength * MAX_JITTER for _ in range(2))
        return jitter(images, brightness, contrast)
    assert name == "erasing"
    return _erase_at_random(images, _uniform(images) < strength * ERASE_PROBABILITY)


def _uniform(images: Tensor) -> Tensor:
    return torch.rand(len(images), device=images.device)  # (N,) float32 in [0, 1)


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images left to right.

    Args:
        images: (N, 1, 28, 28) float32.
        chosen: (N,) bool.
    """
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def rotate(images: Tensor, degrees: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Rotate each image about its centre, counter-clockwise, with bilinear interpolation.

    Pixels from outside the image are 0. Equal to torchvision's `rotate` of each image.

    Args:
        images: (N, 1, H, H) float32.
        degrees: (N,) float32.
        mirrored: (N,) bool: images to mirror left to right first, at no extra cost; None mirrors none.
    """
    side = images.shape[-1]
    y, x = torch.meshgrid([(2 * torch.arange(side, device=images.device) + 1) / side - 1] * 2, indexing="ij")
    zero = torch.zeros_like(x)
    parts = torch.stack([torch.stack(part, dim=-1) for part in ((x, zero), (-y, zero), (zero, y), (zero, x))])
    cosine, sine = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    side_to_side = 1.0 if mirrored is None else 1.0 - 2.0 * mirrored
    shares = torch.stack([side_to_side * cosine, side_to_side * sine, cosine, sine], dim=1)
    grid = (shares @ parts.flatten(1)).view(-1, side, side, 2)  # affine_grid takes ten times as long
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def shift(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift each image by whole pixels: a crop after padding with background (He et al., 2016, section 4.2).

    Args:
        images: (N, 1, H, H) float32.
        down, right: (N,) int64, in [-MAX_SHIFT, MAX_SHIFT].
    """
    padded = F.pad(images.squeeze(1), [MAX_SHIFT] * 4)
    pixels = torch.arange(images.shape[-1], device=images.device)
    rows, columns = (MAX_SHIFT + pixels - by[:, None] for by in (down, right))
    number = torch.arange(len(images), device=images.device)
    return padded[number[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Scale each image, then its contrast about its own mean; equal to torchvision's jitter of each image.

    Args:
        images: (N, 1, H, H) float32 in [0, 255].
        brightness, contrast: (N,) float32; 1 changes nothing.
    """
    bright = (images * brightness[:, None, None, None]).clamp_(0, 255)
    mean = bright.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, bright, contrast[:, None, None, None]).clamp_(0, 255)


def erase(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Set a rectangle of each image to background; a height or width of 0 changes nothing.

    Args:
        images: (N, 1, H, H) float32.
        top, left, height, width: (N,) int64, in pixels.
    """
    pixels = torch.arange(images.shape[-1], device=images.device)
    rows, columns = (
        (pixels >= start[:, None]) & (pixels < (start + length)[:, None])
        for start, length in ((top, height), (left, width))
    )
    return images.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0)


def _erase_at_random(images: Tensor, chosen: Tensor) -> Tensor:
    # Random area, aspect ratio and position (Zhong et al., 2020).
    side = images.shape[-1]
    area = (ERASED_AREA[0] + _uniform(images) * (ERASED_AREA[1] - ERASED_AREA[0])) * side**2
    ratio = ERASED_RATIO ** (2 * _uniform(images) - 1)
    height, width = ((area * factor).sqrt().round().long().clamp(1, side) for factor in (ratio, 1 / ratio))
    top, left = ((_uniform(images) * (side - length + 1)).long() for length in (height, width))
    return erase(images, top, left, height * chosen, width)
