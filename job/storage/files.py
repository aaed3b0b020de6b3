"""Objects as files of this machine: whole or not at all, never overwritten, on disk when done.

An object is written to a temporary file in its folder, flushed, linked to its name, and the folder
is flushed. A link fails where the name exists, unlike a rename, so two writers can't both win; what
has no links (vfat, SMB) may rename like that. What killed writers left is swept by the next.
"""

import ctypes
import errno
import hashlib
import mmap
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from job.errors import ClusterError, ConflictError, MissingInputError, OutputError, UsageError
from job.storage.backend import check_size
from job.storage.place import Place

ABANDONED_SECONDS = 3600  # no write takes this long: its writer is gone, wherever it ran

_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.tmp")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc/self/ns/pid")

_ABSENT = (FileNotFoundError, NotADirectoryError)
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of linux/fcntl.h and linux/fs.h


class Files:
    """The file systems of this machine: a `Backend`, which says what each verb promises."""

    def __init__(self) -> None:
        self._devices: dict[Path, int] = {}  # of folders above what is written, as first seen

    def read(self, place: Place, limit_bytes: int) -> bytes:
        """Return the content, held once in memory."""
        with _explained("read", place, MissingInputError):
            mode = place.path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise MissingInputError(f"{place} is a folder, not a file: name the file in it")
            if not stat.S_ISREG(mode):
                raise MissingInputError(f"{place} is a device or a pipe: name a file")
            with place.path.open("rb") as file:
                # A read takes all the memory it may need at once: no more than the file has.
                data = file.read(min(limit_bytes, os.fstat(file.fileno()).st_size) + 1)
        check_size(place, len(data), limit_bytes)
        return data

    def mapped(self, place: Place, above_bytes: int) -> mmap.mmap | None:
        """Return the pages of the file; None also if it can't be opened."""
        with suppress(OSError):  # `read` tells the reason
            if place.path.is_file():  # a pipe would be waited for
                with place.path.open("rb") as file:
                    if os.fstat(file.fileno()).st_size > above_bytes:
                        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return None

    def is_folder(self, place: Place) -> bool:
        """Tell whether it is a folder; one that may not be seen counts as none."""
        with _explained("look at", place), suppress(*_ABSENT, PermissionError):
            return stat.S_ISDIR(place.path.stat().st_mode)
        return False

    def exists(self, place: Place) -> bool:
        """Tell whether anything is there, and be it a link to nothing."""
        with _explained("look for", place, MissingInputError), suppress(*_ABSENT):
            os.lstat(place.path)
            return True
        return False

    def names(self, place: Place) -> list[str]:
        """Return the names of files and folders, without temporary files."""
        with _explained("list", place), suppress(FileNotFoundError):
            found = os.scandir(place.path)  # which closes itself at its end or at an error
            return sorted(entry.name for entry in found if not is_temporary(entry.name))
        return []

    def folders(self, place: Place) -> list[str]:
        """Return the names of folders; who removes what is in them must not follow a link."""
        with (
            _explained("list", place),
            suppress(FileNotFoundError),
            os.scandir(place.path) as found,
        ):
            return sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
        return []

    def written(self, place: Place) -> dict[str, datetime | None]:
        """Return when files were changed last, which is when they were written."""
        times: dict[str, datetime | None] = {}
        with (
            _explained("list", place),
            suppress(FileNotFoundError),
            os.scandir(place.path) as found,
        ):
            for entry in found:
                with suppress(FileNotFoundError):  # removed meanwhile
                    if entry.is_file(follow_symlinks=False) and not is_temporary(entry.name):
                        seconds = entry.stat(follow_symlinks=False).st_mtime
                        times[entry.name] = datetime.fromtimestamp(seconds, UTC)
        return times

    def create(self, place: Place, data: bytes) -> None:
        """Write a file, on disk when this returns, and make the folders above it."""
        path = place.path
        if not path.name:
            raise OutputError(f"cannot write {place}: it names a folder; name a file in it")
        temporary = path.with_name(temporary_name())
        with _explained("write", place, advice="check that the folder is writable and has room"):
            self._check_devices(path)
            _make_folder(path.parent)
            try:
                _write_synced(temporary, data)
                _sweep(temporary)
                _name(temporary, path)
            except FileExistsError:
                _check_same(place, data)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)  # even if found: its writer may have died just before this
            self._check_devices(path)

    def remove(self, place: Place) -> None:
        """Remove the file; its folder stays."""
        with _explained("remove", place):
            place.path.unlink(missing_ok=True)

    def remove_folder(self, place: Place) -> None:
        """Remove the folder, and temporary files in it: names that nothing shows would keep it."""
        with _explained("remove", place), suppress(FileNotFoundError):
            left = list(place.path.iterdir())
            if all(is_temporary(path.name) for path in left):
                for path in left:
                    path.unlink(missing_ok=True)
                place.path.rmdir()
                self._devices.pop(place.path.absolute(), None)  # gone on purpose: it may come again

    def close(self) -> None:
        """Do nothing: no file is left open."""

    def _check_devices(self, path: Path) -> None:
        """Raise an OutputError if a folder above `path` is gone or has changed its file system.

        When a volume was unmounted, files written below its mount point would land on the disk
        beneath, where nobody looks for them.
        """
        for folder in path.absolute().parents:  # the deepest first: it wakes automatic mounts
            known = folder in self._devices  # asked first: another thread may make the folder now
            try:
                device = folder.stat().st_dev
            except _ABSENT:
                if not known:
                    continue
                device = -1
            if self._devices.setdefault(folder, device) != device:
                raise OutputError(
                    f"cannot write {path}: {folder} is gone or another file system lies there now; "
                    "mount again what was there"
                )


