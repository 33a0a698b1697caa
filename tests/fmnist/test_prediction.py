import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fmnist import checkpoint
from fmnist.architectures import build
from fmnist.data import CLASSES, DataSet, LabelledImages, split
from fmnist.evaluation import BATCH, evaluate
from fmnist.hyperparameters import Hyperparameters
from fmnist.prediction import (
    GUESS,
    READABLE,
    ImageError,
    NetworkInput,
    Prediction,
    network_input,
    predict,
    read_image,
    read_images,
)
from fmnist.training import Training
from search.cli.deployment import GUESSED, Classified
from tests.conftest import Command
from tests.factories import digits
from tests.fmnist.test_photo import GARMENT, photograph

SMALL = Hyperparameters(architecture="simple", filters=4, epochs=4, learning_rate=0.002)


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


GREY = pixels(1, 28, 28)


def read(image: Image.Image, path: Path, invert: bool = False, **settings: object) -> Tensor:
    image.save(path, **settings)  # type: ignore[arg-type]
    return read_image(path, invert, raw=True)


def grey(tensor: Tensor) -> np.ndarray:
    assert (tensor.shape, tensor.dtype) == ((1, 28, 28), torch.uint8)
    return tensor[0].numpy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny: DataSet) -> Path:
    """A checkpoint trained on the tiny data set."""
    torch.set_num_threads(1)
    training = Training(SMALL, seed=4)
    for _ in training.epochs(split(tiny, "test")):
        pass
    path = tmp_path_factory.mktemp("saved") / "net.pth"
    checkpoint.save(path, training, "test", tiny)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The first forty test images as PNG files."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{index}.png" for index in range(40)]
    for path, image in zip(paths, digits()[1].images, strict=False):
        Image.fromarray(image[0].numpy()).save(path)
    return paths


def test_predictions_on_files_equal_those_of_evaluation(saved: Path, tiny: DataSet, files: list[Path]) -> None:
    network = checkpoint.load(saved).network()
    scored = tiny.test[torch.arange(len(files))]
    evaluation = evaluate(network, scored)
    read, errors = read_images(files, invert=False)
    images = torch.stack([seen.pixels for _, seen in read])
    assert torch.equal(images, scored.images)
    assert errors == []
    predictions = predict(network, images)
    assert [prediction.class_name for prediction in predictions] == [CLASSES[i] for i in evaluation.predictions]
    assert len({prediction.class_name for prediction in predictions}) > 5
    for prediction, logits in zip(predictions, evaluation.logits, strict=True):
        assert tuple(prediction.probabilities) == CLASSES
        assert list(prediction.probabilities.values()) == pytest.approx(logits.softmax(dim=0).tolist(), abs=1e-6)
        assert prediction.probability == max(prediction.probabilities.values())
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-12)


def test_many_images_are_predicted_in_order() -> None:
    """More than a batch, with a network left in training mode."""
    network = build(Hyperparameters(architecture="cnn", filters=2, dropout=0.5)).train()
    images = torch.from_numpy(pixels(2, BATCH + 3, 1, 28, 28))
    expected = evaluate(network, LabelledImages(images, torch.zeros(len(images), dtype=torch.int64)))
    predictions = predict(network.train(), images)
    assert [prediction.class_name for prediction in predictions] == [CLASSES[i] for i in expected.predictions]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY).convert("RGB"),
        Image.fromarray(GREY).convert("LA"),
        Image.fromarray(GREY).convert("RGBA"),
        Image.fromarray(GREY).quantize(256),
        Image.fromarray(GREY.astype(np.uint16) * 257),
        Image.fromarray(GREY).resize((84, 84), Image.Resampling.NEAREST),
    ],
    ids=["L", "RGB", "LA", "RGBA", "P", "I;16", "three times the size"],
)
def test_a_grey_image_is_read_bit_exactly(image: Image.Image, tmp_path: Path) -> None:
    assert np.array_equal(grey(read(image, tmp_path / "i.png")), GREY)
    with Image.open(tmp_path / "i.png") as stored:
        assert stored.mode == image.mode


