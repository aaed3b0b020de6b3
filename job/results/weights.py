"""A model's weights <-> the bytes of a file that others can open.

`model_weights.h5` has Keras' HDF5 layout of old, which plain `keras.Model.load_weights` reads in
Keras 3 and in tf_keras; `model.keras` is Keras 3's own archive. Both are the same bytes for the
same weights, whenever and wherever they are made, so that two pods of one run can't disagree.

Reading takes numbers only: no code, no configuration and no other file is followed from inside.
"""

import contextlib
import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras
import numpy as np
import numpy.typing as npt

from job.errors import DataError

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
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
    arrays = read_hdf5(data, uri)
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


def read_hdf5(data: bytes, uri: str) -> list[npt.NDArray[np.float32]]:
    """Return the weights in an HDF5 file, layer by layer, each as float32.

    Raises:
        DataError: not HDF5, not the layout of Keras, or values that are not finite.
    """
    if not data.startswith(HDF5_SIGNATURE):
        raise DataError(
            f"{uri} is not an HDF5 file (it begins with {data[:8]!r}): give the model_weights.h5 "
            "of a run"
        )
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            return [_numbers(dataset, len(data), uri) for dataset in _datasets(file, uri)]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise DataError(
            f"{uri} is damaged or incomplete ({str(error)[:120]}): fetch or train it again"
        ) from error


def _datasets(file: h5py.File, uri: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield each weight's name and HDF5 data set, in the order that the layers were saved in."""
    root = file.get("model_weights", file)
    if "layer_names" not in root.attrs:
        raise DataError(
            f"{uri} is HDF5 but not in the layout of model_weights.h5 (no attribute layer_names); "
            "if Keras 3 saved it as .weights.h5, save it as model_weights.h5 with model.save"
        )
    for layer in _names(root.attrs["layer_names"]):
        group = _inside(root, layer, uri)
        for weight in _names(group.attrs["weight_names"]):
            yield weight, _inside(group, weight, uri)


def _names(attribute: npt.NDArray[np.object_]) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in attribute]


def _inside(group: h5py.Group, name: str, uri: str) -> h5py.Group | h5py.Dataset:
    """Return the member `name`, a path of groups, provided that it lies in this very file."""
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise DataError(f"{uri}: {name} is a link out of the file, which is not followed")
        group = group[part]
    return group


def _numbers(named: tuple[str, h5py.Dataset], file_bytes: int, uri: str) -> npt.NDArray[np.float32]:
    """Return a weight's values, their size checked before any memory is taken for them."""
    name, dataset = named
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise DataError(f"{uri}: {name} does not hold its values in the file itself")
    if dataset.dtype.kind != "f":
        raise DataError(f"{uri}: {name} has the type {dataset.dtype}, not floating-point numbers")
    if dataset.chunks is not None or dataset.nbytes > file_bytes:
        # Keras writes weights plain; a compressed one could inflate without bound.
        raise DataError(f"{uri}: {name} is not stored plain within the file, as Keras would do it")
    values = dataset[()].astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{uri}: {name} holds values that are not finite numbers: train it again")
    return np.asarray(values)


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
