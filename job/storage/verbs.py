"""The verbs: what the job asks of storage, handed on to the backend that the place is of."""

import math
import mmap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from job.errors import UsageError
from job.storage.backend import Backend
from job.storage.files import Files
from job.storage.place import Kind, Place


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a command uses storage."""

    timeout_seconds: float = 60.0
    """Deadline of each try of a request to an object store."""
    anonymous: bool = False
    """Use object stores without credentials."""
    notify: Callable[..., None] = lambda *_, **__: None
    """Called with the name of an event and its details: each retry."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.timeout_seconds <= 86_400:  # NaN is in no range
            raise UsageError(
                f"--storage-timeout must be from 0.1 to 86400, not {self.timeout_seconds!r}"
            )


_settings = Settings()
_backends: dict[Kind, Backend] = {}
_making = threading.Lock()
_ends_at = math.inf  # when stores are no longer waited for, by time.monotonic


def configure(settings: Settings) -> None:
    """Use storage like that from now on, without hurry; connections made before are closed."""
    global _settings, _ends_at
    for backend in _backends.values():
        backend.close()
    _backends.clear()
    _settings, _ends_at = settings, math.inf


def hurry(seconds: float) -> None:
    """Wait for stores no longer than `seconds` from now, in all; what is under way hurries too."""
    global _ends_at  # noqa: PLW0603
    _ends_at = min(_ends_at, time.monotonic() + seconds)


def read(place: Place, limit_bytes: int) -> bytes:
    """Return the whole object at `place`, of at most `limit_bytes`; see `Backend.read`."""
    return _backend(place).read(place, limit_bytes)


def mapped(place: Place, above_bytes: int) -> mmap.mmap | None:
    """Return a large file as memory that is read when it is looked at; see `Backend.mapped`."""
    return _backend(place).mapped(place, above_bytes)


def is_folder(place: Place) -> bool:
    """Tell whether `place` names a folder; see `Backend.is_folder`."""
    return _backend(place).is_folder(place)


def exists(place: Place) -> bool:
    """Tell whether anything lies at `place`; see `Backend.exists`."""
    return _backend(place).exists(place)


def names(place: Place) -> list[str]:
    """Return the names of the objects directly in the folder `place`; see `Backend.names`."""
    return _backend(place).names(place)


def folders(place: Place) -> list[str]:
    """Return the names of the folders directly in the folder `place`; see `Backend.folders`."""
    return _backend(place).folders(place)


def written(place: Place) -> dict[str, datetime | None]:
    """Return when each object directly in the folder was written; see `Backend.written`."""
    return _backend(place).written(place)


def create(place: Place, data: bytes) -> None:
    """Write `data` as a new object, never over another; see `Backend.create`."""
    _backend(place).create(place, data)


def remove(place: Place) -> None:
    """Remove the object at `place`; see `Backend.remove`."""
    _backend(place).remove(place)


def remove_folder(place: Place) -> None:
    """Remove the folder `place` if no object is in it; see `Backend.remove_folder`."""
    _backend(place).remove_folder(place)


def _backend(place: Place) -> Backend:
    """Return what carries the verbs out where `place` lies, made when first needed."""
    with _making:  # threads that need it at once share one
        if place.kind not in _backends:
            _backends[place.kind] = Files() if place.kind == "file" else _objects(place.kind)
        return _backends[place.kind]


def _objects(kind: Kind) -> Backend:
    from job.storage.objects import Objects  # noqa: PLC0415  asyncio is for those who need it
    from job.storage.retrying import Patience  # noqa: PLC0415

    patience = Patience(_settings.timeout_seconds, _settings.notify, lambda: _ends_at)
    return Objects(kind, patience, anonymous=_settings.anonymous)
