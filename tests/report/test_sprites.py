"""Sheets of images: each one found where the page looks for it, and never a large page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from job.report import sprites

SHAPES = [(28, 28), (8, 8), (20, 26, 3), (20, 26, 2), (1, 40), (300, 200), (200, 300, 3)]


def opened(uri: str) -> Image.Image:
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def cut(sheet: sprites.Sheet, index: int) -> np.ndarray:
    """Return the tile that a browser shows at the position of an image."""
    picture = opened(sheet.uri)
    size = picture.width // sheet.columns, picture.height // sheet.rows
    left, top = (
        round(float(share.rstrip("%")) / 100 * (whole - part))
        for share, whole, part in zip(
            sheet.position(index).split(), picture.size, size, strict=True
        )
    )
    return np.asarray(picture.crop((left, top, left + size[0], top + size[1])))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 7, 160])
def test_each_image_is_where_the_page_looks_for_it(shape, count):
    images = np.zeros((count, *shape), np.uint8)
    images[:] = (37 * np.arange(count) % 251)[:, *[None] * len(shape)]
    sheet = sprites.sheet(images)
    assert len(sheet.uri) < 1_300_000
    assert max(sheet.width, sheet.height) <= 84
    for index in {0, 1, count // 2, count - 1} & set(range(count)):
        assert (cut(sheet, index) == images[index].flat[0]).all()


def test_small_images_are_on_the_sheet_pixel_by_pixel_and_in_colour():
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 26, 3), dtype=np.uint8)
    assert np.array_equal(cut(sprites.sheet(images), 3), images[3])
    grey = images[..., 0]
    assert np.array_equal(cut(sprites.sheet(grey), 4), grey[4])


def test_a_page_stays_small_whatever_its_images_are():
    noise = np.random.default_rng(0).integers(0, 256, (160, 512, 512, 3), dtype=np.uint8)
    assert len(sprites.sheet(noise).uri) < 1_000_000


@pytest.mark.parametrize(("shape", "units"), [((5, 4), 3), ((4, 5, 3), 20)])
def test_weights_are_the_stronger_in_colour_the_stronger_they_are(shape, units):
    kernel = np.zeros((int(np.prod(shape)), units), np.float32)
    kernel[:, 0] = 0.01  # weak, so it comes last; but in its own shades
    kernel[:, 1] = -3
    kernel[0, 2] = 5
    picture = sprites.weights(kernel, shape, 16)
    assert len(picture.uri) < 10_000
    pixels = np.asarray(opened(picture.uri).convert("RGBA"))
    assert pixels.shape[:2] == (picture.height, picture.width)
    height, width = shape[:2]
    tiles = [pixels[:height, at : at + width] for at in range(0, 3 * (width + 2), width + 2)]
    assert (tiles[0] == (0, 114, 178, 255)).all()
    assert tuple(tiles[1][0, 0]) == (213, 94, 0, 255)
    assert (tiles[1].reshape(-1, 4)[1:, 3] == 0).all()
    assert (tiles[2] == (213, 94, 0, 255)).all()
    assert (pixels[:, width] == pixels[0, width]).all()  # between two tiles one sees through
    assert pixels[0, width, 3] == 0


def test_a_layer_that_weighs_nothing_can_be_drawn():
    picture = sprites.weights(np.zeros((16, 2), np.float32), (4, 4), 2)
    assert (np.asarray(opened(picture.uri).convert("RGBA"))[..., 3] == 0).all()
