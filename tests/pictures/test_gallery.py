"""The gallery: a PNG of every image, where what is wrong can be seen."""

import io

import numpy as np
import pytest
from PIL import Image

from job.errors import UsageError
from job.pictures import gallery


def drawn(count, correct=None, shape=(28, 28)) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)
    captions = [(f"{index % 10}  99.8%", f"true {index % 10}") for index in range(count)]
    png = gallery.draw_gallery(images, captions, correct or [True] * count)
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (10, 10, 1), (23, 10, 3)])
def test_size_follows_the_number_of_images(count, columns, rows):
    cell = (drawn(2).shape[1] - drawn(1).shape[1], drawn(11).shape[0] - drawn(10).shape[0])
    picture = drawn(count)
    assert picture.shape[1] - drawn(1).shape[1] == (columns - 1) * cell[0]
    assert picture.shape[0] - drawn(10).shape[0] == (rows - 1) * cell[1]


def test_the_same_images_are_the_same_bytes():
    assert np.array_equal(drawn(5), drawn(5))


def test_every_pixel_of_an_image_is_shown():
    image = np.arange(28 * 28, dtype=np.uint8).reshape(1, 28, 28)
    png = gallery.draw_gallery(image, [("", "")], [True])
    picture = np.asarray(Image.open(io.BytesIO(png)))[24:136, 24:136, 0]
    assert np.array_equal(picture[2::4, 2::4], image[0])


def reds(picture) -> int:
    return int(((picture[..., 0] > 150) & (picture[..., 1] < 80) & (picture[..., 2] < 80)).sum())


def test_a_wrong_prediction_is_framed_and_an_unknown_one_is_not():
    assert reds(drawn(1, [False])) > 1000
    assert reds(drawn(1, [True])) == reds(drawn(1, [None])) == 0
    without_colour = drawn(1, [False]).mean(axis=2), drawn(1, [True]).mean(axis=2)
    assert (np.abs(without_colour[0] - without_colour[1]) > 50).sum() > 1000


def captioned(second: str, correct: bool | None = None) -> np.ndarray:
    """Return the second line of the caption of the first of two images, and what is beside it."""
    images = np.zeros((2, 28, 28), np.uint8)
    png = gallery.draw_gallery(images, [("7", second), ("", "")], [correct, None])
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))[162:185] < 200


def test_a_caption_is_as_long_as_its_image_is_wide_at_most():
    name = "a-drawing-of-a-seven-that-was-made-on-a-cold-day.png"
    line = captioned(name)
    assert np.flatnonzero(line.any(axis=0)).min() >= 24 - 6
    assert np.flatnonzero(line.any(axis=0)).max() < 24 + 112 + 6
    assert not np.array_equal(line, captioned(name.replace("png", "jpg")))  # the end is kept
    assert not np.array_equal(line, captioned(name.replace("a-drawing", "the-same")))
    assert captioned("seven.png").any()


@pytest.mark.parametrize("name", ["two\nlines.png", "tab\t.png", "\udcff\x00.png", ""])
def test_a_caption_may_be_any_file_name(name):
    assert captioned(name).any() == bool(name)


def test_what_is_wrong_is_called_so_in_words():
    called, plain = (captioned("true 7", right).any(axis=0).sum() for right in (False, True))
    assert called > plain + 20  # columns of pixels


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (8, 8, 4), (12, 9, 2), (200, 100)])
def test_other_shapes_are_drawn_too(shape):
    assert drawn(3, shape=shape).shape[2] == 3


def test_too_many_images_are_refused():
    assert drawn(400, shape=(2, 2)).shape[0] > 40 * 100
    with pytest.raises(UsageError, match="at most 400 images, not 401"):
        drawn(401, shape=(2, 2))
