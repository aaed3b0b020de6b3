"""Objects in a store: whole or not at all, and never overwritten.

An object is created by one request that fails where it exists. When such a request ends in any way
but success, the object itself is asked: with our bytes in it we have written it, whatever the
answer was or wasn't.

S3 and Google honour "create only" for certain; some stores that speak their language ignore it. So
the first object that a process creates in a bucket is looked for before, and sent a second time
after, with the same bytes, which harms nobody: a store that accepts that would overwrite, and is
refused.
"""

import asyncio
import mmap
import os
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

from job.errors import ClusterError, ConflictError, JobError, OutputError, TemporaryError
from job.storage.backend import MEBIBYTE, check_size
from job.storage.background import Background
from job.storage.connection import Connection, Page, Piece, StoreError, explained
from job.storage.place import Kind, Place
from job.storage.retrying import ATTEMPTS, Patience

FIRST_BYTES = 4 * MEBIBYTE  # asked for before the size is known, and all there is of most objects
PIECE_BYTES = 16 * MEBIBYTE  # of a large object, fetched several at once
CONCURRENT = 8  # requests
MAX_BYTES = 5 * 1024 * MEBIBYTE - 1  # S3 takes one more in one PUT, but s3fs then sends several
_LOOKS = 3  # at an object that changes while it is read
_PAGE = 1_000  # names

Result = TypeVar("Result")


