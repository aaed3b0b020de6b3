"""Published weights -> the scores of a data set, or predictions for single images."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from job import __version__, storage
from job.data import source
from job.errors import UsageError
from job.pictures import gallery, handwriting
from job.process import runtime
from job.results import publishing
from job.storage import uris
from job.workers.cluster import Cluster

if TYPE_CHECKING:
    import keras

    from job.results.evaluation import Scores

SCHEMA_VERSION = 1
MAX_WEIGHTS_BYTES = 1024 * storage.MEBIBYTE
REPORT = "evaluation.json"


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one image."""

    image: str
    """Index in the test set, or where the picture lies."""
    predicted: int
    confidence: float
    """Probability given to the predicted class."""
    true: int | None
    """Label in the data set; None for a person's own picture."""


def score(weights_uri: str, data_uri: str, model_name: str) -> tuple["Scores", dict[str, Any]]:
    """Score published weights on all test images of a data set.

    Returns:
        The scores, and the whole evaluation as `job/assets/evaluation.schema.json` describes it.

    Raises:
        JobError: weights or data are missing, bad, or don't fit each other.
    """
    dataset = source.load(data_uri)
    weights_uri, content = _read_weights(weights_uri)
    model = _model(content, weights_uri, model_name, dataset)
    from job.results import evaluation  # noqa: PLC0415

    scores = evaluation.evaluate(model, dataset.x_test, dataset.y_test)
    return scores, {
        "schema_version": SCHEMA_VERSION,
        "evaluated": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "job_version": __version__,
        "git_commit": runtime.git_commit(os.environ),
        "weights": asdict(publishing.describe(weights_uri, content)),
        "model": {"name": model_name, "parameters": model.count_params()},
        "data": dataset.facts(),
        "test": asdict(scores),
    }


def write_report(output: str, report: dict[str, Any]) -> str:
    """Write an evaluation to `output`, a URI that ends in .json or a folder; return its URI.

    Raises:
        ConflictError: there is another one.
        OutputError: it can't be written.
    """
    uri = output if output.endswith(".json") else uris.join(output, REPORT)
    storage.create(uri, publishing.to_json(report))
    return uri


def predict_test_images(
    weights_uri: str, data_uri: str, model_name: str, start: int, count: int
) -> tuple[list[Prediction], npt.NDArray[np.uint8]]:
    """Predict `count` images of the test set, from index `start` (from 0) on.

    Returns:
        A prediction for each image, and the images: uint8, (count, *image_shape).

    Raises:
        UsageError: the test set does not reach that far.
        JobError: weights or data are missing, bad, or don't fit each other.
    """
    dataset = source.load(data_uri)
    available = len(dataset.x_test)
    if start + count > available:
        raise UsageError(
            f"--start {start:,} and --num-images {count:,} reach beyond the {available:,} test "
            f"images of {data_uri}: give at most {max(0, available - start):,} images"
        )
    weights_uri, content = _read_weights(weights_uri)
    images = dataset.x_test[start : start + count]
    labels = dataset.y_test[start : start + count]
    names = [str(index) for index in range(start, start + count)]
    model = _model(content, weights_uri, model_name, dataset)
    return _predict(model, images, names, [int(label) for label in labels]), images


def predict_pictures(
    weights_uri: str, data_uri: str, model_name: str, pictures_uris: Sequence[str]
) -> tuple[list[Prediction], npt.NDArray[np.uint8]]:
    """Predict a person's own pictures, brought to the form of the data set's images.

    Returns:
        A prediction for each picture, and the images the model saw: uint8, (pictures,
        *image_shape).

    Raises:
        JobError: a picture, the weights or the data are missing, bad, or don't fit each other.
    """
    dataset = source.load(data_uri)
    images = np.stack([handwriting.read_picture(uri, dataset.image_shape) for uri in pictures_uris])
    weights_uri, content = _read_weights(weights_uri)
    model = _model(content, weights_uri, model_name, dataset)
    return _predict(model, images, list(pictures_uris), [None] * len(images)), images


def _read_weights(uri: str) -> tuple[str, bytes]:
    uri = publishing.weights_uri(uri)
    return uri, publishing.read_artifact(uri, MAX_WEIGHTS_BYTES)


def _model(content: bytes, uri: str, name: str, dataset: source.Dataset) -> "keras.Model":
    """Return the named model for the data set's images, with the weights in `content`."""
    runtime.prepare_tensorflow()
    place = Cluster.from_environment(os.environ, together=False)
    runtime.limit_threads(runtime.available_cores(container_limit=place.cpu_limit))
    runtime.import_tensorflow()
    from job.results import weights  # noqa: PLC0415
    from job.training import model  # noqa: PLC0415

    net = model.build(name, dataset.image_shape, dataset.classes)
    weights.load_hdf5(net, content, uri)
    return net


def _predict(
    model: "keras.Model",
    images: npt.NDArray[np.uint8],
    names: Sequence[str],
    labels: Sequence[int | None],
) -> list[Prediction]:
    from job.results import evaluation  # noqa: PLC0415

    probabilities = np.exp(evaluation.log_softmax(evaluation.predict_logits(model, images)))
    return [
        Prediction(name, int(row.argmax()), float(row.max()), label)
        for name, row, label in zip(names, probabilities, labels, strict=True)
    ]


def summary(scores: "Scores") -> str:
    """Return what a person wants to know first of `scores`, in two lines."""
    low, high = scores.accuracy_interval_95
    return (
        f"test accuracy: {scores.accuracy:.4f}  ({scores.correct:,} of {scores.examples:,}; 95 % "
        f"interval {low:.4f} to {high:.4f})\ntest loss: {scores.loss:.4f}"
    )


def table(predictions: Sequence[Prediction]) -> str:
    """Return predictions as a table for a person, a line each; a wrong one is marked."""
    width = max(5, *(len(prediction.image) for prediction in predictions))
    lines = [f"{'image':>{width}}  predicted  confidence  true"]
    for prediction in predictions:
        true = "-" if prediction.true is None else str(prediction.true)
        mark = "" if _is_right(prediction) is not False else "   <- wrong"
        lines.append(
            f"{prediction.image:>{width}}  {prediction.predicted:>9}  {prediction.confidence:>9.1%}"
            f"   {true:>4}{mark}"
        )
    return "\n".join(lines)


def write_gallery(
    uri: str, predictions: Sequence[Prediction], images: npt.NDArray[np.uint8]
) -> None:
    """Draw each image with its prediction into a new PNG at `uri`.

    Raises:
        UsageError: more images than a gallery holds.
        ConflictError: there is another file.
        OutputError: it can't be written.
    """
    captions = [
        (
            f"{prediction.predicted}  {prediction.confidence:.1%}",
            "" if prediction.true is None else f"true {prediction.true}",
        )
        for prediction in predictions
    ]
    right = [_is_right(prediction) for prediction in predictions]
    storage.create(uri, gallery.draw_gallery(images, captions, right))


def _is_right(prediction: Prediction) -> bool | None:
    return None if prediction.true is None else prediction.predicted == prediction.true
