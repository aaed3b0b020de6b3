"""What every kind of storage can do: the verbs that `verbs` hands on, and `files` and `objects` do.

Besides what is said of each verb, an object store can raise CredentialsError, TemporaryError (no
answer, however often it was asked), ClusterError (it can't be what the job needs) and, for a bucket
that isn't there, UsageError when writing and MissingInputError otherwise; but nothing `exists` in
such a bucket. Files can raise OutputError whatever is asked (a device that fails), and UsageError
(a path that no file can have). "It can't be seen" counts as "it isn't there" for `mapped` and
`is_folder` of files only, since `read` comes after them and tells the reason.
"""

import mmap
from datetime import datetime
from typing import Protocol

from job.errors import DataError
from job.storage.place import Place

MEBIBYTE = 1024 * 1024


class Backend(Protocol):
    """Whole objects at places of one kind."""

    def read(self, place: Place, limit_bytes: int) -> bytes:
        """Return the whole object.

        Raises:
            MissingInputError: there is none, or it may not be read.
            DataError: it has more than `limit_bytes` bytes.
            OutputError: the device failed while reading.
        """

    def mapped(self, place: Place, above_bytes: int) -> mmap.mmap | None:
        """Return the object as memory that is read when it is looked at.

        None where the storage can't, and for what has at most `above_bytes` bytes.
        """

    def is_folder(self, place: Place) -> bool:
        """Tell whether `place` is a folder; False may mean that a file can't be seen."""

    def exists(self, place: Place) -> bool:
        """Tell whether anything lies at `place`, readable or not.

        Raises:
            MissingInputError: that can't be seen, which is not to say that there is nothing.
        """

    def names(self, place: Place) -> list[str]:
        """Return the names of the objects directly in the folder, sorted; none if it isn't there.

        Raises:
            OutputError: that can't be seen, which is not to say that there is nothing.
        """

    def folders(self, place: Place) -> list[str]:
        """Return those of `names` that are folders; a link to one, which leads elsewhere, is none.

        Raises:
            OutputError: that can't be seen, which is not to say that there is nothing.
        """

    def written(self, place: Place) -> dict[str, datetime | None]:
        """Return when each object directly in the folder was written, by its name.

        By the clock of the storage, with a zone; None where it doesn't tell.

        Raises:
            OutputError: that can't be seen, which is not to say that there is nothing.
        """

    def create(self, place: Place, data: bytes) -> None:
        """Write `data` as a new object, whole or not at all, and kept when this returns.

        If the object is there already with the same bytes, that is success: this writer, or a twin
        of it, wrote it before.

        Raises:
            ConflictError: the object exists with other bytes.
            OutputError: it could not be written; what to do is in the message.
        """

    def remove(self, place: Place) -> None:
        """Remove the object; that it is gone already is success.

        Raises:
            OutputError: it can't be removed.
        """

    def remove_folder(self, place: Place) -> None:
        """Remove the folder if no object is left in it; in a store, which has none, do nothing.

        Only for a folder that nobody writes in any more: what is half written there is lost.

        Raises:
            OutputError: it can't be removed.
        """

    def close(self) -> None:
        """Give up whatever is under way and close all connections."""


def check_size(place: Place, size_bytes: int, limit_bytes: int) -> None:
    """Raise a DataError if an object of `size_bytes` is more than `limit_bytes`."""
    if size_bytes > limit_bytes:
        raise DataError(
            f"{place} has more than {limit_bytes // MEBIBYTE} MiB, the most this job reads of such "
            "a file: give a smaller one"
        )
