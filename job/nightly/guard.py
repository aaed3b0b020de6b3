"""Is new data fit to be trained on? What of it is not, with the numbers and the shard's name.

Differences are measured as such, never by p-values, which fire on every large set. Each bound has
a floor of noise: it grows as a shard shrinks, to four standard deviations of what chance does.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from job.data import shards
from job.data.card import FEATURES, Card
from job.data.examples import Images
from job.data.source import Dataset
from job.errors import DataError, UsageError

BASE = "(base)"
"""Stands for what shards add to, or for a data set in one piece; no shard can be called so."""
_PIECE = 10_000  # images, whose digests are looked at together
_LEAST_DEVIATION = 1 / 255  # less than a grey level between images is no measure of anything
_SHOWN = 3  # digests of leaked images; all of them are in the finding

What = Literal["labels", "pixel_mean", "pixel_deviation", "accuracy", "leak"]
Classify = Callable[[Images], npt.NDArray[np.int64]]


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
    """Of chance: where so many of them are more than the bound, they are the bound."""
    one_hand: float = 16.0
    """Images of a label that count as one for chance: a shard has many of the same writer's."""


DEFAULT = Bounds()


@dataclass(frozen=True)
class Finding:
    """What was measured of a shard: more than `bound` is wrong."""

    shard: str
    what: What
    value: float
    bound: float
    """The most that passes."""
    sentence: str
    """What is wrong, where something is."""
    digests: tuple[str, ...] = ()
    """Of leaked images, in hex."""
    against: str = ""
    """What leaked images are test images of."""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return self.value <= self.bound


@dataclass(frozen=True)
class Checked:
    """All that was measured of a data set."""

    measured: tuple[Finding, ...]

    def refusals(self, accepted: Collection[str] = ()) -> list[Finding]:
        """Return what is wrong, but for shards that people `accepted` as they are, by name.

        Leaks are not accepted with the shard: each image is named on its own.
        """
        wrong = [finding for finding in self.measured if not finding.passed]
        return [each for each in wrong if each.what == "leak" or each.shard not in accepted]


def check(
    dataset: Dataset,
    names: Iterable[str],
    reference: Card,
    *,
    allowed: Collection[str] = (),
    classify: Classify | None = None,
    accuracy: float = 0.0,
    bounds: Bounds = DEFAULT,
) -> Checked:
    """Measure the shards called `names`, and look for leaks in the whole data set.

    Args:
        dataset: which holds the shards.
        names: of the shards to look at; `BASE` for what they add to.
        reference: card of what the champion was trained on.
        allowed: digests, in hex, of test images that may be among those to train on.
        classify: what the champion takes images for; None to look at the data alone.
        accuracy: of the champion on its test set, from 0 to 1.
        bounds: how far a shard may be from that.
    """
    measured: list[Finding] = []
    for name in names:
        images, labels = dataset.base_examples if name == BASE else dataset.shard(name)
        measured += drift(name, Card.of(images, labels, dataset.classes), reference, bounds)
        if classify is not None:
            correct = int((classify(images) == labels).sum())
            measured.append(agreement(name, correct, len(labels), accuracy, bounds))
    return Checked((*measured, *leaks(dataset, allowed)))


def refuse(refusals: Sequence[Finding]) -> None:
    """Do nothing if there is no refusal.

    Raises:
        DataError: there is one; all are told.
    """
    if refusals:
        raise DataError("; ".join(finding.sentence for finding in refusals))


def allowed_leaks(given: Iterable[str]) -> frozenset[str]:
    """Return the digests that people allow, as they were told.

    Raises:
        UsageError: one is no digest.
    """
    for text in given:
        if len(text) != 2 * shards.DIGEST_BYTES or set(text) - set("0123456789abcdef"):
            raise UsageError(
                f"--leak-allow must be the {2 * shards.DIGEST_BYTES} hex digits that the refusal "
                f"told, not {text[:80]!r}"
            )
    return frozenset(given)


# --- what is measured ---------------------------------------------------------------------------


def leaks(dataset: Dataset, allowed: Collection[str] = ()) -> list[Finding]:
    """Return which images to train on are test images as well, by their digests.

    Args:
        dataset: what is trained on, and what is tested with.
        allowed: digests, in hex, of images that may be both.
    """
    tested = {
        digest: name
        for name, images in _pieces(dataset, trained=False)
        for digest in shards.digests(images)
        if digest.hex() not in allowed
    }
    both: dict[tuple[str, str], dict[str, None]] = {}  # digests as a set that keeps their order
    for name, images in _pieces(dataset, trained=True):
        for digest in shards.digests(images):
            if digest in tested:
                both.setdefault((name, tested[digest]), {})[digest.hex()] = None
    return [_leak(name, test, tuple(digests)) for (name, test), digests in both.items()]


def _leak(name: str, test: str, digests: tuple[str, ...]) -> Finding:
    more = f" and {len(digests) - _SHOWN:,} more" * (len(digests) > _SHOWN)
    sentence = (
        f"{name}: {len(digests):,} of its images to train on are test images of {test} "
        f"({', '.join(digests[:_SHOWN])}{more}): remove them, or name each by --leak-allow"
    )
    return Finding(name, "leak", len(digests), 0, sentence, digests, test)


