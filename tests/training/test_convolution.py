"""Convolutions as products of matrices: what Keras' own layers compute, and their gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.training import convolution, model
from job.training.convolution import MANY_CHANNELS, Convolution


def pair(shape, filters, padding, *, pooled):
    """Return the layer and Keras' own for it, with the same kernel."""
    mine = Convolution(filters, pooled=pooled, padding=padding)
    conv = keras.layers.Conv2D(filters, 3, padding=padding, use_bias=False)
    pool = keras.layers.MaxPooling2D(padding=padding) if pooled else keras.layers.Identity()
    for layer in (mine, conv):
        layer.build((None, *shape))
    conv.set_weights(mine.get_weights())
    return mine, conv, pool


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("examples", "shape"),
    [
        *[(3, shape) for shape in ((28, 28, 1), (13, 12, 3), (4, 7, 2), (5, 5, 8))],
        # Of many channels, which are done some images at a time: 32, 20, and all 37.
        *[(examples, (7, 8, MANY_CHANNELS)) for examples in (64, 20, 37)],
    ],
)
def test_values_and_gradients_are_those_of_keras(examples, shape, padding, pooled):
    mine, conv, pool = pair(shape, 6, padding, pooled=pooled)
    drawn = np.random.default_rng(0).normal(size=(examples, *shape))
    images = tf.constant(drawn.astype(np.float32))
    found = []
    for layer, apply in ((mine, mine), (conv, lambda images: pool(conv(images)))):
        with tf.GradientTape() as tape:
            tape.watch(images)
            values = apply(images)
            loss = tf.reduce_sum(values**3)
        found.append([values, *tape.gradient(loss, [images, layer.kernel])])
    assert found[0][0].shape == found[1][0].shape
    for ours, theirs in zip(*found, strict=True):
        largest = float(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * max(1, largest))


@pytest.mark.parametrize("compiled", [False, True])
def test_images_are_done_some_at_a_time_and_in_their_order(monkeypatch, compiled):
    monkeypatch.setattr(convolution, "CHUNK", 8)
    chunks = []
    by_sums = convolution._four_by_sums

    def watched(images, kernel):
        chunks.append(images.shape[0])
        return by_sums(images, kernel)

    draw = np.random.default_rng(0)
    images = tf.constant(draw.normal(size=(24, 6, 6, MANY_CHANNELS)).astype(np.float32))
    kernel = tf.constant(draw.normal(size=(3, 3, MANY_CHANNELS, 4)).astype(np.float32))
    whole = convolution._largest(convolution._four_by_windows(images, kernel))
    monkeypatch.setattr(convolution, "_four_by_sums", watched)
    pooled = tf.function(convolution.convolved_and_pooled, jit_compile=compiled, autograph=False)
    np.testing.assert_allclose(pooled(images, kernel), whole, atol=1e-3)
    assert set(chunks) == {8}


def test_sums_are_for_numbers_with_enough_digits(monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(convolution, "_four_by_sums", refuse)
    images = tf.ones((8, 6, 6, MANY_CHANNELS), tf.bfloat16)
    convolution.convolved_and_pooled(images, tf.ones((3, 3, MANY_CHANNELS, 4), tf.bfloat16))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_shapes_are_known_before_anything_is_computed(padding, pooled):
    for shape in ((28, 28, 1), (9, 6, 2)):
        mine, conv, pool = pair(shape, 4, padding, pooled=pooled)
        inputs = keras.Input(shape)
        assert mine(inputs).shape == pool(conv(inputs)).shape
        assert mine(np.zeros((2, *shape), np.float32)).shape[1:] == mine(inputs).shape[1:]


def test_bfloat16_is_computed_in_bfloat16():
    layer = Convolution(4, pooled=True, padding="valid", dtype="mixed_bfloat16")
    values = layer(np.ones((2, 8, 8, 1), np.float32))
    assert (values.dtype, layer.kernel.dtype) == (tf.bfloat16, "float32")


@pytest.mark.parametrize("name", ["cnn", "cnn-wide"])
@pytest.mark.parametrize("shape", [(28, 28), (20, 19, 3), (8, 8), (5, 7), (1, 1)])
def test_all_forms_of_a_net_compute_the_same(name, shape):
    nets = {
        form: model.build(name, shape, 10, seed=3, form=form)
        for form in ("published", "convolutions", "matrices")
    }
    pixels = np.random.default_rng(1).random((4, *shape), np.float32)
    wanted = nets["published"](pixels).numpy()
    for form, net in nets.items():
        for ours, theirs in zip(net.weights, nets["published"].weights, strict=True):
            np.testing.assert_array_equal(ours, theirs, form)
        np.testing.assert_allclose(net(pixels), wanted, atol=1e-5)
