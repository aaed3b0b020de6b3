"""Is new data fit to be trained on? What of it is not, with the numbers and the shard's name.

Differences are measured as such, never by p-values, which fire on every large set. Each bound has
a floor of noise: it grows as a shard shrinks, to four standard deviations of what chance does.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from job.data import shards
from job.data.card import FEATURES, Card
from job.data.examples import Images
from job.data.source import Dataset

BASE = "the base"
_CHUNK = 10_000  # images, whose digests are looked at together
_LEAST_DEVIATION = 1 / 255  # less than a grey level between images is no measure of anything
_SHOWN = 3  # digests of leaked images; all of them are in the finding

What = Literal["labels", "pixel_mean", "pixel_deviation", "accuracy", "leak"]


@dataclass(frozen=True)
class Bounds:
    """How far a shard may be from what the champion was trained on.

    Shares and accuracies are differences; pixels are effect sizes, in standard deviations over the
    images of one label. All were chosen on MNIST: tests/nightly/test_guard.py says what passes.
    """

    labels: float = 0.05
    pixels: float = 1.0
    accuracy: float = 0.10
    deviations: float = 4.0
    """Of chance: where this many are more than the bound, they are the bound."""


DEFAULT = Bounds()


@dataclass(frozen=True)
class Finding:
    """What is wrong with a shard."""

    shard: str
    what: What
    value: float
    bound: float
    """The most that would have passed."""
    sentence: str
    digests: tuple[str, ...] = ()
    """Of leaked images, in hex."""


def check(
    dataset: Dataset,
    names: Sequence[str],
    reference: Card,
    *,
    allowed: Collection[str] = (),
    classify: Callable[[Images], npt.NDArray[np.integer]] | None = None,
    accuracy: float = 0.0,
    bounds: Bounds = DEFAULT,
) -> list[Finding]:
    """Return all that is wrong with the shards called `names`, and with the data set as a whole.

    Args:
        dataset: which holds the shards.
        names: of the shards to look at.
        reference: card of what the champion was trained on.
        allowed: digests of test images that may be among those to train on, in hex.
        classify: what the champion takes images for; None to look at the data alone.
        accuracy: of the champion on its test set, from 0 to 1.
        bounds: how far a shard may be from that.
    """
    found = []
    for name in names:
        images, labels = dataset.shard(name)
        card = Card.of(images, labels, dataset.classes)
        found += drift(name, card, reference, bounds)
        if classify is not None:
            correct = int((classify(images) == labels).sum())
            found += accuracy_drop(name, correct, len(labels), accuracy, bounds)
    return found + leaks(dataset, allowed)


def drift(name: str, shard: Card, reference: Card, bounds: Bounds = DEFAULT) -> list[Finding]:
    """Return where a shard's labels and pixels depart from those of the reference.

    Of each measure only the label that is furthest beyond its bound is named.
    """
    classes = max(len(shard.counts), len(reference.counts))
    shard, reference = _widened(shard, classes), _widened(reference, classes)
    found = [_labels(name, shard, reference, bounds)]
    found += [_pixels(name, index, shard, reference, bounds) for index in range(len(FEATURES))]
    return [finding for finding in found if finding is not None]


def accuracy_drop(
    name: str, correct: int, examples: int, accuracy: float, bounds: Bounds = DEFAULT
) -> list[Finding]:
    """Return that the champion does worse on a shard than on its test set, if it does.

    Flipped or shuffled labels, which no histogram shows, are found so.

    Args:
        name: of the shard.
        correct: images of the shard that the champion classified as they are labelled.
        examples: images of the shard.
        accuracy: of the champion on its test set, from 0 to 1.
        bounds: how far they may be apart.
    """
    drop = accuracy - correct / examples
    spread = np.sqrt(accuracy * (1 - accuracy) / examples)
    bound = max(bounds.accuracy, _noise(spread, examples, bounds))
    if drop <= bound:
        return []
    sentence = (
        f"{name}: the champion agrees with {correct:,} of {examples:,} labels "
        f"({correct / examples:.4f}), but had {accuracy:.4f} on its test set: {drop:.4f} lower, and "
        f"{bound:.4f} would pass; are the labels flipped or shuffled?"
    )
    return [Finding(name, "accuracy", float(drop), float(bound), sentence)]


def leaks(dataset: Dataset, allowed: Collection[str] = ()) -> list[Finding]:
    """Return which images to train on are test images as well, by their digests.

    Args:
        dataset: what is trained on, and what is tested with.
        allowed: digests, in hex, of images that may be both.
    """
    tested = {
        digest: name
        for name, images in _pieces(dataset, dataset.x_test, "test")
        for digest in shards.digests(images)
        if digest.hex() not in allowed
    }
    both: dict[tuple[str, str], dict[str, None]] = {}  # as a set that keeps its order
    for name, images in _pieces(dataset, dataset.x_train, "train"):
        for digest in shards.digests(images):
            if digest in tested:
                both.setdefault((name, tested[digest]), {})[digest.hex()] = None
    return [_leak(name, test, tuple(digests)) for (name, test), digests in both.items()]


def _leak(name: str, test: str, digests: tuple[str, ...]) -> Finding:
    more = f" and {len(digests) - _SHOWN:,} more" * (len(digests) > _SHOWN)
    sentence = (
        f"{name}: {len(digests):,} of its images to train on are test images of {test} "
        f"({', '.join(digests[:_SHOWN])}{more}): remove them, or allow each by --leak-allow"
    )
    return Finding(name, "leak", len(digests), 0, sentence, digests)


def _pieces(dataset: Dataset, images: Images, kind: str) -> Iterator[tuple[str, Images]]:
    """Yield images to train on or to test with in pieces, each with the name of its shard."""
    trained = kind == "train"
    own = {n: at for n, at in dataset.segments.items() if (n in dataset.held_out) == trained}
    first = min((at.start for at in own.values()), default=len(images))
    for name, at in ((BASE, slice(0, first)), *own.items()):
        for start in range(at.start, at.stop, _CHUNK):
            yield name, images[start : min(start + _CHUNK, at.stop)]


def _labels(name: str, shard: Card, reference: Card, bounds: Bounds) -> Finding | None:
    expected, found = reference.shares, shard.shares
    examples, before = int(shard.counts.sum()), max(1, int(reference.counts.sum()))
    spread = np.sqrt(expected * (1 - expected) * (1 / examples + 1 / before))
    limits = np.maximum(bounds.labels, _noise(spread, examples, bounds))
    apart = np.abs(found - expected)
    label = int((apart / limits).argmax())
    if apart[label] <= limits[label]:
        return None
    sentence = (
        f"{name}: the label {label} has a share of {found[label]:.4f} of {examples:,} images, but "
        f"{expected[label]:.4f} before: {apart[label]:.4f} apart, and {limits[label]:.4f} would pass"
    )
    return Finding(name, "labels", float(apart[label]), float(limits[label]), sentence)


def _pixels(
    name: str, feature: int, shard: Card, reference: Card, bounds: Bounds
) -> Finding | None:
    """Return where a feature of a label's images is too far off, in standard deviations of it."""
    spread = np.maximum(reference.deviations[:, feature], _LEAST_DEVIATION)
    apart = np.abs(shard.means[:, feature] - reference.means[:, feature]) / spread
    known = (shard.counts > 0) & (reference.counts > 0)
    examples, before = np.maximum(1, shard.counts), np.maximum(1, reference.counts)
    limits = np.maximum(bounds.pixels, bounds.deviations * np.sqrt(1 / examples + 1 / before))
    beyond = np.where(known, apart / limits, 0.0)
    label = int(beyond.argmax())
    if beyond[label] <= 1:
        return None
    what: What = "pixel_mean" if feature == 0 else "pixel_deviation"
    told = "are as bright as" if feature == 0 else "have the contrast of"
    sentence = (
        f"{name}: its {int(shard.counts[label]):,} images of the label {label} {told} "
        f"{shard.means[label, feature]:.4f} of the whole range, those before "
        f"{reference.means[label, feature]:.4f}: {apart[label]:.2f} standard deviations apart, and "
        f"{limits[label]:.2f} would pass"
    )
    return Finding(name, what, float(apart[label]), float(limits[label]), sentence)


def _noise(spread: npt.ArrayLike, examples: int, bounds: Bounds) -> npt.NDArray[np.float64]:
    """Return how far chance takes a share of so many examples, which moves by whole ones."""
    return bounds.deviations * np.asarray(spread, np.float64) + 1 / examples


def _widened(card: Card, classes: int) -> Card:
    """Return the card with labels that have no image up to so many classes."""
    empty = Card(np.zeros(classes, np.int64), *np.zeros((2, classes, len(FEATURES))))
    for whole, part in (
        (empty.counts, card.counts),
        (empty.means, card.means),
        (empty.deviations, card.deviations),
    ):
        whole[: len(part)] = part
    return empty
