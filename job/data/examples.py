"""Stored arrays -> pixels and labels: what makes numbers a labelled image.

What a header claims is judged first, so that nothing which can't be a data set is ever inflated.
"""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from job.data.arrays import StoredArray
from job.errors import DataError

MAX_SIDE_PIXELS = 1024
MAX_CHANNELS = 4
MAX_CLASSES = 1000
ALIGNMENT_BYTES = 64  # TensorFlow uses memory that begins at a multiple of this, and copies other

Images: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.int32]


def check_claims(
    x_train: StoredArray, y_train: StoredArray, x_test: StoredArray, y_test: StoredArray
) -> None:
    """Check that dtypes and shapes are those of labelled images, before anything is inflated.

    Raises:
        DataError: they aren't, or don't fit each other.
    """
    check_pair(x_train, y_train)
    check_pair(x_test, y_test)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{x_train} has images of shape {x_train.shape[1:]} but {x_test} of "
            f"{x_test.shape[1:]}: give both the same"
        )


def check_pair(images: StoredArray, labels: StoredArray) -> None:
    """Check that dtypes and shapes are those of images and their labels, as `check_claims` does.

    Raises:
        DataError: they aren't.
    """
    _check_images(images)
    _check_labels(labels)
    if images.shape[0] != labels.shape[0]:
        raise DataError(
            f"{images} has {images.shape[0]} images but {labels} has {labels.shape[0]} labels: "
            "give one label for each image"
        )


def _check_images(array: StoredArray) -> None:
    _check_is_numeric(array, "store pixels as uint8, from 0 to 255")
    if len(array.shape) not in (3, 4):
        raise DataError(
            f"{array} has the shape {array.shape}: images need the shape (N, height, width) or "
            "(N, height, width, channels), reshape them"
        )
    count, height, width, channels = (*array.shape, 1)[:4]
    if count == 0:
        raise DataError(f"{array} has 0 images: give at least one")
    if not (1 <= height <= MAX_SIDE_PIXELS and 1 <= width <= MAX_SIDE_PIXELS):
        raise DataError(
            f"{array} has the shape {array.shape}, images of {height} x {width} pixels: each side "
            f"must have 1 to {MAX_SIDE_PIXELS}"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise DataError(
            f"{array} has the shape {array.shape}, images of {channels} channels: give 1 to "
            f"{MAX_CHANNELS}, as the last axis"
        )


def _check_labels(array: StoredArray) -> None:
    _check_is_numeric(array, "store each label as the whole number of its class, from 0")
    if len(array.shape) != 1 and array.shape[1:] != (1,):
        raise DataError(
            f"{array} has the shape {array.shape}: labels need the shape (N,); store one-hot rows "
            "as class numbers with argmax"
        )


def _check_is_numeric(array: StoredArray, advice: str) -> None:
    if array.dtype.kind not in "iuf":  # NumPy's letters for signed, unsigned and floating point
        raise DataError(f"{array} has dtype {array.dtype.name}: {advice}")


def pixels(array: StoredArray) -> Images:
    """Return the numbers of `array` as uint8, in its shape, read-only, aligned for TensorFlow.

    Raises:
        DataError: one is no whole number from 0 to 255, or the array is damaged.
    """
    values = array.values()
    # What is mapped stays where it is: a copy would read all of it into memory.
    result: Images = values if array.mapped and values.dtype == np.uint8 else _aligned(values)
    if values.dtype != np.uint8:
        bad = result != values
        if bad.any():
            index, value = first(values, bad)
            hint = "replace or rescale it"
            if np.isfinite(value) and value != np.trunc(value):
                hint = "multiply images scaled to 0..1 by 255, round, and store them as uint8"
            raise DataError(
                f"{array.name}[{index}] in {array.uri} is {value}: pixels must be whole numbers "
                f"from 0 to 255; {hint}"
            )
    result.flags.writeable = False
    return result


def labels(array: StoredArray) -> Labels:
    """Return the numbers of `array` as int32, of shape (N,), read-only.

    Raises:
        DataError: one is no whole number from 0 to 999, or the array is damaged.
    """
    values = array.values().reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):  # what doesn't fit is found below
        result = values.astype(np.int32)
    bad = (result != values) | (result < 0) | (result >= MAX_CLASSES)
    if bad.any():
        index, value = first(values, bad)
        raise DataError(
            f"{array.name}[{index}] in {array.uri} is {value}: labels must be whole numbers from 0 "
            f"to {MAX_CLASSES - 1}; number the classes from 0"
        )
    result.flags.writeable = False
    return result


def aligned_room(shape: tuple[int, ...]) -> Images:
    """Return room for images of the shape `shape` in all, aligned for TensorFlow, yet to be filled.

    It takes memory only where something is written.
    """
    size = math.prod(shape)
    room = np.empty(size + ALIGNMENT_BYTES, np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES
    result: Images = room[start : start + size].reshape(shape)
    return result


def _aligned(values: NDArray[Any]) -> Images:
    """Return `values` as uint8 in C order in memory of their own, aligned for TensorFlow.

    They are copied unless they lie so already. What doesn't fit comes out as some other number, so
    the caller compares.
    """
    own = values.flags.writeable and values.flags.c_contiguous
    if own and values.dtype == np.uint8 and values.ctypes.data % ALIGNMENT_BYTES == 0:
        return values
    result = aligned_room(values.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        result[...] = values
    return result


def first(values: NDArray[Any], bad: NDArray[np.bool_]) -> tuple[str, Any]:
    """Return the index, as text, and the value of the first number that `bad` marks."""
    index = np.unravel_index(int(bad.argmax()), bad.shape)
    return ", ".join(str(int(position)) for position in index), values[index]
