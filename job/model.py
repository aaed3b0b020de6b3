"""Name -> Keras model. Architectures come from here; files only ever bring numbers."""

from collections.abc import Callable

import keras
import numpy as np

PIXEL_SCALE = 1 / 255  # models see pixels as float32 from 0 to 1


def build(
    name: str,
    image_shape: tuple[int, ...],
    classes: int,
    *,
    seed: int = 0,
    precision: str = "float32",
) -> keras.Model:
    """Return the architecture `name`, its weights drawn from `seed`.

    Args:
        name: a key of `ARCHITECTURES`.
        image_shape: (height, width) or (height, width, channels).
        classes: number of classes.
        seed: the same seed gives the same weights, bit for bit.
        precision: `float32`, or `mixed_bfloat16` to compute the hidden layers in bfloat16.

    Returns:
        A model from float32 pixels in 0..1, shape (examples, *image_shape), to float32 logits,
        shape (examples, classes).
    """
    inputs = keras.Input(image_shape, name="pixels", dtype="float32")
    logits = ARCHITECTURES[name](inputs, classes, _Layers(seed, precision))
    return keras.Model(inputs, logits, name=name)


def for_publishing(model: keras.Model) -> keras.Model:
    """Return a float32 copy of `model`, a model from `build`, that ends in probabilities."""
    plain = build(model.name, model.input_shape[1:], model.output_shape[-1])
    plain.set_weights(model.get_weights())
    probabilities = keras.layers.Softmax(name="probabilities", dtype="float32")(plain.output)
    return keras.Model(plain.input, probabilities, name=model.name)


class _Layers:
    """Makes layers whose initial weights depend on the seed and their place in the model alone."""

    def __init__(self, seed: int, precision: str) -> None:
        self._seed = seed
        self._precision = precision
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

    def _next_seed(self) -> int:
        self._made += 1
        return int(np.random.SeedSequence((self._seed, self._made)).generate_state(1)[0] >> 1)


def _mlp(pixels: keras.KerasTensor, classes: int, layers: _Layers) -> keras.KerasTensor:
    """Flatten, dense 128 ReLU, dense 64 ReLU, dense `classes`: the net this project began with."""
    hidden = keras.layers.Flatten(name="flatten", dtype="float32")(pixels)
    hidden = layers.dense(128, "hidden_1", "relu")(hidden)
    hidden = layers.dense(64, "hidden_2", "relu")(hidden)
    return layers.dense(classes, "logits")(hidden)


ARCHITECTURES: dict[str, Callable[[keras.KerasTensor, int, _Layers], keras.KerasTensor]] = {
    "mlp": _mlp,
}
