"""Layers that compute of a share of a batch what one device would of the whole."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.training import layers
from job.training.layers import Share, share_of_batch


def share(batch_size: int, start: int, size: int) -> Share:
    places = start + tf.range(size)
    counts = places < batch_size
    return Share(batch_size, places % batch_size, None if start + size <= batch_size else counts)


def dropped(given: Share, examples: int) -> np.ndarray:
    layer = layers.Dropout(0.4, seed=7)
    with share_of_batch(given):
        masks = [layer(tf.ones((examples, 50)), training=True).numpy() for _ in range(2)]
    assert not np.array_equal(*masks)  # another for each step
    return np.stack(masks)


def test_a_share_is_dropped_as_in_the_whole():
    whole = dropped(share(12, 0, 12), 12)
    assert set(np.unique(whole)) == {0, np.float32(1) / np.float32(0.6)}
    assert 0.36 < (whole == 0).mean() < 0.44
    for start in (0, 4, 8):
        assert np.array_equal(dropped(share(12, start, 4), 4), whole[:, start : start + 4])
    assert not np.array_equal(whole[:, :4], whole[:, 4:8])
    filled = dropped(share(12, 10, 5), 5)
    assert np.array_equal(filled, whole[:, [10, 11, 0, 1, 2]])


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_examples_that_fill_up_do_not_count_in_statistics(dtype):
    pixels = np.random.default_rng(0).normal(3, 2, (5, 6, 4, 2)).astype(np.float32)
    filled = np.concatenate([pixels, 100 + pixels[:3]])
    mine, keras_own = (
        kind(momentum=0.9, synchronized=True, dtype=dtype)
        for kind in (layers.BatchNormalization, keras.layers.BatchNormalization)
    )
    with share_of_batch(share(5, 0, 8)):
        normalized = mine(filled, training=True)
    wanted = keras_own(pixels, training=True)
    assert normalized.dtype == wanted.dtype
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"atol": 2e-2}
    np.testing.assert_allclose(
        tf.cast(normalized[:5], tf.float32), tf.cast(wanted, tf.float32), **close
    )
    for ours, theirs in zip(mine.weights, keras_own.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert np.abs(mine.moving_mean).min() > 0.1


def test_gradients_go_through_the_statistics():
    pixels = np.random.default_rng(1).normal(size=(3, 2, 2, 4)).astype(np.float32)
    gradients = []
    for kind, given in (
        (layers.BatchNormalization, np.concatenate([pixels, pixels[:1]])),
        (keras.layers.BatchNormalization, pixels),
    ):
        inputs = tf.constant(given)
        with tf.GradientTape() as tape, share_of_batch(share(3, 0, len(given))):
            tape.watch(inputs)
            loss = tf.reduce_sum(kind()(inputs, training=True)[:3] ** 3)
        gradients.append(tape.gradient(loss, inputs).numpy())
    np.testing.assert_allclose(gradients[0][:3], gradients[1], atol=1e-5)
    assert not gradients[0][3:].any()


def test_masks_are_the_same_compiled_or_not():
    """One device trains compiled as a whole, replicas do not; TensorFlow's own would differ."""
    drawn = []
    for compiled in (False, True):
        layer = layers.Dropout(0.4, seed=7)
        call = tf.function(layer.call, jit_compile=compiled, autograph=False)
        drawn.append([call(tf.ones((12, 50)), training=True).numpy() for _ in range(2)])
    assert np.array_equal(*drawn)


def test_nothing_changes_where_nobody_shares():
    pixels = np.random.default_rng(2).normal(size=(4, 3, 3, 2)).astype(np.float32)
    for training in (False, True):
        mine, keras_own = (
            module.BatchNormalization()(pixels, training=training).numpy()
            for module in (layers, keras.layers)
        )
        assert np.array_equal(mine, keras_own)
    layer = layers.Dropout(0.5)
    assert np.array_equal(layer(pixels, training=False), pixels)
    with share_of_batch(share(8, 0, 4)):
        assert np.array_equal(layer(pixels, training=False), pixels)
