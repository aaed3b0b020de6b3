"""Published weights -> the scores of a data set, or predictions for single images."""

import json
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from job import __version__, storage
from job.config import MOST_MEMBERS, DataSource, ModelName, RunConfig
from job.data.examples import MAX_CLASSES, MAX_SIDE_PIXELS, Labels
from job.data.source import Dataset, load, of_run
from job.errors import ConflictError, DataError, MissingInputError, UsageError
from job.pictures import handwriting
from job.process import runtime
from job.process.progress import Progress
from job.results import publishing
from job.results.answers import Choice, Indices, Prediction, Shown
from job.results.metrics import model_facts
from job.results.predictions import Predictions
from job.results.scores import Scores, log_softmax
from job.results.scores import score as scored
from job.results.statistics import wilson_interval
from job.storage import Place
from job.workers.cluster import Cluster

if TYPE_CHECKING:
    import keras

SCHEMA_VERSION = 1
REPORT = "evaluation.json"
_TEST_SET = ("data", "test_fingerprint")
_MOST_IN_TABLE = 30  # classes


@dataclass(frozen=True)
class Published:
    """A weights file, and what its run says of it, unless somebody said otherwise.

    Weights, predictions and data are read when they are first needed, if they are.
    """

    place: Place
    """Of the weights."""
    metrics: dict[str, Any]
    """Of the run; {} where none lie beside the weights."""
    model_name: str
    members: int
    """Nets whose probabilities are averaged; 1 for a model that is no ensemble."""
    source: DataSource
    """What to use it on."""
    is_given_data: bool
    """Whether somebody named the data; else they are the run's own."""
    progress: Progress

    @classmethod
    def open(
        cls, weights: Place, data: Place | None, model_name: str | None, progress: Progress
    ) -> "Published":
        """Find the weights, and what there is to use them on.

        Args:
            weights: a weights file, or the folder of a run.
            data: None for the data set of the weights' run, or MNIST where no run is known.
            model_name: None for the architecture of the run, or the reference one.
            progress: told if the data are not those of the run.

        Raises:
            JobError: what the run says can't be understood.
        """
        place = publishing.weights_of(weights)
        metrics = publishing.metrics_beside(place)
        if model_name is None:
            model_name = _said(metrics, "config", "model") or RunConfig.model
        if model_name not in get_args(ModelName):
            raise DataError(
                f"the run of {place} trained the model {model_name[:80]!r}, which this version of "
                f"the job doesn't have: give --model ({', '.join(get_args(ModelName))})"
            )
        source = of_run(metrics, data)
        members = members_of(metrics)
        return cls(place, metrics, model_name, members, source, data is not None, progress)

    @cached_property
    def content(self) -> bytes:
        """The weights file.

        Raises:
            MissingInputError: there is none.
            DataError: it is not what the run published.
        """
        return publishing.read_artifact(self.place, publishing.MAX_WEIGHTS_BYTES)[0]

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, loaded; if it isn't the one that the run was trained on, that is told."""
        dataset = load(self.source)
        if _said(self.metrics, "data", "fingerprint") not in {None, dataset.fingerprint}:
            self.progress.event("other_data", weights=str(self.place), data=dataset.uri)
        return dataset

    @cached_property
    def form(self) -> tuple[tuple[int, ...], int]:
        """Shape of an image, and number of classes: as the run says, else as the data have it."""
        data = self.metrics.get("data")
        told = data if isinstance(data, dict) else {}
        shape, classes = told.get("image_shape"), told.get("classes")
        if (
            isinstance(shape, list)
            and len(shape) in {2, 3}
            and all(_is_count(side, MAX_SIDE_PIXELS) for side in shape)
            and isinstance(classes, int)
            and _is_count(classes, MAX_CLASSES)
        ):
            return tuple(shape), classes
        return self.dataset.image_shape, self.dataset.classes

    def model(self, image_shape: tuple[int, ...], classes: int) -> "keras.Model":
        """Return the model for such images, with these weights.

        Raises:
            DataError: the weights don't fit it.
        """
        where = str(self.place)
        return rebuilt(self.content, where, self.model_name, self.members, image_shape, classes)

    def recorded(self, *, beside_images: bool) -> Predictions | None:
        """Return what the run itself has published of the test images that are asked for.

        None where it published nothing, or of other images: those have to be computed.

        Args:
            beside_images: whether the images are shown too, which then must be the same as well.

        Raises:
            DataError: the file is damaged.
        """
        its_own = self.model_name == _said(self.metrics, "config", "model")
        if self.place.name != publishing.WEIGHTS or not its_own:
            return None
        if self.is_given_data or beside_images:
            ours, theirs = self.dataset.test_fingerprint, _said(self.metrics, *_TEST_SET)
            if ours != theirs:
                return None
        try:
            return Predictions.at(self.place.beside(publishing.PREDICTIONS))
        except MissingInputError:
            return None


def members_of(metrics: dict[str, Any]) -> int:
    """Return of how many nets a run published the mean, by its metrics, which may be anybody's."""
    config = metrics.get("config")
    members = config.get("ensemble") if isinstance(config, dict) else None
    return members if isinstance(members, int) and 1 <= members <= MOST_MEMBERS else 1