def test_sixteen_bits_are_scaled_and_rounded(tmp_path: Path) -> None:
    deep = np.random.default_rng(3).integers(0, 65536, (28, 28), dtype=np.uint16)
    image = Image.fromarray(deep)
    assert np.array_equal(grey(read(image, tmp_path / "deep.png")), np.round(deep / 257).astype(np.uint8))
    clear = grey(read(image, tmp_path / "clear.png", transparency=int(deep[4, 5])))
    assert clear[4, 5] == 0
    assert np.array_equal(np.delete(clear, 4 * 28 + 5), np.delete(np.round(deep / 257), 4 * 28 + 5))


def test_black_and_white_is_read(tmp_path: Path) -> None:
    assert np.array_equal(grey(read(Image.fromarray(GREY > 127), tmp_path / "i.png")), np.uint8(255) * (GREY > 127))


def test_colour_is_converted_to_luminance(tmp_path: Path) -> None:
    colour = pixels(4, 28, 28, 3)
    found = grey(read(Image.fromarray(colour), tmp_path / "i.png"))
    assert np.abs(found - colour @ np.array([0.299, 0.587, 0.114])).max() <= 0.51


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_read_with_small_errors(mode: str, tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(28), np.arange(28)).astype(np.uint8) * 4
    found = grey(read(Image.fromarray(smooth).convert("RGB").convert(mode), tmp_path / "i.jpg", quality=95))
    assert np.abs(found.astype(int) - smooth).max() <= 4


def half_transparent() -> dict[str, Image.Image]:
    """One image in every encoding of transparency; its left half is transparent, whatever its colour."""
    left, right = Image.new("L", (14, 28), 77), Image.new("L", (14, 28), 200)
    image = Image.new("L", (28, 28))
    image.paste(left, (0, 0))
    image.paste(right, (14, 0))
    alpha = image.point(lambda value: 255 * (value == 200))
    marked = {mode: image.convert(mode) for mode in ("L", "RGB")}
    palette = image.quantize(2)
    marked["L"].info["transparency"] = 77
    marked["RGB"].info["transparency"] = (77, 77, 77)
    palette.info["transparency"] = palette.getpixel((0, 0))
    shades = image.quantize(2)
    shades.info["transparency"] = bytes(255 * (index == shades.getpixel((20, 0))) for index in range(2))
    with_alpha = {"LA": Image.merge("LA", (image, alpha)), "RGBA": Image.merge("RGBA", (image, image, image, alpha))}
    return {**marked, **with_alpha, "P": palette, "P of shades": shades}


@pytest.mark.parametrize("kind", half_transparent())
def test_transparent_pixels_become_background(kind: str, tmp_path: Path) -> None:
    image = half_transparent()[kind]
    found = grey(read(image, tmp_path / "i.png"))
    assert (found[:, :14] == 0).all()
    assert (found[:, 14:] == 200).all()
    inverted = grey(read_image(tmp_path / "i.png", invert=True, raw=True))
    assert (inverted[:, :14] == 0).all()
    assert (inverted[:, 14:] == 55).all()


def test_partly_transparent_pixels_are_blended_with_the_background(tmp_path: Path) -> None:
    image = Image.new("RGBA", (28, 28), (200, 200, 200, 51))
    assert (grey(read(image, tmp_path / "i.png")) == 40).all()
    assert (
        grey(read_image(tmp_path / "i.png", invert=True, raw=True)) == 11
    ).all()  # on white: 0.2 x 200 + 0.8 x 255 = 244


INVERTED: dict[str, Callable[[], tuple[Image.Image, Image.Image]]] = {
    "L": lambda: (Image.fromarray(GREY), Image.fromarray(255 - GREY)),
    "I;16": lambda: (
        Image.fromarray(GREY.astype(np.uint16) * 211),
        Image.fromarray(65535 - GREY.astype(np.uint16) * 211),
    ),
    "wide": lambda: (Image.fromarray(pixels(5, 40, 90)), Image.fromarray(255 - pixels(5, 40, 90))),
    "RGB": lambda: (Image.fromarray(pixels(6, 35, 35, 3)), Image.fromarray(255 - pixels(6, 35, 35, 3))),
    "LA": lambda: (
        Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(GREY.T))),
        Image.merge("LA", (Image.fromarray(255 - GREY), Image.fromarray(GREY.T))),
    ),
}


