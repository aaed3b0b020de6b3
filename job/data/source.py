"""A data set: by URI to validated arrays and a fingerprint.

Everything about the numbers is checked once, here and in `examples`, so that no later module meets
a label without a class or a pixel that is no byte. Sizes are judged by what headers claim, before
anything inflates.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job import storage
from job.config import DataSource, RunConfig, parse_data
from job.data import examples, files, shards
from job.data.arrays import StoredArray, from_idx, from_npz
from job.data.examples import Images, Labels
from job.data.files import ARRAY_NAMES, File, Folder
from job.data.scratch import Pile
from job.data.shards import Part, Shard
from job.errors import DataError
from job.storage import Place

# A set in one piece lies in memory, then as uint8 on the device: 2 GiB is forty times MNIST and
# still leaves a small machine room to work. What compression cannot shrink is no larger as a file.
MAX_BYTES = 2048 * storage.MEBIBYTE  # of the arrays of a set or a shard together, uncompressed


@dataclass(frozen=True, eq=False)  # comparing arrays gives arrays: compare fingerprints instead
class Dataset:
    """Labelled images to train on and to test with; all arrays are read-only.

    Images are uint8, C-contiguous, of shape (N, height, width) or (N, height, width, channels),
    the same for training and test but for N. Labels are int32 of shape (N,), from 0. The
    fingerprint is a SHA-256 in hex: of a folder of shards that of names, sizes and digests of the
    files that were taken, as `job.data.shards.look` has it; of any other set that of names, shapes
    and bytes of the four arrays, which does not depend on the format they came in.
    """

    uri: str
    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    fingerprint: str
    folder: Folder | None = None
    """How the shards lay; None for a set in one piece, which has none of what follows."""
    parts: tuple[Part, ...] = ()
    """The files that were taken: those of the base, then the shards, each a `Shard`."""
    segments: Mapping[str, slice] = field(default_factory=dict)
    """Where the examples of each shard lie, among those to train on or to test with."""
    held_out: Mapping[str, tuple[Images, Labels]] = field(default_factory=dict)
    """What each training shard holds that is never trained on."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Name of each bad shard that was left out, and what is wrong with it."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image: (height, width) or (height, width, channels), in pixels."""
        return self.x_train.shape[1:]

    @property
    def classes(self) -> int:
        """Number of classes: the largest training label + 1."""
        return int(self.y_train.max()) + 1

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards that were taken: first those to train on, then those to test with."""
        return tuple(part for part in self.parts if isinstance(part, Shard))

    @property
    def only(self) -> tuple[tuple[str, str], ...] | None:
        """What `DataSource.only` is to be, that these files are taken; None of a set in one piece.

        Bad shards that were left out are none of them.
        """
        return tuple((part.name, part.sha256) for part in self.parts) or None

    @cached_property
    def test_fingerprint(self) -> str:
        """SHA-256 in hex of names, shapes and bytes of the test images and labels."""
        return _fingerprint({"x_test": self.x_test, "y_test": self.y_test})

    def shard(self, name: str) -> tuple[Images, Labels]:
        """Return all examples of a shard: those that are trained on, then those held out."""
        where = self.segments[name]
        if name not in self.held_out:
            return self.x_test[where], self.y_test[where]
        images, labels = self.held_out[name]
        return (
            np.concatenate([self.x_train[where], images]),
            np.concatenate([self.y_train[where], labels]),
        )

    @property
    def base_examples(self) -> tuple[Images, Labels]:
        """What the shards add to, of the examples to train on; all, where there are no shards."""
        starts = [at.start for name, at in self.segments.items() if name in self.held_out]
        first = min(starts, default=len(self.x_train))
        return self.x_train[:first], self.y_train[:first]

    def summary(self) -> dict[str, Any]:
        """Describe the data set in a few words for a log."""
        return {
            "uri": self.uri,
            "fingerprint": self.fingerprint,
            "train_examples": len(self.x_train),
            "test_examples": len(self.x_test),
            "image_shape": list(self.image_shape),
            "classes": self.classes,
        }

    def facts(self) -> dict[str, Any]:
        """Describe the data set for a run's metrics, in types that JSON has.

        `job.data.shards.recorded` finds in it which files were taken.
        """
        base = [asdict(part) for part in self.parts if not isinstance(part, Shard)]
        return {
            **self.summary(),
            "test_fingerprint": self.test_fingerprint,
            "base": None if self.folder is None else {"uri": str(self.folder.base), "files": base},
            "shards": [asdict(shard) for shard in self.shards],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
        }

    def remarks(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield name and details of each event that whoever gave these data should know of."""
        if self.folder is None:
            return
        if not (self.folder.train or self.folder.test):
            yield "no_shards", {"data": self.uri, "base": str(self.folder.base)}
        for name in self.folder.ignored:
            yield "not_a_shard", {"file": str(self.folder.place / name)}
        for name, reason in self.skipped:
            yield "shard_skipped", {"shard": name, "reason": reason}


def load(
    source: DataSource, beat: Callable[[], None] = lambda: None, *, skip_bad: bool = False
) -> Dataset:
    """Return the data set at `source`, checked.

    There lies the embedded copy, or an .npz file with the arrays x_train, y_train, x_test and
    y_test, or a folder with the four IDX files under the names MNIST gave them, each plain or .gz;
    or a folder of shards, which `job.data.shards` describes.

    Args:
        source: which files to take.
        beat: called after each file and each array, as a sign of life.
        skip_bad: leave a shard out that is damaged or doesn't fit the base.

    Raises:
        DataError: a file is damaged, or is not one that this job can train on.
        MissingInputError: a file, or the folder, does not exist or may not be read.
        OutputError: the device failed while reading, or has no room for what memory has not.
    """
    folder = files.folder_of(source)
    if folder is None:
        taken, train, test = _whole(source, source.place, files.whole_set(source.place), beat)
        shards.check_all_there(source, [file.name for file in taken])
        arrays: dict[str, NDArray[Any]] = dict(zip(ARRAY_NAMES, (*train, *test), strict=True))
        return Dataset(str(source.place), *train, *test, fingerprint=_fingerprint(arrays, beat))
    return _with_shards(source, folder, beat, skip_bad=skip_bad)


def of_run(metrics: Mapping[str, Any], place: Place | None = None) -> DataSource:
    """Return what names the data of a run.

    The base of a run's shards goes with them, whoever names the folder; the files that it took are
    asked for only where nobody does.

    Args:
        metrics: config and data of the run, from a file that may be anybody's.
        place: where the data lie now, or which others to take; None for where the run found them.
    """
    config = metrics.get("config")
    said = config if isinstance(config, Mapping) else {}
    of_run, base = (
        value if isinstance(value := said.get(name), str) else None for name in ("data", "base")
    )
    if place is not None and str(place) != of_run:
        return DataSource(place)
    return DataSource(
        place or parse_data(of_run or RunConfig.data),
        None if base is None else parse_data(base, "--base"),
        None if place else shards.recorded(metrics.get("data")),
    )


_Pair = tuple[Images, Labels]


def _whole(
    source: DataSource, place: Place, opened: Iterator[File], beat: Callable[[], None]
) -> tuple[list[File], _Pair, _Pair]:
    """Return the files of a whole data set, what to train on, and what to test with."""
    taken: list[File] = []
    stored: list[StoredArray] = []
    for file in opened:
        shards.check_is_meant(source, file)
        taken.append(file)
        if file.array is None:
            assert isinstance(file.data, bytes)
            stored = from_npz(str(file.place), file.data, ARRAY_NAMES)
        else:
            stored.append(from_idx(str(file.place), file.array, file.data))
            _check_total(place, stored)  # each time, since the files read so far stay in memory
            beat()
    x_train, y_train, x_test, y_test = stored
    examples.check_claims(x_train, y_train, x_test, y_test)
    _check_total(place, stored)
    beat()
    train = examples.pixels(x_train), examples.labels(y_train)
    beat()
    test = examples.pixels(x_test), examples.labels(y_test)
    beat()
    _check_classes(y_train, train[1], y_test, test[1])
    return taken, train, test


def _with_shards(
    source: DataSource, folder: Folder, beat: Callable[[], None], *, skip_bad: bool
) -> Dataset:
    taken, base_train, base_test = _whole(source, folder.base, files.base_set(folder.base), beat)
    parts = [Part.of(file) for file in taken]
    taken.clear()  # and with them all their bytes
    names = shards.wanted(source, (*folder.train, *folder.test))
    shards.check_all_there(source, [*(part.name for part in parts), *names])
    shape, classes = base_train[0].shape[1:], int(base_train[1].max()) + 1
    segments: dict[str, slice] = {}
    segments_apart: dict[str, slice] = {}
    skipped: list[tuple[str, str]] = []

    def take(name: str) -> None:  # a function, so that each shard is let go before the next
        file = files.shard(folder, name)
        shards.check_is_meant(source, file)
        beat()
        kind = "train" if name in folder.train else "test"
        try:
            images, labels = _shard(file, kind, shape, classes)
        except DataError as error:
            # Too little memory is no fault of the shard's: the same one may fit elsewhere.
            if not skip_bad or isinstance(error.__cause__, MemoryError):
                raise
            skipped.append((name, str(error)))
            return
        held = np.zeros(len(images), np.bool_)
        if kind == "train":
            held = shards.held_out(shards.digests(images))
            segments_apart[name] = apart.add(images[held], labels[held])
        pile = train if kind == "train" else test
        segments[name] = pile.add(images[~held], labels[~held])
        part = Part.of(file)
        parts.append(Shard(part.name, part.size, part.sha256, len(images), int(held.sum())))
        beat()

    with Pile(shape) as train, Pile(shape) as apart, Pile(shape) as test:
        train.add(*base_train)
        test.add(*base_test)
        del base_train, base_test
        for name in names:
            take(name)
        images, labels = apart.whole()
        return Dataset(
            str(source.place),
            *train.whole(),
            *test.whole(),
            fingerprint=shards.fingerprint(parts),
            folder=folder,
            parts=tuple(parts),
            segments=segments,
            held_out={name: (images[at], labels[at]) for name, at in segments_apart.items()},
            skipped=tuple(skipped),
        )


def _shard(file: File, kind: str, shape: tuple[int, ...], classes: int) -> _Pair:
    """Return what the shard `file` holds, if it fits images of the base's shape and its classes."""
    assert isinstance(file.data, bytes)
    stored = from_npz(str(file.place), file.data, (f"x_{kind}", f"y_{kind}"))
    x, y = stored
    examples.check_pair(x, y)
    if x.shape[1:] != shape:
        raise DataError(
            f"{x} has images of shape {x.shape[1:]}, but the base has {shape}: give both the same"
        )
    _check_total(file.place, stored)
    images, labels = examples.pixels(x), examples.labels(y)
    if labels.max() >= classes:
        index, value = examples.first(labels, labels >= classes)
        raise DataError(
            f"{y.name}[{index}] in {y.uri} is {value}, but the largest training label of the base "
            f"is {classes - 1}: a new class needs a new base"
        )
    return images, labels


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


def _fingerprint(
    arrays: Mapping[str, NDArray[Any]], beat: Callable[[], None] = lambda: None
) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.shape}\n".encode())
        # Little-endian whatever the machine, so that the fingerprint is the same everywhere.
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
        beat()
    return digest.hexdigest()
