"""Data that grow: which files were seen, and which of their images are never trained on.

A folder of shards is a base, which is a whole data set, and files that others add at any time:
`train-*.npz` with x_train and y_train, `test-*.npz` with x_test and y_test. What was seen there is
told apart by names, sizes and digests; an image by a digest of its own.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from job.config import DataSource
from job.data import files
from job.data.examples import Images
from job.data.files import File
from job.errors import DataError

HELD_OUT = 0.1  # share of the images of each training shard
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Part:
    """A file of a data set, as it was seen."""

    name: str
    size: int
    """Bytes."""
    sha256: str

    @classmethod
    def of(cls, file: File) -> "Part":
        """Return what to remember of a file."""
        return cls(file.name, file.size, file.sha256)


@dataclass(frozen=True)
class Shard(Part):
    """A shard, as it was read."""

    examples: int
    """All that it holds."""
    held_out: int
    """How many of them are never trained on."""


@dataclass(frozen=True)
class Look:
    """What lay at a source."""

    parts: tuple[Part, ...]
    """All files that are part of the data set, the base's first."""
    shards: tuple[Part, ...]
    """Those of them that are shards: first those to train on, then those to test with."""
    fingerprint: str

    @property
    def only(self) -> tuple[tuple[str, str], ...]:
        """What `DataSource.only` is to be, that no other files are taken."""
        return tuple((part.name, part.sha256) for part in self.parts)


def look(source: DataSource, beat: Callable[[], None] = lambda: None) -> Look:
    """Return what lies at `source`, by names, sizes and digests; nothing is inflated.

    `beat` is called after each file, as a sign of life.

    Raises:
        DataError: a file is not the one that `source.only` names, or is too large to be read.
        JobError: whatever else `job.data.source.load` raises for files that can't be read.
    """

    def see(file: File) -> Part:
        check_is_meant(source, file)
        beat()
        return Part.of(file)

    folder = files.folder_of(source)
    if folder is None:
        parts = tuple(see(file) for file in files.whole_set(source.place))
        check_all_there(source, [part.name for part in parts])
        return Look(parts, (), fingerprint(parts))
    parts = tuple(see(file) for file in files.base_set(folder.base))
    names = wanted(source, (*folder.train, *folder.test))
    check_all_there(source, [*(part.name for part in parts), *names])
    shards = tuple(see(files.shard(folder, name)) for name in names)
    return Look((*parts, *shards), shards, fingerprint((*parts, *shards)))


def fingerprint(parts: Iterable[Part]) -> str:
    """Return a sha256 (hex) of names, sizes and digests of `parts`, in whatever order they come."""
    seen = sorted((part.name, part.size, part.sha256) for part in parts)
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def recorded(data: Any) -> tuple[tuple[str, str], ...] | None:
    """Return the files that a run took, as `DataSource.only` has them, by its record of the data.

    None where the record, which may be anybody's, names none: of a set that is no folder of shards
    only the fingerprint of its numbers is kept.
    """
    try:
        named = [*data["base"]["files"], *data["shards"]]
        found = tuple((part["name"], part["sha256"]) for part in named)
    except (KeyError, TypeError):
        return None
    return found if all(isinstance(text, str) for pair in found for text in pair) else None


# --- only the files that are meant --------------------------------------------------------------


def wanted(source: DataSource, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the shards called `names` that `source` takes."""
    only = None if source.only is None else dict(source.only)
    return tuple(name for name in names if only is None or name in only)


def check_is_meant(source: DataSource, file: File) -> None:
    """Check that `file` is the one that `source` names, if it names any.

    Raises:
        DataError: it is another, or has other bytes.
    """
    if source.only is None:
        return
    expected = dict(source.only).get(file.name)
    if expected is None:
        raise DataError(
            f"{file.place} is {file.name}, which is none of the files that are to be taken "
            f"({_list([name for name, _ in source.only])}): bring back what lay there"
        )
    if file.sha256 != expected:
        raise DataError(
            f"{file.place} has the sha256 {file.sha256[:12]}..., not {expected[:12]}...: its bytes "
            "have changed since it was first seen; bring the file back"
        )


def check_all_there(source: DataSource, names: Sequence[str]) -> None:
    """Check that each file that `source` names is among `names`.

    Raises:
        DataError: one is not.
    """
    missing = [name for name, _ in source.only or () if name not in names]
    if missing:
        raise DataError(f"{source.place} lacks {_list(missing)}: bring back what lay there")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


# --- images ------------------------------------------------------------------------------------


def digests(images: Images) -> list[bytes]:
    """Return a blake2b of the bytes of each image, of 16 bytes: the same image, the same digest.

    Args:
        images: uint8, C-contiguous, of shape (n, ...).
    """
    return [
        hashlib.blake2b(image.data, digest_size=DIGEST_BYTES).digest()
        for image in images.reshape(len(images), -1)
    ]


def held_out(of_images: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """Tell by their digests which images of a shard are never trained on from it; shape (n,).

    The same image is held out of every shard that holds it, on every night.
    """
    limit = int(HELD_OUT * 2**64)
    first = (int.from_bytes(digest[:8], "big") for digest in of_images)
    return np.fromiter((number < limit for number in first), np.bool_, len(of_images))
