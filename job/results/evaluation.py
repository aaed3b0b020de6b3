"""Model + labelled images -> scores. Every example counts, the last partial batch too."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job.errors import DataError
from job.results.statistics import wilson_interval
from job.training.model import PIXEL_SCALE

MEBIBYTE = 1024 * 1024
ACTIVATION_BYTES = 64 * MEBIBYTE  # of all layers for one batch: a fraction of what training takes
MOST_EXAMPLES = 1_000  # more at once are no faster
CALIBRATION_BINS = 15  # as in Guo et al., "On calibration of modern neural networks", 2017


@dataclass(frozen=True)
class ClassScores:
    """How one class fared. A figure without examples to stand on is None."""

    label: int
    precision: float | None
    """Of the examples predicted to be of the class, the share that are."""
    recall: float | None
    """Of the examples of the class, the share predicted to be."""
    f1: float | None
    support: int
    """Examples of the class."""


@dataclass(frozen=True)
class Scores:
    """How a model did on a labelled set."""

    examples: int
    correct: int
    accuracy: float
    accuracy_interval_95: tuple[float, float]
    """Wilson's score interval."""
    loss: float
    """Mean cross-entropy in nats, against the true labels, not smoothed ones."""
    expected_calibration_error: float
    """Mean gap between confidence and accuracy over 15 equally wide bins of confidence."""
    per_class: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Examples by true class (row) and predicted class (column)."""


def evaluate(
    model: keras.Model,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int32],
    beat: Callable[[], None] = lambda: None,
) -> Scores:
    """Score `model` on all of `images`.

    Args:
        model: logits model.
        images: uint8, shape (examples, *image_shape); at least one.
        labels: int32, shape (examples,), each below the model's number of classes.
        beat: called after each batch, as a sign of life.

    Raises:
        DataError: the model's outputs are no numbers to score.
    """
    logits = predict_logits(model, images, beat)
    classes = logits.shape[1]
    log_probabilities = log_softmax(logits)
    predicted = logits.argmax(axis=1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2)
    confusion = confusion.reshape(classes, classes)
    correct = int(np.trace(confusion))
    return Scores(
        examples=len(labels),
        correct=correct,
        accuracy=correct / len(labels),
        accuracy_interval_95=wilson_interval(correct, len(labels)),
        loss=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        expected_calibration_error=expected_calibration_error(
            np.exp(log_probabilities.max(axis=1)), predicted == labels
        ),
        per_class=tuple(_class_scores(confusion, label) for label in range(classes)),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def predict_logits(
    model: keras.Model, images: npt.NDArray[np.uint8], beat: Callable[[], None] = lambda: None
) -> npt.NDArray[np.float64]:
    """Return the logits of `images` (uint8, (examples, *image_shape)): (examples, classes).

    Calls `beat` after each batch.

    Raises:
        DataError: some are not finite.
    """
    batch = batch_size(model)

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec((None, *images.shape[1:]), "uint8")]
    )
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(batch, tf.float32) * PIXEL_SCALE, training=False)

    batches = []
    for start in range(0, len(images), batch):
        batches.append(forward(images[start : start + batch]).numpy())
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


def log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the logarithms of the probabilities, row by row, without overflow."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def expected_calibration_error(
    confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]
) -> float:
    """Return the gap between confidence and accuracy, averaged over bins by their examples.

    Args:
        confidence: probability given to the predicted class, shape (examples,).
        correct: whether the prediction was right, shape (examples,).
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _class_scores(confusion: npt.NDArray[np.int64], label: int) -> ClassScores:
    hits = int(confusion[label, label])
    support, predicted = int(confusion[label].sum()), int(confusion[:, label].sum())
    return ClassScores(
        label=label,
        precision=hits / predicted if predicted else None,
        recall=hits / support if support else None,
        f1=2 * hits / (support + predicted) if support + predicted else None,
        support=support,
    )
