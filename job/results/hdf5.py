"""The bytes of a weights file -> its numbers, without TensorFlow.

Reading takes numbers only: no code, no configuration and no other file is followed from inside.
"""

import io
import re
from collections.abc import Iterator

import h5py
import numpy as np
import numpy.typing as npt

from job.errors import DataError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Global heaps hold the texts: HDF5 File Format Specification 3.0, III.E. Sizes are in bytes.
_HEAP = re.compile(rb"GCOL\x01\0\0\0")
_HEAP_HEADER = _OBJECT_HEADER = 16


def read(data: bytes, uri: str) -> list[npt.NDArray[np.float32]]:
    """Return the weights in an HDF5 file, layer by layer, each as float32.

    Raises:
        DataError: not HDF5, not the layout of Keras, or values that are not finite.
    """
    if not data.startswith(_SIGNATURE):
        raise DataError(
            f"{uri} is not an HDF5 file (it begins with {data[:8]!r}): give the model_weights.h5 "
            "of a run"
        )
    _check_heaps(data, uri)
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            return [_numbers(dataset, len(data), uri) for dataset in _datasets(file, uri)]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise DataError(
            f"{uri} is damaged or incomplete ({str(error)[:120]}): fetch or train it again"
        ) from error


def _check_heaps(data: bytes, uri: str) -> None:
    """Refuse heaps whose objects don't add up: HDF5 1.14 reads one of size 0 for ever."""
    for heap in _HEAP.finditer(data):
        start = heap.start()
        end = start + int.from_bytes(data[start + 8 : start + _HEAP_HEADER], "little")
        at = start + _HEAP_HEADER
        while end - at >= _OBJECT_HEADER:
            number = int.from_bytes(data[at : at + 2], "little")  # 0: what is free
            size = int.from_bytes(data[at + 8 : at + _OBJECT_HEADER], "little")
            taken = size if number == 0 else _OBJECT_HEADER + -(-size // 8) * 8
            if not 0 < taken <= end - at or end > len(data):
                raise DataError(
                    f"{uri} is damaged at byte {at:,}, among its names: fetch or train it again"
                )
            at += taken


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
