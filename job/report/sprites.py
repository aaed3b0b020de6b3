"""Images -> PNGs that lie inside a page: one sheet for all galleries, and one of weights."""

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_SHEET_BYTES = 700_000  # of pixels: a page stays small, whatever its images are
_LONGEST_SIDE = 64  # of an image, in pixels: more can't be seen at the size of a tile
_TILE = 56  # pixels of a tile's longer side on a screen
_STEPS = 31  # shades of each colour of a weight
# Okabe and Ito's orange-red and blue: one of them for each sign, as strong as the weight.
_POSITIVE, _NEGATIVE = (213, 94, 0), (0, 114, 178)


@dataclass(frozen=True)
class Sheet:
    """Images of one size in one PNG, of which a page shows one at a time."""

    uri: str
    columns: int
    rows: int
    width: int
    """Pixels of a tile on a screen."""
    height: int

    def position(self, index: int) -> str:
        """Return where image `index` is, as CSS has it of a background."""
        row, column = divmod(index, self.columns)
        across = 100 * column / max(1, self.columns - 1)
        down = 100 * row / max(1, self.rows - 1)
        return f"{across:.4g}% {down:.4g}%"


@dataclass(frozen=True)
class Picture:
    """One PNG."""

    uri: str
    width: int
    height: int


def sheet(images: npt.NDArray[np.uint8]) -> Sheet:
    """Return a sheet of `images`.

    Three channels are red, green and blue; of any other number the first is shown in grey.

    Args:
        images: uint8, shape (n, height, width) or (n, height, width, channels); at least one.
    """
    shown = _shown(images)
    count, height, width = shown.shape[:3]
    side = math.isqrt(_SHEET_BYTES // (count * (1 if shown.ndim == 3 else 3)))
    shrunk = min(1.0, min(_LONGEST_SIDE, side) / max(height, width))
    size = (max(1, round(width * shrunk)), max(1, round(height * shrunk)))
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    picture = Image.new("L" if shown.ndim == 3 else "RGB", (columns * size[0], rows * size[1]))
    for index, pixels in enumerate(shown):
        tile = Image.fromarray(np.ascontiguousarray(pixels))
        tile = tile if shrunk == 1 else tile.resize(size, Image.Resampling.BOX)
        row, column = divmod(index, columns)
        picture.paste(tile, (column * size[0], row * size[1]))
    scale = _TILE / max(size)
    scale = max(1, round(scale)) if scale >= 1 else scale
    return Sheet(
        _uri(picture), columns, rows, max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    )


def _shown(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return images in grey, shape (n, height, width), or in colour, (n, height, width, 3)."""
    if images.ndim == 3 or images.shape[3] == 3:
        return images
    first: npt.NDArray[np.uint8] = images[..., 0]
    return first


def weights(kernel: npt.NDArray[np.float32], shape: tuple[int, ...], columns: int) -> Picture:
    """Return what each unit of a first dense layer weighs, the strongest unit first.

    Orange is for weights above zero and blue for those below, and what weighs nothing can be seen
    through: so it lies on light paper and on dark.

    Args:
        kernel: shape (pixels, units).
        shape: of an image, (height, width) or (height, width, channels), over which the mean goes.
        columns: units in a row.
    """
    units = kernel.shape[1]
    kernel = kernel[:, np.argsort(-np.linalg.norm(kernel, axis=0), kind="stable")]
    tiles = kernel.T.reshape(units, *shape[:2], -1).mean(axis=3)
    height, width = shape[:2]
    strongest = np.abs(tiles).max(axis=(1, 2), keepdims=True)  # of each unit by itself
    steps = np.rint(_STEPS * tiles / np.where(strongest > 0, strongest, 1)).astype(int) + _STEPS
    rows = math.ceil(units / columns)
    gap = 2
    sheet_of = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap), _STEPS, np.uint8
    )
    for unit, tile in enumerate(steps):
        row, column = divmod(unit, columns)
        top, left = row * (height + gap), column * (width + gap)
        sheet_of[top : top + height, left : left + width] = tile
    picture = Image.fromarray(sheet_of, "P")
    palette = [_NEGATIVE] * _STEPS + [_POSITIVE] * (_STEPS + 1)
    picture.putpalette([part for colour in palette for part in colour])
    alpha = bytes(round(255 * abs(step - _STEPS) / _STEPS) for step in range(2 * _STEPS + 1))
    return Picture(_uri(picture, transparency=alpha), picture.width, picture.height)


def _uri(picture: Image.Image, **more: Any) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, **more)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
