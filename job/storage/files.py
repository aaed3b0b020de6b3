"""Objects as files of this machine: whole or not at all, never overwritten, on disk when done.

An object is written to a temporary file in its folder, flushed, linked to its name, and the folder
is flushed. A link fails where the name exists, unlike a rename, so two writers can't both win.
"""

import errno
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

from job.errors import ConflictError, DataError, MissingInputError, OutputError
from job.storage import temporaries
from job.storage.uris import local_path

MEBIBYTE = 1024 * 1024

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def read(uri: str, limit_bytes: int) -> bytes:
    """Return the whole object at `uri`, which may have at most `limit_bytes` bytes.

    Raises:
        MissingInputError: there is none, or it may not be read.
        DataError: it is larger than the limit.
        OutputError: the device failed while reading.
    """
    path = local_path(uri)
    try:
        if path.is_dir():
            raise MissingInputError(f"{uri} is a folder, not a file: name the file in it")
        if path.exists() and not path.is_file():
            raise MissingInputError(f"{uri} is a device or a pipe, not a file: name a file")
        with path.open("rb") as file:
            # A read takes all the memory it may need at once: no more than the file has.
            data = file.read(min(limit_bytes, os.fstat(file.fileno()).st_size) + 1)
    except FileNotFoundError as error:
        raise MissingInputError(f"{uri} does not exist: check the path") from error
    except (PermissionError, NotADirectoryError) as error:
        raise MissingInputError(
            f"{uri} cannot be read ({_reason(error)}): check the path and its permissions"
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise MissingInputError(f"{uri} is a link that leads to itself: check it") from error
        if error.errno == errno.ENAMETOOLONG:
            raise MissingInputError(f"{uri[:80]}... is too long to be a file's name") from error
        raise OutputError(f"reading {uri} failed: {_reason(error)}") from error
    if len(data) > limit_bytes:
        raise DataError(
            f"{uri} has more than {limit_bytes // MEBIBYTE} MiB, the most this job reads of such a "
            "file: give a smaller one"
        )
    return data


def mapped(uri: str, above_bytes: int) -> mmap.mmap | None:
    """Return the file at `uri` as memory that is read when it is looked at, if it is larger."""
    try:
        with local_path(uri).open("rb") as file:
            if os.fstat(file.fileno()).st_size > above_bytes:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:  # `read` tells the reason
        return None
    return None


def is_folder(uri: str) -> bool:
    """Tell whether `uri` names a folder; of one that can't be seen, `read` tells the reason."""
    try:
        return local_path(uri).is_dir()
    except OSError:
        return False


def exists(uri: str) -> bool:
    """Tell whether anything lies at `uri`, readable or not.

    Raises:
        MissingInputError: that can't be seen, which is not to say that there is nothing.
    """
    try:
        os.lstat(local_path(uri))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise MissingInputError(
            f"{uri} cannot be looked for ({_reason(error)}): check the path and its permissions"
        ) from error
    return True


def create(uri: str, data: bytes) -> None:
    """Write `data` as a new object at `uri`, whole or not at all, and on disk when this returns.

    If the object is there already with the same bytes, that is success: this writer, or a twin of
    it, wrote it before.

    Raises:
        ConflictError: the object exists with other bytes.
        OutputError: it could not be written; what to do is in the message.
    """
    path = local_path(uri)
    if not path.name:
        raise OutputError(f"cannot write {uri}: it names a folder; name a file in it")
    temporary = path.with_name(temporaries.new_name())
    try:
        _make_folder(path.parent)
        try:
            _write_synced(temporary, data)
            temporaries.sweep(temporary)
            os.link(temporary, path)  # fails if the name exists, unlike a rename
        except FileExistsError:
            _check_same(path, uri, data)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)  # even if found: its writer may have died just before this
    except FileExistsError as error:
        raise OutputError(
            f"cannot write {uri}: {error.filename} is in the way and is not a folder; move it or "
            "choose another --output"
        ) from error
    except OSError as error:
        advice = "check that the folder is writable and has room"
        if error.errno in _NO_HARD_LINKS:
            advice = "if its file system has no hard links (SMB, some FUSE), choose one that has"
        raise OutputError(f"cannot write {uri}: {_reason(error)}; {advice}") from error


def create_all(objects: Mapping[str, bytes]) -> None:
    """Create each object, URI to content, one after the other.

    Raises:
        ConflictError: one exists with other bytes.
        OutputError: one could not be written.
    """
    for uri, data in objects.items():
        create(uri, data)


def names(uri: str) -> list[str]:
    """Return the names of the objects directly in the folder `uri`, sorted; none if it isn't there.

    Raises:
        OutputError: that can't be seen, which is not to say that there is nothing.
    """
    try:
        with os.scandir(local_path(uri)) as entries:
            return sorted(entry.name for entry in entries if not temporaries.is_one(entry.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(
            f"cannot list {uri}: {_reason(error)}; check the folder and its permissions"
        ) from error


def remove(uri: str) -> None:
    """Remove the object at `uri`; that it is gone already is success.

    Raises:
        OutputError: it can't be removed.
    """
    try:
        local_path(uri).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {uri}: {_reason(error)}; check permissions") from error


def _make_folder(folder: Path) -> None:
    """Make `folder` and those above it, their names on disk when this returns."""
    above = folder.parent
    if folder != above and not folder.is_dir():
        _make_folder(above)
        folder.mkdir(exist_ok=True)
        _sync_folder(above)


def _check_same(path: Path, uri: str, data: bytes) -> None:
    if not path.is_file():
        raise OutputError(
            f"cannot write {uri}: {path} is in the way and is not a file of ours; move it or "
            "choose another --output"
        )
    try:
        same = path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError as error:
        raise OutputError(
            f"{uri} exists already, but cannot be compared ({_reason(error)}): nothing was "
            "overwritten; check its permissions"
        ) from error
    if not same:
        raise ConflictError(
            f"{uri} already exists with other content: nothing was overwritten; choose another "
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
