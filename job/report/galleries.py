"""Images that a model got wrong, or nearly so, and what classes look like -> tiles of a sheet."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from job.data.source import Dataset
from job.errors import DataError
from job.report import mislabelled, sprites
from job.report.page import percent
from job.results.predictions import Predictions

MOST_MISTAKES = 40
MOST_CLOSE_CALLS = 20
MOST_CLASSES = 100  # with a picture of their mean
_MEAN_BYTES = 64 * 1024 * 1024  # of images that means are of: more take seconds, and look alike

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Tile:
    """One image, and what is written below it."""

    index: int
    """In the test set, from 0."""
    place: int
    """On the page's sheet."""
    lines: tuple[str, ...]
    spoken: str
    """What is read out in place of the image."""
    doubt: str
    """What speaks against its label; empty where nothing is known."""


class Wall:
    """Collects the images of a page, which are all on one sheet."""

    def __init__(self) -> None:
        self._images: list[Images] = []

    def add(self, images: Images) -> range:
        """Take images, uint8 of shape (n, *image_shape), and return their places on the sheet."""
        first = sum(map(len, self._images))
        self._images.append(images)
        return range(first, first + len(images))

    def sheet(self) -> sprites.Sheet | None:
        """Return the sheet; None where there are no images."""
        images = [each for each in self._images if len(each)]
        return sprites.sheet(np.concatenate(images)) if images else None


def mistakes(predictions: Predictions, dataset: Dataset, wall: Wall) -> list[Tile]:
    """Return the mistakes that the model was surest of, the surest first.

    Raises:
        DataError: the predictions are not of the data's test images.
    """
    sure, wrong = _sure(predictions, dataset), predictions.predicted != predictions.labels
    worst = np.flatnonzero(wrong)[np.argsort(-sure[wrong], kind="stable")]
    return _tiles(worst[:MOST_MISTAKES], sure, predictions, dataset, wall)


def close_calls(predictions: Predictions, dataset: Dataset, wall: Wall) -> list[Tile]:
    """Return the images that the model was right about, and least sure of, the least first.

    Raises:
        DataError: the predictions are not of the data's test images.
    """
    sure, right = _sure(predictions, dataset), predictions.predicted == predictions.labels
    least = np.flatnonzero(right)[np.argsort(sure[right], kind="stable")]
    return _tiles(least[:MOST_CLOSE_CALLS], sure, predictions, dataset, wall)


def _sure(predictions: Predictions, dataset: Dataset) -> npt.NDArray[np.float64]:
    """Return the probability of what was predicted of each image, shape (examples,)."""
    if not np.array_equal(predictions.labels, dataset.y_test):
        raise DataError(
            f"the published predictions are of other labels than the test images at {dataset.uri}"
        )
    sure: npt.NDArray[np.float64] = predictions.probabilities.max(axis=1)
    return sure


def _tiles(
    indices: npt.NDArray[np.int64],
    sure: npt.NDArray[np.float64],
    predictions: Predictions,
    dataset: Dataset,
    wall: Wall,
) -> list[Tile]:
    found, predicted = [], predictions.predicted
    places = wall.add(dataset.x_test[indices])
    for index, place in zip(map(int, indices), places, strict=True):
        said, label = int(predicted[index]), int(predictions.labels[index])
        confidence = percent(sure[index], 1)
        doubt = mislabelled.doubt(index, dataset.test_fingerprint)
        spoken = f"Test image {index:,}, labelled {label}, predicted {said} with {confidence}."
        found.append(
            Tile(
                index=index,
                place=place,
                lines=(str(label) if said == label else f"{label} taken for {said}", confidence),
                spoken=f"{spoken} {doubt}".rstrip(),
                doubt=doubt,
            )
        )
    return found


@dataclass(frozen=True)
class Data:
    """The labels of a data set."""

    rows: list[dict[str, Any]]
    """Of each class its label, how many training and test images it has, the former as a share of
    the largest class's, and the place of their mean on the sheet."""
    left_out: int
    """Classes that have no row."""
    of_images: int
    """How many training images the means are of."""


def data(dataset: Dataset, wall: Wall) -> Data:
    """Return how many images each class has, and what they look like in the mean."""
    classes = dataset.classes
    train = np.bincount(dataset.y_train, minlength=classes)
    test = np.bincount(dataset.y_test, minlength=classes)
    shown = range(min(classes, MOST_CLASSES))
    images, labels = _sample(dataset)
    means = np.zeros((len(shown), *dataset.image_shape), np.uint8)
    for label in shown:
        mine = images[labels == label]
        if len(mine):
            means[label] = np.rint(mine.mean(axis=0, dtype=np.float32)).astype(np.uint8)
    rows = [
        {
            "label": label,
            "train": int(train[label]),
            "test": int(test[label]),
            "share": int(train[label]) / int(train.max()),
            "place": place,
        }
        for label, place in zip(shown, wall.add(means), strict=True)
    ]
    return Data(rows, classes - len(shown), len(images))


def _sample(dataset: Dataset) -> tuple[Images, npt.NDArray[np.int32]]:
    """Return the training images, or of a large set as many as means are taken of."""
    count = len(dataset.x_train)
    most = _MEAN_BYTES // dataset.x_train[:1].nbytes
    if count <= most:
        return dataset.x_train, dataset.y_train
    drawn = np.sort(np.random.default_rng(0).permutation(count)[:most])
    return dataset.x_train[drawn], dataset.y_train[drawn]
