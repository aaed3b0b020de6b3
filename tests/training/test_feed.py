"""Examples reach the steps alike, whether they lie on the device or stream in shards."""

import functools
import gzip
import struct

import numpy as np
import pytest
from test_train import config, run

from job import storage
from job.config import DataSource
from job.data import files, source
from job.data.examples import ALIGNMENT_BYTES
from job.errors import DataError
from job.storage import parse
from job.training import feed


@pytest.fixture(scope="module")
def streamed():
    """Return a function that trains as `run` does, but once, for all that compare with it."""
    return functools.cache(run)


def stream(monkeypatch):
    """Make every data set too large to lie on the device, and a shard seven steps long."""
    monkeypatch.setattr(feed, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(feed, "SHARD_BYTES", 7 * 20 * 28 * 28)


@pytest.fixture
def streaming(monkeypatch):
    stream(monkeypatch)


@pytest.fixture(scope="module")
def few(mnist):
    return source.Dataset(
        "few",
        mnist.x_train[:490],
        mnist.y_train[:490],
        mnist.x_test[:9],
        mnist.y_test[:9],
        "0" * 64,
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_streaming_changes_no_bit(few, monkeypatch, streamed, model):
    settings = config(model=model, augment="shift")
    resident, resident_state, _ = run(few, settings)
    stream(monkeypatch)
    weights, streamed_state, _ = streamed(few, settings)
    for one, other in zip(resident, weights, strict=True):
        assert np.array_equal(one, other)
    for name, array in resident_state.arrays.items():
        assert np.array_equal(array, streamed_state.arrays[name]), name
    assert [epoch["loss"] for epoch in resident_state.history] == [
        epoch["loss"] for epoch in streamed_state.history
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("streaming")
def test_a_streaming_run_resumes_to_the_bit(few, streamed):
    settings = config(augment="shift")
    unbroken, _, _ = streamed(few, settings)
    for chunks in (1, 2, 4):
        _, stopped, _ = run(few, settings, stop_after=chunks)
        resumed, _, _ = run(few, settings, start=stopped)
        for one, other in zip(unbroken, resumed, strict=True):
            assert np.array_equal(one, other)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path, mnist):
    for stem, array in {
        "train-images-idx3": mnist.x_train[:300],
        "train-labels-idx1": mnist.y_train[:300].astype(np.uint8),
        "t10k-images-idx3": mnist.x_test[:50],
        "t10k-labels-idx1": mnist.y_test[:50].astype(np.uint8),
    }.items():
        (tmp_path / f"{stem}-ubyte").write_bytes(idx(array))
    return tmp_path


def test_a_large_idx_file_stays_on_disk(folder, monkeypatch):
    read = source.load(DataSource(parse(str(folder))))
    monkeypatch.setattr(files, "RESIDENT_BYTES", 1000)
    monkeypatch.setattr(source, "MAX_BYTES", 1000)  # of what is read into memory
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
    mapped = source.load(DataSource(parse(str(folder))))
    assert mapped.fingerprint == read.fingerprint
    assert np.array_equal(mapped.x_train, read.x_train)
    assert not mapped.x_train.flags.owndata
    assert not mapped.x_train.flags.writeable


@pytest.mark.parametrize("change", [-1, 1])
def test_a_large_idx_file_of_another_size_than_claimed_is_refused(folder, monkeypatch, change):
    monkeypatch.setattr(files, "RESIDENT_BYTES", 1000)
    path = folder / "train-images-idx3-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:-1] if change < 0 else content + b"x")
    with pytest.raises(DataError, match="fewer than" if change < 0 else "more than"):
        source.load(DataSource(parse(str(folder))))


def test_a_packed_file_is_not_mapped(folder, monkeypatch):
    path = folder / "train-images-idx3-ubyte"
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    expected = source.load(DataSource(parse(str(folder)))).fingerprint
    monkeypatch.setattr(files, "RESIDENT_BYTES", 1000)
    assert source.load(DataSource(parse(str(folder)))).fingerprint == expected


def test_only_large_local_files_are_mapped(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert storage.mapped(parse(str(path)), 5) is None
    assert storage.mapped(parse(str(tmp_path / "nowhere")), 0) is None
    assert storage.mapped(parse(str(tmp_path)), 0) is None
    found = storage.mapped(parse(f"file://{path}"), 4)
    assert bytes(found) == b"12345"
    found.close()


def shares_memory(tensor, array: np.ndarray) -> bool:
    return np.shares_memory(np.asarray(memoryview(tensor)), array)  # numpy() would be a copy


def test_what_a_data_set_brings_is_not_copied(mnist):
    assert not mnist.x_train.flags.writeable
    tensor = feed._tensor(mnist.x_train)
    assert shares_memory(tensor, mnist.x_train)
    assert tensor.dtype == "uint8"
    np.testing.assert_array_equal(tensor.numpy(), mnist.x_train)
    assert not mnist.x_train.flags.writeable  # still


def shifted(count: int, offset: int) -> np.ndarray:
    """Return images that begin `offset` bytes after an address that TensorFlow could work at."""
    room = np.arange(count * 6 + 2 * ALIGNMENT_BYTES, dtype=np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES + offset
    return room[start : start + count * 6].reshape(count, 2, 3)


def frozen() -> np.ndarray:
    room = shifted(5, 0)
    room.base.flags.writeable = False
    return room


@pytest.mark.parametrize("images", [shifted(5, 1), shifted(5, 63), shifted(10, 0)[::2], frozen()])
def test_anything_else_is_copied(images):
    tensor = feed._tensor(images)
    assert not shares_memory(tensor, images)
    np.testing.assert_array_equal(tensor.numpy(), images)


def test_a_few_aligned_images_are_shared_as_well():
    images = shifted(5, 0)
    assert shares_memory(feed._tensor(images), images)


@pytest.mark.slow
def test_shards_on_disk_are_trained_on_to_the_bit(mnist, tmp_path, monkeypatch):
    """A set of shards beyond memory streams from the file that they were put together in."""
    base = {"x_train": mnist.x_train[:290], "y_train": mnist.y_train[:290]}
    np.savez(tmp_path / "base.npz", **base, x_test=mnist.x_test[:9], y_test=mnist.y_test[:9])
    for number in range(2):
        part = slice(290 + 110 * number, 400 + 110 * number)
        arrays = {"x_train": mnist.x_train[part], "y_train": mnist.y_train[part]}
        np.savez(tmp_path / f"train-{number}.npz", **arrays)
    where = DataSource(parse(str(tmp_path)))
    settings = config(augment="shift")
    expected, _, _ = run(source.load(where), settings)
    monkeypatch.setattr(files, "RESIDENT_BYTES", 1000)
    stream(monkeypatch)
    dataset = source.load(where)
    assert not dataset.x_train.base.flags.writeable  # pages of a file, and no room in memory
    weights, _, _ = run(dataset, settings)
    for one, other in zip(expected, weights, strict=True):
        assert np.array_equal(one, other)
