"""Random transforms: bounded, complete, and a function of the seed."""

import numpy as np
import pytest
import tensorflow as tf

from job import augmentation


def shifted(images, seed=(0, 0)):
    return augmentation.shift(tf.constant(images), tf.constant(seed)).numpy()


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_image_is_moved_as_a_whole(channels, dtype):
    images = np.random.default_rng(0).integers(1, 255, (500, 9, 12, *channels)).astype(dtype)
    offsets = set()
    for before, after in zip(images, shifted(images), strict=True):
        padded = np.pad(before, [(2, 2), (2, 2)] + [(0, 0)] * len(channels))
        fits = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if np.array_equal(padded[down : down + 9, right : right + 12], after)
        ]
        assert len(fits) == 1
        offsets.update(fits)
    assert len(offsets) == 25  # each of the 5 x 5 shifts occurs in 500 draws


def test_seed_decides():
    images = np.arange(50 * 81, dtype=np.float32).reshape(50, 9, 9)
    assert np.array_equal(shifted(images, (1, 7)), shifted(images, (1, 7)))
    assert not np.array_equal(shifted(images, (1, 7)), shifted(images, (1, 8)))
    assert not np.array_equal(shifted(images, (1, 7)), shifted(images, (2, 7)))


def test_compiled_and_eager_draw_the_same():
    """A resumed run must not depend on how its loop was compiled."""
    images = np.arange(50 * 81, dtype=np.float32).reshape(50, 9, 9)
    compiled = tf.function(augmentation.shift, jit_compile=True, autograph=False)
    assert np.array_equal(shifted(images, (3, 4)), compiled(images, tf.constant((3, 4))).numpy())


def test_none_changes_nothing():
    images = tf.ones((2, 3, 3))
    assert augmentation.none(images, tf.constant((0, 0))) is images
