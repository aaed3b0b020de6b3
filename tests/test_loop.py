"""Where the training data lies."""

import numpy as np
import pytest

from job.examples import ALIGNMENT_BYTES
from job.loop import resident


def shares_memory(tensor, array: np.ndarray) -> bool:
    return np.shares_memory(np.asarray(memoryview(tensor)), array)  # numpy() would be a copy


def test_what_a_data_set_brings_is_not_copied(mnist):
    assert not mnist.x_train.flags.writeable
    tensor = resident(mnist.x_train)
    assert shares_memory(tensor, mnist.x_train)
    assert tensor.dtype == "uint8"
    np.testing.assert_array_equal(tensor.numpy(), mnist.x_train)
    assert not mnist.x_train.flags.writeable  # still


def shifted(count: int, offset: int) -> np.ndarray:
    """Return images that begin `offset` bytes after an address that TensorFlow could work at."""
    room = np.arange(count * 6 + 2 * ALIGNMENT_BYTES, dtype=np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES + offset
    return room[start : start + count * 6].reshape(count, 2, 3)


def frozen() -> np.ndarray:
    room = shifted(5, 0)
    room.base.flags.writeable = False
    return room


@pytest.mark.parametrize("images", [shifted(5, 1), shifted(5, 63), shifted(10, 0)[::2], frozen()])
def test_anything_else_is_copied(images):
    tensor = resident(images)
    assert not shares_memory(tensor, images)
    np.testing.assert_array_equal(tensor.numpy(), images)


def test_a_few_aligned_images_are_shared_as_well():
    images = shifted(5, 0)
    assert shares_memory(resident(images), images)
