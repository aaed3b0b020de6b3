"""What a model said of images: which of them to show, in which order, and in which form.

For people a table and contact sheets, for programs JSON and CSV with all probabilities.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from job import storage
from job.errors import ConflictError, UsageError
from job.pictures import gallery
from job.results.scores import log_softmax
from job.storage import Place

MOST = 100_000  # predictions that are shown at once

Only = Literal["mistakes", "hits"]
Sort = Literal["index", "confidence"]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one image."""

    image: int | Place
    """Index in the test set, or where a person's own picture lies."""
    true: int | None
    """Label in the data set; None for a person's own picture."""
    probabilities: tuple[float, ...]
    """Of each class."""
    predicted: int
    """The most probable class; of equal ones the first."""

    @classmethod
    def all_of(
        cls,
        images: Sequence[int | Place],
        labels: Sequence[int | None],
        logits: npt.NDArray[np.floating[Any]],
    ) -> list["Prediction"]:
        """Return the predictions for `images`, whose logits are (images, classes)."""
        probabilities = np.exp(log_softmax(logits.astype(np.float64)))
        return [
            cls(image, label, tuple(row), int(predicted))
            for image, label, row, predicted in zip(
                images, labels, probabilities.tolist(), logits.argmax(axis=1), strict=True
            )
        ]

    @property
    def confidence(self) -> float:
        """Probability given to the predicted class."""
        return self.probabilities[self.predicted]

    @property
    def right(self) -> bool | None:
        """Whether the model was right; None where nobody knows."""
        return None if self.true is None else self.predicted == self.true

    @property
    def caption(self) -> str:
        """What is written below the image: its label, or the name of a person's own picture."""
        return f"true {self.true}" if isinstance(self.image, int) else self.image.name


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which test images to show, and in which order."""

    start: int = 0
    """Index of the first that comes into question."""
    count: int = 10
    """How many; of those that are picked out, the first so many."""
    only: Only | None = None
    """Those that the model has wrong, or right."""
    digit: int | None = None
    """Those with this label in the data set."""
    sort: Sort = "index"
    """By confidence: of mistakes the most confident first, else the least confident first."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            raise UsageError(f"--num-images must be from 1 to {MOST:,}, not {self.count}")
        if self.start < 0:
            raise UsageError(f"--start must be 0 or more, not {self.start}")
        if self.digit is not None and self.digit < 0:
            raise UsageError(f"--digit must be 0 or more, not {self.digit}")

    @property
    def picks(self) -> bool:
        """Whether images are picked out; else there must be as many as are asked for."""
        return (self.only, self.digit, self.sort) != (None, None, "index")

    @property
    def asks_the_model(self) -> bool:
        """Whether what the model says decides which images are shown."""
        return self.only is not None or self.sort != "index"

    def candidates(self, labels: npt.NDArray[np.int32], classes: int, uri: str) -> Indices:
        """Return the indices of all images that come into question before the model is asked.

        Args:
            labels: of all test images.
            classes: how many there are.
            uri: of the data set, for messages.

        Raises:
            UsageError: the test set doesn't reach that far, or has no such label.
        """
        available = len(labels)
        if self.start >= available or (not self.picks and self.start + self.count > available):
            raise UsageError(
                f"--start {self.start:,} and --num-images {self.count:,} reach beyond the "
                f"{available:,} test images of {uri}: give at most "
                f"{max(0, available - self.start):,} images"
            )
        if self.digit is not None and self.digit >= classes:
            raise UsageError(
                f"--digit {self.digit} is no label of {uri}: it has those from 0 to {classes - 1}"
            )
        found = np.arange(self.start, available)
        return found if self.digit is None else found[labels[found] == self.digit]

    def picked(self, right: npt.NDArray[np.bool_], confidence: npt.NDArray[np.float64]) -> Indices:
        """Return which of the candidates are wanted, in their order, all of them.

        Args:
            right: whether the model has each right, shape (candidates,).
            confidence: how sure it is of each, shape (candidates,).
        """
        wanted = np.ones(len(right), np.bool_)
        if self.only is not None:
            wanted = right if self.only == "hits" else ~right
        found: Indices = np.flatnonzero(wanted)
        if self.sort == "confidence":
            sign = -1.0 if self.only == "mistakes" else 1.0
            found = found[np.argsort(sign * confidence[found], kind="stable")]
        return found


