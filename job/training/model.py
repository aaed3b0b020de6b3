"""Name -> Keras model. Architectures come from here; files only ever bring numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from job.training import layers as shared
from job.training.convolution import SIDE, Convolution

PIXEL_SCALE = 1 / 255  # models see pixels as float32 from 0 to 1
SMALLEST_UNPADDED = 18  # pixels, of which two poolings and three convolutions leave one

Form = Literal["published", "convolutions", "matrices"]
"""`published`: of Keras' own layers only, which any backend of Keras opens without this job. To be
trained, by replicas as by one device (`layers`): with `convolutions`, the fastest on a GPU, or as
products of `matrices`, the fastest on a CPU (`convolution`)."""


def build(
    name: str,
    image_shape: tuple[int, ...],
    classes: int,
    *,
    seed: int = 0,
    precision: str = "float32",
    dropout: float = 0.0,
    form: Form = "published",
) -> keras.Model:
    """Return the architecture `name`, its weights drawn from `seed`.

    Args:
        name: `mlp`, `cnn` or `cnn-wide`.
        image_shape: (height, width) or (height, width, channels).
        classes: number of classes.
        seed: the same seed gives the same weights, bit for bit.
        precision: `float32`, or `mixed_bfloat16` to compute the hidden layers in bfloat16.
        dropout: share of the last hidden layer that training leaves out.
        form: how what is computed is computed, see `Form`; the variables are the same.

    Returns:
        A model from float32 pixels in 0..1, shape (examples, *image_shape), to float32 logits,
        shape (examples, classes).
    """
    inputs = keras.Input(image_shape, name="pixels", dtype="float32")
    logits = _ARCHITECTURES[name].make(inputs, classes, dropout, _Layers(seed, precision, form))
    return keras.Model(inputs, logits, name=name)


def exchanges_in_layers(name: str) -> bool:
    """Tell whether replicas of the architecture exchange numbers before they have gradients."""
    return _ARCHITECTURES[name].exchanges_in_layers


def in_float32(model: keras.Model) -> keras.Model:
    """Return a copy of `model`, a model from `build`, that computes as its published files do."""
    plain = build(model.name, model.input_shape[1:], model.output_shape[-1])
    plain.set_weights(model.get_weights())
    return plain


def with_probabilities(model: keras.Model) -> keras.Model:
    """Return `model`, from `build` or `together`, with probabilities in place of its logits."""
    logits = [layer.output for layer in model.layers if layer.name.endswith("logits")]
    several = len(logits) > 1
    numbers = [f"_{n}" if several else "" for n in range(1, len(logits) + 1)]
    each = [
        keras.layers.Softmax(name=f"probabilities{number}", dtype="float32")(one)
        for number, one in zip(numbers, logits, strict=True)
    ]
    average = keras.layers.Average(name="probabilities", dtype="float32")
    return keras.Model(model.input, average(each) if several else each[0], name=model.name)


def together(nets: Sequence[keras.Model]) -> keras.Model:
    """Return copies of `nets`, published forms of one architecture, as one model: an ensemble.

    Its logits are the logarithms of the mean of their probabilities, so their softmax is that mean.
    """
    pixels = keras.Input(nets[0].input_shape[1:], name="pixels", dtype="float32")
    copies = [_copy(net, pixels, f"member_{n}") for n, net in enumerate(nets, start=1)]
    parts = [keras.ops.log_softmax(copy.output) for copy in copies]
    total = keras.ops.logsumexp(keras.ops.stack(parts), axis=0)
    ensemble = keras.Model(pixels, total - math.log(len(nets)), name=f"{nets[0].name}-ensemble")
    for net, copy in zip(nets, copies, strict=True):
        copy.set_weights(net.get_weights())
    return ensemble


def _copy(net: keras.Model, pixels: keras.KerasTensor, prefix: str) -> keras.Model:
    """Return a net like `net` on the input `pixels`, with names that no other has."""

    def renamed(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "name": f"{prefix}_{layer.name}"})

    return keras.models.clone_model(net, input_tensors=pixels, clone_function=renamed)


class _Layers:
    """Makes layers whose random numbers depend on the seed and their place in the model alone."""

    def __init__(self, seed: int, precision: str, form: Form) -> None:
        self._seed = seed
        self._precision = precision
        self._form = form
        self._kinds = keras.layers if form == "published" else shared
        self._made = 0

    def dense(
        self,
        units: int,
        name: str,
        activation: str | None = None,
        *,
        logits: bool = False,
        **more: Any,
    ) -> keras.layers.Layer:
        return keras.layers.Dense(
            units,
            activation=activation,
            name=name,
            kernel_initializer=keras.initializers.GlorotUniform(self._next_seed()),
            # Logits stay float32: bfloat16 has too few digits for a cross-entropy.
            dtype="float32" if logits else self._precision,
            **more,
        )

    def convolution(
        self, hidden: keras.KerasTensor, filters: int, block: int, padding: str, *, pooled: bool
    ) -> keras.KerasTensor:
        """Apply a 3x3 convolution without bias, and 2x2 max-pooling if `pooled`."""
        settings = {
            "name": f"convolution_{block}",
            "padding": padding,
            "kernel_initializer": keras.initializers.GlorotUniform(self._next_seed()),
            "dtype": self._precision,
        }
        if self._form == "matrices":
            return Convolution(filters, pooled=pooled, **settings)(hidden)
        hidden = keras.layers.Conv2D(filters, SIDE, use_bias=False, **settings)(hidden)
        if not pooled:
            return hidden
        return self.plain(keras.layers.MaxPooling2D, f"pool_{block}", padding=padding)(hidden)

    def dropout(self, rate: float, name: str) -> keras.layers.Layer:
        return self._kinds.Dropout(rate, seed=self._next_seed(), name=name, dtype=self._precision)

    def normalization(self, name: str) -> keras.layers.Layer:
        # Keras' 0.99 forgets its start only after hundreds of steps: too late for short runs. No
        # scale: it would be one more pass, and the layer after it has its own.
        return self._kinds.BatchNormalization(
            momentum=0.95,
            scale=False,
            # Keras on JAX and PyTorch refuses a layer that is to do this, even if only loaded.
            synchronized=self._form != "published",
            name=name,
            dtype=self._precision,
        )

    def plain(self, kind: type[keras.layers.Layer], name: str, **more: Any) -> keras.layers.Layer:
        """Return a layer that draws nothing at random."""
        return kind(name=name, dtype=self._precision, **more)

    def _next_seed(self) -> int:
        self._made += 1
        return int(np.random.SeedSequence((self._seed, self._made)).generate_state(1)[0] >> 1)


def _mlp(
    pixels: keras.KerasTensor, classes: int, dropout: float, layers: _Layers
) -> keras.KerasTensor:
    """Flatten, dense 128 ReLU, dense 64 ReLU, dense `classes`: the net this project began with."""
    hidden = layers.plain(keras.layers.Flatten, "flatten")(pixels)
    hidden = layers.dense(128, "hidden_1", "relu")(hidden)
    hidden = layers.dense(64, "hidden_2", "relu")(hidden)
    if dropout:
        hidden = layers.dropout(dropout, "dropout")(hidden)
    return layers.dense(classes, "logits", logits=True)(hidden)


def _cnn(
    pixels: keras.KerasTensor, classes: int, dropout: float, layers: _Layers
) -> keras.KerasTensor:
    """Three convolutions of 16, 32 and 64 filters, the first two pooled, then dense `classes`."""
    hidden = _convolutions(pixels, (16, 32, 64), layers)
    if dropout:
        hidden = layers.dropout(dropout, "dropout")(hidden)
    return layers.dense(classes, "logits", logits=True)(hidden)


def _wide(
    pixels: keras.KerasTensor, classes: int, dropout: float, layers: _Layers
) -> keras.KerasTensor:
    """Three convolutions of 48, 96 and 96 filters, the first two pooled, dense 128, `classes`."""
    hidden = _convolutions(pixels, (48, 96, 96), layers)
    hidden = layers.dense(128, "hidden", use_bias=False)(hidden)
    hidden = layers.normalization("normalization_hidden")(hidden)
    hidden = layers.plain(keras.layers.ReLU, "relu_hidden")(hidden)
    if dropout:
        hidden = layers.dropout(dropout, "dropout")(hidden)
    return layers.dense(classes, "logits", logits=True)(hidden)


def _convolutions(
    pixels: keras.KerasTensor, filters: tuple[int, ...], layers: _Layers
) -> keras.KerasTensor:
    """Convolutions, all but the last pooled, each with normalisation and ReLU; flattened.

    Both come after the pooling, where four times fewer numbers are left: a quarter of the time.
    """
    height, width, channels = (*pixels.shape[1:], 1)[:3]
    # Borders that nothing is padded with cost nothing; small images would have nothing left.
    padding = "valid" if min(height, width) >= SMALLEST_UNPADDED else "same"
    shape = (height, width, channels)
    hidden = layers.plain(keras.layers.Reshape, "channels", target_shape=shape)(pixels)
    for block, number in enumerate(filters, start=1):
        pooled = block < len(filters)
        hidden = layers.convolution(hidden, number, block, padding, pooled=pooled)
        hidden = layers.normalization(f"normalization_{block}")(hidden)
        hidden = layers.plain(keras.layers.ReLU, f"relu_{block}")(hidden)
    return layers.plain(keras.layers.Flatten, "flatten")(hidden)


@dataclass(frozen=True)
class _Architecture:
    make: Callable[[keras.KerasTensor, int, float, _Layers], keras.KerasTensor]
    exchanges_in_layers: bool
    """Whether replicas exchange numbers inside its layers, as for the statistics of a batch."""


_ARCHITECTURES = {
    "mlp": _Architecture(_mlp, exchanges_in_layers=False),
    "cnn": _Architecture(_cnn, exchanges_in_layers=True),
    "cnn-wide": _Architecture(_wide, exchanges_in_layers=True),
}