def _pieces(dataset: Dataset, *, trained: bool) -> Iterator[tuple[str, Images]]:
    """Yield what is trained on, or tested with, in pieces, each with the name of its shard."""
    images = dataset.x_train if trained else dataset.x_test
    own = {n: at for n, at in dataset.segments.items() if (n in dataset.held_out) == trained}
    first = min((at.start for at in own.values()), default=len(images))
    for name, at in ((BASE, slice(0, first)), *own.items()):
        for start in range(at.start, at.stop, _PIECE):
            yield name, images[start : min(start + _PIECE, at.stop)]


def agreement(
    name: str, correct: int, examples: int, accuracy: float, bounds: Bounds = DEFAULT
) -> Finding:
    """Measure how much worse the champion does on a shard than on its test set.

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
    bound = max(bounds.accuracy, float(_noise(spread, examples, bounds)))
    sentence = (
        f"{name}: the champion agrees with {correct:,} of {examples:,} labels "
        f"({correct / examples:.4f}), but had {accuracy:.4f} on its test set: {drop:.4f} lower, "
        f"where {bound:.4f} would pass; are the labels flipped or shuffled?"
    )
    return Finding(name, "accuracy", drop, bound, sentence)


def drift(name: str, shard: Card, reference: Card, bounds: Bounds = DEFAULT) -> list[Finding]:
    """Measure labels and pixels; of each the label counts that is furthest beyond its bound."""
    classes = max(len(shard.counts), len(reference.counts))
    shard, reference = _widened(shard, classes), _widened(reference, classes)
    pixels = (_pixels(name, index, shard, reference, bounds) for index in range(len(FEATURES)))
    return [_labels(name, shard, reference, bounds), *pixels]


def _labels(name: str, shard: Card, reference: Card, bounds: Bounds) -> Finding:
    expected, found = reference.shares, shard.shares
    examples, before = int(shard.counts.sum()), max(1, int(reference.counts.sum()))
    spread = np.sqrt(expected * (1 - expected) * (1 / examples + 1 / before))
    limits = np.maximum(bounds.labels, _noise(spread, examples, bounds))
    apart = np.abs(found - expected)
    label = int((apart / limits).argmax())
    sentence = (
        f"{name}: the label {label} is that of {found[label]:.4f} of its {examples:,} images, and "
        f"of {expected[label]:.4f} of those before: {apart[label]:.4f} apart, where "
        f"{limits[label]:.4f} would pass"
    )
    return Finding(name, "labels", float(apart[label]), float(limits[label]), sentence)


def _pixels(name: str, feature: int, shard: Card, reference: Card, bounds: Bounds) -> Finding:
    spread = np.maximum(reference.deviations[:, feature], _LEAST_DEVIATION)
    known = (shard.counts > 0) & (reference.counts > 0)
    found, expected = shard.means[:, feature], reference.means[:, feature]
    apart = np.where(known, np.abs(found - expected) / spread, 0.0)
    examples, before = np.maximum(1, shard.counts), np.maximum(1, reference.counts)
    chance = np.sqrt(bounds.one_hand / examples + 1 / before)
    limits = np.maximum(bounds.pixels, bounds.deviations * chance)
    label = int((apart / limits).argmax())
    what: What = ("pixel_mean", "pixel_deviation")[feature]
    sentence = (
        f"{name}: the {what.replace('_', ' ')} of its {int(shard.counts[label]):,} images of the "
        f"label {label} is {found[label]:.4f}, and {expected[label]:.4f} of those before: "
        f"{apart[label]:.2f} of their standard deviations apart, where {limits[label]:.2f} would "
        "pass"
    )
    return Finding(name, what, float(apart[label]), float(limits[label]), sentence)


def _noise(
    spread: npt.NDArray[np.float64], examples: int, bounds: Bounds
) -> npt.NDArray[np.float64]:
    """Return how far chance takes a share of so many examples, which moves by whole ones."""
    return bounds.deviations * spread + 1 / examples


def _widened(card: Card, classes: int) -> Card:
    """Return the card with further labels, up to so many classes, that have no image."""
    more = classes - len(card.counts)
    return Card(
        np.pad(card.counts, (0, more)),
        np.pad(card.means, ((0, more), (0, 0))),
        np.pad(card.deviations, ((0, more), (0, 0))),
    )


# --- for people ---------------------------------------------------------------------------------


def table(dataset: Dataset, checked: Checked) -> str:
    """Return what was measured as a table: of each shard each value and, after /, its bound."""
    whats: list[What] = ["labels", "pixel_mean", "pixel_deviation"]
    whats += ["accuracy"] if any(each.what == "accuracy" for each in checked.measured) else []
    counted = {shard.name: (shard.examples, shard.held_out) for shard in dataset.shards}
    rows = [["shard", "examples", "held out", *(what.replace("_", " ") for what in whats), "leaks"]]
    for name in (BASE, *counted):
        found = {each.what: each for each in checked.measured if each.shard == name}
        examples, held_out = counted.get(name, (len(dataset.base_examples[0]), 0))
        cells = [_cell(found.get(what)) for what in whats]
        leaked = sum(len(f.digests) for f in checked.measured if f.shard == name)
        cells.append(f"{leaked:,} !" if leaked else "0")
        rows.append([name, f"{examples:,}", f"{held_out:,}", *cells])
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))],
        )
        for row in rows
    )


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return "-"
    return f"{finding.value:.3f} / {finding.bound:.3f}{'' if finding.passed else ' !'}"
