"""What an object store is to this job: five requests, and how each can end.

A new kind of store is one more file with a class of this shape, and a line in `objects`. Every
request raises `StoreError` when it fails, and nothing else.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

Failure = Literal[
    "absent",  # no such object
    "no bucket",
    "exists",  # an object that was to be created is there
    "changed",  # an object that was to be read on is another one now
    "busy",  # another writer is at this object
    "passing",  # the store or the way to it is not well just now
    "refused",  # no credentials, or these may not
    "unable",  # the store doesn't know how to
    "setup",  # what the environment says of the store can't be right
    "wrong",  # anything else
]


class StoreError(Exception):
    """A request that failed; `refusals` turns it into one of the job's own errors."""

    def __init__(self, kind: Failure, detail: str) -> None:
        """Say what kind of failure it was, and in a few words, which hold no secret, what."""
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Piece:
    """Some bytes of an object."""

    data: bytes
    size: int
    """Bytes that the whole object has."""
    version: str
    """What the store calls this content: an ETag or a generation."""


@dataclass(frozen=True)
class Page:
    """Some names of a listing."""

    keys: tuple[str, ...]
    """Of objects, and of what lies deeper, up to the next slash and with it."""
    next: str | None
    """Where the listing goes on; None at its end."""


class Connection(Protocol):
    """A connection to one object store. Each method is one request and retries nothing."""

    async def get(
        self, bucket: str, key: str, first: int, last: int, version: str | None = None
    ) -> Piece:
        """Return the bytes `first` to `last`, if the object is still of that `version`."""

    async def put_new(self, bucket: str, key: str, data: bytes) -> None:
        """Create the object, unless there is one."""

    async def page(self, bucket: str, prefix: str, after: str | None, limit: int) -> Page:
        """Return up to `limit` of the names below `prefix`, from the mark `after` on."""

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the object; that there is none is fine."""

    async def close(self) -> None:
        """Close the connection."""