def rebuilt(
    content: bytes,
    where: str,
    architecture: str,
    members: int,
    image_shape: tuple[int, ...],
    classes: int,
) -> "keras.Model":
    """Return the model that a weights file holds, ready to compute as its run did.

    Args:
        content: of the file.
        where: it lies, for messages.
        architecture: name of the model in `job.training.model`.
        members: nets of it whose probabilities are averaged, 1 for one alone.
        image_shape: of one image.
        classes: how many there are.

    Raises:
        DataError: the weights don't fit the model.
    """
    runtime.prepare_tensorflow()
    cluster = Cluster.from_environment(os.environ, together=False)
    cores = runtime.available_cores(container_limit=cluster.cpu_limit)
    runtime.limit_threads(runtime.wanted_threads(os.environ, cores))
    runtime.import_tensorflow()
    from job.results import weights  # noqa: PLC0415
    from job.training import model, strategy  # noqa: PLC0415

    strategy.prepare_gpus()  # that it scores as its run did
    nets = [model.build(architecture, image_shape, classes) for _ in range(members)]
    net = nets[0] if members == 1 else model.together(nets)
    weights.load_hdf5(net, content, where)
    return net


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _said(metrics: dict[str, Any], part: str, name: str) -> str | None:
    """Return a text that `metrics.json` holds, which may be anybody's file."""
    said = metrics.get(part)
    value = said.get(name) if isinstance(said, dict) else None
    return value if isinstance(value, str) else None


def score(published: Published) -> tuple[Scores, dict[str, Any]]:
    """Score published weights on all test images of the data set.

    Returns:
        The scores, and the whole evaluation as `job/assets/evaluation.schema.json` describes it.

    Raises:
        DataError: weights and data don't fit each other.
    """
    content = published.content  # what is damaged is told before any data are read
    dataset = published.dataset
    model = published.model(dataset.image_shape, dataset.classes)
    from job.results import evaluation  # noqa: PLC0415

    scores = scored(evaluation.predict_logits(model, dataset.x_test), dataset.y_test)
    return scores, {
        "schema_version": SCHEMA_VERSION,
        "evaluated": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "job_version": __version__,
        "git_commit": runtime.git_commit(os.environ),
        "weights": asdict(publishing.describe(str(published.place), content)),
        "model": model_facts(published.model_name, model.count_params(), published.members),
        "data": dataset.facts(),
        "test": asdict(scores),
    }


def write_report(output: Place, report: dict[str, Any]) -> Place:
    """Write an evaluation to `output`, a file that ends in .json or a folder; return its place.

    One that is there already and says the same of the same files is left as it is.

    Raises:
        ConflictError: there is another one.
        OutputError: it can't be written.
    """
    place = output if output.name.endswith(".json") else output / REPORT
    try:
        storage.create(place, publishing.to_json(report))
    except ConflictError as error:
        # As JSON has it: a tuple comes back as a list.
        mine = json.loads(publishing.to_json(report))
        if publishing.read_json(place) | {"evaluated": None} != mine | {"evaluated": None}:
            raise ConflictError(
                f"{place} holds another evaluation: nothing was overwritten; choose another "
                "--report"
            ) from error
    return place


def predict_test_images(published: Published, choice: Choice, *, images: bool) -> Shown:
    """Predict test images; what the run has published of them isn't computed again.

    Args:
        published: the model, and the data.
        choice: which images.
        images: whether they are to be shown.

    Raises:
        UsageError: the test set does not reach that far, or has no such label.
        DataError: weights and data don't fit each other.
    """
    labels, classes, uri, logits_of = _test_set(published, beside_images=images)
    candidates = choice.candidates(labels, classes, uri)
    matching, indices = len(candidates), candidates
    if not choice.asks_the_model:
        indices = candidates[: choice.count]
    logits = logits_of(indices)
    if choice.asks_the_model:
        right = logits.argmax(axis=1) == labels[indices]
        confidence = np.exp(log_softmax(logits.astype(np.float64)).max(axis=1))
        picked = choice.picked(right, confidence)
        matching, picked = len(picked), picked[: choice.count]
        indices, logits = indices[picked], logits[picked]
    return Shown(
        Prediction.all_of(indices.tolist(), labels[indices].tolist(), logits),
        matching if choice.picks else None,
        published.dataset.x_test[indices] if images else None,
    )


def predict_at(published: Published, indices: Sequence[int] | None) -> list[Prediction]:
    """Predict the test images of these indices, from 0, or all; what is published isn't computed.

    Raises:
        UsageError: an index is none of the test set's.
        DataError: weights and data don't fit each other.
    """
    labels, _, uri, logits_of = _test_set(published, beside_images=False)
    found: list[int] = []
    for index in range(len(labels)) if indices is None else indices:
        try:
            number = -1 if isinstance(index, bool) else operator.index(index)
        except TypeError as error:
            raise UsageError(f"index {index!r} is no whole number: give one") from error
        if not 0 <= number < len(labels):
            raise UsageError(
                f"index {index} is none of the {len(labels):,} test images of {uri}: give 0 to "
                f"{len(labels) - 1:,}"
            )
        found.append(number)
    at = np.array(found, np.intp)
    return Prediction.all_of(at.tolist(), labels[at].tolist(), logits_of(at))


