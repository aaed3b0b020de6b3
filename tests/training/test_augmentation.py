"""Random transforms: bounded, complete, and a function of the seed."""

import numpy as np
import pytest
import tensorflow as tf

from job.training import augmentation


def shifted(images, seed=(0, 0)):
    return augmentation.shift(tf.constant(images), tf.constant(seed), 0, len(images)).numpy()


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
    alike = compiled(tf.constant(images), tf.constant((3, 4)), tf.constant(0), 50)
    assert np.array_equal(shifted(images, (3, 4)), alike.numpy())


def test_a_share_of_a_batch_is_moved_as_in_the_whole():
    """Replicas take their shares of a batch, and must see what one device would."""
    images = np.arange(50 * 81, dtype=np.float32).reshape(50, 9, 9)
    share = augmentation.shift(tf.constant(images[20:30]), tf.constant((3, 4)), 20, 50)
    assert np.array_equal(shifted(images, (3, 4))[20:30], share.numpy())


def test_none_changes_nothing():
    images = tf.ones((2, 3, 3))
    assert augmentation.none(images, tf.constant((0, 0)), 0, 2) is images
