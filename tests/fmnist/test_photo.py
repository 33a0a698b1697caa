"""Objects in photos: found, cropped, centred, and shown light on black."""

import numpy as np
import pytest
from PIL import Image

from fmnist.photo import Found, NoObject, find

Colour = tuple[int, int, int]


def garment() -> np.ndarray:
    """In the form of the data set, asymmetric: 11 pixels wide, so that the left margin is the wider one."""
    shape = np.zeros((28, 28), dtype=np.uint8)
    shape[:, 9:20] = np.linspace(120, 255, 28)[:, None]
    shape[12:, 13:16] = 0
    shape[:4, 9:12] = 0
    return shape


GARMENT = garment()


def photograph(
    background: Colour, colour: Colour, place: tuple[int, int] = (34, 40), enlarged: int = 10, slope: float = 0
) -> Image.Image:
    """500 x 400 pixels: the garment of a colour at (left, upper), on a background that gets darker to the right."""
    picture = np.full((400, 500, 3), background, dtype=float) * np.linspace(1, 1 - slope, 500)[:, None]
    large = np.kron(GARMENT, np.ones((enlarged, enlarged)))[..., None] / 255
    left, top = place
    region = picture[top : top + len(large), left : left + len(large)]
    region += large * (np.array(colour) - region)
    return Image.fromarray(picture.round().astype(np.uint8))


def error(found: Found) -> float:
    """Mean difference from the garment, in grey levels."""
    return float(np.abs(np.asarray(found.image).astype(int) - GARMENT).mean())


@pytest.mark.parametrize(
    ("background", "colour", "dark"),
    [
        ((255, 255, 255), (0, 0, 0), True),
        ((240, 235, 225), (20, 60, 140), True),
        ((0, 0, 0), (255, 255, 255), False),
        ((20, 25, 30), (230, 190, 60), False),
        ((60, 130, 60), (170, 40, 90), True),
        ((240, 240, 60), (60, 210, 240), True),
    ],
)
def test_the_object_is_shown_as_the_data_set_does(background: Colour, colour: Colour, dark: bool) -> None:
    found = find(photograph(background, colour))
    assert error(found) < 4
    assert found.dark == dark
    assert found.box == pytest.approx((124, 40, 234, 320), abs=4)


def test_place_and_size_do_not_matter() -> None:
    for place, enlarged in (((0, 0), 10), ((220, 120), 10), ((300, 30), 5), ((90, 8), 14)):
        assert error(find(photograph((250, 250, 250), (30, 30, 30), place, enlarged))) < 6, (place, enlarged)


def test_an_object_may_reach_opposite_edges() -> None:
    photo = photograph((250, 250, 250), (30, 30, 30), (34, 40)).crop((60, 40, 300, 320))
    assert error(find(photo)) < 4


def test_a_large_photo_has_the_box_in_its_own_pixels() -> None:
    found = find(photograph((250, 250, 250), (30, 30, 30)).resize((2500, 2000)))
    assert found.box == pytest.approx((620, 200, 1170, 1600), abs=20)
    assert error(found) < 6


def test_uneven_light_and_grain_do_not_matter() -> None:
    photo = np.asarray(photograph((240, 230, 220), (30, 40, 90), slope=0.3)).astype(float)
    grain = np.random.default_rng(1).normal(0, 6, photo.shape)
    assert error(find(Image.fromarray((photo + grain).clip(0, 255).astype(np.uint8)))) < 10


def test_specks_are_not_the_object() -> None:
    photo = photograph((250, 250, 250), (30, 30, 30))
    photo.paste((0, 0, 0), (470, 370, 478, 378))
    found = find(photo)
    assert error(found) < 4
    assert found.box[2] < 300


def test_separate_parts_of_similar_size_stay_together() -> None:
    photo = Image.new("RGB", (500, 400), (250, 250, 250))
    photo.paste((30, 30, 30), (100, 100, 180, 240))
    photo.paste((30, 30, 30), (300, 100, 380, 240))
    assert find(photo).box == pytest.approx((100, 100, 380, 240), abs=4)


@pytest.mark.parametrize(("colour", "dark"), [((30, 20, 40), True), ((230, 240, 220), False)])
def test_a_cut_out_is_its_opaque_part(colour: Colour, dark: bool) -> None:
    alpha = Image.fromarray(np.kron(255 * (GARMENT > 0), np.ones((10, 10))).astype(np.uint8))
    photo = Image.new("RGBA", alpha.size, (128, 0, 128))  # a colour that must not show
    photo.paste(Image.new("RGB", alpha.size, colour), mask=alpha)
    photo.putalpha(alpha)
    found = find(photo)
    assert found.dark == dark
    assert np.array_equal(np.asarray(found.image), np.uint8(255) * (GARMENT > 0))
    assert found.box == (90, 0, 200, 280)


def test_invert_negates_the_objects_own_tones() -> None:
    dark, light = photograph((255, 255, 255), (0, 0, 0)), photograph((0, 0, 0), (255, 255, 255))
    assert np.array_equal(np.asarray(find(dark, invert=True).image), np.asarray(find(dark).image))
    straight, inverted = (np.asarray(find(light, invert).image).astype(int) for invert in (False, True))
    inside = straight > 0
    assert np.corrcoef(straight[inside], inverted[inside])[0, 1] < -0.9
    assert not inverted[~inside].any()


def test_a_blank_picture_has_no_object() -> None:
    grain = np.random.default_rng(2).normal(0, 6, (400, 500, 3))
    light = np.linspace(230, 170, 500)[:, None] + grain
    for picture in (np.full((400, 500, 3), 250), light, np.full((1, 1, 3), 9), np.full((3, 900, 3), 90)):
        with pytest.raises(NoObject, match="blank"):
            find(Image.fromarray(picture.clip(0, 255).astype(np.uint8)))
    with pytest.raises(NoObject, match="blank"):
        find(Image.new("RGBA", (300, 300)))


def test_a_border_of_many_colours_is_reported() -> None:
    blocks = np.random.default_rng(3).integers(0, 256, (8, 10, 3)).astype(np.uint8)
    with pytest.raises(NoObject, match="border"):
        find(Image.fromarray(blocks.repeat(50, axis=0).repeat(50, axis=1)))
