"""Random changes of training images, drawn for each image, made on whole batches.

Each function takes and returns (N, 1, 28, 28) float32 with 0 as background, and
draws from torch's default generator of the images' device.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FLIP_PROBABILITY = 0.5  # at strength 1
MAX_DEGREES = 15.0  # at strength 1


def augment(images: Tensor, strength: float) -> Tensor:
    """Flip and rotate at random, the two augmentations of the write-up.

    Args:
        images: (N, 1, 28, 28) float32.
        strength: in [0, 1]; scales the flip's probability (0.5 at 1) and the range of
            the rotation's angle (uniform in ±15° at 1). 0 returns `images` itself.
    """
    if strength == 0:
        return images
    count, device = len(images), images.device
    flipped = flip(images, torch.rand(count, device=device) < strength * FLIP_PROBABILITY)
    return rotate(flipped, (2 * torch.rand(count, device=device) - 1) * strength * MAX_DEGREES)


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images left to right.

    Args:
        images: (N, 1, 28, 28) float32.
        chosen: (N,) bool.
    """
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its centre, counter-clockwise, with bilinear interpolation.

    What comes in from outside is 0. Equal to torchvision's `rotate` image by image.

    Args:
        images: (N, 1, H, H) float32.
        degrees: (N,) float32.
    """
    cosine, sine = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    zero = torch.zeros_like(cosine)
    matrices = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
