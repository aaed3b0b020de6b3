"""The gallery: a PNG of every image, where what is wrong can be seen."""

import io

import numpy as np
import pytest
from PIL import Image

from job.pictures import gallery


def drawn(count, correct=None, shape=(28, 28), of=None) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)
    captions = [(f"{index % 10}  99.8%", f"true {index % 10}") for index in range(count)]
    png = gallery.draw_sheet(images, captions, correct or [True] * count, of=of or count)
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
    png = gallery.draw_sheet(image, [("", "")], [True], of=1)
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
    png = gallery.draw_sheet(images, [("7", second), ("", "")], [correct, None], of=2)
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


def test_many_images_are_small_on_sheets_of_400():
    assert gallery.sheets(10_000)[1:3] == [slice(400, 800), slice(800, 1200)]
    assert len(gallery.sheets(10_000)) == 25
    assert gallery.sheets(401) == [slice(0, 400), slice(400, 401)]
    assert gallery.sheets(10) == [slice(0, 10)]
    large, small, whole = (drawn(count) for count in (100, 101, 400))
    assert large.shape[1] < small.shape[1] == whole.shape[1] < 1500
    assert small.shape[0] < large.shape[0] < whole.shape[0] < 2500


def test_the_last_sheet_is_as_small_as_the_others():
    assert drawn(1, of=401).shape[1] == drawn(1, of=10_000).shape[1] < drawn(1).shape[1]


def test_a_small_wrong_prediction_is_framed_as_well():
    assert reds(drawn(1, [False], of=200)) > 500
    assert reds(drawn(1, [True], of=200)) == 0
    without_colour = drawn(1, [False], of=200).mean(axis=2), drawn(1, [True], of=200).mean(axis=2)
    assert (np.abs(without_colour[0] - without_colour[1]) > 50).sum() > 500


def test_captions_of_small_images_are_whole():
    images = np.zeros((1, 28, 28), np.uint8)
    pictures = [
        gallery.draw_sheet(images, [(first, second)], [False], of=101)
        for first, second in (("7  100.0%", "true 7"), ("7  100.0%", "true 1"))
    ]
    assert pictures[0] != pictures[1]
    font = gallery.ImageFont.load_default(gallery._SMALL.letters[0])
    room = gallery._SMALL.tile + gallery._SMALL.gap / 2
    assert gallery._fitting("7  100.0%", font, room) == "7  100.0%"
