"""Published weights -> the scores of a data set, or predictions for single images."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from job import __version__, storage
from job.config import MOST_MEMBERS, DataSource, ModelName, RunConfig, parse_data
from job.data import shards, source
from job.errors import ConflictError, DataError, UsageError
from job.pictures import gallery, handwriting
from job.process import runtime
from job.process.progress import Progress
from job.results import publishing
from job.results.metrics import model_facts
from job.results.scores import Scores, log_softmax
from job.results.scores import score as scored
from job.storage import Place
from job.workers.cluster import Cluster

if TYPE_CHECKING:
    import keras

SCHEMA_VERSION = 1
REPORT = "evaluation.json"


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one image."""

    image: int | Place
    """Index in the test set, or where a person's own picture lies."""
    predicted: int
    confidence: float
    """Probability given to the predicted class."""
    true: int | None
    """Label in the data set; None for a person's own picture."""

    @property
    def caption(self) -> str:
        """What is written below the image: its label, or the name of a person's own picture."""
        return f"true {self.true}" if isinstance(self.image, int) else self.image.name


@dataclass(frozen=True)
class Published:
    """A weights file, and what scoring it takes: what its run says, unless told otherwise."""

    place: Place
    content: bytes
    model_name: str
    members: int
    """Nets whose probabilities are averaged; 1 for a model that is no ensemble."""
    dataset: source.Dataset

    @classmethod
    def open(
        cls, weights: Place, data: Place | None, model_name: str | None, progress: Progress
    ) -> "Published":
        """Read the weights and the data set to use them on.

        Args:
            weights: a weights file, or the folder of a run.
            data: None for the data set of the weights' run, or MNIST where no run is known.
            model_name: None for the architecture of the run, or the reference one.
            progress: told if the data are not those of the run.

        Raises:
            JobError: weights or data are missing or bad.
        """
        place = publishing.weights_of(weights)
        content, metrics = publishing.read_artifact(place, publishing.MAX_WEIGHTS_BYTES)
        if model_name is None:
            model_name = _said(metrics, "config", "model") or RunConfig.model
        if model_name not in get_args(ModelName):
            raise DataError(
                f"the run of {place} trained the model {model_name[:80]!r}, which this version of "
                f"the job doesn't have: give --model ({', '.join(get_args(ModelName))})"
            )
        dataset = source.load(_source(metrics, data))
        if _said(metrics, "data", "fingerprint") not in {None, dataset.fingerprint}:
            progress.event("other_data", weights=str(place), data=dataset.uri)
        return cls(place, content, model_name, members_of(metrics), dataset)

    def model(self) -> "keras.Model":
        """Return the model for the data set's images, with these weights.

        Raises:
            DataError: the weights don't fit it.
        """
        shape, classes = self.dataset.image_shape, self.dataset.classes
        return rebuilt(self.content, str(self.place), self.model_name, self.members, shape, classes)


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


def _source(metrics: dict[str, Any], data: Place | None) -> DataSource:
    """Return what names the data to use: those of the run of `metrics`, unless `data` does.

    The base of a run's shards goes with them, whoever names the folder; the files that it took are
    asked for only where nobody does.
    """
    of_run, base = _said(metrics, "config", "data"), _said(metrics, "config", "base")
    if data is not None and str(data) != of_run:
        return DataSource(data)
    return DataSource(
        data or parse_data(of_run or RunConfig.data),
        None if base is None else parse_data(base, "--base"),
        None if data else shards.recorded(metrics.get("data")),
    )


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
    model = published.model()
    from job.results import evaluation  # noqa: PLC0415

    dataset = published.dataset
    scores = scored(evaluation.predict_logits(model, dataset.x_test), dataset.y_test)
    return scores, {
        "schema_version": SCHEMA_VERSION,
        "evaluated": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "job_version": __version__,
        "git_commit": runtime.git_commit(os.environ),
        "weights": asdict(publishing.describe(str(published.place), published.content)),
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


def predict_test_images(
    published: Published, start: int, count: int
) -> tuple[list[Prediction], npt.NDArray[np.uint8]]:
    """Predict `count` images of the test set, from index `start` (from 0) on.

    Returns:
        A prediction for each image, and the images: uint8, (count, *image_shape).

    Raises:
        UsageError: the test set does not reach that far.
        DataError: weights and data don't fit each other.
    """
    dataset = published.dataset
    available = len(dataset.x_test)
    if start + count > available:
        raise UsageError(
            f"--start {start:,} and --num-images {count:,} reach beyond the {available:,} test "
            f"images of {dataset.uri}: give at most {max(0, available - start):,} images"
        )
    images = dataset.x_test[start : start + count]
    labels = dataset.y_test[start : start + count]
    indices = range(start, start + count)
    return _predict(published.model(), images, indices, [int(label) for label in labels]), images


def predict_pictures(
    published: Published, pictures: Sequence[Place]
) -> tuple[list[Prediction], npt.NDArray[np.uint8]]:
    """Predict a person's own pictures, brought to the form of the data set's images.

    Returns:
        A prediction for each picture, and the images the model saw: uint8, (pictures,
        *image_shape).

    Raises:
        JobError: a picture is missing or bad, or weights and data don't fit each other.
    """
    shape = published.dataset.image_shape
    images = np.stack([handwriting.read_picture(place, shape) for place in pictures])
    return _predict(published.model(), images, pictures, [None] * len(images)), images


def _predict(
    model: "keras.Model",
    images: npt.NDArray[np.uint8],
    origins: Sequence[int | Place],
    labels: Sequence[int | None],
) -> list[Prediction]:
    from job.results import evaluation  # noqa: PLC0415

    probabilities = np.exp(log_softmax(evaluation.predict_logits(model, images)))
    return [
        Prediction(origin, int(row.argmax()), float(row.max()), label)
        for origin, row, label in zip(origins, probabilities, labels, strict=True)
    ]


def summary(scores: Scores) -> str:
    """Return what a person wants to know first of `scores`, in two lines."""
    low, high = scores.accuracy_interval_95
    return (
        f"test accuracy: {scores.accuracy:.4f}  ({scores.correct:,} of {scores.examples:,}; 95 % "
        f"interval {low:.4f} to {high:.4f})\ntest loss: {scores.loss:.4f}"
    )


def table(predictions: Sequence[Prediction]) -> str:
    """Return predictions as a table for a person, a line each; a wrong one is marked."""
    width = max(5, *(len(str(prediction.image)) for prediction in predictions))
    lines = [f"{'image':>{width}}  predicted  confidence  true"]
    for prediction in predictions:
        true = "-" if prediction.true is None else str(prediction.true)
        mark = "" if _is_right(prediction) is not False else "   <- wrong"
        lines.append(
            f"{prediction.image!s:>{width}}  {prediction.predicted:>9}  "
            f"{prediction.confidence:>9.1%}   {true:>4}{mark}"
        )
    return "\n".join(lines)


def write_gallery(
    place: Place, predictions: Sequence[Prediction], images: npt.NDArray[np.uint8]
) -> None:
    """Draw each image with its prediction into a new PNG at `place`.

    Raises:
        UsageError: more images than a gallery holds.
        ConflictError: there is another file.
        OutputError: it can't be written.
    """
    captions = [
        (f"{prediction.predicted}  {prediction.confidence:.1%}", prediction.caption)
        for prediction in predictions
    ]
    right = [_is_right(prediction) for prediction in predictions]
    storage.create(place, gallery.draw_gallery(images, captions, right))


def _is_right(prediction: Prediction) -> bool | None:
    return None if prediction.true is None else prediction.predicted == prediction.true
