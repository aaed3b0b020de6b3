"""The files that a data set is of: found by name, read whole, told apart by digest.

Nothing is inflated here and no number looked at, so that whoever only wants to know whether there
is anything new need not wait for either.
"""

import hashlib
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from job import storage
from job.config import EMBEDDED, DataSource
from job.errors import DataError, MissingInputError, UsageError
from job.storage import Place

EMBEDDED_SHA256 = "06af5dfe73b70e3bc1c36439982b18a8d76803db9b544f6fdf838a37fbb01b64"

# Plain IDX files beyond this, which can be as large as the disk, are not read into memory, and
# training images beyond it stream through the devices.
RESIDENT_BYTES = 1024 * storage.MEBIBYTE
MAX_FILE_BYTES = 2048 * storage.MEBIBYTE  # of one file, as read

ARRAY_NAMES = ("x_train", "y_train", "x_test", "y_test")
IDX_STEMS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
BASE = "base.npz"

_SHARD = re.compile(r"(train|test)-.+\.npz", re.DOTALL)
# A night names files of its own after a shard, and a listing shows it to people.
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,150}")


@dataclass(frozen=True)
class File:
    """A file of a data set, as it was read."""

    name: str
    """What it is called among the files of its data set, wherever that lies."""
    place: Place
    data: bytes | mmap.mmap
    array: str | None = None
    """Name of the one array in an IDX file; None for an archive of several."""
    known_sha256: str | None = None

    @cached_property
    def sha256(self) -> str:
        """Digest of the file's bytes, in hex."""
        return self.known_sha256 or hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self.data)


@dataclass(frozen=True)
class Folder:
    """A folder of shards, as it was listed."""

    place: Place
    base: Place
    """A whole data set, which the shards add to."""
    train: tuple[str, ...]
    """Names of files with more training examples, sorted."""
    test: tuple[str, ...]
    """Names of files with more test examples, sorted."""
    ignored: tuple[str, ...]
    """Names of archives that are neither."""


def folder_of(source: DataSource) -> Folder | None:
    """Return how shards lie at `source`, or None where that names one whole data set.

    Raises:
        DataError: two bases are there, or the name of a shard can't be used.
        MissingInputError: there are shards, but no base.
        UsageError: a base is named, but not for a folder.
    """
    place = source.place
    if place == EMBEDDED or not storage.is_folder(place):
        if source.base is None:
            return None
        if place == EMBEDDED or storage.exists(place):
            raise UsageError(
                f"--base is what the shards in a folder add to, but {place} is one whole data set: "
                "drop one of the two"
            )
        return Folder(place, source.base, (), (), ())  # the first shard will make the folder
    names = sorted(storage.names(place))
    archives = [name for name in names if name.endswith(".npz")]
    shards = [name for name in archives if _SHARD.fullmatch(name)]
    is_set = all(any(name in names for name in _variants(stem)) for stem in IDX_STEMS)
    there = [BASE] * (BASE in names) + ["four IDX files"] * is_set
    if source.base is None and not shards and (is_set or not there):
        return None
    if source.base is not None:
        there.append(f"--base {source.base}")
    if not there:
        raise MissingInputError(
            f"{place} holds shards ({shards[0]} ...) but nothing that they add to: put {BASE} with "
            f"{', '.join(ARRAY_NAMES)} or four IDX files there, or name a data set with --base"
        )
    if len(there) > 1:
        raise DataError(f"{place} has two bases, {there[0]} and {there[1]}: keep one of them")
    for name in shards:
        if not _PLAIN.fullmatch(name):
            raise DataError(
                f"{place} holds a shard called {name[:200]!r}: rename it to at most 150 of the "
                "letters a to z and A to Z, digits, '.', '_' and '-'"
            )
    return Folder(
        place,
        source.base or (place / BASE if BASE in names else place),
        tuple(name for name in shards if name.startswith("train")),
        tuple(name for name in shards if name.startswith("test")),
        tuple(name for name in archives if name not in shards and name != BASE),
    )


def whole_set(place: Place) -> Iterator[File]:
    """Read the one file or the four of the whole data set at `place`, one after the other.

    Raises:
        DataError: one is too large, or the embedded set is damaged.
        MissingInputError: one does not exist or may not be read.
        OutputError: the device failed while reading.
    """
    if place == EMBEDDED:  # by its name or its path: it is the same file
        yield File(EMBEDDED.text, place, _embedded(), known_sha256=EMBEDDED_SHA256)
    elif storage.is_folder(place):
        for array, stem in zip(ARRAY_NAMES, IDX_STEMS, strict=True):
            yield _idx_file(place, array, stem)
    else:
        yield File(place.name, place, storage.read(place, MAX_FILE_BYTES))


def base_set(place: Place) -> Iterator[File]:
    """Read the whole data set at `place` as that which shards add to.

    An archive is called the same wherever it lies, and as no shard is called.
    """
    for file in whole_set(place):
        archive = file.array is None and place != EMBEDDED
        yield File(BASE, file.place, file.data) if archive else file


def shard(folder: Folder, name: str) -> File:
    """Read one of the shards in `folder`."""
    place = folder.place / name
    return File(name, place, storage.read(place, MAX_FILE_BYTES))


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


def _variants(stem: str) -> list[str]:
    """Return the names that an IDX file goes by; some mirrors write a dot for the second dash."""
    plain = (f"{stem}-ubyte", f"{stem.replace('-idx', '.idx')}-ubyte")
    return [name for each in plain for name in (each, f"{each}.gz")]


def _idx_file(folder: Place, array: str, stem: str) -> File:
    for name in _variants(stem):
        place = folder / name
        try:
            mapped = storage.mapped(place, RESIDENT_BYTES)
            data = storage.read(place, MAX_FILE_BYTES) if mapped is None else mapped
            return File(name, place, data, array)
        except MissingInputError as error:
            # One that may not be read is worth a word; a subfolder of that name is not, since some
            # downloads unpack to one beside the file.
            if isinstance(error.__cause__, PermissionError):
                raise
    raise MissingInputError(
        f"{folder} lacks {stem}-ubyte, plain or .gz: a data set's folder holds four IDX files, or "
        f"{BASE} and shards; for an .npz give its own path"
    )
