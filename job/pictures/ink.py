"""Where there is ink in a picture, traced and brought to MNIST's stroke width.

Works on photos, scans and drawings: the paper's brightness is estimated and divided out, Otsu's
threshold parts ink from paper, specks are dropped, and strokes are thickened or thinned.
"""

from typing import Any

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from job.errors import DataError

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_STROKE_RANGE = (1.7, 3.7)  # width in 20ths of the digit's box: 5th and 95th percentile of MNIST
_MIN_CONTRAST = 0.06  # of the paper's brightness: a hard pencil has about 0.2, clean paper 0.02
_MIN_SEPARABILITY = 0.7  # Otsu's eta: noise alone gives 0.64 (2 / pi), ink on paper 0.8 and more
_MIN_EXTENT = 1 / 50  # of the picture's longer side: less is a speck, not a digit
_MIN_PART = 1 / 20  # of the largest component's area: less is a speck, not a part of the digit
_FIND_SIDE, _FIND_BLUR = 512, 1.5  # pixels: 1 mm of an A4 page still has 1.7 pixels
_TRACE_SIDE, _TRACE_BLUR = 240, 3.2  # pixels: 12 for each pixel of the box
_MARGIN = 1 / 4  # of the digit's longer side: paper enough to see its brightness
_MAX_RADIUS = 32  # pixels at _TRACE_SIDE: half of the widest stroke that can be measured
_DEGREE = 3  # of the surface that stands for the paper: a lamp, a shadow, a vignette


def trace(uri: str, picture: Image.Image) -> Mask:
    """Return the ink of the digit in `picture`, cropped, traced at about 240 pixels.

    Args:
        uri: where the picture lies, for messages.
        picture: 8-bit luminance, dark ink on light paper or the reverse.

    Raises:
        DataError: it looks blank.
    """
    found = _ink(uri, picture, _FIND_SIDE, _FIND_BLUR)
    left, top, right, bottom = _bounding_box(found)
    margin = _MARGIN * max(right - left, bottom - top)
    scale = max(picture.size) / max(found.shape)
    corner = [max(0, int((edge - margin) * scale)) for edge in (left, top)]
    far = [int((edge + margin) * scale) + 1 for edge in (right, bottom)]
    close = picture.crop(
        (corner[0], corner[1], min(far[0], picture.width), min(far[1], picture.height))
    )
    return cropped(_ink(uri, close, _TRACE_SIDE, _TRACE_BLUR))


def stroke_normalised(mask: Mask) -> Mask:
    """Return `mask` with its strokes made as wide, for its size, as MNIST's are.

    Strokes are 4 times as wide as their ink's mean distance from the paper: across a stroke of
    width w that distance runs evenly from 0 to w / 2 and back.
    """
    side = max(mask.shape)
    padded = np.pad(mask, _MAX_RADIUS + 1)
    depth = _distance(padded)
    width = 4 * float(depth[padded].mean())
    wanted = float(np.clip(20 * width / side, *_STROKE_RANGE))
    # Both the width and the side grow by 2 radii: (width + 2 r) / (side + 2 r) = wanted / 20.
    radius = (wanted * side - 20 * width) / (2 * (20 - wanted))
    if radius > 0.5:
        return cropped(_distance(~padded) <= min(radius, _MAX_RADIUS))
    if radius < -0.5:
        return cropped(depth > min(-radius, 0.9 * depth.max()))
    return mask


def cropped(mask: Mask) -> Mask:
    """Return `mask` without the empty margins around its set pixels, of which there are some."""
    left, top, right, bottom = _bounding_box(mask)
    return mask[top:bottom, left:right]


