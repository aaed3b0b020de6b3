"""Small pictures for dashboards that take PNGs: confusion, and what a model gets wrong."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from job.pictures import gallery
from job.results.predictions import Predictions

_SIDE = 720  # pixels of the matrix
_MARGIN = 44  # pixels, for the labels
_MOST_NUMBERED = 30  # classes: of more the numbers would not fit
_PAPER, _INK = "#ffffff", "#1a1a1a"
_RIGHT, _WRONG = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's blue and vermilion


def confusion(counts: Sequence[Sequence[int]]) -> bytes:
    """Return a PNG of how many images of each class (row) were taken for each class (column).

    The diagonal is blue, what is beside it orange, each the darker the larger its share of the row.
    """
    matrix = np.array(counts, np.int64)
    classes = len(matrix)
    cell = max(1, _SIDE // classes)
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    side = _MARGIN + cell * classes
    picture = Image.new("RGB", (side, side), _PAPER)
    squares = _tinted(shares).repeat(cell, axis=0).repeat(cell, axis=1)
    picture.paste(Image.fromarray(squares), (_MARGIN, _MARGIN))
    draw = ImageDraw.Draw(picture)
    small = ImageFont.load_default(11)
    draw.text((2, 2), "true \\ taken for", _INK, small, anchor="lt")
    if classes <= _MOST_NUMBERED:
        font = ImageFont.load_default(max(8, min(18, cell // 3)))
        middles = [_MARGIN + (label + 0.5) * cell for label in range(classes)]
        for label, middle in enumerate(middles):
            draw.text((middle, _MARGIN - 4), str(label), _INK, font, anchor="mb")
            draw.text((_MARGIN - 6, middle), str(label), _INK, font, anchor="rm")
        for row, column in np.argwhere(matrix):
            ink = _PAPER if shares[row, column] > 0.5 else _INK
            place = (middles[column], middles[row])
            draw.text(place, str(matrix[row, column]), ink, font, anchor="mm")
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def mistakes(predictions: Predictions, images: NDArray[np.uint8], most: int) -> bytes | None:
    """Return a PNG of the images that a model was most sure of and wrong about, the surest first.

    Args:
        predictions: of the test set.
        images: of the test set, uint8, shape (examples, *image_shape).
        most: how many to show.

    Returns:
        None where it made no mistake.
    """
    probabilities, predicted = predictions.probabilities, predictions.predicted
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != predictions.labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    if not len(chosen):
        return None
    captions = [
        (f"{predicted[index]}  {confidence[index]:.1%}", f"true {predictions.labels[index]}")
        for index in chosen
    ]
    right = [False] * len(chosen)
    return gallery.draw_sheet(images[chosen], captions, right, of=len(chosen))


def _tinted(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return a colour for each share of its row: uint8, shape (classes, classes, 3)."""
    diagonal = np.eye(len(shares), dtype=bool)[..., None]
    colours = np.where(diagonal, np.array(_RIGHT), np.array(_WRONG))
    # The cube root, or a handful of a thousand would be white.
    thinned = 255 + (colours - 255) * np.cbrt(shares)[..., None]
    result: NDArray[np.uint8] = np.rint(thinned).astype(np.uint8)
    return result