class Objects:
    """The object stores of one kind, by a connection that is made when first needed.

    A `Backend`, which says what each verb promises; each also raises what `explained` makes of a
    StoreError.
    """

    def __init__(self, kind: Kind, patience: Patience, *, anonymous: bool) -> None:
        """Connect to nothing yet.

        Args:
            kind: `s3` or `gs`.
            patience: how long to wait for a store, and whom to tell of retries.
            anonymous: use no credentials, and look for none.
        """
        self._kind = kind
        self._patience = patience
        self._anonymous = anonymous
        self._connected: Connection | None = None
        self._proven: set[str] = set()  # buckets whose store never overwrites
        self._at_once = asyncio.Semaphore(CONCURRENT)
        self._background = Background(self._disconnect)

    # --- the verbs, waited for here and carried out below --------------------------------------

    def read(self, place: Place, limit_bytes: int) -> tuple[bytes, str]:
        """Return content and version; a TemporaryError says that it changes all the time."""
        return self._run(self._read(place, limit_bytes), place, "reading")

    def version(self, place: Place) -> str:
        """Return what the store calls the content now."""
        return self._run(self._get(place, 0, 0), place, "reading").version

    def mapped(self, place: Place, above_bytes: int) -> mmap.mmap | None:
        """Return None: what lies in a store is fetched whole."""
        del place, above_bytes
        return None

    def is_folder(self, place: Place) -> bool:
        """Tell whether objects lie below `place` and none at it; raise if that can't be seen."""
        return self._run(self._is_folder(place), place, "looking for")

    def exists(self, place: Place) -> bool:
        """Tell whether an object lies there; in a bucket that isn't there, none does."""
        return self._run(self._exists(place), place, "looking for")

    def names(self, place: Place) -> list[str]:
        """Return the names of objects, and of what has objects below it."""
        return self._run(self._names(place), place, "listing")

    def create(self, place: Place, data: bytes) -> None:
        """Write an object; a ClusterError says that the store would overwrite others."""
        self._run(self._create(place, data), place, "writing")

    def create_all(self, objects: Mapping[Place, bytes]) -> None:
        """Create all at the same time: each is written or failed when this ends."""
        if objects:
            self._run(self._create_all(objects), next(iter(objects)), "writing")

    def remove(self, place: Place) -> None:
        """Remove the object; what lies below its name stays."""
        self._run(self._remove(place), place, "removing")

    def close(self) -> None:
        """Close the connection, and end the thread that it is used in."""
        self._background.stop()

    def _run(self, work: Coroutine[Any, Any, Result], place: Place, doing: str) -> Result:
        try:
            return self._background.run(work)
        except StoreError as error:
            raise self._explained(error, place, doing) from error

    def _explained(self, error: StoreError, place: Place, doing: str) -> JobError:
        return explained(error, place, doing, self._connection(), ATTEMPTS)

    # --- how they are carried out --------------------------------------------------------------

    async def _get(self, place: Place, first: int, last: int, version: str | None = None) -> Piece:
        """Return the bytes `first` to `last`, if the object is still of that `version`."""
        async with self._at_once:
            return await self._patience.request(
                partial(self._connection().get, place.bucket, place.key, first, last, version),
                f"GET {place}",
            )

    async def _read(self, place: Place, limit_bytes: int) -> tuple[bytes, str]:
        for _ in range(_LOOKS):
            try:
                return await self._read_once(place, limit_bytes)
            except StoreError as error:
                if error.kind != "changed":
                    raise
        raise TemporaryError(f"{place} was replaced {_LOOKS} times while it was read: try again")

    async def _read_once(self, place: Place, limit_bytes: int) -> tuple[bytes, str]:
        start = await self._get(place, 0, min(FIRST_BYTES, limit_bytes + 1) - 1)
        check_size(place, start.size, limit_bytes)
        requests = [
            self._get(place, first, min(first + PIECE_BYTES, start.size) - 1, start.version)
            for first in range(len(start.data), start.size, PIECE_BYTES)
        ]
        pieces = [start, *await asyncio.gather(*requests)]
        if any(piece.version != start.version for piece in pieces):  # an emulator may not look
            raise StoreError("changed", "it was replaced meanwhile")
        data = b"".join(piece.data for piece in pieces)
        if len(data) != start.size:
            raise StoreError("wrong", f"{len(data):,} bytes came of {start.size:,}")
        return data, start.version

    async def _exists(self, place: Place) -> bool:
        try:
            # Not HEAD: its answer has no body, which is where stores say why they refuse.
            await self._get(place, 0, 0)
        except StoreError as error:
            if error.kind in {"absent", "no bucket"}:
                return False
            raise
        return True

    async def _is_folder(self, place: Place) -> bool:
        return not await self._exists(place) and bool((await self._page(place, None, 1)).keys)

    async def _names(self, place: Place) -> list[str]:
        prefix = f"{place.key}/"
        page = await self._page(place, None, _PAGE)
        keys = list(page.keys)
        while page.next is not None:
            page = await self._page(place, page.next, _PAGE)
            keys += page.keys
        return sorted({key.removeprefix(prefix).rstrip("/") for key in keys} - {""})

    async def _page(self, place: Place, after: str | None, limit: int) -> Page:
        return await self._patience.request(
            partial(self._connection().page, place.bucket, f"{place.key}/", after, limit),
            f"LIST {place}",
        )

    async def _create(self, place: Place, data: bytes) -> None:
        if len(data) > MAX_BYTES:
            raise OutputError(f"{place} would have 5 GiB or more, too much for one request")
        if place.bucket in self._proven:
            await self._take(place, data)
            return
        if await self._holds(place, data) or not await self._take(place, data):
            return
        try:
            await self._put(place, data)
        except StoreError as error:
            if error.kind != "exists":
                raise
            self._proven.add(place.bucket)
        else:
            raise ClusterError(
                f"the store of {place} overwrites objects that were to be created only: two pods "
                "of one run could destroy each other's work there; choose a store that honours "
                "If-None-Match (ifGenerationMatch on Google's)"
            )

    async def _create_all(self, objects: Mapping[Place, bytes]) -> None:
        async def one(place: Place, data: bytes) -> None:
            try:
                await self._create(place, data)
            except StoreError as error:
                raise self._explained(error, place, "writing") from error

        # All to their ends, even if one fails: none is left half done.
        ends = await asyncio.gather(
            *(one(place, data) for place, data in objects.items()), return_exceptions=True
        )
        for end in ends:
            if end is not None:
                raise end

    async def _take(self, place: Place, data: bytes) -> bool:
        """Create the object and return whether the store just took it; if not, it has our bytes."""
        try:
            await self._put(place, data)
        except StoreError as error:
            if error.kind not in {"exists", "passing", "busy"}:
                raise
            if error.kind == "exists":
                self._proven.add(place.bucket)
            if not await self._holds(place, data):
                if error.kind == "exists":  # and was removed before it could be read
                    raise StoreError("busy", "it was there and is gone") from error
                raise
            return False
        return True

    async def _put(self, place: Place, data: bytes) -> None:
        async with self._at_once:
            await self._patience.request(
                partial(self._connection().put_new, place.bucket, place.key, data), f"PUT {place}"
            )

    async def _holds(self, place: Place, data: bytes) -> bool:
        """Tell whether the object has the bytes `data`, or isn't there.

        Raises:
            ConflictError: it has others.
        """
        try:
            found = await self._get(place, 0, min(FIRST_BYTES, len(data) + 1) - 1)
            if found.size == len(data):
                whole = len(found.data) == found.size
                theirs = found.data if whole else (await self._read(place, len(data)))[0]
                if theirs == data:
                    return True
        except StoreError as error:
            if error.kind in {"absent", "no bucket"}:
                return False
            raise
        raise ConflictError(
            f"{place} already exists with other content: nothing was overwritten; choose another "
            "--run-id or --output"
        )

    async def _remove(self, place: Place) -> None:
        await self._patience.request(
            partial(self._connection().delete, place.bucket, place.key), f"DELETE {place}"
        )

    async def _disconnect(self) -> None:
        if self._connected is not None:
            await self._connected.close()

    def _connection(self) -> Connection:
        """Return the connection, made if need be: each kind brings a second of imports."""
        if self._connected is None:
            seconds = self._patience.timeout_seconds
            if self._kind == "s3":
                from job.storage.s3 import S3  # noqa: PLC0415

                self._connected = S3(
                    anonymous=self._anonymous, timeout_seconds=seconds, connections=CONCURRENT
                )
            else:
                # The half of gcsfs that speaks gRPC isn't used, and takes a while to import.
                os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
                from job.storage.gcs import GCS  # noqa: PLC0415

                self._connected = GCS(anonymous=self._anonymous, timeout_seconds=seconds)
        return self._connected
