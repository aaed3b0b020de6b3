"""What several models make of the same images: the one room of nights that computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from job import storage
from job.errors import ConflictError, DataError, MissingInputError
from job.nightly.champions import Model
from job.results import inference, publishing
from job.results.publishing import MAX_WEIGHTS_BYTES, RunFolder
from job.results.scores import log_softmax
from job.storage import Place

Classes = npt.NDArray[np.int64]
# Of a champion another takes the place; of an anchor the best that is there, whoever is promoted.
_REMEDY = "bring the file back, or promote by hand a run that is whole, the champion perhaps"


@dataclass(frozen=True)
class Contender:
    """A published model that takes part, checked against the digest that the log has of it."""

    model: Model
    folder: RunFolder
    weights: bytes
    metrics: dict[str, Any]

    @classmethod
    def of(cls, output: Place, model: Model) -> "Contender":
        """Read the files of `model`, whose run lies below `output`.

        Raises:
            DataError: its weights are not those that the log names.
            MissingInputError: they are gone.
        """
        folder = RunFolder(output / model.run)
        try:
            content, metrics = publishing.read_artifact(folder.weights, MAX_WEIGHTS_BYTES)
        except (MissingInputError, DataError) as error:
            raise type(error)(
                f"the log of champions names {model.run}: {error}; {_REMEDY}"
            ) from error
        found = publishing.describe("", content).sha256
        if found != model.weights_sha256:
            raise DataError(
                f"{folder.weights} has the sha256 {found[:12]}..., but the log of champions says "
                f"{model.weights_sha256[:12]}...; {_REMEDY}"
            )
        return cls(model, folder, content, metrics)

    def archive(self) -> bytes:
        """Return the model as a Keras archive."""
        return storage.read(self.folder.archive, MAX_WEIGHTS_BYTES)

    def serving(self) -> dict[str, bytes]:
        """Return the files for TensorFlow Serving, by their path; none where there are none.

        Raises:
            DataError: one is not what was published. It is a program, so nobody else's is run.
        """
        files = {}
        for artifact in self.metrics.get("artifacts", ()):
            path, place = artifact["path"], self.folder.place / artifact["path"]
            if not path.startswith(publishing.SERVING) or ".." in path:
                continue
            files[path] = storage.read(place, MAX_WEIGHTS_BYTES)
            if publishing.describe(path, files[path]).sha256 != artifact["sha256"]:
                raise DataError(
                    f"{place} is not the file that {publishing.METRICS} names: train it again"
                )
        return files

    def probabilities(
        self, images: npt.NDArray[np.uint8], beat: Callable[[], None] = lambda: None
    ) -> npt.NDArray[np.float64]:
        """Return what the model makes of `images`, uint8 (n, *image_shape): (n, classes).

        Calls `beat` after each batch, as a sign of life.

        Raises:
            ConflictError: it takes images of another shape.
        """
        data = self.metrics.get("data", {})
        shape, classes = tuple(data.get("image_shape", ())), data.get("classes")
        if shape != images.shape[1:] or not isinstance(classes, int):
            raise ConflictError(
                f"{self.folder.place} takes images of shape {shape}, and the data now have "
                f"{images.shape[1:]}: they can't be compared; give another --output"
            )
        members = inference.members_of(self.metrics)
        net = inference.rebuilt(
            self.weights,
            str(self.folder.weights),
            self.model.architecture,
            members,
            shape,
            classes,
        )
        from job.results import evaluation  # noqa: PLC0415  imports TensorFlow

        result: npt.NDArray[np.float64] = np.exp(
            log_softmax(evaluation.predict_logits(net, images, beat))
        )
        return result

    def classes(
        self, images: npt.NDArray[np.uint8], beat: Callable[[], None] = lambda: None
    ) -> Classes:
        """Return the most probable class of each image, shape (n,), as `probabilities` does."""
        result: Classes = self.probabilities(images, beat).argmax(axis=1)
        return result
