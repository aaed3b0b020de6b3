"""Name -> Keras model. Architectures come from here; files only ever bring numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from job.training import layers as shared

PIXEL_SCALE = 1 / 255  # models see pixels as float32 from 0 to 1


def build(
    name: str,
    image_shape: tuple[int, ...],
    classes: int,
    *,
    seed: int = 0,
    precision: str = "float32",
    published: bool = False,
) -> keras.Model:
    """Return the architecture `name`, its weights drawn from `seed`.

    Args:
        name: `mlp` or `cnn`.
        image_shape: (height, width) or (height, width, channels).
        classes: number of classes.
        seed: the same seed gives the same weights, bit for bit.
        precision: `float32`, or `mixed_bfloat16` to compute the hidden layers in bfloat16.
        published: of Keras' own layers only, as who opens a file without this job needs them;
            otherwise it can be trained by replicas as by one device (`layers`).

    Returns:
        A model from float32 pixels in 0..1, shape (examples, *image_shape), to float32 logits,
        shape (examples, classes).
    """
    inputs = keras.Input(image_shape, name="pixels", dtype="float32")
    logits = _ARCHITECTURES[name].make(inputs, classes, _Layers(seed, precision, published))
    return keras.Model(inputs, logits, name=name)


def xla_on_cpu(name: str) -> bool:
    """Tell whether the architecture trains faster on a CPU when XLA compiles it."""
    return _ARCHITECTURES[name].xla_on_cpu


def exchanges_in_layers(name: str) -> bool:
    """Tell whether replicas of the architecture exchange numbers before they have gradients."""
    return _ARCHITECTURES[name].exchanges_in_layers


def in_float32(model: keras.Model) -> keras.Model:
    """Return a copy of `model`, a model from `build`, that computes as its published files do."""
    plain = build(model.name, model.input_shape[1:], model.output_shape[-1], published=True)
    plain.set_weights(model.get_weights())
    return plain


def with_probabilities(model: keras.Model) -> keras.Model:
    """Return `model`, a model from `build`, with probabilities in place of its logits."""
    probabilities = keras.layers.Softmax(name="probabilities", dtype="float32")(model.output)
    return keras.Model(model.input, probabilities, name=model.name)


class _Layers:
    """Makes layers whose random numbers depend on the seed and their place in the model alone."""

    def __init__(self, seed: int, precision: str, published: bool) -> None:
        self._seed = seed
        self._precision = precision
        self._kinds = keras.layers if published else shared
        self._made = 0

    def dense(self, units: int, name: str, activation: str | None = None) -> keras.layers.Layer:
        return keras.layers.Dense(
            units,
            activation=activation,
            name=name,
            kernel_initializer=keras.initializers.GlorotUniform(self._next_seed()),
            # Logits stay float32: bfloat16 has too few digits for a cross-entropy.
            dtype=self._precision if activation else "float32",
        )

    def convolution(self, filters: int, name: str) -> keras.layers.Layer:
        return keras.layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,  # the batch normalisation after it has one
            name=name,
            kernel_initializer=keras.initializers.GlorotUniform(self._next_seed()),
            dtype=self._precision,
        )

    def dropout(self, rate: float, name: str) -> keras.layers.Layer:
        return self._kinds.Dropout(rate, seed=self._next_seed(), name=name, dtype=self._precision)

    def batch_normalization(self, name: str) -> keras.layers.Layer:
        # Keras' 0.99 forgets its start only after hundreds of steps: too late for short runs.
        return self._kinds.BatchNormalization(
            momentum=0.9, synchronized=True, name=name, dtype=self._precision
        )

    def plain(self, kind: type[keras.layers.Layer], name: str, **more: Any) -> keras.layers.Layer:
        """Return a layer that draws nothing at random."""
        return kind(name=name, dtype=self._precision, **more)

    def _next_seed(self) -> int:
        self._made += 1
        return int(np.random.SeedSequence((self._seed, self._made)).generate_state(1)[0] >> 1)


def _mlp(pixels: keras.KerasTensor, classes: int, layers: _Layers) -> keras.KerasTensor:
    """Flatten, dense 128 ReLU, dense 64 ReLU, dense `classes`: the net this project began with."""
    hidden = layers.plain(keras.layers.Flatten, "flatten")(pixels)
    hidden = layers.dense(128, "hidden_1", "relu")(hidden)
    hidden = layers.dense(64, "hidden_2", "relu")(hidden)
    return layers.dense(classes, "logits")(hidden)


def _cnn(pixels: keras.KerasTensor, classes: int, layers: _Layers) -> keras.KerasTensor:
    """Two blocks of convolution, batch normalisation, ReLU and pooling; dropout; dense."""
    height, width, channels = (*pixels.shape[1:], 1)[:3]
    shape = (height, width, channels)
    hidden = layers.plain(keras.layers.Reshape, "channels", target_shape=shape)(pixels)
    for block, filters in enumerate((16, 32), start=1):
        hidden = layers.convolution(filters, f"convolution_{block}")(hidden)
        hidden = layers.batch_normalization(f"normalization_{block}")(hidden)
        hidden = layers.plain(keras.layers.ReLU, f"relu_{block}")(hidden)
        pool = layers.plain(keras.layers.MaxPooling2D, f"pool_{block}", padding="same")
        hidden = pool(hidden)
    hidden = layers.plain(keras.layers.Flatten, "flatten")(hidden)
    hidden = layers.dropout(0.3, "dropout")(hidden)
    return layers.dense(classes, "logits")(hidden)


@dataclass(frozen=True)
class _Architecture:
    make: Callable[[keras.KerasTensor, int, _Layers], keras.KerasTensor]
    xla_on_cpu: bool
    """Whether XLA's CPU compiler is the faster one; it isn't for convolutions."""
    exchanges_in_layers: bool
    """Whether replicas exchange numbers inside its layers, as for the statistics of a batch."""


_ARCHITECTURES = {
    "mlp": _Architecture(_mlp, xla_on_cpu=True, exchanges_in_layers=False),
    "cnn": _Architecture(_cnn, xla_on_cpu=False, exchanges_in_layers=True),
}
