"""Examples put together from many files: in memory, or on disk where they are too many for that."""

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from job.data import files
from job.data.examples import Images, Labels, aligned_room
from job.errors import OutputError


class Pile:
    """Labelled images of one shape, those that were added first at the bottom.

    Images beyond `RESIDENT_BYTES` go into a file without a name, in the folder for temporary files:
    they take memory only while they are looked at, and room on disk until nobody holds them.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Begin with no image; each will have the shape `shape`."""
        self._shape = shape
        self._images: list[Images] = []  # those in memory
        self._labels: list[Labels] = []
        self._count = 0
        self._size_bytes = 0
        self._file: IO[bytes] | None = None

    def add(self, images: Images, labels: Labels) -> slice:
        """Put `images`, uint8 of shape (n, *shape), and their labels on top.

        Returns:
            Where they lie among all.

        Raises:
            OutputError: there is no room for them on disk.
        """
        start, self._count = self._count, self._count + len(images)
        self._size_bytes += images.nbytes
        self._labels.append(labels)
        if len(images):
            self._images.append(images)
        # One piece alone stays where it is, which for a large IDX file is on disk already.
        if self._file or (self._size_bytes > files.RESIDENT_BYTES and len(self._images) > 1):
            self._put_on_disk()
        return slice(start, self._count)

    def whole(self) -> tuple[Images, Labels]:
        """Return all images that were added, and their labels, read-only; add no more then."""
        labels = np.concatenate([np.empty(0, np.int32), *self._labels])
        labels.flags.writeable = False
        images = self._in_memory() if self._file is None else self._mapped(self._file)
        images.flags.writeable = False
        return images, labels

    def _in_memory(self) -> Images:
        if len(self._images) == 1:
            return self._images.pop()
        room, end = aligned_room((self._count, *self._shape)), self._count
        while self._images:  # each is given up once it is copied, so that none lies there twice
            part = self._images.pop()
            room[end - len(part) : end] = part
            end -= len(part)
        return room

    def _put_on_disk(self) -> None:
        with _explained(f"put {self._size_bytes:,} bytes of images into"):
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed when it is mapped
            for part in self._images:
                self._file.write(np.ascontiguousarray(part).data)
        self._images.clear()

    def _mapped(self, file: IO[bytes]) -> Images:
        with _explained("look at what was put into"), file:
            file.flush()
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(data, np.uint8).reshape(self._count, *self._shape)


@contextmanager
def _explained(act: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise OutputError(
            f"cannot {act} {tempfile.gettempdir()}: {reason}; let TMPDIR name a folder with room "
            "for the whole data set, on a disk and not in memory"
        ) from error