def _ink(uri: str, picture: Image.Image, side: int, blur: float) -> Mask:
    """Return where there is ink in `picture`, scaled so that its longer side has `side` pixels."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    view = picture.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(blur))
    darkness = _darkness(np.asarray(view, np.float32) / np.float32(255))
    threshold, contrast, separability = _otsu(darkness)
    if contrast < _MIN_CONTRAST:
        raise _blank(uri, f"its contrast is {contrast:.3f}, below {_MIN_CONTRAST}")
    if separability < _MIN_SEPARABILITY:
        raise _blank(uri, f"ink and paper differ by {separability:.2f}, below {_MIN_SEPARABILITY}")
    digit = _without_specks(darkness >= threshold)
    if max(cropped(digit).shape) < _MIN_EXTENT * side:
        raise _blank(uri, f"its largest mark has less than {_MIN_EXTENT:.0%} of its size")
    return digit


def _blank(uri: str, reason: str) -> DataError:
    return DataError(f"{uri} looks blank ({reason}): give a picture of one digit, clearly drawn")


def _darkness(luminance: Floats) -> Floats:
    """Return how much darker than the paper (0: as light, 1: black) `luminance` is at each pixel.

    The paper's brightness is a cubic surface, so that uneven light does not count as ink. It is
    fitted by least absolute deviations (iteratively reweighted), which ink does not pull away from
    the paper as long as there is more paper than ink.
    """
    y, x = (np.linspace(-1, 1, pixels) for pixels in luminance.shape)
    step = max(1, max(luminance.shape) // 64)  # 64 x 64 samples do for ten unknowns
    sample = luminance[::step, ::step].ravel().astype(np.float64)
    at_y, at_x = (grid.ravel() for grid in np.meshgrid(y[::step], x[::step], indexing="ij"))
    powers = np.add.outer(np.arange(_DEGREE + 1), np.arange(_DEGREE + 1)) <= _DEGREE
    terms = polynomial.polyvander2d(at_y, at_x, [_DEGREE, _DEGREE])[:, powers.ravel()]
    residual = sample - np.median(ring(luminance))
    for _ in range(12):
        weighted = terms.T / np.maximum(np.abs(residual), 0.01)
        # The tiny ridge keeps a picture of one row or column solvable.
        normal = weighted @ terms + 1e-6 * np.eye(terms.shape[1])
        fitted = np.linalg.solve(normal, weighted @ sample)
        residual = sample - terms @ fitted
    coefficients = np.zeros(powers.shape)
    coefficients[powers] = fitted
    paper = polynomial.polygrid2d(y, x, coefficients).astype(np.float32)
    if ((luminance - paper) ** 3).sum() > 0:  # the rare pixels are the light ones: a blackboard
        luminance, paper = 1 - luminance, 1 - paper
    darkness: Floats = np.clip(1 - luminance / np.maximum(paper, 0.1), 0, 1)
    return darkness


def _otsu(values: Floats) -> tuple[float, float, float]:
    """Return Otsu's threshold for `values` in [0, 1], the distance of the two classes, and eta.

    Otsu 1979, "A threshold selection method from gray-level histograms"; eta, in [0, 1], is the
    share of the variance that lies between the two classes.
    """
    counts, edges = np.histogram(values, 256, (0, 1))
    levels = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = values.size - below
    moment = np.cumsum(counts * levels)
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty class has no mean
        distance = (moment[-1] - moment[:-1]) / above - moment[:-1] / below
    between = np.nan_to_num(distance**2 * below * above / values.size**2)
    if not between.any():
        return 1.0, 0.0, 0.0
    best = np.flatnonzero(between == between.max())
    cut = best[len(best) // 2]  # the middle of the valley between the classes
    variance = (counts * levels**2).sum() / values.size - (moment[-1] / values.size) ** 2
    return float(edges[cut + 1]), float(distance[cut]), float(between[cut] / variance)


def _without_specks(mask: Mask) -> Mask:
    """Return the large components of `mask`; of what touches the edge only if there is no other."""
    labels = _labels(mask)
    at_edge = ring(labels)[ring(mask)]
    inside = _large_parts(mask & ~np.isin(labels, at_edge), labels)
    if inside.any() and max(cropped(inside).shape) >= max(mask.shape) / 20:
        return inside
    return _large_parts(mask, labels)


def _large_parts(mask: Mask, labels: NDArray[np.intp]) -> Mask:
    area = np.bincount(labels[mask], minlength=mask.size)
    large: Mask = mask & (area >= _MIN_PART * area.max())[labels]
    return large


def _labels(mask: Mask) -> NDArray[np.intp]:
    """Return, for each pixel of `mask`, the smallest index in its 8-connected component.

    Every pixel points at the smallest it knows, and pointers are followed by doubling.
    """
    index = np.arange(mask.size).reshape(mask.shape)
    pairs = []
    for one, other in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1, :], np.s_[1:, :]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    ):
        both = mask[one] & mask[other]
        pairs.append((index[one][both], index[other][both]))
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    label = index.ravel().copy()
    while True:
        smaller = np.minimum(label[first], label[second])
        if (smaller == label[first]).all() and (smaller == label[second]).all():
            return label.reshape(mask.shape)
        np.minimum.at(label, label[first], smaller)
        np.minimum.at(label, label[second], smaller)
        label = label[label]


def _distance(mask: Mask) -> Floats:
    """Return the distance in pixels of each pixel of `mask` from the nearest one outside it.

    The exact Euclidean distance transform, one axis after the other (Felzenszwalb, Huttenlocher
    2012, "Distance transforms of sampled functions"), up to `_MAX_RADIUS` along each axis.
    """
    squared = np.where(mask, np.float32(_MAX_RADIUS**2), np.float32(0))
    for _ in range(2):
        padded = np.pad(squared, ((_MAX_RADIUS, _MAX_RADIUS), (0, 0)), mode="edge")
        for shift in range(2 * _MAX_RADIUS + 1):
            candidate = padded[shift : shift + len(squared)] + (shift - _MAX_RADIUS) ** 2
            np.minimum(squared, candidate, out=squared)
        squared = squared.T
    distance: Floats = np.sqrt(squared)
    return distance


def _bounding_box(mask: Mask) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the set pixels of `mask`, of which there are some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def ring(image: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels along the four edges of `image`."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
