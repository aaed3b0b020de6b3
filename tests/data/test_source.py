"""Good data sets come out the same from every format; bad ones are refused in one clear line."""

import gc
import gzip
import hashlib
import io
import mmap
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job import storage
from job.config import EMBEDDED, DataSource
from job.data import arrays as arrays_module
from job.data import examples, files, source
from job.errors import DataError, JobError, MissingInputError
from job.storage import parse

pytestmark = pytest.mark.filterwarnings("error")  # a warning is no way to speak of bad data

Arrays = dict[str, np.ndarray]

STEMS = dict(zip(source.ARRAY_NAMES, files.IDX_STEMS, strict=True))
IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
MEBIBYTE = 1024 * 1024


def small_set(image_shape: tuple[int, ...] = (12, 9), classes: int = 3) -> Arrays:
    """Eight or more training and five test images of noise, every class among the labels."""
    generator = np.random.default_rng(7)
    sizes = {"train": max(8, classes), "test": 5}
    arrays: Arrays = {}
    for split, size in sizes.items():
        shape = (size, *image_shape)
        arrays[f"x_{split}"] = generator.integers(0, 256, shape).astype(np.uint8)
        arrays[f"y_{split}"] = (np.arange(size) % classes).astype(np.uint8)
    return arrays


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=True)
    return file.getvalue()


def zipped(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # duplicates are on purpose
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def npz(arrays: Arrays, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    return zipped([(f"{name}.npy", npy(array)) for name, array in arrays.items()], method)


def idx(array: np.ndarray) -> bytes:
    code = IDX_CODES[array.dtype.str[1:]]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def idx_files(arrays: Arrays, pack: Callable[[bytes], bytes] = bytes) -> dict[str, bytes]:
    return {f"{STEMS[name]}-ubyte": pack(idx(array)) for name, array in arrays.items()}


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def write(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def load_npz(folder: Path, content: bytes) -> source.Dataset:
    return source.load(DataSource(parse(write(folder, {"set.npz": content}) + "/set.npz")))


def patched(archive: bytes, name: str, offset: int, layout: str, value: int) -> bytes:
    """Return `archive` with one field of an entry in its directory changed (APPNOTE.TXT 4.3.12)."""
    start = archive.index(b"PK\x01\x02")
    while archive[start + 46 : start + 46 + len(name)] != name.encode():
        start = archive.index(b"PK\x01\x02", start + 1)
    changed = bytearray(archive)
    struct.pack_into(layout, changed, start + offset, value)
    return bytes(changed)


VERSION, FLAGS, METHOD, CRC, SIZE = (6, "<H"), (8, "<H"), (10, "<H"), (16, "<I"), (24, "<I")
PACKED_SIZE, EXTRA_SIZE, OFFSET = (20, "<I"), (30, "<H"), (42, "<I")


def refused(kind: type[JobError], act: Callable[[], object], *parts: str) -> JobError:
    """Assert that `act` raises exactly `kind` with a one-line message that holds all `parts`."""
    with pytest.raises(JobError) as caught:
        act()
    assert type(caught.value) is kind, caught.value
    raw = str(caught.value.args[0])  # before JobError folds it
    assert raw.isprintable(), raw
    for part in parts:
        assert part in raw
    return caught.value


def assert_same(found: source.Dataset, arrays: Arrays) -> None:
    for name, array in arrays.items():
        loaded = getattr(found, name)
        assert np.array_equal(loaded, array), name
    assert_valid(found)


def assert_valid(found: source.Dataset) -> None:
    for images, labels in ((found.x_train, found.y_train), (found.x_test, found.y_test)):
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        assert not images.flags.writeable
        assert images.ndim in (3, 4)
        assert images.shape[1:] == found.image_shape
        assert labels.dtype == np.int32
        assert labels.dtype.isnative
        assert not labels.flags.writeable
        assert labels.shape == (len(images),)
        assert len(labels) > 0
        assert 0 <= labels.min() <= labels.max() < found.classes <= 1000
    assert found.y_train.min() < found.y_train.max()


# --- good data sets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_shape", "classes"),
    [((12, 9), 3), ((28, 28), 10), ((8, 6, 3), 2), ((5, 7, 1), 4), ((1, 1, 4), 2), ((3, 4), 1000)],
)
def test_every_format_gives_the_same_data_set(
    tmp_path: Path, image_shape: tuple[int, ...], classes: int
) -> None:
    arrays = small_set(image_shape, classes)
    if classes > 256:
        for name in ("y_train", "y_test"):  # as bytes the labels would wrap around
            arrays[name] = np.arange(len(arrays[name]), dtype=np.int16)
    gz = {f"{name}.gz": content for name, content in idx_files(arrays, packed).items()}
    dotted = {n.replace("-idx", ".idx"): content for n, content in idx_files(arrays).items()}
    sources = {
        "deflated": {"set.npz": npz(arrays)},
        "stored": {"set.npz": npz(arrays, zipfile.ZIP_STORED)},
        "any-name": {"set.npz": npz(dict(reversed(arrays.items())) | {"extra": np.zeros(3)})},
        "idx": idx_files(arrays),
        "gz": gz,
        "dotted": dotted,
        "dotted-gz": {f"{name}.gz": packed(content) for name, content in dotted.items()},
        "gz-by-content": idx_files(arrays, packed),
        "mixed": dict(list(gz.items())[:2]) | dict(list(dotted.items())[2:]),
    }
    fingerprints = set()
    for name, files in sources.items():
        folder = tmp_path / name
        folder.mkdir()
        uri = write(folder, files)
        if "set.npz" in files:
            uri = str((folder / "set.npz").rename(folder / "no-suffix"))
        found = source.load(DataSource(parse(uri)))
        assert_same(found, arrays)
        assert (found.uri, found.image_shape, found.classes) == (uri, image_shape, classes)
        fingerprints.add(found.fingerprint)
        assert source.load(DataSource(parse(f"file://{uri}"))).fingerprint == found.fingerprint
    assert len(fingerprints) == 1


def test_numpy_writes_what_load_reads(tmp_path: Path) -> None:
    arrays = small_set()
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "set.npz", **arrays)  # type: ignore[arg-type]
        assert_same(source.load(DataSource(parse(str(tmp_path / "set.npz")))), arrays)


@pytest.mark.parametrize("name", source.ARRAY_NAMES)
def test_fingerprint_changes_with_any_value(tmp_path: Path, name: str) -> None:
    arrays = small_set()
    before = load_npz(tmp_path, npz(arrays)).fingerprint
    arrays[name].flat[2] ^= 1 if name.startswith("x") else 2  # a class is 0, 1 or 2, then 0
    assert load_npz(tmp_path, npz(arrays)).fingerprint != before


def test_fingerprint_changes_with_shape_and_with_role(tmp_path: Path) -> None:
    arrays = small_set((12, 9))
    before = load_npz(tmp_path, npz(arrays)).fingerprint
    turned = {name: a.reshape(-1, 9, 12) if a.ndim == 3 else a for name, a in arrays.items()}
    assert load_npz(tmp_path, npz(turned)).fingerprint != before
    swapped = {name: arrays[name.replace("train", "test")] for name in ("x_train", "y_train")}
    swapped |= {name: arrays[name.replace("test", "train")] for name in ("x_test", "y_test")}
    assert load_npz(tmp_path, npz(swapped)).fingerprint != before


@pytest.mark.parametrize("dtype", ["i2", ">i2", "u8", "i8", "f2", ">f4", "f8", "g"])
def test_whole_pixels_of_other_types_are_converted(tmp_path: Path, dtype: str) -> None:
    arrays = small_set()
    arrays["x_train"].flat[:2] = 0, 255
    wider = {name: array.astype(dtype) for name, array in arrays.items()}
    assert_same(load_npz(tmp_path, npz(wider)), arrays)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "f4", "f8"])
