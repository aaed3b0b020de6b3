"""Arrays as files store them: first what the header claims, the numbers only when asked for.

A file may lie about its size. So a `StoredArray` is made from headers alone, the caller decides by
shape and dtype whether it wants the numbers, and `values` then inflates no more than was claimed.
Memory follows the bytes that really come, never the claim: what is stored uncompressed is used
where it lies, what is compressed is unpacked into one buffer. Nothing here unpickles.

Formats: NPY and NPZ as numpy.lib.format describes them; IDX as in "The MNIST database of
handwritten digits", http://yann.lecun.com/exdb/mnist/, plain or gzipped.
"""

import gzip
import io
import math
import mmap
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from job.errors import DataError

ZIP_MAGIC = b"PK"
GZIP_MAGIC = b"\x1f\x8b"

_MAX_HEADER_BYTES = 2048  # a plain array's has 128; more is not given to the literal parser
_MAX_ENTRIES = 1000  # zipfile builds an object of some 600 bytes for each 46 bytes of directory
_CHUNK_BYTES = 256 * 1024

_ENCRYPTED = 0x1  # bit 0 of a zip entry's flags, APPNOTE.TXT 4.4.4
_LOCAL_HEADER_BYTES = 30  # APPNOTE.TXT 4.3.7: the last four are the sizes of name and extra field
_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_IDX_MAX_DIMENSIONS = 4
_IDX_START_BYTES = 64  # more than the longest header, 4 + 4 x 4: enough to name a lookalike too

# What zipfile, gzip, zlib and numpy's header parser raise on bad bytes. Their streams are in
# memory, so an OSError here is about content, not about a device.
_BAD_BYTES = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
    *(EOFError, LookupError, MemoryError, OSError, OverflowError),
    *(SyntaxError, TypeError, ValueError),
    RuntimeError,  # with its subclasses NotImplementedError and RecursionError
)

_LOOKALIKES = (
    (b"<", "looks like a web page: was an error page saved instead of the file?"),
    (b"version https://git-lfs", "is a Git LFS pointer: run 'git lfs pull' for the file itself"),
    (b"\x93NUMPY", "is one bare .npy array: save all four with numpy.savez_compressed"),
    (b"\x80", "looks like a pickle, which is never loaded: save with numpy.savez_compressed"),
    (ZIP_MAGIC, "is a zip archive: unpack it, or give an .npz by its own path"),
    (GZIP_MAGIC, "is a gzip file: give the folder that holds the four IDX files"),
    (b"\x00\x00\x08\x03", "is a single IDX file: give the folder that holds all four"),
)


