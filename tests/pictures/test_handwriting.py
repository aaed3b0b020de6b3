"""A person's own pictures, brought to the form of the data set's images."""

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from job.errors import DataError, MissingInputError
from job.pictures import handwriting
from job.storage import Place

SHAPE = (28, 28)


def encoded(pixels, form="PNG", **more) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, form, **more)
    return file.getvalue()


def read(tmp_path, data: bytes, shape=SHAPE):
    path = tmp_path / "picture"
    path.write_bytes(data)
    return handwriting.read_picture(Place.of(path), shape)


def drawn(digit: str = "5", size=(300, 400), place=(150, 200), height=200) -> np.ndarray:
    """Return a digit in dark ink on light paper, in the font that Pillow brings."""
    image = Image.new("L", size, 235)
    font = ImageFont.load_default(height)
    ImageDraw.Draw(image).text(place, digit, 40, font, anchor="mm")
    return np.asarray(image)


def likeness(one, other) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def on_paper(digit, side=280, top=60, left=120, size=(480, 600)) -> np.ndarray:
    """Return an image of the data set as a large drawing, dark on light and off the middle."""
    paper = np.full(size, 255, np.uint8)
    large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    paper[top : top + side, left : left + side] -= np.asarray(large)
    return paper


@pytest.mark.parametrize("digit", list("0123456789"))
def test_a_drawing_is_brought_to_the_form_of_mnist(tmp_path, digit):
    image = read(tmp_path, encoded(drawn(digit)))
    assert (image.shape, image.dtype, image.max()) == (SHAPE, np.uint8, 255)
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20  # fills the box, keeps its proportions
    mass = image.astype(float)
    centre = [np.average(np.arange(28), weights=mass.sum(axis=axis)) for axis in (1, 0)]
    assert np.allclose(centre, 14, atol=1)


def test_mnist_drawn_large_comes_back_as_itself(tmp_path, mnist):
    alike = [likeness(read(tmp_path, encoded(on_paper(d))), d) for d in mnist.x_test[:40]]
    assert np.median(alike) > 0.9
    assert min(alike) > 0.7


def test_an_image_of_the_data_set_is_left_as_it_is(tmp_path, mnist):
    same = [np.array_equal(read(tmp_path, encoded(d)), d) for d in mnist.x_test[:100]]
    assert np.mean(same) >= 0.95


def variants(paper: np.ndarray) -> dict[str, bytes]:
    """Return the same drawing in other files."""
    image = Image.fromarray(paper)
    ink = 255 - paper
    draw = np.random.default_rng(0)
    light = np.linspace(0.45, 1, paper.shape[1])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right to see it
    ink_only = np.dstack([np.zeros((*paper.shape, 3), np.uint8), ink])
    noisy = np.clip(paper * 0.7 + 20 + draw.normal(0, 10, paper.shape), 0, 255)
    return {
        "light on dark": encoded(ink),
        "jpeg": encoded(image, "JPEG", quality=60),
        "colour": encoded(image.convert("RGB")),
        "palette": encoded(image.convert("P")),
        "one bit": encoded(image.convert("1")),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "16 bits": encoded(paper.astype(np.uint16) * 257),
        "transparent ground": encoded(ink_only),
        "transparency unused": encoded(image.convert("LA")),
        "turned": encoded(image.rotate(90, expand=True), "JPEG", exif=exif),
        "small": encoded(image.resize((80, 64), Image.Resampling.LANCZOS)),
        "large": encoded(image.resize((1500, 1200))),
        "faint": encoded((200 - ink * 0.2).astype(np.uint8)),
        "noisy": encoded(noisy.astype(np.uint8)),
        "lamp at one side": encoded((paper * light).astype(np.uint8)),
        "cut close": encoded(paper[60:340, 120:400]),
        "specks": encoded(specks(paper)),
    }


def specks(paper):
    image = paper.copy()
    draw = np.random.default_rng(1)
    for y, x in zip(draw.integers(0, 478, 30), draw.integers(0, 598, 30), strict=True):
        image[y : y + 2, x : x + 2] = 0
    return image


