"""A model's weights <-> the bytes of a file that others can open.

`model_weights.h5` has Keras' HDF5 layout of old, which plain `keras.Model.load_weights` reads in
Keras 3 and in tf_keras; `model.keras` is Keras 3's own archive. Both are the same bytes for the
same weights, whenever and wherever they are made, so that two pods of one run can't disagree.
"""

import contextlib
import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras

from job.errors import DataError
from job.results import hdf5

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold


def to_hdf5(model: keras.Model) -> bytes:
    """Return `model` as the bytes of an HDF5 file that `load_weights` opens."""
    with _scratch("model_weights.h5") as path:
        # Keras calls the format legacy; it is the one that every Keras opens by this name.
        with warnings.catch_warnings(action="ignore"), _quiet_absl():
            model.save(path, include_optimizer=False)
        return path.read_bytes()


def to_keras_archive(model: keras.Model) -> bytes:
    """Return `model` as the bytes of a `.keras` archive, less the dates Keras puts into it."""
    with _scratch("model.keras") as path:
        model.save(path, include_optimizer=False)
        saved = path.read_bytes()
    undated = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as source, zipfile.ZipFile(undated, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "metadata.json":
                metadata = json.loads(content)
                metadata.pop("date_saved", None)
                content = json.dumps(metadata, sort_keys=True).encode()
            target.writestr(zipfile.ZipInfo(name, _ZIP_EPOCH), content)
    return undated.getvalue()


def load_hdf5(model: keras.Model, data: bytes, uri: str) -> None:
    """Put the weights in the HDF5 file `data` into `model`, in the order of its layers.

    Files of `model.save` and of `model.save_weights` in that layout are understood, the original
    project's among them.

    Args:
        model: any model with the same shapes of weights in the same order.
        data: the file's bytes.
        uri: where they came from, for messages.

    Raises:
        DataError: not HDF5, not that layout, other shapes, or values that are not finite.
    """
    arrays = hdf5.read(data, uri)
    wanted = [tuple(weight.shape) for weight in model.weights]
    found = [array.shape for array in arrays]
    if found != wanted:
        members = len(found) // len(wanted)
        if members > 1 and sorted(found) == sorted(wanted * members):
            raise DataError(
                f"{uri} holds an ensemble of {members} models {model.name!r}: score it by the "
                "folder of its run, whose metrics.json says so; begin a training with one of its "
                "members"
            )
        raise DataError(
            f"{uri} holds weights of shapes {_shapes(found)}, but the model {model.name!r} for "
            f"this data has {_shapes(wanted)}: give the weights, --model and --data of one run"
        )
    model.set_weights(arrays)


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    shown = ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes[:12])
    return shown + (", ..." if len(shapes) > 12 else "") if shapes else "(none)"


@contextlib.contextmanager
def _scratch(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mnist-job-") as folder:
        yield Path(folder) / name


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    from absl import logging  # noqa: PLC0415

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
