"""Weights files: ours open elsewhere, others open here, bad ones are refused in one line."""

import contextlib
import io
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.errors import DataError
from job.results import hdf5, weights
from job.training import model


@pytest.fixture(scope="module")
def net() -> keras.Model:
    return model.build("mlp", (28, 28), 10, seed=7)


@pytest.fixture(scope="module")
def saved(net) -> bytes:
    return weights.to_hdf5(model.with_probabilities(model.in_float32(net)))


def edited(data: bytes, edit) -> bytes:
    """Return the HDF5 file `data` after `edit` has had its way with it."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        edit(file["model_weights"])
    return buffer.getvalue()


def test_round_trip(net, saved):
    other = model.build("mlp", (28, 28), 10, seed=8)
    weights.load_hdf5(other, saved, "x")
    for mine, theirs in zip(net.get_weights(), other.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)


def test_same_weights_are_the_same_bytes(net, saved):
    assert weights.to_hdf5(model.with_probabilities(model.in_float32(net))) == saved
    archives = {
        weights.to_keras_archive(model.with_probabilities(model.in_float32(net))) for _ in range(2)
    }
    assert len(archives) == 1
    with zipfile.ZipFile(io.BytesIO(archives.pop())) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize("whole", [True, False])
def test_files_of_the_original_project_load(net, tmp_path, library, whole):
    """It saved them with `save_weights` under the Keras of its day, or with `save`."""
    if library == "tf_keras":
        import tf_keras as library
    else:
        library = keras
    original = library.Sequential(
        [
            library.layers.Input((784,)),
            library.layers.Dense(128, activation="relu"),
            library.layers.Dense(64, activation="relu"),
            library.layers.Dense(10, activation="softmax"),
        ]
    )
    path = tmp_path / "model_weights.h5"
    if whole:
        original.save(path)
    elif library is keras:
        with pytest.raises(ValueError, match=r"weights\.h5"):  # Keras 3 refuses this very name
            original.save_weights(path)
        return
    else:
        original.save_weights(path)
    weights.load_hdf5(net := model.build("mlp", (28, 28), 10), path.read_bytes(), "x")
    for mine, theirs in zip(net.get_weights(), original.get_weights(), strict=True):
        assert np.array_equal(mine, theirs)


def with_nan(root):
    root["hidden_1/hidden_1/bias"][3] = np.nan


def with_integers(root):
    del root["logits/logits/bias"]
    root["logits/logits"]["bias"] = np.zeros(10, np.int32)


def with_external_link(root):
    del root["logits/logits/bias"]
    root["logits/logits"]["bias"] = h5py.ExternalLink("/etc/passwd", "/bias")


def with_soft_link(root):
    del root["logits/logits/bias"]
    root["logits/logits"]["bias"] = h5py.SoftLink("/elsewhere")


def with_external_storage(root):
    del root["logits/logits/bias"]
    root["logits/logits"].create_dataset("bias", (10,), "f4", external="/etc/passwd")


def with_bomb(root):
    del root["logits/logits/bias"]
    root["logits/logits"].create_dataset(
        "bias", (10_000, 10_000, 10_000), "f4", chunks=(100, 100, 100), compression="gzip"
    )


def with_group_for_weight(root):
    del root["logits/logits/bias"]
    root["logits/logits"].create_group("bias")


def with_weight_missing(root):
    del root["logits/logits/bias"]


def with_layer_missing(root):
    del root["hidden_2"]


def without_names(root):
    del root.attrs["layer_names"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (with_nan, "not finite"),
        (with_integers, "int32"),
        (with_external_link, "link"),
        (with_soft_link, "link"),
        (with_external_storage, "in the file itself"),
        (with_bomb, "not stored plain"),
        (with_group_for_weight, "does not hold its values"),
        (with_weight_missing, "bias"),
        (with_layer_missing, "hidden_2"),
        (without_names, "layer_names"),
    ],
)
def test_bad_content_is_refused(net, saved, edit, words):
    with pytest.raises(DataError, match=r"runs/x\.h5") as caught:
        weights.load_hdf5(net, edited(saved, edit), "runs/x.h5")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"<!DOCTYPE html>", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"]
)
def test_what_is_not_hdf5_is_refused(net, data):
    with pytest.raises(DataError, match=r"not an HDF5 file|damaged"):
        weights.load_hdf5(net, data, "x")


@pytest.mark.parametrize(("shape", "classes"), [((28, 28), 26), ((32, 32), 10), ((28, 28, 3), 10)])
def test_weights_of_another_shape_are_refused(saved, shape, classes):
    with pytest.raises(DataError, match="784x128"):
        weights.load_hdf5(model.build("mlp", shape, classes), saved, "x")


def test_weights_in_keras_3_own_layout_are_explained(net, tmp_path):
    path = tmp_path / "x.weights.h5"
    net.save_weights(path)
    with pytest.raises(DataError, match=r"\.weights\.h5"):
        hdf5.read(path.read_bytes(), "x")


def test_names_that_were_zeroed_are_not_looked_for_for_ever(saved):
    """A block of zeros, as a torn disk leaves it: HDF5 itself would read on without an end."""
    for heap in re.finditer(rb"GCOL\x01", saved):
        for within in (16, 104, 2000):
            start = heap.start() + within
            damaged = saved[:start] + bytes(512) + saved[start + 512 :]
            with contextlib.suppress(DataError):  # free space may be zeroed
                hdf5.read(damaged, "x")
    heap = saved.index(b"GCOL\x01")
    with pytest.raises(DataError, match=f"damaged at byte {heap + 16:,}, among its names"):
        hdf5.read(saved[: heap + 16] + bytes(512) + saved[heap + 528 :], "x")


@given(
    position=st.floats(0, 1),
    length=st.integers(1, 4096),
    content=st.binary(max_size=64),
    truncate=st.booleans(),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_damaged_files_never_crash(saved, position, length, content, truncate):
    """HDF5 has no checksum, so damage to numbers alone may load: `metrics.json` sees that."""
    start = int(position * (len(saved) - 1))
    rest = b"" if truncate else saved[start + length :]
    damaged = saved[:start] + content.ljust(length, b"\0")[:length] + rest
    with contextlib.suppress(DataError):  # anything else that is raised fails the test
        arrays = hdf5.read(damaged, "x")
        assert all(np.isfinite(array).all() for array in arrays)