@dataclass(frozen=True)
class Shown:
    """Predictions to show."""

    predictions: list[Prediction]
    matching: int | None
    """How many images match what was asked for, shown or not; None where nothing was picked out."""
    images: npt.NDArray[np.uint8] | None
    """As the model saw them: shape (predictions, *image_shape); None where nobody needs them."""


def document(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return predictions as JSON has them."""
    return [
        {
            "image": each.image if isinstance(each.image, int) else str(each.image),
            "true": each.true,
            "predicted": each.predicted,
            "right": each.right,
            "confidence": each.confidence,
            "probabilities": list(each.probabilities),
        }
        for each in predictions
    ]


def to_json(predictions: Sequence[Prediction]) -> str:
    """Return predictions as a JSON array, an object a line."""
    lines = ",\n".join(json.dumps(each) for each in document(predictions))
    return f"[\n{lines}\n]" if lines else "[]"


def to_csv(predictions: Sequence[Prediction]) -> str:
    """Return predictions as CSV: a head, then a line each; what nobody knows is left empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    classes = len(predictions[0].probabilities) if predictions else 0
    shares = [f"probability_{label}" for label in range(classes)]
    writer.writerow(["image", "true", "predicted", "right", "confidence", *shares])
    for each in document(predictions):
        right = "" if each["right"] is None else str(each["right"]).lower()
        writer.writerow(
            [each["image"], each["true"], each["predicted"], right, each["confidence"]]
            + each["probabilities"]
        )
    return file.getvalue()


def table(shown: Shown) -> str:
    """Return predictions as a table for a person, a line each; a wrong one is marked."""
    width = max([5, *(len(str(prediction.image)) for prediction in shown.predictions)])
    lines = [f"{'image':>{width}}  predicted  confidence  true"]
    for prediction in shown.predictions:
        true = "-" if prediction.true is None else str(prediction.true)
        mark = "" if prediction.right is not False else "   <- wrong"
        lines.append(
            f"{prediction.image!s:>{width}}  {prediction.predicted:>9}  "
            f"{prediction.confidence:>9.1%}   {true:>4}{mark}"
        )
    if shown.matching is not None:
        lines.append(f"{len(shown.predictions):,} of the {shown.matching:,} images that match")
    return "\n".join(lines)


def write(shown: Shown, as_csv: Place | None, figure: Place | None) -> list[str]:
    """Write predictions to new files, and return a line about each.

    Args:
        shown: what to write.
        as_csv: where to put it as CSV; None for nowhere.
        figure: where to draw it; None for nowhere. Where it takes several sheets, each has its
            number before the ending, as in `figure-001.png`.

    Raises:
        ConflictError: there is another file.
        OutputError: one can't be written.
    """
    lines = []
    if as_csv is not None:
        _create(as_csv, to_csv(shown.predictions).encode(), "--csv")
        lines.append(f"written to {as_csv}")
    if figure is not None:
        if not shown.predictions:
            return [*lines, "no figure: there is no image to draw"]
        assert shown.images is not None
        for place, sheet in _sheets(figure, shown.predictions, shown.images):
            _create(place, sheet, "--figure")
            lines.append(f"figure written to {place}")
    return lines


def _create(place: Place, data: bytes, option: str) -> None:
    try:
        storage.create(place, data)
    except ConflictError as error:
        raise ConflictError(
            f"{place} already exists with other content: nothing was overwritten; choose another "
            f"{option}"
        ) from error


def _sheets(
    place: Place, predictions: Sequence[Prediction], images: npt.NDArray[np.uint8]
) -> Iterator[tuple[Place, bytes]]:
    """Yield each sheet, and where it is to lie."""
    captions = [(f"{each.predicted}  {each.confidence:.1%}", each.caption) for each in predictions]
    right = [each.right for each in predictions]
    parts = gallery.sheets(len(predictions))
    for where, on in zip(_numbered(place, len(parts)), parts, strict=True):
        drawn = gallery.draw_sheet(images[on], captions[on], right[on], of=len(predictions))
        yield where, drawn


def _numbered(place: Place, count: int) -> list[Place]:
    if count == 1:
        return [place]
    stem, dot, ending = place.name.rpartition(".")
    stem, ending = (stem, f".{ending}") if dot and stem else (place.name, "")
    width = max(3, len(str(count)))
    return [place.beside(f"{stem}-{number:0{width}}{ending}") for number in range(1, count + 1)]
