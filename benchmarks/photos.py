"""Accuracy on made photos, read as whole pictures and with the object found, and on the originals.

A photo is an image of the data set, enlarged and painted at a random place onto a background, with noise, saved as
JPEG. The algorithm of fmnist/photo.py was chosen with `--images train`, on photos of validation images; results are of
test images. Pictures without a usable object show how often that is said. The network must not have seen these images:

    python -m search train --epochs 4 --filters 16 --score-on validation --save build/photos.pt
    python -m benchmarks.photos build/photos.pt
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks.machine import machine
from fmnist import data
from fmnist.data import CLASSES, LabelledImages
from fmnist.ensemble import load
from fmnist.files import write_atomically
from fmnist.prediction import GUESS, network_input, predict

Floats = NDArray[np.float64]  # pictures: (height, width, 3) in [0, 255]
Background = Callable[[Generator, int, int], Floats]

SIZES = (240, 800)  # pixels of a photo's sides
GARMENT = (0.3, 0.95)  # of the photo's shorter side
CONTRAST = 60  # grey levels between the garment's colour and the background's, at the least


def plain(low: int, high: int) -> Background:
    """A uniform background with a slight tint."""

    def background(random: Generator, height: int, width: int) -> Floats:
        colour = random.uniform(low, high) + random.uniform(-8, 8, 3)
        return np.broadcast_to(colour.clip(0, 255), (height, width, 3)).copy()

    return background


def coloured(random: Generator, height: int, width: int) -> Floats:
    return np.broadcast_to(random.uniform(0, 255, 3), (height, width, 3)).copy()


def gradient(random: Generator, height: int, width: int) -> Floats:
    """Lit from one side, darker in the corners."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = random.uniform(0, 2 * np.pi)
    light = 1 + 0.12 * (x * np.cos(angle) + y * np.sin(angle)) - 0.06 * (x**2 + y**2)
    lit: Floats = np.clip(plain(170, 225)(random, height, width) * light[..., None], 0, 255)
    return lit


def textured(random: Generator, height: int, width: int) -> Floats:
    """Streaks and grain, like those of cloth or wood."""
    streaks = ndimage.gaussian_filter1d(random.normal(size=(height, width)), random.uniform(1, 20), axis=0)
    pattern = 6 * streaks / streaks.std() + 4 * random.normal(size=(height, width))
    textured: Floats = np.clip(plain(150, 235)(random, height, width) + pattern[..., None], 0, 255)
    return textured