def predict_images(published: Published, images: npt.NDArray[Any]) -> list[Prediction]:
    """Predict images that have the form of the data set's already: uint8 (images, *image_shape).

    Raises:
        UsageError: they have another form.
        DataError: weights and data don't fit each other.
    """
    shape, classes = published.form
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise UsageError(
            f"images must be uint8 of shape (images, {', '.join(map(str, shape))}), as "
            f"{published.place} was trained on, not {images.dtype} of shape {images.shape}"
        )
    logits = _logits(published, images, classes)
    return Prediction.all_of(range(len(images)), [None] * len(images), logits)


def _test_set(
    published: Published, *, beside_images: bool
) -> tuple[Labels, int, str, Callable[[Indices], npt.NDArray[np.floating[Any]]]]:
    """Return labels of the test images, number of classes, URI, and what gives logits by index.

    Those that the run has published, where it has; else they are computed.
    """
    recorded = published.recorded(beside_images=beside_images)
    if recorded is not None:
        uri = _said(published.metrics, "data", "uri") or str(published.source.place)
        return recorded.labels, recorded.logits.shape[1], uri, lambda at: recorded.logits[at]
    dataset = published.dataset
    return (
        dataset.y_test,
        dataset.classes,
        dataset.uri,
        lambda at: _logits(published, dataset.x_test[at]),
    )


def predictions_again(published: Published) -> Predictions:
    """Return what a run that published no predictions says of its own test images, computed anew.

    Raises:
        DataError: the data are not those that the run was scored on any more.
    """
    dataset = published.dataset
    if dataset.test_fingerprint != _said(published.metrics, *_TEST_SET):
        raise DataError(
            f"{dataset.uri} holds other test images than {published.place} was scored on: bring "
            "them back, or compare without --compute"
        )
    logits = _logits(published, dataset.x_test)
    return Predictions(logits.astype(np.float32), dataset.y_test)


def predict_pictures(published: Published, pictures: Sequence[Place]) -> Shown:
    """Predict a person's own pictures, brought to the form of the data set's images.

    Raises:
        JobError: a picture is missing or bad, or weights and data don't fit each other.
    """
    shape, classes = published.form
    images = np.stack([handwriting.read_picture(place, shape) for place in pictures])
    logits = _logits(published, images, classes)
    predictions = Prediction.all_of(pictures, [None] * len(images), logits)
    return Shown(predictions, None, images)


def _logits(
    published: Published, images: npt.NDArray[np.uint8], classes: int | None = None
) -> npt.NDArray[np.float64]:
    """Return the logits of `images`, of which there may be none."""
    classes = classes or published.dataset.classes
    if not len(images):
        return np.empty((0, classes))
    model = published.model(images.shape[1:], classes)
    from job.results import evaluation  # noqa: PLC0415

    return evaluation.predict_logits(model, images)


def summary(scores: Scores) -> str:
    """Return what a person wants to know first of `scores`, in two lines."""
    low, high = scores.accuracy_interval_95
    return (
        f"test accuracy: {scores.accuracy:.4f}  ({scores.correct:,} of {scores.examples:,}; 95 % "
        f"interval {low:.4f} to {high:.4f})\ntest loss: {scores.loss:.4f}"
    )


def class_table(scores: Scores) -> str:
    """Return how each class fared as a table for a person, with what it was mostly taken for.

    Recall and precision come with their 95 % intervals. Of many classes those with the lowest
    recall are shown.
    """
    interval = "95 % interval"
    head = ("class", "images", "recall, %", interval, "precision, %", interval, "F1", "taken for")
    rows = [head]
    classes = sorted(
        scores.per_class, key=lambda each: (each.recall is None, each.recall or 0.0, each.label)
    )
    shown = classes[:_MOST_IN_TABLE]
    for each in sorted(shown, key=lambda each: each.label):
        row = scores.confusion[each.label]
        hits, predicted = row[each.label], sum(line[each.label] for line in scores.confusion)
        taken = max((count, -label) for label, count in enumerate(row) if label != each.label)
        rows.append(
            (
                str(each.label),
                f"{each.support:,}",
                *_share(hits, each.support),
                *_share(hits, predicted),
                "-" if each.f1 is None else f"{100 * each.f1:.2f}",
                f"{-taken[1]} ({taken[0]:,})" if taken[0] else "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column not in {3, 5, 7} else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if len(shown) < len(classes):
        lines.append(f"the {len(shown)} of {len(classes):,} classes with the lowest recall")
    return "\n".join(lines)


def _share(hits: int, of: int) -> tuple[str, str]:
    """Return a share in percent, and its interval."""
    if not of:
        return "-", ""
    low, high = wilson_interval(hits, of)
    return f"{100 * hits / of:.2f}", f"{100 * low:.2f} to {100 * high:.2f}"