@contextmanager
def _explained(
    verb: str,
    place: Place,
    refused: type[Exception] = OutputError,
    advice: str = "check the path, its permissions and its file system",
) -> Iterator[None]:
    """Raise what an OSError means: `refused` where the path is to blame and not the device."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and refused is MissingInputError:
            raise MissingInputError(f"{place} does not exist: check the path") from error
        kind: type[Exception] = OutputError
        reason, shown = (error.strerror or type(error).__name__).lower(), str(place)
        if isinstance(error, FileExistsError):
            reason = f"{error.filename} is in the way and is no folder"
            advice = "move it or choose another --output"
        elif error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            kind, advice = UsageError, "give another path"
            shown = shown if len(shown) <= 200 else f"{shown[:80]}..."
        elif isinstance(error, (PermissionError, NotADirectoryError)):
            kind = refused
        raise kind(f"cannot {verb} {shown}: {reason}; {advice}") from error


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
    with _explained("compare", place, advice="nothing was overwritten; check its permissions"):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    raise ConflictError(
        f"{place} already exists with other content: nothing was overwritten; choose another "
        "--run-id or --output"
    )


def _name(temporary: Path, path: Path) -> None:
    """Give a file its name, or raise a FileExistsError: never over another, unlike a rename."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    else:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(temporary), os.fsencode(path)
    number = errno.ENOSYS
    if hasattr(libc, "renameat2"):  # Linux's; Python lacks it
        if not libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE):
            return
        number = ctypes.get_errno()
    if number not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        raise OSError(number, os.strerror(number), str(path))
    raise ClusterError(
        f"cannot write {path}: its file system has neither hard links nor a rename that never "
        f"overwrites, so writers could destroy each other's work; {_elsewhere(path)}"
    )


def _elsewhere(path: Path) -> str:
    """Return what to choose instead of a path that can't be written safely."""
    above, *below = path.absolute().parts[1:]
    if above == "gcs" and len(below) > 1:  # where Vertex AI and Cloud Run mount buckets
        return (
            f"/gcs/{below[0]} is a bucket that is mounted: write gs://{below[0]} in the place of "
            "that, and the job uses the bucket itself"
        )
    return "choose an --output on another"


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
        facts += [_BOOT.read_text(), str(_PROCESSES.stat().st_ino)]
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
    for path in mine.parent.iterdir():
        if (match := _TEMPORARY.fullmatch(path.name)) is None:
            continue
        try:
            dead = match[1] == _here() and not _alive(int(match[2]))
            if dead or now - path.lstat().st_mtime > ABANDONED_SECONDS:
                path.unlink()
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
