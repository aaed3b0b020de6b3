"""Bytes in, bytes out: the one seam between the job and wherever its files lie.

Callers hold URIs as plain strings and hand whole objects over as bytes. Two verbs are enough for
everything the job does: `read` an object of bounded size, and `create` one that is never
overwritten. `create` may be repeated: finding its own bytes already there is success, which is what
makes a restarted pod harmless.
"""

import errno
import os
import re
import secrets
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from job.errors import ConflictError, DataError, MissingInputError, OutputError, UsageError

MEBIBYTE = 1024 * 1024

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=:/)")


def check_uri(uri: str, option: str) -> str:
    """Return `uri` unchanged if the job accepts it as a place to read or write.

    Accepted are local paths and `file://` URIs; the decision is made here, before any other
    library interprets the text.

    Raises:
        UsageError: it is anything else. Text that may hold a secret is not echoed.
    """
    if not uri or not uri.strip():
        raise UsageError(f"{option} is empty: give a path or a URI")
    decoded = unquote(uri) if uri.startswith("file:") else uri
    if any(ord(character) < 32 or ord(character) == 127 for character in decoded):
        raise UsageError(f"{option} holds a control character: give a plain path or URI")
    if "::" in uri:
        raise UsageError(
            f"{option} holds '::': chained URLs are not accepted, give one path or URI"
        )
    scheme = _SCHEME.match(uri)
    if scheme is None:
        if "://" in uri:  # as a path it would be echoed, with whatever key it holds
            raise UsageError(
                f"{option} holds '://' but is no URI this job accepts: give a local path or "
                "file:///absolute/path"
            )
        return uri
    if scheme.group() != "file":
        # Only the scheme is shown: what follows may hold a key.
        raise UsageError(
            f"{option} has the scheme '{scheme.group()}:', which this job does not accept: "
            "give a local path or file:///absolute/path"
        )
    if not uri.startswith("file:///") or "?" in uri or "#" in uri:
        raise UsageError(
            f"{option} is not a file URI the job understands: write file:///absolute/path, with "
            "no host, query or fragment"
        )
    if ".." in decoded.split("/"):
        raise UsageError(f"{option} holds '..': write the path in full")
    return uri


def join(uri: str, *names: str) -> str:
    """Return the URI of `names` below the folder `uri`."""
    root = "file://" if uri == "file:///" else uri.rstrip("/")
    return "/".join([root, *names])


def beside(uri: str, name: str) -> str:
    """Return the URI of `name` in the folder that the object `uri` lies in."""
    folder, slash, _ = uri.rpartition("/")
    return f"{folder}{slash}{name}"


def local_path(uri: str) -> Path:
    """Return the path on this machine that `uri`, a local path or a `file://` URI, names."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return Path(uri)


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
            data = file.read(limit_bytes + 1)
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
    # A name of its own, so that two writers of one object never share a temporary file.
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(8)}.tmp")
    try:
        _make_folder(path.parent)
        try:
            _write_synced(temporary, data)
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
