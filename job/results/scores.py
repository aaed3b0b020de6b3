"""Logits of labelled images -> scores, in NumPy alone. Every example counts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from job.results.statistics import wilson_interval

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


def score(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int32]) -> Scores:
    """Return how a model did that gave `logits`, shape (examples, classes), for `labels`.

    Args:
        logits: finite numbers; of equal ones the first counts as predicted.
        labels: int32, shape (examples,), each below the number of classes; at least one.
    """
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
