"""What metrics and predictions say of a model -> rows and drawings of a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from job.report import figures
from job.report.page import percent, seconds
from job.results.predictions import Predictions
from job.results.scores import CALIBRATION_BINS
from job.results.statistics import wilson_interval

MOST_CLASSES = 1_000  # of a data set of this job
IN_A_TABLE = 20  # classes of a confusion matrix that has its numbers in it; of more only a drawing
IN_A_DRAWING = 30  # classes with their precision and recall
MOST_CELLS = 1_000  # of a drawing
MOST_PAIRS = 12
MOST_ROWS = 100  # of classes in a table, the worst

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Curves:
    """How a training went, epoch by epoch."""

    drawings: list[str]
    told: str
    """What is to be said below them."""


def curves(history: History) -> Curves | None:
    """Return loss, accuracy and learning rate over the epochs; None where no epoch is told of."""
    if not history:
        return None
    drawn = [
        _two("loss", "Loss", history, "loss", from_zero=True),
        _two("accuracy", "Accuracy", history, "accuracy", percents=True),
    ]
    rates = [float(epoch["learning_rate"]) for epoch in history]
    label = f"Learning rate of each epoch's last step, from {rates[0]:.2g} to {rates[-1]:.2g}."
    drawn.append(figures.curves("rate", "Learning rate", {"": rates}, label, from_zero=True))
    told = (
        "Loss and accuracy of the training images are of the epoch, while the weights moved, "
        "against smoothed labels and with whatever augmentation and dropout there was"
    )
    if _has_held_out(history, "loss"):
        told += "; those of the held-out images are of its end"
    return Curves(drawn, f"{told}.")


def _has_held_out(history: History, field: str) -> bool:
    return all(f"validation_{field}" in epoch for epoch in history)


def _two(name: str, title: str, history: History, field: str, **how: bool) -> str:
    """Return a curve of the training images, and one of the held-out ones where there are any."""
    lines = {"training": [float(epoch[field]) for epoch in history]}
    if _has_held_out(history, field):
        lines["held out"] = [float(epoch[f"validation_{field}"]) for epoch in history]

    def told(value: float) -> str:
        return percent(value) if how.get("percents") else f"{value:.4f}"

    said = "; ".join(f"{of}: {told(each[0])} to {told(each[-1])}" for of, each in lines.items())
    label = f"{title} over {len(history)} epochs. {said}."
    return figures.curves(name, title, lines, label, **how)


@dataclass(frozen=True)
class Confusion:
    """What is taken for what."""

    rows: list[list[int]] | None
    """By true class; None of too many classes for a table."""
    drawing: str | None
    """In place of rows."""
    pairs: list[dict[str, Any]]
    """The pairs that are mistaken most often, the worst first."""
    mistakes: int
    worst: int
    """Most mistakes in one cell, at least 1."""


def confusion(test: Mapping[str, Any]) -> Confusion:
    """Return the confusion matrix of `test`, a part of a run's metrics."""
    counts = np.array(test["confusion"], np.int64)
    classes = len(counts)
    if counts.shape != (classes, classes) or not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"a confusion matrix of shape {counts.shape}")
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")
    cells = [
        (int(true), int(predicted), int(wrong[true, predicted]))
        for true, predicted in zip(*np.unravel_index(order[:MOST_CELLS], wrong.shape), strict=True)
        if wrong[true, predicted]
    ]
    mistakes = int(wrong.sum())
    pairs = [
        {
            "true": true,
            "predicted": predicted,
            "examples": examples,
            "of_class": examples / max(1, int(counts[true].sum())),
            "of_mistakes": examples / mistakes,
        }
        for true, predicted, examples in cells[:MOST_PAIRS]
    ]
    small = classes <= IN_A_TABLE
    drawing = None
    if not small and cells:
        label = f"The {len(cells):,} most frequent confusions of {classes} classes, as squares."
        drawing = figures.bubbles("confusion", label, cells, classes)
    return Confusion(
        rows=counts.tolist() if small else None,
        drawing=drawing,
        pairs=pairs,
        mistakes=mistakes,
        worst=max(1, int(wrong.max())),
    )


@dataclass(frozen=True)
class Classes:
    """How each class fared."""

    rows: list[dict[str, Any]]
    """Label, support, and of precision and recall the share and its interval, or None."""
    left_out: int
    """Classes that did better than those in `rows`."""
    drawing: str | None


def classes(test: Mapping[str, Any]) -> Classes:
    """Return precision and recall of each class, with their 95 % intervals."""
    counts = np.array(test["confusion"], np.int64)
    hits, true, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    rows: list[dict[str, Any]] = [
        {
            "label": label,
            "support": int(true[label]),
            "recall": _share(int(hits[label]), int(true[label])),
            "precision": _share(int(hits[label]), int(predicted[label])),
        }
        for label in range(len(counts))
    ]
    shown = rows
    if len(rows) > MOST_ROWS:
        shown = sorted(rows, key=lambda row: row["recall"] or (2.0,))[:MOST_ROWS]
    drawing = None
    if len(rows) <= IN_A_DRAWING:
        label = "Recall and precision of each class with their 95 % intervals; the table has them."
        lines = {name: [row[name] for row in rows] for name in ("recall", "precision")}
        drawing = figures.intervals("classes", label, lines)
    return Classes(shown, len(rows) - len(shown), drawing)


def _share(hits: int, of: int) -> tuple[float, float, float] | None:
    """Return a share and the ends of its interval; None of nothing."""
    return (hits / of, *wilson_interval(hits, of)) if of else None


def reliability(predictions: Predictions) -> str:
    """Return how often the model was right by how sure it was, as a drawing."""
    confidence = predictions.probabilities.max(axis=1)
    right = predictions.predicted == predictions.labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    told = []
    for each in np.unique(bins):
        inside = bins == each
        images, hits = int(inside.sum()), int(right[inside].sum())
        low, high = wilson_interval(hits, images)
        told.append((float(confidence[inside].mean()), hits / images, low, high, images))
    first, last = told[0], told[-1]
    label = (
        f"Share of images that were right, by confidence: {percent(first[1], 1)} of {first[4]:,} "
        f"at {percent(first[0], 1)}, {percent(last[1], 1)} of {last[4]:,} at {percent(last[0], 1)}."
    )
    return figures.reliability("reliability", label, told, 1 / CALIBRATION_BINS)


_STAGES = (
    ("import_seconds", "importing TensorFlow, reading the data beside it"),
    ("load_seconds", "waiting for the data, claiming the run, restoring a checkpoint"),
    ("compile_seconds", "compiling the loop"),
    ("attempt_train_seconds", "training"),
    ("evaluate_seconds", "scoring the test images"),
    ("publish_seconds", "publishing"),
)


def times(timing: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the time of the attempt that completed the run was spent on, of `metrics`."""
    total = float(timing["total_seconds"])
    # One who published before this was told apart has only that of all attempts.
    known = {"attempt_train_seconds": timing["train_seconds"]} | dict(timing)
    rows: list[dict[str, Any]] = [
        {"stage": told, "seconds": float(known[name])} for name, told in _STAGES
    ]
    rest = total - sum(row["seconds"] for row in rows)
    if rest > 0:
        rows.append({"stage": "starting Python, and all else", "seconds": rest})
    whole = max(total, sum(row["seconds"] for row in rows))
    return [
        {
            "stage": row["stage"],
            "time": seconds(row["seconds"]),
            "share": (share := row["seconds"] / whole),
            "percent": percent(share, 0),
        }
        for row in rows
    ]
