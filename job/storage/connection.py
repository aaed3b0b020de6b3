"""What an object store is to this job: four requests, how each can end, and with which exit code.

An answer is believed only if it shows that it is the store's: a proxy, a captive portal or an
ingress answers too. What doesn't show it is "passing": neither success nor absence.

A new kind of store is one more file with a class of this shape, a branch in `Objects._connection`
that makes one, and its scheme in `place`: `Kind`, `_STORES` and `_ACCEPTED`. Every request raises
`StoreError` when it fails; anything else that it raises is taken for one that passes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
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
    "not yet",  # no credentials, but a pod is given them some seconds after its start
    "full",  # the store has no room left for this account or bucket
    "unable",  # the store doesn't know how to
    "setup",  # what the environment says of the store can't be right
    "wrong",  # anything else
]
FOREIGN = "an answer that is not the store's"

# How the detail begins where somebody else answered: such a status has no code of the store's.
_FOREIGN = re.compile(rf"{FOREIGN}|([23]\d\d|404)(,|$)")
_WORD = re.compile(r"[A-Za-z]+(\.[A-Za-z]+)*")  # a code of an error; other text may hold a key
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{6,128}")


class StoreError(Exception):
    """A request that failed; `explained` turns it into one of the job's own errors."""

    tries = 1
    """How often it was tried."""

    def __init__(self, kind: Failure, detail: str, *, after: str = "") -> None:
        """Say what kind of failure it was, and in a few words, which hold no secret, what.

        `after` is the header Retry-After, as it came: only whole seconds are understood.
        """
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.after_seconds = float(after) if re.fullmatch(r"[0-9]{1,5}", after) else 0.0


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
    written: Mapping[str, datetime] = field(default_factory=dict)
    """When objects were written, by key, with a zone, as far as the store tells."""


class Connection(Protocol):
    """A connection to one object store. Each method is one request and retries nothing."""

    credentials: ClassVar[str]
    """Where they are looked for, to tell who has none."""
    endpoint: ClassVar[str]
    """The variables that say where the store is, to tell who has them wrong."""

    async def get(self, bucket: str, key: str, first: int, last: int) -> Piece:
        """Return the bytes `first` to `last`, or as many as there are."""

    async def put_new(self, bucket: str, key: str, data: bytes) -> bool:
        """Create the object, unless there is one.

        Returns:
            Whether the answer proves that the store has these bytes; if not, look.
        """

    async def page(self, bucket: str, prefix: str, after: str | None, limit: int) -> Page:
        """Return up to `limit` of the names below `prefix`, from the mark `after` on."""

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the object; that there is none is fine.

        Any success is believed: what stays after all costs room and nothing else.
        """

    async def close(self) -> None:
        """Close the connection."""


def piece(data: bytes, span: str, first: int, last: int, version: str | None) -> Piece:
    """Return the bytes of an answer to a request for the bytes `first` to `last`.

    Args:
        data: the body.
        span: the header Content-Range, or "": https://www.rfc-editor.org/rfc/rfc9110#section-14.4
        first: byte asked for, counted from 0.
        last: byte asked for, and all up to it.
        version: the ETag or generation, if it came.

    Raises:
        StoreError: these are not the bytes that were asked for, or nothing shows it.
    """
    found = re.fullmatch(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", span)
    if found is None or not version:
        raise StoreError("passing", FOREIGN)
    begin, end, size = map(int, found.groups())
    if (begin, end) != (first, min(last, size - 1)) or len(data) != end - begin + 1:
        raise StoreError("passing", "other bytes came than were asked for")
    return Piece(data, size, version)


def by_status(status: int, precondition: Failure, *, signed: bool) -> Failure:
    """Return what the status of an answer means whose code, if any, says no more.

    A success with an error in it, a redirect, a 404 that doesn't say of what, and what is not
    `signed` by any code of the store's are not the store's.
    """
    kinds: dict[int, Failure] = {
        401: "refused",
        403: "refused",
        408: "passing",
        409: "busy",
        412: precondition,
        416: "changed",  # the object is shorter than it was
        429: "passing",
        501: "unable",
        507: "full",
    }
    foreign = not signed or status < 400 or status == 404 or status >= 500
    return kinds.get(status, "passing" if foreign else "wrong")


def detail(status: int, code: str, request_id: str = "") -> str:
    """Return what may be repeated of an answer that is an error."""
    known = f"request {request_id}" if _REQUEST_ID.fullmatch(request_id) else ""
    word = code if len(code) <= 60 and _WORD.fullmatch(code) else ""
    return ", ".join(filter(None, [f"{status} {word}".strip(), known]))


def explained(error: StoreError, place: Place, doing: str, store: Connection) -> JobError:
    """Return what to raise for `error`.

    Args:
        error: what became of the request.
        place: what it was about.
        doing: what was tried: `reading`, `looking for`, `listing`, `writing` or `removing`.
        store: whom it was asked of.
    """
    times = f" {error.tries} times" if error.tries > 1 else ""
    what = f"{doing} {place} failed{times} ({error.detail})"
    if error.kind in {"refused", "not yet"}:
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
    if error.kind in {"passing", "busy", "changed"}:
        slow = "if the object is large or the way to the store slow, give more --storage-timeout"
        foreign = (
            "if it stays so, something else answers, such as a proxy or a login page: check the "
            f"network and {store.endpoint}"
        )
        return TemporaryError(
            f"{what}: try again later; {foreign if _FOREIGN.match(error.detail) else slow}"
        )
    if error.kind in {"setup", "unable"}:
        return ClusterError(
            f"{what}: check {store.endpoint} and the certificates, and that the store has "
            "what job/storage/README.md asks of one"
        )
    advice = {"full": "it has no room left; make some, or raise its quota"}
    return OutputError(
        f"{what}: the store did not accept the request; {advice.get(error.kind, 'check the URI')}"
    )