def test_idx_of_other_types(tmp_path: Path, dtype: str) -> None:
    arrays = {name: array // 2 for name, array in small_set().items()}  # i1 ends at 127
    arrays["y_train"] = small_set()["y_train"]
    wider = {name: array.astype(dtype) for name, array in arrays.items()}
    assert_same(source.load(DataSource(parse(write(tmp_path, idx_files(wider))))), arrays)


def test_fortran_order_and_column_labels(tmp_path: Path) -> None:
    arrays = small_set((6, 5, 3))
    stored = {name: np.asfortranarray(array) for name, array in arrays.items()}
    stored["y_train"] = stored["y_train"].reshape(-1, 1)
    stored["y_test"] = stored["y_test"].reshape(-1, 1).astype(float)
    assert_same(load_npz(tmp_path, npz(stored)), arrays)


def test_npy_header_of_python_2_and_of_version_2(tmp_path: Path) -> None:
    arrays = small_set()
    contents = {f"{name}.npy": npy(array) for name, array in arrays.items()}
    labels = arrays["y_train"]
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (8L,), }\n"
    contents["y_train.npy"] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    contents["y_train.npy"] += labels.tobytes()
    file = io.BytesIO()
    np.lib.format.write_array(file, arrays["x_test"], version=(2, 0))
    contents["x_test.npy"] = file.getvalue()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's remarks are not the user's business
        found = load_npz(tmp_path, zipped(list(contents.items())))
    assert_same(found, arrays)


def test_a_folder_of_the_files_name_is_passed_over(tmp_path: Path) -> None:
    arrays = small_set()
    files = {n.replace("-idx", ".idx"): content for n, content in idx_files(arrays).items()}
    (tmp_path / "train-images-idx3-ubyte").mkdir()  # as one popular download unpacks
    assert_same(source.load(DataSource(parse(write(tmp_path, files)))), arrays)


def test_dataset_is_frozen(tmp_path: Path) -> None:
    found = load_npz(tmp_path, npz(small_set()))
    with pytest.raises(AttributeError):
        found.uri = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        found.x_train[0] = 0


# --- the embedded MNIST -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist() -> source.Dataset:
    return source.load(DataSource(EMBEDDED))


def test_embedded_mnist(mnist: source.Dataset) -> None:
    assert_valid(mnist)
    assert (mnist.uri, mnist.image_shape, mnist.classes) == ("mnist", (28, 28), 10)
    assert (mnist.x_train.shape, mnist.x_test.shape) == ((60000, 28, 28), (10000, 28, 28))
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.y_train).tolist() == train
    assert np.bincount(mnist.y_test).tolist() == test
    # Published results carry it: a change here makes every earlier one look like other data.
    assert mnist.fingerprint == "3ce5fca27c7d3a122188ca200f63175f08f1a73cd71bfe169cb8cb672b63d5dd"


def test_embedded_mnist_by_its_path_is_the_same_data(mnist: source.Dataset) -> None:
    found = source.load(DataSource(parse(EMBEDDED.path.as_uri())))
    assert found.fingerprint == mnist.fingerprint
    assert found.uri == EMBEDDED.path.as_uri()


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("x_train", "ba891046"),
        ("y_train", "65a50cbb"),
        ("x_test", "0fa7898d"),
        ("y_test", "ff7bcfd4"),
    ],
)
def test_embedded_mnist_is_the_original(mnist: source.Dataset, name: str, digest: str) -> None:
    original = idx(getattr(mnist, name).astype(np.uint8))
    assert hashlib.sha256(original).hexdigest().startswith(digest)