def cluttered(random: Generator, height: int, width: int) -> Floats:
    """Thirty rectangles of random colours."""
    picture = plain(0, 255)(random, height, width)
    for _ in range(30):
        top, left = random.integers(-height // 4, height), random.integers(-width // 4, width)
        bottom, right = top + random.integers(20, height // 2), left + random.integers(20, width // 2)
        picture[max(0, top) : bottom, max(0, left) : right] = random.uniform(0, 255, 3)
    return picture


BACKGROUNDS: dict[str, Background] = {
    "light": plain(210, 250),
    "dark": plain(5, 45),
    "coloured": coloured,
    "gradient": gradient,
    "textured": textured,
}
TONES = ("mixed", "own")


def paint(image: NDArray[np.uint8], picture: Floats, tones: str, random: Generator) -> None:
    """Paint a garment of a random colour onto a picture.

    Args:
        image: (28, 28) of the data set.
        tones: "mixed" mixes the colour with the background by the image's pixels, so that these can be got back; "own"
            cuts the garment out and darkens its colour by the pixels, so that its folds look alike on any background.
    """
    height, width = picture.shape[:2]
    side = round(random.uniform(*GARMENT) * min(height, width))
    left, top = random.integers(0, width - side + 1), random.integers(0, height - side + 1)
    region = picture[top : top + side, left : left + side]
    values = enlarged(image, side)
    mean = 1 if tones == "mixed" else 0.65  # of the colour, after it was darkened
    colour = random.uniform(0, 255, 3)
    while np.sqrt(np.mean((mean * colour - picture.mean(axis=(0, 1))) ** 2)) < CONTRAST:
        colour = random.uniform(0, 255, 3)
    if tones == "mixed":
        region += values * (colour - region)
    else:
        cut_out = enlarged(np.uint8(255) * ndimage.binary_fill_holes(image > 0), side)
        region += cut_out * (colour * (1 - 0.7 * values) - region)


def enlarged(image: NDArray[np.uint8], side: int) -> Floats:
    """(28, 28) uint8 to (side, side, 1) in [0, 1]."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))[..., None] / 255


def save(picture: Floats, path: Path, random: Generator) -> None:
    noisy = picture + random.uniform(0, 6) * random.normal(size=(*picture.shape[:2], 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=int(random.integers(60, 96)))


def make_photos(images: LabelledImages, number: int, folder: Path, random: Generator) -> list[dict[str, Any]]:
    """Save `number` photos of each kind; returns kind, path and index of the image of each."""
    made: list[dict[str, Any]] = []
    for kind, tones in [(kind, tones) for tones in TONES for kind in BACKGROUNDS]:
        for index in random.choice(len(images), number, replace=False).tolist():
            picture = BACKGROUNDS[kind](random, *random.integers(*SIZES, 2))
            paint(images.images[index, 0].numpy(), picture, tones, random)
            path = folder / f"{len(made)}.jpg"
            save(picture, path, random)
            made.append({"kind": f"{kind}, {tones} tones", "path": path, "index": index})
    return made


def make_unusable(number: int, folder: Path, random: Generator) -> list[dict[str, Any]]:
    """Save `number` pictures without an object on each background, and of clutter."""
    made = []
    for kind, background in {**BACKGROUNDS, "cluttered": cluttered}.items():
        for index in range(number):
            path = folder / f"{kind}-{index}.jpg"
            save(background(random, *random.integers(*SIZES, 2)), path, random)
            made.append({"kind": kind, "path": path})
    return made


def accuracies(network: torch.nn.Module, made: list[dict[str, Any]], images: LabelledImages) -> list[dict[str, Any]]:
    """Per photo: whether it is right as a whole picture, inverted, with the object found, and as the original."""
    indices = [photo["index"] for photo in made]
    found = [network_input(photo["path"]) for photo in made]
    ways = {
        "raw": torch.stack([network_input(photo["path"], raw=True).pixels for photo in made]),
        "raw inverted": torch.stack([network_input(photo["path"], invert=True, raw=True).pixels for photo in made]),
        "found": torch.stack([seen.pixels for seen in found]),
        "original": images.images[indices],
    }
    rows = [
        {"kind": photo["kind"], "warned": seen.warning is not None} for photo, seen in zip(made, found, strict=True)
    ]
    for way, pixels in ways.items():
        for row, index, predicted in zip(rows, indices, predict(network, pixels), strict=True):
            row[way] = predicted.class_name == CLASSES[images.labels[index]]
    return rows


def confidence_table(network: torch.nn.Module, images: LabelledImages) -> list[tuple[float, int, float]]:
    """By tenths of confidence: its lower end, images, accuracy."""
    predicted = predict(network, images.images)
    confidence = np.array([prediction.probability for prediction in predicted])
    right = np.array([each.class_name == CLASSES[label] for each, label in zip(predicted, images.labels, strict=True)])
    tenths = np.minimum(9, (10 * confidence).astype(int))
    return [(t / 10, int((tenths == t).sum()), float(right[tenths == t].mean())) for t in np.unique(tenths).tolist()]


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--images", "source", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--number", default=40, show_default=True, help="Photos of each of the ten kinds.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), default=Path("build/photos.json"), show_default=True)
def main(checkpoint: Path, source: str, number: int, seed: int, output: Path) -> None:
    random = np.random.default_rng([seed, source == "test"])
    loaded, network = data.load(), load(checkpoint).network()
    images = loaded.test if source == "test" else data.split(loaded, "validation").scored
    with tempfile.TemporaryDirectory() as folder:
        rows = accuracies(network, make_photos(images, number, Path(folder), random), images)
        unusable = make_unusable(max(1, number // 4), Path(folder), random)
        for picture in unusable:
            picture["warned"] = network_input(picture.pop("path")).warning is not None
    about = machine("torch", "pillow", "scipy")
    confidences = confidence_table(network, images)
    click.echo(", ".join(f"{name} {value}" for name, value in about.items()))
    show("photos", rows, ["raw", "raw inverted", "found", "original", "warned"])
    show("pictures without an object", unusable, ["warned"])
    click.echo(f"\nconfidence of the original {source} images (a guess is below {GUESS:g})")
    for low, count, accuracy in confidences:
        click.echo(f"from {low:.1f}  {count:6}  {accuracy:7.1%}")
    record = {"about": about, "photos": rows, "unusable": unusable, "confidences": confidences}
    write_atomically(output, (json.dumps(record) + "\n").encode())


def show(title: str, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Print the share of each column by kind, and of all."""
    click.echo(f"\n{title:<24}{'number':>8}" + "".join(f"{column:>14}" for column in columns))
    for kind in [*dict.fromkeys(row["kind"] for row in rows), "all"]:
        of_kind = [row for row in rows if kind in (row["kind"], "all")]
        shares = [sum(row[column] for row in of_kind) / len(of_kind) for column in columns]
        click.echo(f"{kind:<24}{len(of_kind):>8}" + "".join(f"{share:>14.1%}" for share in shares))


if __name__ == "__main__":
    main()
