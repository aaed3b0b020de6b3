"""Objects as files of this machine: whole or not at all, never overwritten, on disk when done.

An object is written to a temporary file in its folder, flushed, linked to its name, and the folder
is flushed. A link fails where the name exists, unlike a rename, so two writers can't both win.
"""

import errno
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

from job.errors import ConflictError, MissingInputError, OutputError
from job.storage import temporaries
from job.storage.backend import check_size
from job.storage.place import Place

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


class Files:
    """The file systems of this machine."""

    def read(self, place: Place, limit_bytes: int) -> tuple[bytes, str]:
        """Return the whole object at `place`, of at most `limit_bytes`; files have no versions.

        Raises:
            MissingInputError: there is none, or it may not be read.
            DataError: it is larger than the limit.
            OutputError: the device failed while reading.
        """
        path = place.path
        try:
            if path.is_dir():
                raise MissingInputError(f"{place} is a folder, not a file: name the file in it")
            if path.exists() and not path.is_file():
                raise MissingInputError(f"{place} is a device or a pipe, not a file: name a file")
            with path.open("rb") as file:
                # A read takes all the memory it may need at once: no more than the file has.
                data = file.read(min(limit_bytes, os.fstat(file.fileno()).st_size) + 1)
        except FileNotFoundError as error:
            raise MissingInputError(f"{place} does not exist: check the path") from error
        except (PermissionError, NotADirectoryError) as error:
            raise MissingInputError(
                f"{place} cannot be read ({_reason(error)}): check the path and its permissions"
            ) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise MissingInputError(
                    f"{place} is a link that leads to itself: check it"
                ) from error
            if error.errno == errno.ENAMETOOLONG:
                raise MissingInputError(
                    f"{str(place)[:80]}... is too long to be a file's name"
                ) from error
            raise OutputError(f"reading {place} failed: {_reason(error)}") from error
        check_size(place, len(data), limit_bytes)
        return data, ""

    def version(self, place: Place) -> str:
        """Return "": a file is read as quickly as it is asked for its version."""
        del place
        return ""

    def mapped(self, place: Place, above_bytes: int) -> mmap.mmap | None:
        """Return a file larger than that as memory that is read when it is looked at."""
        try:
            with place.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size > above_bytes:
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError:  # `read` tells the reason
            return None
        return None

    def is_folder(self, place: Place) -> bool:
        """Tell whether `place` is a folder; of one that can't be seen, `read` tells the reason."""
        try:
            return place.path.is_dir()
        except OSError:
            return False

    def exists(self, place: Place) -> bool:
        """Tell whether anything lies at `place`, readable or not.

        Raises:
            MissingInputError: that can't be seen, which is not to say that there is nothing.
        """
        try:
            os.lstat(place.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise MissingInputError(
                f"{place} cannot be looked for ({_reason(error)}): check the path and its "
                "permissions"
            ) from error
        return True

    def names(self, place: Place) -> list[str]:
        """Return the names of what lies directly in the folder, sorted; none if it isn't there.

        Raises:
            OutputError: that can't be seen, which is not to say that there is nothing.
        """
        try:
            with os.scandir(place.path) as entries:
                return sorted(entry.name for entry in entries if not temporaries.is_one(entry.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputError(
                f"cannot list {place}: {_reason(error)}; check the folder and its permissions"
            ) from error

    def create(self, place: Place, data: bytes) -> None:
        """Write `data` as a new file, whole or not at all, and on disk when this returns.

        If it is there already with the same bytes, that is success: this writer, or a twin of it,
        wrote it before.

        Raises:
            ConflictError: the object exists with other bytes.
            OutputError: it could not be written; what to do is in the message.
        """
        path = place.path
        if not path.name:
            raise OutputError(f"cannot write {place}: it names a folder; name a file in it")
        temporary = path.with_name(temporaries.new_name())
        try:
            _make_folder(path.parent)
            try:
                _write_synced(temporary, data)
                temporaries.sweep(temporary)
                os.link(temporary, path)  # fails if the name exists, unlike a rename
            except FileExistsError:
                _check_same(place, data)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)  # even if found: its writer may have died just before this
        except FileExistsError as error:
            raise OutputError(
                f"cannot write {place}: {error.filename} is in the way and is no folder; move it "
                "or choose another --output"
            ) from error
        except OSError as error:
            advice = "check that the folder is writable and has room"
            if error.errno in _NO_HARD_LINKS:
                advice = (
                    "if its file system has no hard links (SMB, some FUSE), choose one that has"
                )
            raise OutputError(f"cannot write {place}: {_reason(error)}; {advice}") from error

    def create_all(self, objects: Mapping[Place, bytes]) -> None:
        """Create each object, place to content, one after the other.

        Raises:
            ConflictError: one exists with other bytes.
            OutputError: one could not be written.
        """
        for place, data in objects.items():
            self.create(place, data)

    def remove(self, place: Place) -> None:
        """Remove the object at `place`; that it is gone already is success.

        Raises:
            OutputError: it can't be removed.
        """
        try:
            place.path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot remove {place}: {_reason(error)}; check permissions"
            ) from error

    def close(self) -> None:
        """Do nothing: no file is left open."""


def _make_folder(folder: Path) -> None:
    """Make `folder` and those above it, their names on disk when this returns."""
    above = folder.parent
    if folder != above and not folder.is_dir():
        _make_folder(above)
        folder.mkdir(exist_ok=True)
        _sync_folder(above)


def _check_same(place: Place, data: bytes) -> None:
    path = place.path
    if not path.is_file():
        raise OutputError(
            f"cannot write {place}: {path} is in the way and is not a file of ours; move it or "
            "choose another --output"
        )
    try:
        same = path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError as error:
        raise OutputError(
            f"{place} exists already, but cannot be compared ({_reason(error)}): nothing was "
            "overwritten; check its permissions"
        ) from error
    if not same:
        raise ConflictError(
            f"{place} already exists with other content: nothing was overwritten; choose another "
            "--run-id or --output"
        )


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the new name itself must survive a power cut
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
