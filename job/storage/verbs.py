"""The verbs: what the job asks of storage, handed on to the backend that the place is of."""

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from job.errors import UsageError
from job.storage.backend import Backend
from job.storage.files import Files
from job.storage.place import Kind, Place


def _say_nothing(event: str, **details: Any) -> None:
    del event, details


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a command uses storage."""

    timeout_seconds: float = 60.0
    """Deadline of each try of a request to an object store."""
    anonymous: bool = False
    """Use object stores without credentials."""
    notify: Callable[..., None] = _say_nothing
    """Called with the name of an event and its details: each retry."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.timeout_seconds <= 86_400:  # NaN is in no range
            raise UsageError(
                f"--storage-timeout must be from 0.1 to 86400, not {self.timeout_seconds!r}"
            )


_settings = Settings()
_backends: dict[Kind, Backend] = {}


def configure(settings: Settings) -> None:
    """Use storage like that from now on; connections made before are closed."""
    global _settings  # noqa: PLW0603  one process, one way to use storage
    for backend in _backends.values():
        backend.close()
    _backends.clear()
    _settings = settings


def read(place: Place, limit_bytes: int) -> bytes:
    """Return the whole object at `place`, of at most `limit_bytes`; see `Backend.read`."""
    return _backend(place).read(place, limit_bytes)[0]


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


def create(place: Place, data: bytes) -> None:
    """Write `data` as a new object, never over another; see `Backend.create`."""
    _backend(place).create(place, data)


def create_all(objects: Mapping[Place, bytes]) -> None:
    """Create several objects of one kind of storage; see `Backend.create_all`."""
    if objects:
        _backend(next(iter(objects))).create_all(objects)


def remove(place: Place) -> None:
    """Remove the object at `place`; see `Backend.remove`."""
    _backend(place).remove(place)


def _backend(place: Place) -> Backend:
    """Return what carries the verbs out where `place` lies, made when first needed."""
    if place.kind not in _backends:
        _backends[place.kind] = Files() if place.kind == "file" else _objects(place.kind)
    return _backends[place.kind]


def _objects(kind: Kind) -> Backend:
    from job.storage.objects import Objects  # noqa: PLC0415  asyncio is for those who need it
    from job.storage.retrying import Patience  # noqa: PLC0415

    patience = Patience(_settings.timeout_seconds, _settings.notify)
    return Objects(kind, patience, anonymous=_settings.anonymous)