@pytest.mark.parametrize("kind", list(variants(drawn(size=(600, 480)))))
def test_the_same_drawing_in_another_file_is_the_same_digit(tmp_path, mnist, kind):
    for digit in mnist.x_test[[0, 1, 2, 15]]:
        paper = on_paper(digit)
        plain = read(tmp_path, encoded(paper))
        assert likeness(read(tmp_path, variants(paper)[kind]), plain) > 0.85


@pytest.mark.parametrize("pen", [2, 5, 10, 30])
def test_thin_and_thick_pens_give_strokes_like_those_of_mnist(tmp_path, pen):
    image = Image.new("L", (400, 400), 255)
    ImageDraw.Draw(image).line([(120, 80), (280, 80), (160, 330)], 0, pen, "curve")
    seven = read(tmp_path, encoded(np.asarray(image)))
    area = seven.sum() / 255
    assert 40 < area < 130  # pixels of ink: a seven of MNIST has 50 to 120


@pytest.mark.parametrize("shape", [(28, 28, 1), (12, 9), (64, 64), (28, 56)])
def test_other_shapes_are_filled_alike(tmp_path, shape):
    image = read(tmp_path, encoded(drawn("8")), shape)
    assert image.shape == shape
    assert image.max() == 255
    assert not image[0].any()
    assert not image[:, 0].any()


def bomb(side: int) -> bytes:
    """Return a PNG whose header claims `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    chunks = (b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


GOOD_PNG = encoded(drawn())
BAD = {
    "nothing": b"",
    "text": b"seven",
    "html": b"<!DOCTYPE html>",
    "gif": encoded(drawn(), "GIF"),
    "tiff": encoded(drawn(), "TIFF"),
    "half a png": GOOD_PNG[: len(GOOD_PNG) // 2],
    "half a jpeg header": encoded(drawn(), "JPEG")[:100],
    "animated": encoded(
        Image.fromarray(drawn("1")), save_all=True, append_images=[Image.fromarray(drawn("2"))]
    ),
    "huge": bomb(100_000),
    "just too large": bomb(6_400),
    "white": encoded(np.full((100, 100), 255, np.uint8)),
    "black": encoded(np.zeros((100, 100), np.uint8)),
    "noise": encoded(np.random.default_rng(0).normal(200, 5, (200, 200)).astype(np.uint8)),
    "one pixel": encoded(np.zeros((1, 1), np.uint8)),
    "all transparent": encoded(np.zeros((50, 50, 4), np.uint8)),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures_are_refused_in_one_line(tmp_path, kind):
    with pytest.raises(DataError) as caught:
        read(tmp_path, BAD[kind])
    message = str(caught.value)
    assert str(tmp_path / "picture") in message
    assert ": " in message  # what is wrong, and what to do


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    tracemalloc.start()
    with pytest.raises(DataError, match="too many pixels"):
        read(tmp_path, bomb(30_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_large_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(handwriting, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="the most this job reads"):
        read(tmp_path, GOOD_PNG)


def test_a_missing_picture_is_a_missing_input(tmp_path):
    with pytest.raises(MissingInputError):
        handwriting.read_picture(Place.of(tmp_path / "nowhere.png"), SHAPE)


def test_colour_models_are_explained(tmp_path):
    with pytest.raises(DataError, match="greyscale"):
        read(tmp_path, GOOD_PNG, (32, 32, 3))


SMALL = Image.fromarray(drawn(size=(60, 60), place=(30, 30), height=40))
SOURCES = {
    "png": encoded(SMALL),
    "palette": encoded(SMALL.convert("P")),
    "alpha": encoded(SMALL.convert("LA")),
    "jpeg": encoded(SMALL, "JPEG"),
    "progressive": encoded(SMALL.convert("RGB"), "JPEG", progressive=True),
}


@given(
    source=st.sampled_from(sorted(SOURCES)),
    position=st.floats(0, 1),
    length=st.integers(0, 64),
    content=st.binary(max_size=64),
)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_damaged_pictures_never_crash(tmp_path_factory, source, position, length, content):
    data = SOURCES[source]
    start = int(position * len(data))
    damaged = data[:start] + content + data[start + length :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    with contextlib.suppress(DataError):  # anything else that is raised fails the test
        image = handwriting.read_picture(Place.of(path), SHAPE)
        assert (image.shape, image.dtype) == (SHAPE, np.uint8)
        assert image.max() == 255
