"""Architectures: the shapes they promise, weights from the seed alone."""

import io
import re
import zipfile

import keras
import numpy as np
import pytest

from job.results import weights
from job.training import model


def test_reference_model_is_the_one_the_project_began_with():
    net = model.build("mlp", (28, 28), 10)
    shapes = [weight.shape for weight in net.weights]
    assert shapes == [(784, 128), (128,), (128, 64), (64,), (64, 10), (10,)]
    assert [layer.activation.__name__ for layer in net.layers if hasattr(layer, "activation")] == [
        "relu",
        "relu",
        "linear",
    ]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_logits_and_weights_are_float32(precision):
    net = model.build("mlp", (12, 9, 3), 7, precision=precision)
    logits = net(np.zeros((2, 12, 9, 3), np.float32))
    assert (logits.shape, logits.dtype) == ((2, 7), "float32")
    assert {weight.dtype for weight in net.weights} == {"float32"}
    assert net.layers[2].compute_dtype == ("bfloat16" if "bf" in precision else "float32")


def test_weights_come_from_the_seed_whatever_was_made_before():
    first = model.build("mlp", (28, 28), 10, seed=3).get_weights()
    keras.utils.set_random_seed(99)
    again = model.build("mlp", (28, 28), 10, seed=3).get_weights()
    other = model.build("mlp", (28, 28), 10, seed=4).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first[::2], other[::2], strict=True))
    assert not np.array_equal(first[0].ravel()[:640], first[2].ravel()[:640])


def test_published_model_ends_in_probabilities_of_the_same_logits():
    net = model.build("mlp", (28, 28), 10, seed=1, precision="mixed_bfloat16")
    plain = model.build("mlp", (28, 28), 10, seed=1)
    pixels = np.random.default_rng(0).random((5, 28, 28), np.float32)
    published = model.with_probabilities(model.in_float32(net))
    wanted = keras.ops.softmax(plain(pixels))
    np.testing.assert_allclose(published(pixels), wanted, rtol=1e-5)
    assert {layer.compute_dtype for layer in published.layers} == {"float32"}


def test_an_ensembles_softmax_is_the_mean_of_its_members_however_sure_they_are():
    """Probabilities below float32's smallest have finite logarithms all the same."""
    nets = [model.build("mlp", (28, 28), 10, seed=seed) for seed in (1, 2)]
    pixels = np.random.default_rng(0).random((5, 28, 28), np.float32)
    for factor in (1, 1e4):
        for net in nets:
            kernel, bias = net.get_layer("logits").get_weights()
            net.get_layer("logits").set_weights([kernel * factor, bias])
        ensemble = model.together(nets)
        logits = np.asarray(ensemble(pixels))
        assert np.isfinite(logits).all()
        mean = sum(np.asarray(keras.ops.softmax(net(pixels))) for net in nets) / 2
        np.testing.assert_allclose(keras.ops.softmax(logits), mean, atol=1e-6)
        published = model.with_probabilities(ensemble)
        np.testing.assert_allclose(published(pixels), mean, atol=1e-6)


def test_published_model_is_made_of_keras_own_layers():
    """So that plain Keras opens it, which knows no class of this job."""
    net = model.build("cnn", (28, 28), 10, seed=1, dropout=0.3, form="matrices")
    published = model.with_probabilities(model.in_float32(net))
    archive = zipfile.ZipFile(io.BytesIO(weights.to_keras_archive(published)))
    modules = re.findall(r'"module": "([^"]*)"', archive.read("config.json").decode())
    assert {name.split(".")[0] for name in modules} == {"keras"}
    pixels = np.random.default_rng(0).random((5, 28, 28), np.float32)
    np.testing.assert_allclose(published(pixels), keras.ops.softmax(net(pixels)), atol=1e-5)


@pytest.mark.parametrize("form", ["convolutions", "matrices"])
def test_only_what_is_trained_is_synchronized(form):
    """Keras on other backends refuses a synchronized layer; replicas need one."""
    trained = model.build("cnn-wide", (28, 28), 10, form=form)
    kind = keras.layers.BatchNormalization
    for net, wanted in [(trained, True), (model.in_float32(trained), False)]:
        synchronized = [each.synchronized for each in net.layers if isinstance(each, kind)]
        assert synchronized == [wanted] * 4