@pytest.mark.parametrize("kind", INVERTED)
def test_invert_restores_an_inverted_image(kind: str, tmp_path: Path) -> None:
    image, inverted = INVERTED[kind]()
    straight = read(image, tmp_path / "i.png")
    assert torch.equal(read(inverted, tmp_path / "j.png", invert=True), straight)
    assert not torch.equal(read_image(tmp_path / "j.png", invert=False, raw=True), straight)


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(
    ("size", "bounds"),
    [
        ((280, 140), (0, 7, 28, 21)),
        ((50, 100), (7, 0, 21, 28)),
        ((14, 7), (0, 7, 28, 21)),
        ((9000, 3), (0, 13, 28, 14)),
        ((1, 1), (0, 0, 28, 28)),
        ((3001, 2999), (0, 0, 28, 28)),
    ],
)
def test_the_aspect_ratio_is_kept(
    size: tuple[int, int], bounds: tuple[int, int, int, int], invert: bool, tmp_path: Path
) -> None:
    """Light clothes fill the same share of the square, and the padding is background."""
    found = read(Image.new("L", size, 25 if invert else 230), tmp_path / "i.png", invert)
    box = Image.fromarray(grey(found))
    assert box.getbbox() == bounds
    assert set(np.unique(box.crop(bounds))) == {230}


