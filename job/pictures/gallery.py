"""Images with what a model made of them -> contact sheets to look at."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MOST_ON_SHEET = 400


@dataclass(frozen=True)
class _Layout:
    """How large things are on a sheet, in pixels."""

    columns: int
    tile: int
    """Of an image's longer side."""
    gap: int
    """Between tiles and around all."""
    frame: int
    """Of a wrong prediction."""
    letters: tuple[int, int]
    """Of the two lines of a caption."""
    line: int
    """From one line of a caption to the next."""
    says_wrong: bool
    """Whether there is room for the word."""


_LARGE = _Layout(10, 112, 24, 4, (17, 14), 22, says_wrong=True)
_SMALL = _Layout(20, 56, 16, 3, (13, 12), 15, says_wrong=False)
_MOST_LARGE = 100
_PAPER, _INK, _PALE, _WRONG = "#ffffff", "#1a1a1a", "#6b6b6b", "#c62828"


def sheets(count: int) -> list[slice]:
    """Return which of `count` images go on each sheet."""
    return [
        slice(first, min(first + MOST_ON_SHEET, count)) for first in range(0, count, MOST_ON_SHEET)
    ]


def draw_sheet(
    images: NDArray[np.uint8],
    captions: Sequence[tuple[str, str]],
    correct: Sequence[bool | None],
    *,
    of: int,
) -> bytes:
    """Return a PNG of `images`, each with its two lines of caption beneath.

    A wrong prediction has a frame, and where there is room is called wrong: it takes no eye for
    colour to tell.

    Args:
        images: uint8, shape (images, height, width) or (images, height, width, channels); as many
            as one sheet takes.
        captions: two lines for each; what is too long for its image is shortened in its middle.
        correct: whether the model was right; None where nobody knows.
        of: how many images all sheets have: those of up to 100 are large.
    """
    layout = _LARGE if of <= _MOST_LARGE else _SMALL
    tile, gap, frame = layout.tile, layout.gap, layout.frame
    columns = min(layout.columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell_width, cell_height = tile + gap, tile + 2 * layout.line + gap + gap // 3
    size = (columns * cell_width + gap, rows * cell_height + gap)
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    fonts = [ImageFont.load_default(letters) for letters in layout.letters]
    for index, (image, caption, right) in enumerate(zip(images, captions, correct, strict=True)):
        row, column = divmod(index, columns)
        left, top = gap + column * cell_width, gap + row * cell_height
        shown = _tile(image, tile)
        picture.paste(shown, (left + (tile - shown.width) // 2, top + (tile - shown.height) // 2))
        wrong = right is False
        if wrong:
            box = (left - frame, top - frame, left + tile + frame - 1, top + tile + frame - 1)
            draw.rectangle(box, outline=_WRONG, width=frame)
        middle, below = left + tile / 2, top + tile + gap // 3
        room = tile + gap / 2
        first = _fitting(caption[0], fonts[0], room)
        draw.text((middle, below), first, _WRONG if wrong else _INK, fonts[0], anchor="mt")
        says = f"wrong: {caption[1]}" if wrong and layout.says_wrong else caption[1]
        second = _fitting(says, fonts[1], room)
        below += layout.line
        draw.text((middle, below), second, _WRONG if wrong else _PALE, fonts[1], anchor="mt")
    file = io.BytesIO()
    picture.save(file, "PNG")  # `optimize` takes five times as long, for 4 % less
    return file.getvalue()


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """Return `text` as one printable line no wider than `room`, its end kept: `a long….png`."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    fitting, kept = text, len(text)
    while font.getlength(fitting) > room:
        kept -= 1
        fitting = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return fitting


def _tile(image: NDArray[np.uint8], side: int) -> Image.Image:
    """Return one image with a longer side of so many pixels, each of its own a square."""
    grey = image if image.ndim == 2 else image[..., 0]
    shown = image[..., :3] if image.ndim == 3 and image.shape[2] >= 3 else np.stack([grey] * 3, -1)
    height, width = grey.shape
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(np.ascontiguousarray(shown)).resize(size, Image.Resampling.NEAREST)
