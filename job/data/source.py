"""A data set: by URI to validated arrays and a fingerprint.

Everything about the numbers is checked once, here and in `examples`, so that no later module meets
a label without a class or a pixel that is no byte. Sizes are judged by what headers claim, before
anything inflates.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from job import storage
from job.config import EMBEDDED
from job.data import examples
from job.data.arrays import StoredArray, from_idx, from_npz
from job.data.examples import Images, Labels
from job.errors import DataError, MissingInputError
from job.storage import Place

EMBEDDED_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"

# The whole set lies in memory, then as uint8 on the device: 2 GiB is forty times MNIST and still
# leaves a small machine room to work. What compression cannot shrink is no larger as a file.
MAX_BYTES = 2048 * storage.MEBIBYTE  # of the four arrays together, uncompressed
# Training images beyond this stream through the devices; plain IDX files beyond it, which can be as
# large as the disk, are not read into memory either.
RESIDENT_BYTES = 1024 * storage.MEBIBYTE
MAX_FILE_BYTES = 2048 * storage.MEBIBYTE  # of one file, as read

ARRAY_NAMES = ("x_train", "y_train", "x_test", "y_test")
_IDX_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@dataclass(frozen=True, eq=False)  # comparing arrays gives arrays: compare fingerprints instead
class Dataset:
    """Labelled images to train on and to test with; all four arrays are read-only.

    Images are uint8, C-contiguous, of shape (N, height, width) or (N, height, width, channels),
    the same for training and test but for N. Labels are int32 of shape (N,), from 0. The
    fingerprint is a SHA-256 in hex of names, shapes and bytes of the four arrays: it does not
    depend on the format they came in.
    """

    uri: str
    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    fingerprint: str

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image: (height, width) or (height, width, channels), in pixels."""
        return self.x_train.shape[1:]

    @property
    def classes(self) -> int:
        """Number of classes: the largest training label + 1."""
        return int(self.y_train.max()) + 1

    def facts(self) -> dict[str, Any]:
        """Describe the data set for a run's metrics and log, in types that JSON has."""
        return {
            "uri": self.uri,
            "fingerprint": self.fingerprint,
            "train_examples": len(self.x_train),
            "test_examples": len(self.x_test),
            "image_shape": list(self.image_shape),
            "classes": self.classes,
        }


def _say_nothing() -> None:
    pass


def load(place: Place, beat: Callable[[], None] = _say_nothing) -> Dataset:
    """Return the data set at `place`, checked.

    There lies the embedded copy, or an .npz file with the arrays x_train, y_train, x_test and
    y_test, or a folder with the four IDX files under the names MNIST gave them, each plain or .gz.
    `beat` is called after each file and each array, as a sign of life.

    Raises:
        DataError: it is damaged, or is not a data set this job can train on.
        MissingInputError: it, or a file in its folder, does not exist or may not be read.
        OutputError: the device failed while reading.
    """
    if place == EMBEDDED:  # by its name or its path: it is the same file
        stored = from_npz(str(place), _embedded(), ARRAY_NAMES)
    elif storage.is_folder(place):
        stored = _idx_files(place, beat)
    else:
        stored = from_npz(str(place), storage.read(place, MAX_FILE_BYTES), ARRAY_NAMES)
    x_train, y_train, x_test, y_test = stored
    examples.check_claims(x_train, y_train, x_test, y_test)
    _check_total(place, stored)
    beat()
    train = examples.pixels(x_train), examples.labels(y_train)
    beat()
    test = examples.pixels(x_test), examples.labels(y_test)
    beat()
    _check_classes(y_train, train[1], y_test, test[1])
    return Dataset(str(place), *train, *test, fingerprint=_fingerprint(*train, *test, beat=beat))


def _embedded() -> bytes:
    try:
        data = storage.read(EMBEDDED, MAX_FILE_BYTES)
    except MissingInputError as error:
        raise DataError(
            f"{EMBEDDED.path} is missing: the installation is damaged, reinstall"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != EMBEDDED_SHA256:
        raise DataError(
            f"{EMBEDDED.path} has the SHA-256 {found[:8]}..., not {EMBEDDED_SHA256[:8]}...: the "
            "installation is damaged, reinstall"
        )
    return data


def _idx_files(folder: Place, beat: Callable[[], None]) -> list[StoredArray]:
    stored: list[StoredArray] = []
    for array_name, stem in zip(ARRAY_NAMES, _IDX_FILES, strict=True):
        stored.append(_idx_file(folder, array_name, stem))
        _check_total(folder, stored)  # each time, since the files read so far stay in memory
        beat()
    return stored


def _idx_file(folder: Place, array_name: str, stem: str) -> StoredArray:
    # Some mirrors write a dot for the second dash.
    for name in (f"{stem}-ubyte", f"{stem.replace('-idx', '.idx')}-ubyte"):
        for place in (folder / name, folder / f"{name}.gz"):
            try:
                mapped = storage.mapped(place, RESIDENT_BYTES)
                data = storage.read(place, MAX_FILE_BYTES) if mapped is None else mapped
                return from_idx(str(place), array_name, data)
            except MissingInputError as error:
                # One that may not be read is worth a word; a subfolder of that name is not, since
                # some downloads unpack to one beside the file.
                if isinstance(error.__cause__, PermissionError):
                    raise
    raise MissingInputError(
        f"{folder} lacks {stem}-ubyte, plain or .gz: a data set's folder holds four IDX files; for "
        "an .npz give its own path"
    )


def _check_total(place: Place, stored: list[StoredArray]) -> None:
    size_bytes = sum(array.size_bytes for array in stored if not array.mapped)
    if size_bytes > MAX_BYTES:
        raise DataError(
            f"{place} claims {size_bytes // storage.MEBIBYTE} MiB of arrays: this job takes "
            f"{MAX_BYTES // storage.MEBIBYTE} MiB at most, give fewer or smaller images"
        )


def _check_classes(train: StoredArray, y_train: Labels, test: StoredArray, y_test: Labels) -> None:
    largest = int(y_train.max())
    if y_train.min() == largest:
        raise DataError(
            f"{train} has only one class, the label {largest}: give examples of two or more"
        )
    if y_test.max() > largest:
        index, value = examples.first(y_test, y_test > largest)
        raise DataError(
            f"{test.name}[{index}] in {test.uri} is {value}, but the largest training label is "
            f"{largest}: test only classes that were trained"
        )


def _fingerprint(*arrays: NDArray[Any], beat: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    for name, array in zip(ARRAY_NAMES, arrays, strict=True):
        digest.update(f"{name} {array.shape}\n".encode())
        # Little-endian whatever the machine, so that the fingerprint is the same everywhere.
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
        beat()
    return digest.hexdigest()
