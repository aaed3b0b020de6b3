"""What images look like in a few numbers: how many of each label, how bright, how contrasted.

A data card is small enough to be kept in a log, and says enough to see that a shard is of another
kind than what was trained on before.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from job.data.examples import MAX_CLASSES, Images, Labels
from job.errors import DataError

FEATURES = ("pixel_mean", "pixel_deviation")
"""Of an image: mean and standard deviation of its pixels, from 0 to 1."""
_CHUNK_BYTES = 1024 * 1024  # of pixels, of which there is a copy eight times as large meanwhile

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)  # comparing arrays gives arrays
class Card:
    """Of each label: how many images, and mean and deviation over these of each feature."""

    counts: npt.NDArray[np.int64]
    """Shape (classes,)."""
    means: Numbers
    """Shape (classes, features); 0 where there is no image."""
    deviations: Numbers
    """Shape (classes, features): standard deviations of the population, over the images."""

    @classmethod
    def of(cls, images: Images, labels: Labels, classes: int) -> "Card":
        """Return the card of `images`, uint8 of shape (n, ...), with `labels`, of shape (n,)."""
        card = cls(np.zeros(classes, np.int64), *np.zeros((2, classes, len(FEATURES))))
        step = max(1, _CHUNK_BYTES // max(1, images[:1].size))
        for start in range(0, len(images), step):
            chunk = images[start : start + step].reshape(len(labels[start : start + step]), -1)
            shares = chunk / 255.0
            features = np.stack([shares.mean(axis=1), shares.std(axis=1)], axis=1)
            card = card.merge(_of_features(features, labels[start : start + step], classes))
        return card

    def merge(self, other: "Card") -> "Card":
        """Return the card of the images of both, which have the same number of classes.

        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances" (1979), equations 2.1.
        """
        counts = self.counts + other.counts
        weights = _share(other.counts, counts)
        apart = other.means - self.means
        squares = (
            self.deviations**2 * (1 - weights)
            + other.deviations**2 * weights
            + apart**2 * weights * (1 - weights)
        )
        return Card(counts, self.means + apart * weights, np.sqrt(squares))

    @property
    def shares(self) -> Numbers:
        """Share of each label in all images, shape (classes,)."""
        return self.counts / max(1, int(self.counts.sum()))

    def document(self) -> dict[str, Any]:
        """Return the card in types that JSON has."""
        labels = [
            {"label": label, "count": int(count)}
            | {
                name: {"mean": float(mean), "deviation": float(deviation)}
                for name, mean, deviation in zip(FEATURES, means, deviations, strict=True)
            }
            for label, (count, means, deviations) in enumerate(
                zip(self.counts, self.means, self.deviations, strict=True)
            )
        ]
        return {"examples": int(self.counts.sum()), "labels": labels}

    @classmethod
    def from_document(cls, document: Any) -> "Card":
        """Return the card that `document` was made of.

        Raises:
            DataError: it is no data card.
        """
        try:
            labels = document["labels"]
            counts = np.array([label["count"] for label in labels], np.int64)
            means, deviations = (
                np.array([[label[name][what] for name in FEATURES] for label in labels], np.float64)
                for what in ("mean", "deviation")
            )
            known = [label["label"] for label in labels] == list(range(len(labels)))
            sound = np.isfinite(means).all() and (deviations >= 0).all() and (counts >= 0).all()
            if not (known and sound and 1 <= len(labels) <= MAX_CLASSES):
                raise ValueError("numbers")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"a data card can't be understood ({error!r}): bring back the file that holds it"
            ) from error
        return cls(counts, means, deviations)


def _of_features(features: Numbers, labels: Labels, classes: int) -> Card:
    """Return the card of images whose features, of shape (n, features), are known."""
    counts = np.bincount(labels, minlength=classes)

    def average(values: Numbers) -> Numbers:
        sums = [np.bincount(labels, weights=column, minlength=classes) for column in values.T]
        return _share(np.stack(sums, axis=1), counts)

    means = average(features)
    return Card(counts, means, np.sqrt(average((features - means[labels]) ** 2)))


def _share(parts: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> Numbers:
    """Return parts / counts, of shape (classes, 1) or that of `parts`; 0 where nothing is."""
    columns = parts.reshape(len(counts), -1).astype(np.float64)
    return columns / np.maximum(1, counts)[:, None]
