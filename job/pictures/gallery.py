"""Images with what a model made of them -> one picture to look at."""

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from job.errors import UsageError

MAX_IMAGES = 400
COLUMNS = 10
_TILE = 112  # pixels of an image's longer side: four for each of MNIST's
_GAP = 24  # pixels between tiles and around all
_FRAME = 4  # pixels, of a wrong prediction
_LINE = 22  # pixels from one line of a caption to the next
_PAPER, _INK, _PALE, _WRONG = "#ffffff", "#1a1a1a", "#6b6b6b", "#c62828"


def draw_gallery(
    images: NDArray[np.uint8],
    captions: Sequence[tuple[str, str]],
    correct: Sequence[bool | None],
) -> bytes:
    """Return a PNG of `images`, each with its two lines of caption beneath.

    A wrong prediction has a frame and is called wrong: it takes no eye for colour to tell.

    Args:
        images: uint8, shape (images, height, width) or (images, height, width, channels).
        captions: two lines for each; what is too long for its image is shortened in its middle.
        correct: whether the model was right; None where nobody knows.

    Raises:
        UsageError: more than 400 images.
    """
    if len(images) > MAX_IMAGES:
        raise UsageError(
            f"--figure shows at most {MAX_IMAGES} images, not {len(images)}: lower "
            "--num-images, or give fewer --image"
        )
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    cell_width, cell_height = _TILE + _GAP, _TILE + 2 * _LINE + _GAP + 8
    size = (columns * cell_width + _GAP, rows * cell_height + _GAP)
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    fonts = ImageFont.load_default(17), ImageFont.load_default(14)
    for index, (image, caption, right) in enumerate(zip(images, captions, correct, strict=True)):
        row, column = divmod(index, columns)
        left, top = _GAP + column * cell_width, _GAP + row * cell_height
        tile = _tile(image)
        picture.paste(tile, (left + (_TILE - tile.width) // 2, top + (_TILE - tile.height) // 2))
        wrong = right is False
        if wrong:
            box = (left - _FRAME, top - _FRAME, left + _TILE + _FRAME - 1, top + _TILE + _FRAME - 1)
            draw.rectangle(box, outline=_WRONG, width=_FRAME)
        middle, below = left + _TILE / 2, top + _TILE + 8
        first = _fitting(caption[0], fonts[0])
        draw.text((middle, below), first, _WRONG if wrong else _INK, fonts[0], anchor="mt")
        second = _fitting(f"wrong: {caption[1]}" if wrong else caption[1], fonts[1])
        below += _LINE
        draw.text((middle, below), second, _WRONG if wrong else _PALE, fonts[1], anchor="mt")
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return `text` as one printable line no wider than a column, its end kept: `a long….png`."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    fitting, kept = text, len(text)
    while font.getlength(fitting) > _TILE + _GAP / 2:
        kept -= 1
        fitting = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return fitting


def _tile(image: NDArray[np.uint8]) -> Image.Image:
    """Return one image enlarged, each of its pixels a square."""
    grey = image if image.ndim == 2 else image[..., 0]
    shown = image[..., :3] if image.ndim == 3 and image.shape[2] >= 3 else np.stack([grey] * 3, -1)
    height, width = grey.shape
    scale = _TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(np.ascontiguousarray(shown)).resize(size, Image.Resampling.NEAREST)