def test_reduction_averages_areas(tmp_path: Path) -> None:
    fine = pixels(7, 280, 280)
    means = fine.reshape(28, 10, 28, 10).mean(axis=(1, 3))
    assert np.abs(grey(read(Image.fromarray(fine), tmp_path / "i.png")) - means).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_rotated_photograph_is_read_upright(suffix: str, tmp_path: Path) -> None:
    """Orientation 6: the stored image must be rotated clockwise."""
    upright = Image.new("L", (40, 80))
    upright.paste(255, (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read(upright.rotate(90, expand=True), tmp_path / f"turned.{suffix}", exif=exif)
    assert np.abs(grey(turned).astype(int) - grey(read(upright, tmp_path / "upright.png"))).max() <= 3


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int) -> bytes:
    """The start of a PNG that claims to have this size."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


def text_bomb(folder: Path) -> bytes:
    """A complete image whose comment decompresses to five megabytes; the header ends at byte 33."""
    content = encoded(Image.fromarray(GREY), "png", folder)
    return content[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 5_000_000)) + content[33:]


def encoded(image: Image.Image, suffix: str, folder: Path) -> bytes:
    image.save(folder / f"whole.{suffix}")
    return (folder / f"whole.{suffix}").read_bytes()


BAD: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty.png": (lambda _: b"", "empty; copy or save it again"),
    "words.png": (lambda _: b"an image of a boot", "not a PNG, JPEG, WebP, GIF, BMP or TIFF image; convert it to one"),
    "drawing.png": (lambda folder: encoded(Image.fromarray(GREY), "ppm", folder), "not a PNG, JPEG, WebP, GIF, BMP"),
    "colours.tiff": (lambda folder: encoded(Image.new("LAB", (28, 28)), "tiff", folder), "mode LAB.* save it as RGB"),
    "half.png": (lambda folder: encoded(Image.fromarray(GREY), "png", folder)[:400], "damaged or incomplete"),
    "half.jpg": (lambda folder: encoded(Image.fromarray(GREY), "jpg", folder)[:700], "damaged or incomplete"),
    "comment.png": (text_bomb, "damaged or incomplete"),
    "large.png": (lambda _: bomb(10_000), "more than 89,478,485 pixels; scale it down"),
    "vast.png": (lambda _: bomb(60_000), "more than 89,478,485 pixels; scale it down"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_for_an_unreadable_file_gives_the_reason(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    (tmp_path / name).write_bytes(make(tmp_path))
    with pytest.raises(ImageError, match=message) as raised:
        read_image(tmp_path / name, invert=False)
    assert str(raised.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_or_damaged_file_is_read_or_rejected(suffix: str, tmp_path: Path) -> None:
    """No truncation or changed byte raises another error or a warning (warnings are errors here)."""
    content = encoded(Image.fromarray(GREY), suffix, tmp_path)
    path = tmp_path / f"hurt.{suffix}"
    refused = 0
    for place in range(len(content)):
        changed = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
        for damaged in (content[:place], changed):
            path.write_bytes(damaged)
            refused += len(read_images([path], invert=False)[1])
    assert refused > len(content) / 2


def test_unreadable_exif_data_is_ignored(tmp_path: Path) -> None:
    found = read(Image.fromarray(GREY), tmp_path / "i.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\0\1")
    assert np.array_equal(grey(found), GREY)


def test_predict_prints_columns(command: Command, saved: Path, tiny: DataSet, tmp_path: Path) -> None:
    for index, name in enumerate(("a.png", "a longer name.png")):
        Image.fromarray(tiny.test.images[index, 0].numpy()).save(tmp_path / name)
    images = tiny.test.images[:2]
    expected = predict(checkpoint.load(saved).network(), images)
    result = command("predict", saved, "a.png", "a longer name.png")
    assert result.returncode == 0
    wide = max(len(prediction.class_name) for prediction in expected)
    shares = [f"{100 * prediction.probability:.1f} %" for prediction in expected]
    assert result.stdout.splitlines() == [
        f"a.png              {expected[0].class_name:<{wide}}  {shares[0]:>{max(map(len, shares))}}  whole picture",
        f"a longer name.png  {expected[1].class_name:<{wide}}  {shares[1]:>{max(map(len, shares))}}  whole picture",
    ]


def test_predict_prints_json_and_inverts(invoke: Command, saved: Path, tiny: DataSet, tmp_path: Path) -> None:
    Image.fromarray(255 - tiny.test.images[3, 0].numpy()).convert("RGB").save(tmp_path / "dark.png")
    (expected,) = predict(checkpoint.load(saved).network(), tiny.test.images[3:4])
    predictions = json.loads(invoke("predict", saved, "dark.png", "--invert", "--json").stdout)
    assert predictions == [
        {
            "image": "dark.png",
            "class": expected.class_name,
            "probability": pytest.approx(expected.probability, abs=1e-6),
            "probabilities": pytest.approx(expected.probabilities, abs=1e-6),
            "input": "whole picture, inverted",
            "box": None,
            "warning": GUESSED if expected.probability < GUESS else None,
        }
    ]


@pytest.mark.parametrize("as_json", [False, True])
def test_bad_images_are_named_and_the_others_are_classified(
    invoke: Command, saved: Path, files: list[Path], tmp_path: Path, as_json: bool
) -> None:
    (tmp_path / "words.png").write_text("a boot")
    (tmp_path / "folder").mkdir()
    flag = ["--json"] if as_json else []
    result = invoke("predict", saved, "absent.png", files[0], "words.png", files[1], "folder", *flag)
    assert result.returncode == 1
    assert [line for line in result.stderr.splitlines() if line.startswith("Error")] == [
        f"Error: absent.png: No such file or directory; name a {READABLE}",
        f"Error: words.png: not a {READABLE}; convert it to one",
        f"Error: folder: Is a directory; name a {READABLE}",
    ]
    assert result.stdout == invoke("predict", saved, *files[:2], *flag).stdout
    alone = invoke("predict", saved, "absent.png", *flag)
    assert (alone.returncode, alone.stdout) == (1, "[]\n" if as_json else "")


def test_predict_without_an_image_is_a_usage_error(invoke: Command, saved: Path) -> None:
    result = invoke("predict", saved)
    assert result.returncode == 2
    assert "Missing argument 'IMAGE" in result.stderr


@pytest.mark.parametrize("exif", [b"MM\x00*\x00\x00", b"II*\x00\x08\x00\x00\x00\xff\xff", b"garbage", b""])
def test_a_png_with_a_malformed_exif_chunk_is_read(exif: bytes, tmp_path: Path) -> None:
    content = encoded(Image.fromarray(GREY), "png", tmp_path)
    chunk = b"eXIf" + exif
    end = content.index(b"IEND") - 4
    whole = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path = tmp_path / "broken.png"
    path.write_bytes(content[:end] + whole + content[end:])
    assert np.array_equal(grey(read_image(path)), GREY)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_photos_of_every_format_are_cropped_to_the_object(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{suffix}"
    photograph((250, 245, 240), (30, 40, 90)).save(path)
    seen = network_input(path)
    assert np.abs(grey(seen.pixels).astype(int) - GARMENT).mean() < 8
    assert seen.box == pytest.approx((124, 40, 236, 320), abs=4)
    assert re.fullmatch(r"dark object on light, cropped to 1\d\d x 2[78]\d of 500 x 400 pixels", seen.action)
    assert seen.warning is None
    assert not torch.equal(read_image(path, raw=True), seen.pixels)
    assert torch.equal(read_image(path), seen.pixels)


def test_deep_greys_and_turned_photos_are_cropped_to_the_object(tmp_path: Path) -> None:
    upright = photograph((250, 250, 250), (30, 30, 30)).convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.asarray(upright).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    for name in ("deep.png", "turned.png"):
        assert np.abs(grey(read_image(tmp_path / name)).astype(int) - GARMENT).mean() < 4, name


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    first, second = photograph((250, 250, 250), (30, 30, 30)), Image.new("RGB", (500, 400))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    assert np.abs(grey(read_image(tmp_path / "moving.gif")).astype(int) - GARMENT).mean() < 4


def test_images_of_the_data_sets_size_are_only_inverted_if_their_border_is_light(tmp_path: Path) -> None:
    for name, pixels in {"as it is": GARMENT, "dark on white": 255 - GARMENT}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        assert np.array_equal(grey(read_image(tmp_path / f"{name}.png")), GARMENT)
    assert np.array_equal(grey(read_image(tmp_path / "dark on white.png", raw=True)), 255 - GARMENT)


@pytest.mark.parametrize("side", [28, 200])
def test_a_picture_without_an_object_is_classified_with_a_warning(
    side: int, invoke: Command, saved: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (side, side), (250, 240, 230)).save(tmp_path / "blank.png")
    result = invoke("predict", saved, "blank.png", "--json")
    assert result.returncode == 0
    assert (
        result.stderr == "Warning: blank.png: no object found: the picture is blank. The whole picture was classified\n"
    )
    (predicted,) = json.loads(result.stdout)
    assert predicted["class"] in CLASSES
    assert result.stderr == f"Warning: blank.png: {predicted['warning']}\n"


@pytest.mark.parametrize(
    ("probability", "found", "warning"),
    [(0.49, None, GUESSED), (0.5, None, None), (0.49, "blank", "blank"), (0.9, "blank", "blank")],
)
def test_low_probabilities_are_called_guesses(probability: float, found: str | None, warning: str | None) -> None:
    seen = NetworkInput(torch.zeros(1, 28, 28, dtype=torch.uint8), "whole picture", warning=found)
    classified = Classified(Path("a.png"), seen, Prediction("Bag", probability, {"Bag": probability}))
    assert classified.warning == classified.as_json()["warning"] == warning


def test_the_saved_input_is_what_the_network_sees(invoke: Command, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    photograph((250, 250, 250), (30, 30, 30)).save(tmp_path / "a.png")
    photograph((10, 10, 10), (200, 180, 60)).save(tmp_path / "more" / "a.png")
    arguments = ("predict", saved, "a.png", "more/a.png", "--save-input", "seen", "--json")
    first = json.loads(invoke(*arguments).stdout)
    again = json.loads(invoke("predict", saved, "seen/a.png.png", "seen/a.png-2.png", "--json").stdout)
    assert [answer["probabilities"] for answer in again] == [answer["probabilities"] for answer in first]
    for original, seen in (("a.png", "a.png.png"), ("more/a.png", "a.png-2.png")):
        with Image.open(tmp_path / "seen" / seen) as image:
            assert np.array_equal(np.asarray(image), grey(read_image(tmp_path / original)))
    assert invoke(*arguments).returncode == 0  # its own files may be overwritten


def test_the_saved_input_overwrites_no_file_of_another_program(invoke: Command, saved: Path, tmp_path: Path) -> None:
    photograph((250, 250, 250), (30, 30, 30)).save(tmp_path / "a.png")
    Image.fromarray(GREY).save(tmp_path / "a.png.png")
    before = (tmp_path / "a.png.png").read_bytes()
    result = invoke("predict", saved, "a.png", "--save-input", ".")
    assert (result.returncode, result.stdout) == (2, "")
    assert "did not write this file; name another folder with --save-input" in result.stderr
    assert (tmp_path / "a.png.png").read_bytes() == before
