"""Objects as files of this machine: whole or not at all, never overwritten, on disk when done.

An object is written to a temporary file in its folder, flushed, linked to its name, and the folder
is flushed. A link fails where the name exists, unlike a rename, so two writers can't both win. What
killed writers left is swept by the next.
"""

import errno
import hashlib
import mmap
import os
import re
import secrets
import socket
from pathlib import Path

from job.errors import ConflictError, MissingInputError, OutputError
from job.storage.backend import check_size
from job.storage.place import Place

ABANDONED_SECONDS = 3600  # no write takes this long: its writer is gone, wherever it ran

_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.tmp")
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


class Files:
    """The file systems of this machine: a `Backend`, which says what each verb promises."""

    def read(self, place: Place, limit_bytes: int) -> bytes:
        """Return the content."""
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
        return data

    def mapped(self, place: Place, above_bytes: int) -> mmap.mmap | None:
        """Return the pages of the file; None also if it can't be opened."""
        try:
            if not place.path.is_file():  # a pipe would be waited for
                return None
            with place.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size > above_bytes:
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError:  # `read` tells the reason
            return None
        return None

    def is_folder(self, place: Place) -> bool:
        """Tell whether it is a folder; one that can't be seen counts as none."""
        try:
            return place.path.is_dir()
        except OSError:
            return False

    def exists(self, place: Place) -> bool:
        """Tell whether anything is there, and be it a link to nothing."""
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
        """Return the names of files and folders, without temporary files."""
        try:
            with os.scandir(place.path) as entries:
                return sorted(entry.name for entry in entries if not is_temporary(entry.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputError(
                f"cannot list {place}: {_reason(error)}; check the folder and its permissions"
            ) from error

    def create(self, place: Place, data: bytes) -> None:
        """Write a file, on disk when this returns, and make the folders above it."""
        path = place.path
        if not path.name:
            raise OutputError(f"cannot write {place}: it names a folder; name a file in it")
        temporary = path.with_name(temporary_name())
        try:
            _make_folder(path.parent)
            try:
                _write_synced(temporary, data)
                _sweep(temporary)
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

    def remove(self, place: Place) -> None:
        """Remove the file; its folder stays."""
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


# --- temporary files ----------------------------------------------------------------------------


def temporary_name() -> str:
    """Return a name of its own, so that two writers of one object never share a file."""
    return f".{_here()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"


def is_temporary(name: str) -> bool:
    """Tell whether a file's name is that of a temporary file."""
    return _TEMPORARY.fullmatch(name) is not None


def _here() -> str:
    """Return a digest of what makes a process id unique: this boot, container and host."""
    facts = [socket.gethostname()]
    try:
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    except OSError:
        facts.append("")  # not Linux: the host's name has to do
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _sweep(mine: Path) -> None:
    """Remove what killed writers left in the folder of `mine`, a file written just now.

    A process id means something only where it was given, and a folder may be shared by machines:
    elsewhere only age tells, by the clock of the file system. A writer that loses its temporary
    file after an hour fails and is repeated; nothing that was promised is lost.
    """
    now = mine.stat().st_mtime
    with os.scandir(mine.parent) as entries:
        others = [entry for entry in entries if entry.name != mine.name]
    for entry in others:
        if (match := _TEMPORARY.fullmatch(entry.name)) is None:
            continue
        try:
            dead = match[1] == _here() and not _alive(int(match[2]))
            if dead or now - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_SECONDS:
                Path(entry.path).unlink()
        except OSError:
            continue  # another has swept it, or may


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's
    return True