@dataclass(frozen=True)
class StoredArray:
    """One array of a file, as its header describes it."""

    name: str
    uri: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    read_bytes: Callable[[int], memoryview]
    """Called with `size_bytes`. A reference to its array would be a cycle, and keep the file."""
    mapped: bool = False
    """Its numbers stay in the file, and take memory only while they are looked at."""

    def __str__(self) -> str:
        """Return the array's name and the URI of its file."""
        return f"{self.name} in {self.uri}"

    @property
    def size_bytes(self) -> int:
        """The size the header claims, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    def values(self) -> NDArray[Any]:
        """Return the numbers, in `shape`, `dtype` and `order` as stored.

        They are read-only where they lie in the file, and aligned for TensorFlow where they don't.

        Raises:
            DataError: they are truncated, damaged or more than claimed.
        """
        with _refusing_bad_bytes(str(self)):
            data = self.read_bytes(self.size_bytes)
        if len(data) != self.size_bytes:
            few_or_many = "fewer" if len(data) < self.size_bytes else "more"
            raise DataError(
                f"{self} has {few_or_many} than the {self.size_bytes} bytes that its header "
                f"claims with shape {_short(self.shape)}: it is truncated or damaged, copy it again"
            )
        return np.frombuffer(data, self.dtype).reshape(self.shape, order=self.order)


def from_npz(uri: str, data: bytes, names: Sequence[str]) -> list[StoredArray]:
    """Return the arrays called `names` in the .npz archive `data`; others in it are ignored.

    Raises:
        DataError: it is no such archive, is damaged or encrypted, lacks one of the names or holds
            a name twice, or one of the arrays holds Python objects.
    """
    if not data.startswith(ZIP_MAGIC):
        raise DataError(f"{uri} {_instead_of('an .npz archive', data)}")
    # Each entry of a zip's directory has this signature, so the count is never too low.
    if data.count(b"PK\x01\x02") > _MAX_ENTRIES:
        raise DataError(f"{uri} has more than {_MAX_ENTRIES} entries: save only the four arrays")
    with _refusing_bad_bytes(uri):
        archive = zipfile.ZipFile(io.BytesIO(data))
    found = [entry.filename.removesuffix(".npy") for entry in archive.infolist()]
    if twice := [name for name in found if found.count(name) > 1]:
        raise DataError(f"{uri} holds {_short(twice[0])} twice: save it again, each array once")
    for name in names:
        if name not in found:
            raise DataError(
                f"{uri} lacks the array {name}: it holds {_short(sorted(found))}; save it with "
                f"numpy.savez_compressed and the keys {', '.join(names)}"
            )
    entries = dict(zip(found, archive.infolist(), strict=True))
    return [_from_entry(uri, name, data, archive, entries[name]) for name in names]


def from_idx(uri: str, name: str, data: bytes | mmap.mmap) -> StoredArray:
    """Return the array in the IDX file `data`, plain or gzipped, under the name `name`.

    The numbers of a plain one are not copied.

    Raises:
        DataError: it is no such file, or damaged.
    """
    where = f"{name} in {uri}"
    with _refusing_bad_bytes(where):
        packed = data[:2] == GZIP_MAGIC
        start = _unpacked(data).read(_IDX_START_BYTES) if packed else data[:_IDX_START_BYTES]
    # Two zero bytes, the code of the type, the number of dimensions; then the dimensions.
    dtype = _IDX_DTYPES.get(start[2]) if len(start) >= 4 and start[:2] == b"\0\0" else None
    if dtype is None:
        raise DataError(f"{where} {_instead_of('an IDX file', start)}")
    offset = 4 + 4 * start[3]
    if not 1 <= start[3] <= _IDX_MAX_DIMENSIONS or len(start) < offset:
        raise DataError(
            f"{where} claims {start[3]} dimensions and begins {start[:8].hex(' ')}: there must be "
            f"1 to {_IDX_MAX_DIMENSIONS}, of 4 bytes each; copy it again"
        )
    shape = struct.unpack(f">{start[3]}I", start[4:offset])

    def read_bytes(size_bytes: int) -> memoryview:
        if not packed:
            return memoryview(data)[offset:]
        stream = _unpacked(data)
        stream.read(offset)
        # One byte more than claimed tells of surplus, and takes gzip to its checksum.
        return _read_at_most(stream, size_bytes + 1)

    mapped = not isinstance(data, bytes)
    return StoredArray(name, uri, shape, np.dtype(dtype), "C", read_bytes, mapped)


def _from_entry(
    uri: str, name: str, data: bytes, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> StoredArray:
    where = f"{name} in {uri}"
    if entry.flag_bits & _ENCRYPTED:
        raise DataError(f"{where} is encrypted: save the archive without a password")
    # bzip2 and LZMA inflate without bound inside zipfile, and numpy never writes them.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{where} is compressed by zip method {entry.compress_type}: save it with "
            "numpy.savez_compressed, which uses deflate"
        )
    with _refusing_bad_bytes(where):
        with archive.open(entry) as file:
            header = io.BytesIO(file.read(_MAX_HEADER_BYTES))
        shape, is_fortran, dtype = _npy_header(header)
        offset = header.tell()
    if dtype.hasobject:
        raise DataError(
            f"{where} has dtype object: Python objects are never unpickled; save it as numbers"
        )
    if min(shape, default=0) < 0:
        raise DataError(f"{where} claims the shape {_short(shape)}: it is damaged, save it again")

    def read_bytes(size_bytes: int) -> memoryview:
        if entry.compress_type == zipfile.ZIP_STORED:
            return _in_place(data, entry)[offset:]
        with archive.open(entry) as file:
            file.read(offset)
            # Together with the header this is all that the entry declares, so its CRC is checked.
            return _read_at_most(file, size_bytes)

    array = StoredArray(name, uri, shape, dtype, "F" if is_fortran else "C", read_bytes)
    if offset + array.size_bytes != entry.file_size:
        raise DataError(
            f"{where} claims {_short(offset + array.size_bytes)} bytes with shape {_short(shape)} "
            f"and dtype {dtype.name}, but the archive declares {entry.file_size}: it is damaged, "
            "save it again"
        )
    return array


def _npy_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy comments on headers that Python 2 wrote
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version in readers:
            return readers[version](file)
    raise ValueError(f"version {version} of the NPY format")  # 3.0 is for named fields only


def _unpacked(data: bytes | mmap.mmap) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=io.BytesIO(data))


def _in_place(data: bytes, entry: zipfile.ZipInfo) -> memoryview:
    """Return the content of a stored entry, whose local header zipfile has checked."""
    header = entry.header_offset
    name_bytes, extra_bytes = struct.unpack_from("<HH", data, header + _LOCAL_HEADER_BYTES - 4)
    start = header + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    content = memoryview(data)[start : start + min(entry.file_size, entry.compress_size)]
    if zlib.crc32(content) != entry.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {entry.filename!r}")
    return content


def _read_at_most(file: IO[bytes] | io.BufferedIOBase, limit_bytes: int) -> memoryview:
    """Return what `file` has left, at most `limit_bytes`, where TensorFlow takes it as it lies.

    Memory of the system's own takes room only where something was written, whatever the limit.
    """
    try:
        room = mmap.mmap(-1, max(1, limit_bytes), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from error
    # As NumPy asks for its own arrays: rows at random are found half as fast again in large pages.
    with suppress(OSError, AttributeError):
        room.madvise(mmap.MADV_HUGEPAGE)
    data, size = memoryview(room), 0
    # In chunks, since gzip's read allocates all it is asked for at once.
    while chunk := file.read(min(_CHUNK_BYTES, limit_bytes - size)):
        data[size : size + len(chunk)] = chunk
        size += len(chunk)
    return data[:size]


@contextmanager
def _refusing_bad_bytes(where: str) -> Iterator[None]:
    try:
        yield
    except _BAD_BYTES as error:
        reason = _short(f"{type(error).__name__}: {error}".removesuffix(": "))
        advice = "it is truncated or damaged, copy it again"
        if isinstance(error, MemoryError):
            advice = "give the job more memory, or a smaller data set"
        raise DataError(f"{where} cannot be read ({reason}): {advice}") from error


def _instead_of(expected: str, data: bytes) -> str:
    if not data:
        return "is empty: copy it again"
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, look in _LOOKALIKES:
        if start.startswith(magic):
            return look
    return f"is not {expected}, it begins {data[:8].hex(' ')}: check the path"


def _short(value: object) -> str:
    text = "".join(sign if sign.isprintable() else "?" for sign in str(value))
    return text if len(text) <= 160 else text[:157] + "..."
