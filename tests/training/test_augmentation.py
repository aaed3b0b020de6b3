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


def turned(images, seed=(0, 0), strength=1.0, start=0, whole=None):
    transform = augmentation.affine(strength)
    whole = len(images) if whole is None else whole
    return transform(tf.constant(images), tf.constant(seed), start, whole).numpy()


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_affine_of_no_strength_changes_nothing(channels, dtype):
    images = np.random.default_rng(0).integers(0, 255, (9, 11, 14, *channels)).astype(dtype)
    np.testing.assert_allclose(turned(images, strength=0.0), images, atol=1e-3)


def test_affine_reads_where_it_says():
    """Of a picture whose values are planes, each value tells the place that it was read at."""
    rows, columns = np.mgrid[0:28, 0:28].astype(np.float32)
    images = np.stack([100 + rows, 100 + columns], axis=-1)[None].repeat(400, axis=0)
    found = turned(images, (3, 1))
    y, x = found[..., 0] - 100, found[..., 1] - 100
    inside = (found > 99.9).all(axis=-1)
    assert 0.6 < inside.mean() < 0.98  # the rest was read outside, where all is zero
    # An affine map has constant differences. Its matrix is a turn times scales times a slant.
    middle = slice(10, 18)
    down = np.stack([np.diff(v[:, middle, 14], axis=1) for v in (y, x)], -1)
    right = np.stack([np.diff(v[:, 14, middle], axis=1) for v in (y, x)], -1)
    for steps in (down, right):
        assert np.abs(steps - steps[:, :1]).max() < 1e-3
    down, right = down[:, 0], right[:, 0]
    degrees = np.degrees(np.arctan2(down[:, 1], down[:, 0]))
    tall = np.hypot(*down.T)
    wide = (down[:, 0] * right[:, 1] - down[:, 1] * right[:, 0]) / tall
    slant = (down * right).sum(axis=1) / tall / wide
    moved = np.stack([v[:, 13:15, 13:15].mean(axis=(1, 2)) - 13.5 for v in (y, x)])
    for values, most in ((degrees, 10), (tall - 1, 0.1), (wide - 1, 0.1), (slant, 0.1), (moved, 2)):
        assert 0.9 * most < np.abs(values).max() < most + 1e-3
        assert np.abs(values.mean()) < most / 5


def test_affine_is_a_function_of_the_seed_and_alike_for_shares_and_compiled():
    images = np.random.default_rng(1).integers(0, 255, (20, 12, 10)).astype(np.uint8)
    whole = turned(images, (3, 4))
    assert not np.array_equal(whole, turned(images, (3, 5)))
    share = turned(images[5:9], (3, 4), start=5, whole=20)
    np.testing.assert_array_equal(share, whole[5:9])
    compiled = tf.function(augmentation.affine(1.0), jit_compile=True, autograph=False)
    alike = compiled(tf.constant(images), tf.constant((3, 4)), tf.constant(0), 20)
    np.testing.assert_allclose(alike, whole, atol=0.02)
    assert whole.max() <= 255
    assert whole.min() >= 0


def test_transforms_by_name():
    assert augmentation.transform("none", None) is augmentation.none
    assert augmentation.transform("shift", None) is augmentation.shift
    images = np.random.default_rng(1).integers(0, 255, (4, 12, 10)).astype(np.uint8)
    named = augmentation.transform("affine", 0.5)(tf.constant(images), tf.constant((0, 1)), 0, 4)
    np.testing.assert_array_equal(named, turned(images, (0, 1), 0.5))