def test_damaged_or_missing_asset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    read = storage.read

    def flipped(uri: str, limit_bytes: int) -> bytes:
        content = bytearray(read(uri, limit_bytes))
        content[10] ^= 1  # a date in the first header, which the archive itself does not verify
        return bytes(content)

    def missing(*_: object) -> bytes:
        raise MissingInputError("there is no such file")

    monkeypatch.setattr(storage, "read", flipped)
    refused(
        DataError, lambda: source.load(DataSource(EMBEDDED)), "mnist.npz", "06af5dfe", "reinstall"
    )
    monkeypatch.setattr(storage, "read", missing)
    refused(
        DataError, lambda: source.load(DataSource(EMBEDDED)), "mnist.npz", "missing", "reinstall"
    )


# --- bad arrays ---------------------------------------------------------------------------------


def put(name: str, index: tuple[int, ...], value: float, dtype: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = arrays[name].astype(dtype)
        arrays[name][index] = value

    return change


def become(name: str, make: Callable[[np.ndarray], Any]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = make(arrays[name])

    return change


def both(axis_name: str, make: Callable[[np.ndarray], Any]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        for split in ("train", "test"):
            arrays[f"{axis_name}_{split}"] = make(arrays[f"{axis_name}_{split}"])

    return change


BAD_ARRAYS: dict[str, tuple[Callable[[Arrays], object], list[str]]] = {
    "missing key": (lambda a: a.pop("y_test"), ["lacks the array y_test", "x_test", "y_train"]),
    "object dtype": (become("x_train", lambda a: a.astype(object)), ["x_train", "object"]),
    "object labels": (become("y_test", lambda a: a.astype(object)), ["y_test", "object"]),
    "bool images": (both("x", lambda a: a > 9), ["x_train", "bool", "uint8"]),
    "bool labels": (become("y_train", lambda a: a > 0), ["y_train", "bool"]),
    "text labels": (become("y_train", lambda a: a.astype("U3")), ["y_train", "str"]),
    "complex": (become("x_test", lambda a: a.astype("c8")), ["x_test", "complex64"]),
    "dates": (become("y_test", lambda a: a.astype("m8[s]")), ["y_test", "timedelta64"]),
    "named fields": (become("y_test", lambda a: a.astype([("a", "u1")])), ["y_test", "void"]),
    "flat images": (both("x", lambda a: a.reshape(len(a), -1)), ["x_train", "(8, 108)"]),
    "5 dimensions": (both("x", lambda a: a[..., None, None]), ["x_train", "(8, 12, 9, 1, 1)"]),
    "a single number": (become("x_train", lambda a: a[0, 0, 0]), ["x_train", "()"]),
    "one-hot": (become("y_train", lambda a: np.eye(3)[a]), ["y_train", "(8, 3)", "argmax"]),
    "number as labels": (become("y_train", lambda a: a[0]), ["y_train", "()"]),
    "channels first": (both("x", lambda a: a[:, None]), ["x_train", "9 channels", "last"]),
    "0 channels": (both("x", lambda a: a[..., None][..., :0]), ["x_train", "0 channels"]),
    "5 channels": (both("x", lambda a: np.stack([a] * 5, -1)), ["x_train", "5 channels"]),
    "no height": (both("x", lambda a: a[:, :0]), ["x_train", "0 x 9", "1024"]),
    "too wide": (both("x", lambda a: np.zeros((len(a), 1, 1025))), ["x_train", "1 x 1025"]),
    "counts": (become("y_train", lambda a: a[:-1]), ["x_train", "8 images", "y_train", "7 labels"]),
    "test counts": (
        become("x_test", lambda a: a[1:]),
        ["x_test", "4 images", "y_test", "5 labels"],
    ),
    "other shape": (become("x_test", lambda a: a[:, 1:]), ["x_train", "(12, 9)", "(11, 9)"]),
    "other depth": (become("x_test", lambda a: a[..., None]), ["x_test", "(12, 9, 1)"]),
    "no training rows": (lambda a: a.update({n: a[n][:0] for n in STEMS}), ["x_train", "0 images"]),
    "no test rows": (
        lambda a: a.update(x_test=a["x_test"][:0], y_test=a["y_test"][:0]),
        ["x_test", "0 images"],
    ),
    "nan": (put("x_train", (7, 11, 8), np.nan, "f4"), ["x_train[7, 11, 8]", "is nan"]),
    "inf": (put("x_test", (4, 0, 3), np.inf, "f8"), ["x_test[4, 0, 3]", "is inf"]),
    "-inf": (put("x_test", (0, 0, 0), -np.inf, "f2"), ["x_test[0, 0, 0]", "is -inf"]),
    "256": (put("x_train", (1, 2, 3), 256, "i2"), ["x_train[1, 2, 3]", "is 256", "255"]),
    "2**64-1": (put("x_train", (1, 2, 3), 2**64 - 1, "u8"), ["x_train[1, 2, 3]", f"{2**64 - 1}"]),
    "-1": (put("x_train", (1, 2, 3), -1, "i2"), ["x_train[1, 2, 3]", "is -1"]),
    "1e30": (put("x_train", (1, 2, 3), 1e30, "f8"), ["x_train[1, 2, 3]", "is 1e+30"]),
    "scaled": (
        both("x", lambda a: (a / 255).astype("f4")),
        ["x_train[0, 0, 0]", "by 255", "uint8"],
    ),
    "nearly whole": (put("x_test", (2, 1, 0), 7.5, "f4"), ["x_test[2, 1, 0]", "is 7.5"]),
    "label -1": (put("y_train", (6,), -1, "i8"), ["y_train[6]", "is -1", "0"]),
    "label 1000": (put("y_train", (6,), 1000, "i8"), ["y_train[6]", "is 1000", "999"]),
    "label 2**32+1": (put("y_train", (6,), 2**32 + 1, "i8"), ["y_train[6]", f"is {2**32 + 1}"]),
    "label 2**64-1": (put("y_train", (6,), 2**64 - 1, "u8"), ["y_train[6]", f"is {2**64 - 1}"]),
    "label 1.5": (put("y_test", (3,), 1.5, "f8"), ["y_test[3]", "is 1.5", "whole"]),
    "label nan": (put("y_test", (3,), np.nan, "f8"), ["y_test[3]", "is nan"]),
    "test label 3": (put("y_test", (3,), 3, "u1"), ["y_test[3]", "is 3", "training label is 2"]),
    "one class": (become("y_train", lambda a: a * 0), ["y_train", "only one class", "label 0"]),
    "one high class": (become("y_train", lambda a: a * 0 + 2), ["y_train", "one class", "label 2"]),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused(tmp_path: Path, case: str) -> None:
    change, parts = BAD_ARRAYS[case]
    arrays = small_set()
    assert_same(load_npz(tmp_path, npz(arrays)), arrays)
    change(arrays)
    uri = f"{tmp_path}/set.npz"
    error = refused(DataError, lambda: load_npz(tmp_path, npz(arrays)), uri, *parts)
    assert error.exit_code == 65


@pytest.mark.parametrize(
    "case", ["256", "-1", "nan", "counts", "other shape", "one class", "5 channels"]
)
def test_bad_arrays_are_refused_in_idx_too(tmp_path: Path, case: str) -> None:
    change, parts = BAD_ARRAYS[case]
    arrays = small_set()
    change(arrays)
    uri = write(tmp_path, idx_files(arrays, packed))
    refused(
        DataError, lambda: source.load(DataSource(parse(uri))), f"{tmp_path}/t", "-ubyte", *parts
    )


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "pickle-was-run"

    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (marker,)

    arrays = small_set() | {"x_train": np.array([Payload()], dtype=object)}
    uri = write(tmp_path, {"set.npz": npz(arrays)}) + "/set.npz"
    refused(
        DataError,
        lambda: source.load(DataSource(parse(uri))),
        "x_train",
        "object",
        "never unpickled",
    )
    assert not marker.exists()
    with np.load(uri, allow_pickle=True) as archive:
        archive["x_train"]
    assert marker.exists()  # so the payload was a live one


# --- bad files ----------------------------------------------------------------------------------

GOOD = npz(small_set())
STORED = npz(small_set(), zipfile.ZIP_STORED)
ENTRIES = [(f"{name}.npy", npy(array)) for name, array in small_set().items()]


def with_header(
    text: str | bytes, version: bytes = b"\x01\x00", length: int | None = None
) -> bytes:
    """Return an archive whose x_train has this NPY header."""
    header = text.encode() if isinstance(text, str) else text
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header) if length is None else length)
    content = b"\x93NUMPY" + version + size + header + small_set()["x_train"].tobytes()
    return zipped([("x_train.npy", content), *ENTRIES[1:]])


def header(descr: str = "'|u1'", order: str = "False", shape: str = "(8, 12, 9)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def flipped_pixel() -> bytes:
    content = bytearray(STORED)
    content[STORED.index(small_set()["x_test"].tobytes()) + 3] ^= 0x10
    return bytes(content)


def far_offset() -> bytes:
    """Return an archive that says in a zip64 field that x_train begins after 2**64 - 1 bytes."""
    changed = patched(
        patched(GOOD, "x_train.npy", *OFFSET, 2**32 - 1), "x_train.npy", *EXTRA_SIZE, 12
    )
    directory, end = changed.index(b"PK\x01\x02"), changed.index(b"PK\x05\x06")
    tail = bytearray(changed[end:])
    struct.pack_into("<I", tail, 12, end - directory + 12)
    name_end = directory + 46 + len("x_train.npy")
    extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)
    return changed[:name_end] + extra + changed[name_end:end] + tail


BAD_FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["is empty"]),
    "web page": (b"\n <!DOCTYPE html><html>404</html>", ["web page", "error page saved instead"]),
    "web page with mark": (b"\xef\xbb\xbf<html>", ["web page"]),
    "bare npy": (npy(small_set()["x_train"]), ["bare .npy", "savez_compressed"]),
    "pickle": (b"\x80\x04\x95abc", ["pickle"]),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid", ["Git LFS"]),
    "one IDX file": (idx(small_set()["x_train"]), ["single IDX file", "folder"]),
    "gzip": (packed(b"abc"), ["gzip", "folder"]),
    "noise": (b"\x01\x02\x03\x04\x05", ["not an .npz archive", "01 02 03 04 05"]),
    "no entries": (zipped([]), ["lacks the array x_train", "[]"]),
    "other keys": (npz({"images\x1b\n": np.zeros(2)}), ["lacks the array x_train", "images"]),
    "truncated by 1": (GOOD[:-1], ["BadZipFile", "truncated"]),
    "truncated to half": (GOOD[: len(GOOD) // 2], ["BadZipFile", "truncated"]),
    "truncated to magic": (GOOD[:4], ["BadZipFile", "truncated"]),
    "flipped pixel": (flipped_pixel(), ["x_test", "CRC", "damaged"]),
    "wrong CRC": (patched(GOOD, "y_train.npy", *CRC, 1), ["y_train", "CRC"]),
    "encrypted": (
        patched(GOOD, "x_test.npy", *FLAGS, 1),
        ["x_test", "encrypted", "without a password"],
    ),
    "bzip2": (npz(small_set(), zipfile.ZIP_BZIP2), ["x_train", "method 12", "savez_compressed"]),
    "lzma": (npz(small_set(), zipfile.ZIP_LZMA), ["x_train", "method 14"]),
    "unknown method": (patched(GOOD, "x_test.npy", *METHOD, 99), ["x_test", "method 99"]),
    "duplicate": (zipped([*ENTRIES, ENTRIES[1]]), ["y_train", "twice"]),
    "duplicate escape": (zipped([*ENTRIES, *[("\x1b[1m", b"")] * 2]), ["?[1m twice"]),
    "duplicate stem": (zipped([*ENTRIES, ("y_test", b"")]), ["y_test", "twice"]),
    "newer zip": (patched(GOOD, "x_test.npy", *VERSION, 99), ["NotImplementedError", "9.9"]),
    "far offset": (far_offset(), ["x_train", "OverflowError"]),
    "many entries": (zipped([*ENTRIES, *[(f"{i}", b"") for i in range(1000)]]), ["1000 entries"]),
    "not npy": (zipped([("x_train.npy", b"hello" * 9), *ENTRIES[1:]]), ["x_train", "ValueError"]),
    "empty npy": (zipped([("x_train.npy", b""), *ENTRIES[1:]]), ["x_train", "ValueError"]),
    "npy cut short": (
        zipped([("x_train.npy", ENTRIES[0][1][:-1]), *ENTRIES[1:]]),
        ["x_train", "992 bytes", "991"],
    ),
    "npy too long": (
        zipped([("x_train.npy", ENTRIES[0][1] + b"x"), *ENTRIES[1:]]),
        ["x_train", "992 bytes", "993"],
    ),
    "header version 3": (with_header(header(), b"\x03\x00"), ["x_train", "version (3, 0)"]),
    "header is long": (with_header(header() + " " * 5000), ["x_train", "header"]),
    "header lies": (with_header(header(), b"\x02\x00", 2**32 - 1), ["x_train", "4294967295"]),
    "header is code": (with_header("__import__('os').getcwd()"), ["x_train", "ValueError"]),
    "header nests": (with_header("(" * 1900), ["x_train", "TokenError"]),
    "header indents": (with_header("\n  x\n y"), ["x_train", "IndentationError"]),
    "header has NUL": (with_header("\0"), ["x_train", "Error"]),
    "header keys": (with_header("{1: 2, 'a': 3}"), ["x_train", "TypeError"]),
    "header unhashable": (with_header("{[]: 1}"), ["x_train", "TypeError"]),
    "header order": (with_header(header(order="1")), ["x_train", "fortran_order"]),
    "dtype ()": (with_header(header("()")), ["x_train", "IndexError"]),
    "dtype ','": (with_header(header("','")), ["x_train", "SyntaxError"]),
    "dtype of 0 bytes": (with_header(header("'|S0'")), ["x_train"]),
    "shape negative": (
        with_header(header(shape="(-8, 12, -9)")),
        ["x_train", "claims the shape (-8"],
    ),
    "shape huge": (
        with_header(header(shape=f"({'9' * 1500}, 12, 9)")),
        ["x_train", "claims", "999"],
    ),
    "shape of floats": (with_header(header(shape="(8., 12, 9)")), ["x_train", "shape"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(tmp_path: Path, case: str) -> None:
    content, parts = BAD_FILES[case]
    error = refused(DataError, lambda: load_npz(tmp_path, content), f"{tmp_path}/set.npz", *parts)
    assert error.exit_code == 65


IMAGES = idx(small_set()["x_train"])
PACKED = packed(IMAGES)

BAD_IDX_FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["is empty"]),
    "packed empty": (packed(b""), ["is empty"]),
    "web page": (b"<html><body>403", ["web page", "error page saved instead"]),
    "packed web page": (packed(b"<html><body>403"), ["web page"]),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid", ["Git LFS"]),
    "npz": (GOOD, ["zip archive"]),
    "noise": (b"\x00\x00\x07\x03abc", ["not an IDX file", "00 00 07 03"]),
    "other start": (b"\x00\x01" + IMAGES[2:], ["not an IDX file", "00 01 08 03"]),
    "3 bytes": (IMAGES[:3], ["not an IDX file"]),
    "header cut": (IMAGES[:15], ["3 dimensions", "00 00 08 03"]),
    "no dimensions": (b"\x00\x00\x08\x00" + IMAGES[4:], ["0 dimensions"]),
    "255 dimensions": (b"\x00\x00\x08\xff" + IMAGES[4:], ["255 dimensions"]),
    "labels instead": (idx(small_set()["y_train"]), ["shape (8,)", "height, width"]),
    "cut": (IMAGES[:-1], ["fewer than the 864 bytes", "(8, 12, 9)", "truncated"]),
    "too long": (IMAGES + b"x", ["more than the 864 bytes"]),
    "packed cut": (packed(IMAGES[:-1]), ["fewer than the 864 bytes"]),
    "packed too long": (packed(IMAGES + b"x"), ["more than the 864 bytes"]),
    "gzip cut": (PACKED[:-1], ["EOFError", "truncated"]),
    "gzip cut early": (PACKED[:12], ["EOFError", "truncated"]),
    "gzip CRC": (PACKED[:-8] + b"\0" * 4 + PACKED[-4:], ["CRC", "damaged"]),
    "gzip size": (PACKED[:-4] + b"\0" * 4, ["length", "damaged"]),
    "gzip flipped": (PACKED[:10] + b"\xff" + PACKED[11:], ["error", "damaged"]),
    "gzip then noise": (PACKED + b"noise", ["BadGzipFile"]),
    "gzip method": (PACKED[:2] + b"\x07" + PACKED[3:], ["BadGzipFile"]),
    "claims too much": (struct.pack(">BBBB3I", 0, 0, 8, 3, 2049, 1024, 1024), ["2049 MiB", "2048"]),
    "claims 2**128": (struct.pack(">BBBB4I", 0, 0, 8, 4, *[2**32 - 1] * 4), ["MiB of arrays"]),
}


@pytest.mark.parametrize("case", BAD_IDX_FILES)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_idx_files_are_refused(tmp_path: Path, case: str, suffix: str) -> None:
    content, parts = BAD_IDX_FILES[case]
    files = idx_files(small_set())
    del files["train-images-idx3-ubyte"]
    files[f"train-images-idx3-ubyte{suffix}"] = content
    uri = write(tmp_path, files)
    error = refused(DataError, lambda: source.load(DataSource(parse(uri))), str(tmp_path), *parts)
    assert error.exit_code == 65
    if "claims" not in case:
        assert f"x_train in {tmp_path}/train-images-idx3-ubyte" in str(error)


@pytest.mark.parametrize("stem", STEMS.values())
def test_folder_that_lacks_a_file(tmp_path: Path, stem: str) -> None:
    files = idx_files(small_set())
    del files[f"{stem}-ubyte"]
    uri = write(tmp_path, files)
    error = refused(
        MissingInputError,
        lambda: source.load(DataSource(parse(uri))),
        str(tmp_path),
        f"{stem}-ubyte",
    )
    assert error.exit_code == 66


def test_missing_path(tmp_path: Path) -> None:
    uri = f"{tmp_path}/none.npz"
    assert (
        refused(MissingInputError, lambda: source.load(DataSource(parse(uri))), uri).exit_code == 66
    )


def test_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write(tmp_path, idx_files(small_set()))
    open_path = Path.open

    def guarded(path: Path, *args: Any, **more: Any) -> Any:  # a test may run as root
        if path.name == "t10k-images-idx3-ubyte":
            raise PermissionError(13, "Permission denied", str(path))
        return open_path(path, *args, **more)

    monkeypatch.setattr(Path, "open", guarded)
    parts = (f"{uri}/t10k-images-idx3-ubyte", "permission")
    refused(MissingInputError, lambda: source.load(DataSource(parse(uri))), *parts)


@pytest.mark.parametrize("constant", ["MAX_BYTES", "MAX_FILE_BYTES"])
def test_limits_hold_for_honest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str
) -> None:
    arrays = small_set((64, 64))
    content = npz(arrays)
    claimed = sum(array.nbytes for array in arrays.values())
    uri = write(tmp_path, idx_files(arrays))
    where = {"MAX_BYTES": source, "MAX_FILE_BYTES": files}[constant]
    largest = {"MAX_BYTES": (claimed, claimed), "MAX_FILE_BYTES": (len(content), 8 * 64 * 64 + 16)}
    monkeypatch.setattr(where, constant, largest[constant][0])
    assert_same(load_npz(tmp_path, content), arrays)
    monkeypatch.setattr(where, constant, largest[constant][0] - 1)
    refused(DataError, lambda: load_npz(tmp_path, content), str(tmp_path), "MiB")
    monkeypatch.setattr(where, constant, largest[constant][1])
    assert_same(source.load(DataSource(parse(uri))), arrays)
    monkeypatch.setattr(where, constant, largest[constant][1] - 1)
    refused(DataError, lambda: source.load(DataSource(parse(uri))), str(tmp_path), "MiB")


# --- files that would fill the memory -----------------------------------------------------------


ZEROS_BYTES = 64 * MEBIBYTE


def peak_bytes(act: Callable[[], object]) -> int:
    """Return how much memory, numpy's included, `act` held at its height beyond what was held."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def claiming(*shape: int) -> bytes:
    """Return the NPY header, 128 bytes, of a uint8 array of this shape."""
    text = header(shape=str(shape)).rstrip().ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def bomb(start: bytes, zeros_bytes: int, declared_bytes: int, *shape: int) -> bytes:
    """Return an archive whose x_train is `start` and zeros, but declared to have another size."""
    content = {
        "x_train": start + bytes(zeros_bytes),
        "y_train": npy(np.arange(shape[0]) % 3),
        "x_test": npy(np.zeros((5, *shape[1:]), np.uint8)),
        "y_test": npy(np.zeros(5, np.uint8)),
    }
    archive = zipped([(f"{name}.npy", stored) for name, stored in content.items()])
    return patched(archive, "x_train.npy", *SIZE, declared_bytes)


GIBIBYTE = 1024 * MEBIBYTE

LITTLE, MUCH, TOO_MUCH = (8, 12, 9), (1024, 1024, 1024), (3072, 1024, 1024)

BOMBS: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "both headers claim 3 GiB": (
        lambda: bomb(claiming(*TOO_MUCH), ZEROS_BYTES, 128 + 3 * GIBIBYTE, *TOO_MUCH),
        ["claims 3077 MiB", "2048 MiB"],
    ),
    "both headers claim 1 GiB of nothing": (
        lambda: bomb(claiming(*MUCH), 9, 128 + GIBIBYTE, *MUCH),
        ["x_train", "fewer than the 1073741824 bytes"],
    ),
    "the NPY header claims 1 GiB of nothing": (
        lambda: bomb(claiming(*MUCH), 9, 128 + 9, *MUCH),
        ["x_train", "claims 1073741952 bytes", "declares 137"],
    ),
    "the directory claims 1 GiB of nothing": (
        lambda: bomb(claiming(*LITTLE), 864, 128 + GIBIBYTE, *LITTLE),
        ["x_train", "claims 992 bytes", "declares 1073741952"],
    ),
    "both headers claim little": (
        lambda: bomb(claiming(*LITTLE), ZEROS_BYTES, 128 + 864, *LITTLE),
        ["x_train", "CRC"],
    ),
    "the NPY header claims little": (
        lambda: bomb(claiming(*LITTLE), ZEROS_BYTES, 128 + ZEROS_BYTES, *LITTLE),
        ["x_train", "claims 992 bytes", "declares 67108992"],
    ),
    "a long NPY header": (
        lambda: bomb(b"\x93NUMPY\x02\x00" + b"\xff" * 4, ZEROS_BYTES, ZEROS_BYTES, *LITTLE),
        ["x_train", "4294967295"],
    ),
}


@pytest.fixture
def _tight_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    # One read takes a buffer as large as its limit, whatever the file's size: leave that out.
    monkeypatch.setattr(files, "MAX_FILE_BYTES", MEBIBYTE)


@pytest.mark.usefixtures("_tight_reads")
def test_peak_bytes_sees_what_loading_holds(tmp_path: Path) -> None:
    arrays = {name: array.repeat(2, axis=0) for name, array in small_set().items()}
    arrays |= {
        name: np.zeros((len(arrays[name]), 512, 512), np.uint8) for name in ("x_train", "x_test")
    }
    assert peak_bytes(lambda: load_npz(tmp_path, npz(arrays))) > 26 * 512 * 512


@pytest.mark.usefixtures("_tight_reads")
@pytest.mark.parametrize("case", BOMBS)
def test_zip_bombs_are_refused_in_little_memory(tmp_path: Path, case: str) -> None:
    make, parts = BOMBS[case]
    content = make()
    uri = f"{tmp_path}/set.npz"

    def attempt() -> None:
        refused(DataError, lambda: load_npz(tmp_path, content), uri, *parts)

    assert peak_bytes(attempt) < 3 * MEBIBYTE


@pytest.mark.usefixtures("_tight_reads")
def test_a_bomb_beside_the_arrays_is_ignored(tmp_path: Path) -> None:
    content = zipped([*ENTRIES, ("extra.npy", bytes(ZEROS_BYTES))])
    assert peak_bytes(lambda: assert_same(load_npz(tmp_path, content), small_set())) < 3 * MEBIBYTE


@pytest.mark.usefixtures("_tight_reads")
@pytest.mark.parametrize(
    ("zeros_bytes", "shape", "part"),
    [
        (ZEROS_BYTES, LITTLE, "more than the 864 bytes"),
        (9, MUCH, "fewer than the 1073741824 bytes"),
        (9, TOO_MUCH, "claims 3072 MiB"),
    ],
)
def test_gzip_bombs_are_refused_in_little_memory(
    tmp_path: Path, zeros_bytes: int, shape: tuple[int, ...], part: str
) -> None:
    start = struct.pack(">BBBB3I", 0, 0, 8, 3, *shape)
    arrays = small_set() | {"x_test": np.zeros((5, *shape[1:]), np.uint8)}
    arrays["y_train"] = (np.arange(shape[0]) % 3).astype(np.uint8)
    files = idx_files(arrays, packed) | {
        "train-images-idx3-ubyte": packed(start + bytes(zeros_bytes))
    }
    uri = write(tmp_path, files)

    def attempt() -> None:
        refused(DataError, lambda: source.load(DataSource(parse(uri))), str(tmp_path), part)

    assert peak_bytes(attempt) < 3 * MEBIBYTE


def test_too_little_memory_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> bytearray:
        raise MemoryError

    monkeypatch.setattr(arrays_module, "_read_at_most", exhausted)
    refused(DataError, lambda: load_npz(tmp_path, GOOD), "x_train", "MemoryError", "more memory")


# --- data sets that fill much of it --------------------------------------------------------------


def noise(count: int) -> Arrays:
    """Return a data set that no compression makes smaller, of 1 MiB for each 4 of `count`."""
    pixels = np.random.default_rng(5).integers(0, 256, (count, 512, 512), np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 3
    test = {"x_test": pixels[:3], "y_test": labels[:3]}
    return {"x_train": pixels[3:], "y_train": labels[3:], **test}


METHODS = {"deflated": zipfile.ZIP_DEFLATED, "stored": zipfile.ZIP_STORED}


@pytest.mark.parametrize("method", METHODS)
def test_loading_takes_twice_the_data_at_most_and_leaves_nothing_else(
    tmp_path: Path, method: str
) -> None:
    arrays = noise(64)
    uri = write(tmp_path, {"set.npz": npz(arrays, METHODS[method])}) + "/set.npz"
    size_bytes = sum(array.nbytes for array in arrays.values())
    gc.collect()
    gc.disable()  # nor does a run collect what was read before it froze all
    tracemalloc.start()
    try:
        found = source.load(DataSource(parse(uri)))
        left_bytes, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    # What is inflated lies in memory of the system's own, which is not traced, and once.
    untraced_bytes = size_bytes if method == "deflated" else 0
    assert most_bytes + untraced_bytes < 2.2 * size_bytes
    assert left_bytes + untraced_bytes < 1.2 * size_bytes
    assert_same(found, arrays)


def test_what_is_inflated_takes_room_only_where_something_was_written() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident_bytes()
    data = arrays_module._read_at_most(io.BytesIO(b"few"), 1 << 30)
    assert resident_bytes() - before < 16 << 20
    assert data == b"few"


def test_stored_numbers_are_looked_at_where_they_lie() -> None:
    [array] = arrays_module.from_npz("uri", STORED, ["x_train"])
    assert np.shares_memory(array.values(), np.frombuffer(STORED, np.uint8))


def test_stored_numbers_are_checked_beyond_what_is_read_with_the_header() -> None:
    images = small_set((64, 64))["x_train"]
    good = npz({"x_train": images}, zipfile.ZIP_STORED)
    flipped = bytearray(good)
    flipped[good.index(images.tobytes()) + images.size - 1] ^= 1
    cut = patched(good, "x_train.npy", *PACKED_SIZE, 128 + images.size - 1)
    for bad in (bytes(flipped), cut):
        [array] = arrays_module.from_npz("uri", bad, ["x_train"])
        refused(DataError, array.values, "x_train in uri", "CRC", "damaged")


@pytest.mark.parametrize("name", source.ARRAY_NAMES)
@pytest.mark.parametrize("pack", [False, True], ids=["npz", "gz"])
def test_inflated_numbers_lie_where_tensorflow_takes_them(name: str, pack: bool) -> None:
    wanted = small_set((33, 31))[name]
    if pack:
        array = arrays_module.from_idx("uri", name, packed(idx(wanted)))
    else:
        [array] = arrays_module.from_npz("uri", npz({name: wanted}), [name])
    values = array.values()
    assert values.ctypes.data % examples.ALIGNMENT_BYTES == 0
    assert np.array_equal(values, wanted)
    if name.startswith("x"):  # and are taken from there
        again = replace(array, read_bytes=lambda _: memoryview(values).cast("B"))
        assert np.shares_memory(examples.pixels(again), values)


# --- bytes mutated at random --------------------------------------------------------------------

Mutations = list[tuple[str, int, int, int]]


@st.composite
def mutations(draw: st.DrawFn) -> Mutations:
    """Return one or two mutations: kind, two places and an amount, to be taken modulo the size."""
    kinds = st.sampled_from(["flip", "flip", "truncate", "insert", "zero", "splice", "repeat"])
    place = st.integers(0, 2**16)
    return draw(
        st.lists(st.tuples(kinds, place, place, st.integers(1, 255)), min_size=1, max_size=2)
    )


def mutate(content: bytes, steps: Mutations) -> bytes:
    for kind, first, second, amount in steps:
        at, other = first % (len(content) or 1), second % (len(content) or 1)
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ amount]) + content[at + 1 :]
        elif kind == "truncate":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + bytes([amount]) * (1 + second % 20) + content[at:]
        elif kind == "zero":
            content = content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]
        elif kind == "splice":  # a piece over another
            piece = content[other : other + amount]
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == "repeat":  # a piece into another place
            content = content[:at] + content[other : other + amount] + content[at:]
    return content


def outcome(uri: str) -> source.Dataset | None:
    """Load, or return None if it was refused as a data set should be: anything else is raised."""
    try:
        return source.load(DataSource(parse(uri)))
    except (DataError, MissingInputError) as error:
        message = str(error.args[0])
    assert message.isprintable()
    return None


def run_mutations(examples: int, check: Callable[[Mutations], bool]) -> None:
    """Check that mutations, many times; both outcomes must have occurred, or nothing was tested."""
    seen = {True: 0, False: 0}

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(mutations())
    def each(steps: Mutations) -> None:
        seen[check(steps)] += 1

    each()
    assert min(seen.values()) > 0, seen


@pytest.mark.parametrize("content", [GOOD, STORED], ids=["deflated", "stored"])
def test_mutated_npz_is_refused_or_unharmed(tmp_path: Path, content: bytes) -> None:
    # The archive has a CRC for each entry; what else may change (dates, hosts) is not data.
    arrays = small_set()
    expected = load_npz(tmp_path, content).fingerprint

    def check(steps: Mutations) -> bool:
        uri = write(tmp_path, {"set.npz": mutate(content, steps)}) + "/set.npz"
        found = outcome(uri)
        if found:
            assert_same(found, arrays)
            assert found.fingerprint == expected
        return found is not None

    run_mutations(150, check)


@pytest.mark.parametrize("name", source.ARRAY_NAMES)
def test_mutated_gzip_is_refused_or_unharmed(tmp_path: Path, name: str) -> None:
    arrays = small_set()
    files = {f"{file}.gz": content for file, content in idx_files(arrays, packed).items()}
    file = f"{STEMS[name]}-ubyte.gz"
    uri = write(tmp_path, files)

    def check(steps: Mutations) -> bool:
        write(tmp_path, {file: mutate(files[file], steps)})
        found = outcome(uri)
        if found:
            assert_same(found, arrays)
        return found is not None

    run_mutations(60, check)


@pytest.mark.parametrize("name", source.ARRAY_NAMES)
def test_mutated_plain_idx_is_refused_or_valid(tmp_path: Path, name: str) -> None:
    # No checksum here: other numbers may come out, but valid ones, and only in the mutated file.
    arrays = small_set()
    files = idx_files(arrays)
    file = f"{STEMS[name]}-ubyte"
    uri = write(tmp_path, files)

    def check(steps: Mutations) -> bool:
        content = mutate(files[file], steps)
        write(tmp_path, {file: content})
        found = outcome(uri)
        if found:
            assert_valid(found)
            for other in set(arrays) - {name}:
                assert np.array_equal(getattr(found, other), arrays[other])
            stored = np.frombuffer(content, np.uint8)[-getattr(found, name).size :]
            assert np.array_equal(getattr(found, name).ravel(), stored)
        return found is not None

    run_mutations(60, check)
