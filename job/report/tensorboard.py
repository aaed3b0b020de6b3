"""Event files of a training, for TensorBoard: `--tensorboard`.

    <run>/tensorboard/<attempt>-<step>.tfevents    what the epochs gave since the file before
    <run>/tensorboard/scores.tfevents              the end: confusion, mistakes, hyperparameters

A new file comes with a checkpoint, after it, and none ever grows: stores can't append, and sending
a growing file again and again costs more each time. The names of the files that are there tell up
to which step all is said; so a training that goes on, from whichever checkpoint, says every step
once, and an attempt that was killed between the two leaves its points to the next.

TensorBoard reads whatever has `tfevents` in its name, a folder's files in the order of their names.
"""

import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from job import storage
from job.errors import ClusterError, ConflictError, StoppedError
from job.process import runtime
from job.process.progress import Progress
from job.results.predictions import Predictions
from job.results.publishing import RunFolder
from job.storage import Place
from job.training.checkpoint import State

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

SCORES = "scores.tfevents"  # after all others, whose names begin with a digit
MOST_MISTAKES = 30  # that are shown: three rows
_NAME = re.compile(r"[0-9]{4}-([0-9]{10})\.tfevents")
# Of each epoch: the tag, and the name in its record.
TAGS = {
    "train/loss": "loss",
    "train/accuracy": "accuracy",
    "validation/loss": "validation_loss",
    "validation/accuracy": "validation_accuracy",
    "train/learning_rate": "learning_rate",
    "train/images_per_second": "images_per_second",
}


def load() -> None:
    """Import what writes event files, before anything is computed: not while a training waits.

    Raises:
        ClusterError: it isn't installed.
    """
    try:
        # Of what it looks for only to see whether it is there, Google's storage alone takes a
        # second.
        with runtime.without("boto3", "comet_ml", "google.cloud.storage", "torch"):
            import tensorboardX  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise ClusterError(
            "--tensorboard needs tensorboardX, which is not installed: install "
            "mnist-job[cpu,tensorboard], or leave the flag out"
        ) from error


class Board:
    """The event files of one attempt at a run."""

    def __init__(
        self, folder: RunFolder, attempt: int, steps_per_epoch: int, progress: Progress
    ) -> None:
        """Write below `folder`, as `attempt`, counted from 1."""
        self._folder = folder.events
        self._attempt = attempt
        self._steps_per_epoch = steps_per_epoch
        self._progress = progress
        self._told = False

    def add(self, state: State) -> None:
        """Write what the epochs of `state`, which is saved, gave that no file says yet.

        It never fails: what can't be written now comes with the next checkpoint.
        """
        try:
            said = max((int(found[1]) for found in self._there()), default=0)
            epochs = [epoch for epoch in state.history if self._step(epoch) > said]
            if epochs:
                name = f"{self._attempt:04}-{self._step(epochs[-1]):010}.tfevents"
                content = in_a_file(self._points(epochs, state))
                storage.create(self._folder / name, content)
        except Exception as error:  # noqa: BLE001  the training is worth more than its curves
            if not self._told:
                self._told = True
                tell(self._progress, self._folder, error)

    def _there(self) -> Iterator[re.Match[str]]:
        return (found for found in map(_NAME.fullmatch, storage.names(self._folder)) if found)

    def _step(self, epoch: Mapping[str, Any]) -> int:
        """Return the optimizer steps that were done when `epoch` was over."""
        return int(epoch["epoch"]) * self._steps_per_epoch

    def _points(self, epochs: Sequence[dict[str, Any]], state: State) -> "Iterator[Event]":
        """Yield a point for each value of each epoch, with the time that it was measured at."""
        from tensorboardX import summary  # noqa: PLC0415
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

        after = sum(epoch["seconds"] for epoch in epochs) + state.epoch_seconds
        at = time.time() - after
        for epoch in epochs:
            at += epoch["seconds"]
            for tag, name in TAGS.items():
                if name in epoch:
                    point = summary.scalar(tag, epoch[name])
                    yield Event(wall_time=at, step=self._step(epoch), summary=point)


def add_scores(
    folder: RunFolder,
    document: Mapping[str, Any],
    images: NDArray[np.uint8],
    progress: Progress,
) -> None:
    """Write how the complete run did, once: scores, confusion, mistakes, hyperparameters.

    It never fails.

    Args:
        folder: of the run.
        document: its metrics.
        images: of the test set, uint8, shape (examples, *image_shape).
        progress: told of a failure.

    Raises:
        StoppedError: the job was asked to stop meanwhile.
    """
    try:
        if not storage.exists(folder.events / SCORES):
            predictions = Predictions.read(folder)
            content = in_a_file(_of_the_end(document, predictions, images))
            storage.create(folder.events / SCORES, content)
    except StoppedError:
        raise
    except ConflictError:
        pass  # a twin has told the same, at another time
    except Exception as error:  # noqa: BLE001  published is published
        tell(progress, folder.events / SCORES, error)


def tell(progress: Progress, place: Place, error: Exception) -> None:
    """Warn that no event file could be written at `place`."""
    progress.event("events_not_written", uri=str(place), reason=str(error) or repr(error))


def in_a_file(events: "Iterator[Event]") -> bytes:
    """Return an event file with `events`, as TensorBoard reads it."""
    from tensorboardX import RecordWriter  # noqa: PLC0415
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="mnist-job-events-") as folder:
        path = Path(folder, "tfevents")
        writer = RecordWriter(str(path))
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for event in events:
            writer.write(event.SerializeToString())
        writer.close()
        return path.read_bytes()


def _of_the_end(
    document: Mapping[str, Any], predictions: Predictions, images: NDArray[np.uint8]
) -> "Iterator[Event]":
    from tensorboardX import summary  # noqa: PLC0415
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415
    from tensorboardX.proto.summary_pb2 import Summary  # noqa: PLC0415

    from job.report import summary_images  # noqa: PLC0415

    test, now = document["test"], time.time()
    scores = {"test/accuracy": test["accuracy"], "test/loss": test["loss"]}
    pictures = {
        "test/confusion": summary_images.confusion(test["confusion"]),
        "test/mistakes": summary_images.mistakes(predictions, images, MOST_MISTAKES),
    }
    hparams = {name: _plain(value) for name, value in document["config"].items()}
    summaries = [
        *(summary.scalar(tag, value) for tag, value in scores.items()),
        *(
            Summary(value=[Summary.Value(tag=tag, image=_image(png, Summary.Image))])
            for tag, png in pictures.items()
            if png is not None
        ),
        *summary.hparams(hparams, scores),
    ]
    for each in summaries:
        yield Event(wall_time=now, step=document["train"]["steps"], summary=each)


def _image(png: bytes, kind: Any) -> Any:
    """Return a PNG in colours as a summary has it; its size lies behind sixteen bytes."""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return kind(height=height, width=width, colorspace=3, encoded_image_string=png)


def _plain(value: Any) -> Any:
    """Return a value in a type that TensorBoard's table of hyperparameters has."""
    return value if isinstance(value, bool | int | float | str) else str(value)
