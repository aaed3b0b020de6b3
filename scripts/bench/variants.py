"""`mnist-job train` with one thing changed that no flag changes, to measure what it earns.

    python scripts/bench/variants.py NAME train --preset fast ...

Changed is the running program and not the job; what it publishes says nothing of it.
"""

# ruff: noqa: SLF001  (what is changed is the inside of the job)

import functools
import sys
from collections.abc import Callable
from typing import Any

from job.process import runtime

SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


def averaging(decay: float) -> None:
    """Score the exponential moving average of all weights (Polyak and Juditsky, 1992).

    The moving statistics of the normalisation are averaged like the weights. The weights before the
    first step have no part in it (as the moments of Kingma and Ba, 2015, are corrected).
    """
    import tensorflow as tf  # noqa: PLC0415

    from job.training import train  # noqa: PLC0415

    class Averaging(train.Loop):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._weights = [v for v in self._model.variables if v.dtype == "float32"]
            with self._strategy.scope():
                self._means = [tf.Variable(weight.value) for weight in self._weights]

        def _step(self, *arguments: Any) -> Any:
            told = super()._step(*arguments)
            done = tf.cast(arguments[-1], tf.float32)
            kept = decay * (1 - decay**done) / (1 - decay ** (done + 1))
            for mean, weight in zip(self._means, self._weights, strict=True):
                mean.assign(kept * mean + (1 - kept) * weight.value)
            return told

        def score(self, *arguments: Any, **more: Any) -> Any:
            before = [weight.numpy() for weight in self._weights]
            for mean, weight in zip(self._means, self._weights, strict=True):
                weight.assign(mean)
            try:
                return super().score(*arguments, **more)
            finally:
                for weight, value in zip(self._weights, before, strict=True):
                    weight.assign(value)

    train.Loop = Averaging


def shifting() -> None:
    """Score the mean probability of an image as it is and moved by one pixel each way."""
    import tensorflow as tf  # noqa: PLC0415

    from job.training import train  # noqa: PLC0415

    class Shifting(train.Loop):
        def _score_batch(self, *arguments: Any) -> Any:
            net = self._model

            def averaged(pixels: tf.Tensor, *, training: bool) -> tf.Tensor:
                each = [net(moved(pixels, *shift), training=training) for shift in SHIFTS]
                # Logarithms of probabilities are logits of the same.
                return tf.math.log(tf.reduce_mean(tf.nn.softmax(tf.stack(each)), axis=0) + 1e-30)

            self._model = averaged
            try:
                return super()._score_batch(*arguments)
            finally:
                self._model = net

    train.Loop = Shifting


def moved(images: Any, down: int, right: int) -> Any:
    """Return `images`, shape (examples, height, width, ...), moved by at most one pixel each way.

    What comes in from outside is zero.
    """
    import tensorflow as tf  # noqa: PLC0415

    height, width = images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1]] + [[0, 0]] * (images.shape.rank - 3))
    return padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]


def without_norm() -> None:
    """Leave the normalisation out: its bias alone stays."""
    import keras  # noqa: PLC0415

    from job.training import model  # noqa: PLC0415

    class Bias(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.beta = self.add_weight(name="beta", shape=shape[-1:], initializer="zeros")

        def call(self, inputs: Any) -> Any:
            return inputs + self.beta

    model._Layers.normalization = lambda self, name: self.plain(Bias, name)


def norm_before_the_pool() -> None:
    """Normalise what a convolution gives, and not what pooling leaves of it."""
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    from job.training import model  # noqa: PLC0415

    convolution, normalization = model._Layers.convolution, model._Layers.normalization
    done = set()

    class Maximum(keras.layers.MaxPooling2D):
        """A pooling whose gradient XLA makes fast on a CPU."""

        def call(self, inputs: tf.Tensor) -> tf.Tensor:
            height, width = (side // 2 * 2 for side in inputs.shape[1:3])
            parts = [inputs[:, y:height:2, x:width:2] for y in (0, 1) for x in (0, 1)]
            return tf.maximum(tf.maximum(*parts[:2]), tf.maximum(*parts[2:]))

    def normalized_and_pooled(
        self: Any, hidden: Any, filters: int, block: int, padding: str, *, pooled: bool
    ) -> Any:
        hidden = convolution(self, hidden, filters, block, padding, pooled=False)
        if not pooled:
            return hidden
        name = f"normalization_{block}"
        hidden = normalization(self, name)(hidden)
        done.add(name)
        by_parts = self._form == "matrices" and padding == "valid"
        pool = Maximum if by_parts else keras.layers.MaxPooling2D
        return self.plain(pool, f"pool_{block}", padding=padding)(hidden)

    def unless_done(self: Any, name: str) -> Any:
        if name in done:
            return keras.layers.Identity(name=f"{name}_done")
        return normalization(self, name)

    model._Layers.convolution = normalized_and_pooled
    model._Layers.normalization = unless_done


def optimizing(kind: str, **settings: Any) -> None:
    """Take another optimizer of Keras, at the same schedule."""
    import keras  # noqa: PLC0415

    from job.training import loop  # noqa: PLC0415

    chosen = getattr(keras.optimizers, kind)
    loop._Adam = functools.partial(chosen, **settings)


VARIANTS: dict[str, Callable[[], None]] = {
    "ema-0.99": functools.partial(averaging, 0.99),
    "ema-0.998": functools.partial(averaging, 0.998),
    "shifts": shifting,
    "no-norm": without_norm,
    "norm-before-pool": norm_before_the_pool,
    "nesterov": functools.partial(optimizing, "SGD", momentum=0.9, nesterov=True),
    "lion": functools.partial(optimizing, "Lion"),
    "beta2-0.99": functools.partial(optimizing, "Adam", beta_2=0.99),
}


def main() -> None:
    """Change what the first word says, and run the job with the others."""
    name, *words = sys.argv[1:] or [""]
    if name not in VARIANTS:
        sys.exit(f"variants: {name!r} is none of {', '.join(VARIANTS)}")
    runtime.prepare_tensorflow()
    VARIANTS[name]()
    from job.cli import main as job  # noqa: PLC0415

    sys.exit(job(words))


if __name__ == "__main__":
    main()
