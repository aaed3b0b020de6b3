"""Model + images -> logits. Every image counts, the last partial batch too."""

import math
from collections.abc import Callable

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job.errors import DataError
from job.training.model import PIXEL_SCALE

MEBIBYTE = 1024 * 1024
ACTIVATION_BYTES = 64 * MEBIBYTE  # of all layers for one batch: a fraction of what training takes
MOST_EXAMPLES = 1_000  # more at once are no faster


def predict_logits(
    model: keras.Model, images: npt.NDArray[np.uint8], beat: Callable[[], None] = lambda: None
) -> npt.NDArray[np.float64]:
    """Return the logits of `images`, shape (examples, classes): float32, held in doubles.

    Args:
        model: logits model.
        images: uint8, shape (examples, *image_shape); at least one.
        beat: called after each batch, as a sign of life.

    Raises:
        DataError: some are not finite numbers.
    """
    batch = batch_size(model)

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec((None, *images.shape[1:]), "uint8")]
    )
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(batch, tf.float32) * PIXEL_SCALE, training=False)

    # Asked for by itself: TensorFlow warns of functions that are traced often, as by many models.
    compiled = forward.get_concrete_function()
    batches = []
    for start in range(0, len(images), batch):
        batches.append(compiled(tf.constant(images[start : start + batch])).numpy())
        beat()
    logits = np.concatenate(batches).astype(np.float64)
    if bad := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise DataError(
            f"the model's outputs for {bad:,} of {len(images):,} images are not finite numbers: "
            "its weights are damaged, or too large to compute with; train it again"
        )
    return logits


def batch_size(model: keras.Model) -> int:
    """Return how many images to evaluate at once, so that memory doesn't grow with their size."""
    numbers: int = sum(math.prod(layer.output.shape[1:]) for layer in model.layers)
    return max(1, min(MOST_EXAMPLES, ACTIVATION_BYTES // (4 * numbers)))  # float32
