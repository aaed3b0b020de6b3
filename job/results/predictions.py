"""What a published model said of every test image <-> one file beside its weights.

So reports, comparisons and whoever else looks need neither TensorFlow nor another evaluation. The
logits are kept as the model gave them: all that `metrics.json` says of the test set follows from
them, to the bit.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from job import storage
from job.errors import DataError
from job.results import publishing
from job.results.publishing import RunFolder
from job.results.scores import log_softmax
from job.storage import Place

MAX_BYTES = 1024 * storage.MEBIBYTE


@dataclass(frozen=True)
class Predictions:
    """What a model said of a labelled test set."""

    logits: npt.NDArray[np.float32]
    """Shape (examples, classes)."""
    labels: npt.NDArray[np.int32]
    """What the images are, by the data set: shape (examples,)."""

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The class of each image with the largest logit, shape (examples,)."""
        largest: npt.NDArray[np.int64] = self.logits.argmax(axis=1)
        return largest

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """The probability of each class for each image, shape (examples, classes)."""
        return np.exp(log_softmax(self.logits.astype(np.float64)))

    def to_bytes(self) -> bytes:
        """Return the file; the same predictions are the same bytes."""
        return safetensors.save({"logits": self.logits, "labels": self.labels})

    @classmethod
    def read(cls, folder: RunFolder) -> "Predictions":
        """Return the published predictions of a run, checked against its metrics.

        Raises:
            MissingInputError: the run published none, as older code did not yet.
            DataError: the file is damaged.
        """
        return cls.at(folder.predictions)

    @classmethod
    def at(cls, place: Place) -> "Predictions":
        """Return the predictions in the file at `place`, as `read` does."""
        return cls.from_bytes(publishing.read_artifact(place, MAX_BYTES)[0], str(place))

    @classmethod
    def from_bytes(cls, content: bytes, uri: str) -> "Predictions":
        """Return the predictions in a file that lies at `uri`.

        Raises:
            DataError: it holds none.
        """
        try:
            arrays = safetensors.load(content)
            found = cls(arrays["logits"], arrays["labels"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise DataError(
                f"{uri} holds no predictions ({str(error)[:80]}): train it again"
            ) from error
        if (
            found.logits.ndim != 2
            or found.logits.dtype != np.float32
            or found.labels.dtype != np.int32
            or found.labels.shape != found.logits.shape[:1]
        ):
            raise DataError(
                f"{uri} holds logits of shape {found.logits.shape} for labels of shape "
                f"{found.labels.shape}: train it again"
            )
        classes = found.logits.shape[1]
        if not (len(found.labels) and found.labels.min() >= 0 and found.labels.max() < classes):
            raise DataError(
                f"{uri} holds {len(found.labels):,} labels that are not all of its {classes:,} "
                "classes: train it again"
            )
        if not np.isfinite(found.logits).all():
            raise DataError(f"{uri} holds logits that are not finite numbers: train it again")
        return found
