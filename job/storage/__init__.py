"""Bytes in, bytes out: the one seam between the job and wherever its files lie.

Callers hold URIs as plain strings and hand whole objects over as bytes. The verbs that matter are
`read`, for an object of bounded size, and `create`, for one that is never overwritten. `create` may
be repeated: finding its own bytes already there is success, which is what makes a restarted pod
harmless.

Paths and `file://` go to `local`, `s3://` and `gs://` to `remote`. Besides what is said of each
verb, an object store can raise CredentialsError, TemporaryError (no answer, however often it was
asked), ClusterError (it can't be what the job needs) and, for a bucket that isn't there, UsageError
when writing and MissingInputError otherwise. "It can't be seen" never counts as "it isn't there".
"""

import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.errors import UsageError
from job.storage import files, uris

if TYPE_CHECKING:
    from job.storage.remote import Remote

MEBIBYTE = files.MEBIBYTE
NO_CACHE = "none"


def _say_nothing(event: str, **details: Any) -> None:
    del event, details


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a command uses storage."""

    timeout_seconds: float = 60.0
    """Deadline of each try of a request to an object store."""
    anonymous: bool = False
    """Use object stores without credentials."""
    cache: str | None = None
    """Folder for data sets that were fetched; None for the user's own, `none` for no cache."""
    notify: Callable[..., None] = _say_nothing
    """Called with the name of an event and its details: retries, a cache that doesn't work."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.timeout_seconds <= 86_400:  # NaN is in no range
            raise UsageError(
                f"--storage-timeout must be from 0.1 to 86400, not {self.timeout_seconds!r}"
            )
        if self.cache is not None and uris.is_remote(uris.check(self.cache, "--cache")):
            raise UsageError("--cache must be a folder of this machine, or none")


_settings = Settings()
_remote: "Remote | None" = None


def configure(settings: Settings) -> None:
    """Use storage like that from now on; connections made before are closed."""
    global _settings, _remote
    if _remote is not None:
        _remote.close()
    _settings, _remote = settings, None


def read(uri: str, limit_bytes: int) -> bytes:
    """Return the whole object at `uri`, which may have at most `limit_bytes` bytes.

    Raises:
        MissingInputError: there is none, or it may not be read.
        DataError: it is larger than the limit.
        OutputError: the device failed while reading.
    """
    if uris.is_remote(uri):
        return _stores().read(uri, limit_bytes)
    return files.read(uri, limit_bytes)


def read_cached(uri: str, limit_bytes: int) -> bytes:
    """Return what `read` does, without fetching what the store still has as it was last time."""
    folder = _cache_folder()
    if folder is None or not uris.is_remote(uri):
        return read(uri, limit_bytes)
    from job.storage.cache import Cache  # noqa: PLC0415

    cache, stores = Cache(folder, _settings.notify), _stores()
    data = cache.find(uri, stores.version(uri), limit_bytes)
    if data is None:
        data, version = stores.read_version(uri, limit_bytes)
        cache.keep(uri, version, data)
    return data


def mapped(uri: str, above_bytes: int) -> mmap.mmap | None:
    """Return the file at `uri` as memory that is read when it is looked at, if it is large.

    Args:
        uri: any place.
        above_bytes: what is no larger is not mapped, nor is what doesn't lie in a local file.
    """
    return None if uris.is_remote(uri) else files.mapped(uri, above_bytes)


def is_folder(uri: str) -> bool:
    """Tell whether `uri` names a folder; of one that can't be seen, `read` tells the reason."""
    return _stores().is_folder(uri) if uris.is_remote(uri) else files.is_folder(uri)


def exists(uri: str) -> bool:
    """Tell whether anything lies at `uri`, readable or not.

    Raises:
        MissingInputError: that can't be seen, which is not to say that there is nothing.
    """
    return _stores().exists(uri) if uris.is_remote(uri) else files.exists(uri)


def create(uri: str, data: bytes) -> None:
    """Write `data` as a new object at `uri`, whole or not at all, and on disk when this returns.

    If the object is there already with the same bytes, that is success: this writer, or a twin of
    it, wrote it before.

    Raises:
        ConflictError: the object exists with other bytes.
        OutputError: it could not be written; what to do is in the message.
    """
    if uris.is_remote(uri):
        _stores().create(uri, data)
    else:
        files.create(uri, data)


def create_all(objects: Mapping[str, bytes]) -> None:
    """Create several objects, URI to content: all on this machine, or all in a store.

    Raises:
        JobError: as `create`. Some may have been written; the same call goes on.
    """
    if any(uris.is_remote(uri) for uri in objects):
        _stores().create_all(objects)
    else:
        files.create_all(objects)


def names(uri: str) -> list[str]:
    """Return the names of the objects directly in the folder `uri`, sorted; none if it isn't there.

    Raises:
        OutputError: that can't be seen, which is not to say that there is nothing.
    """
    return _stores().names(uri) if uris.is_remote(uri) else files.names(uri)


def remove(uri: str) -> None:
    """Remove the object at `uri`; that it is gone already is success.

    Raises:
        OutputError: it can't be removed.
    """
    if uris.is_remote(uri):
        _stores().remove(uri)
    else:
        files.remove(uri)


def _stores() -> "Remote":
    global _remote  # noqa: PLW0603
    if _remote is None:
        from job.storage.remote import Remote  # noqa: PLC0415  asyncio is for those who need it
        from job.storage.retrying import Patience  # noqa: PLC0415

        patience = Patience(_settings.timeout_seconds, _settings.notify)
        _remote = Remote(patience, anonymous=_settings.anonymous)
    return _remote


def _cache_folder() -> Path | None:
    if _settings.cache == NO_CACHE:
        return None
    if _settings.cache is not None:
        return uris.local_path(_settings.cache)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(base) / "mnist-job" if Path(base).is_absolute() else None  # no home, no cache
