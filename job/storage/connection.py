"""What an object store is to this job: five requests, how each can end, and with which exit code.

A new kind of store is one more file with a class of this shape, a branch in `Objects._connection`
that makes one, and its scheme in `place`: `Kind`, `_STORES` and `_ACCEPTED`. Every request raises
`StoreError` when it fails, and nothing else.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from job.errors import (
    ClusterError,
    CredentialsError,
    JobError,
    MissingInputError,
    OutputError,
    TemporaryError,
    UsageError,
)
from job.storage.place import Place

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
    """A request that failed; `explained` turns it into one of the job's own errors."""

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

    credentials: ClassVar[str]
    """Where they are looked for, to tell who has none."""
    endpoint: ClassVar[str]
    """The variables that say where the store is, to tell who has them wrong."""

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


def explained(
    error: StoreError, place: Place, doing: str, store: Connection, attempts: int
) -> JobError:
    """Return what to raise for `error`.

    Args:
        error: what became of the request.
        place: what it was about.
        doing: what was tried: `reading`, `looking for`, `listing`, `writing` or `removing`.
        store: whom it was asked of.
        attempts: how often what can pass was tried.
    """
    what = f"{doing} {place} failed ({error.detail})"
    if error.kind == "refused":
        return CredentialsError(
            f"{what}: check the credentials ({store.credentials}), their expiry and what they "
            "allow; for a public place give --anonymous"
        )
    if error.kind == "absent":
        return MissingInputError(f"{place} does not exist: check the bucket and the key")
    if error.kind == "no bucket":
        # An output in a bucket that isn't there is a flag to correct; an input is missing.
        to_blame = UsageError if doing == "writing" else MissingInputError
        return to_blame(
            f"{place}: there is no bucket {place.bucket!r}; create it, or correct the URI"
        )
    if error.kind in {"passing", "busy"}:
        return TemporaryError(
            f"{what} {attempts} times: try again later; if the object is large or the way to the "
            "store slow, give more --storage-timeout"
        )
    if error.kind in {"setup", "unable"}:
        return ClusterError(
            f"{what}: check {store.endpoint} and the certificates, and that the store has "
            "what job/storage/README.md asks of one"
        )
    return OutputError(f"{what}: the store did not accept the request; check the URI")
