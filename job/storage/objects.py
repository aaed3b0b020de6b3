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
import os
from functools import partial

from job.errors import ClusterError, ConflictError, DataError, OutputError, TemporaryError
from job.storage import uris
from job.storage.retrying import Patience
from job.storage.stores import Page, Piece, Store, StoreError

MEBIBYTE = 1024 * 1024
FIRST_BYTES = 4 * MEBIBYTE  # asked for before the size is known, and all there is of most objects
PIECE_BYTES = 16 * MEBIBYTE  # of a large object, fetched several at once
CONCURRENT = 8  # requests
MAX_BYTES = 5 * 1024 * MEBIBYTE - 1  # S3 takes one more in one PUT, but s3fs then sends several
_LOOKS = 3  # at an object that changes while it is read
_PAGE = 1_000  # names


class Objects:
    """The object stores that URIs name, each opened when first needed.

    Its methods raise StoreError for what a request came to, and an error of the job for what only
    they know.
    """

    def __init__(self, patience: Patience, *, anonymous: bool) -> None:
        """Open nothing yet; `anonymous` uses no credentials, and looks for none."""
        self._patience = patience
        self._anonymous = anonymous
        self._stores: dict[str, Store] = {}
        self._proven: set[tuple[str, str]] = set()  # stores and buckets that never overwrite
        self._at_once = asyncio.Semaphore(CONCURRENT)

    async def get(self, uri: str, first: int, last: int, version: str | None = None) -> Piece:
        """Return the bytes `first` to `last`, if the object is still of that `version`."""
        store, bucket, key = self._at(uri)
        async with self._at_once:
            return await self._patience.request(
                partial(store.get, bucket, key, first, last, version), f"GET {uri}"
            )

    async def read(self, uri: str, limit_bytes: int) -> tuple[bytes, str]:
        """Return the whole object, of at most `limit_bytes`, and its version.

        Large ones come in pieces, several at once, all of one version.

        Raises:
            DataError: it is larger.
            TemporaryError: it changes all the time.
        """
        for _ in range(_LOOKS):
            try:
                return await self._read(uri, limit_bytes)
            except StoreError as error:
                if error.kind != "changed":
                    raise
        raise TemporaryError(f"{uri} was replaced {_LOOKS} times while it was read: try again")

    async def _read(self, uri: str, limit_bytes: int) -> tuple[bytes, str]:
        start = await self.get(uri, 0, min(FIRST_BYTES, limit_bytes + 1) - 1)
        check_size(uri, start.size, limit_bytes)
        requests = [
            self.get(uri, first, min(first + PIECE_BYTES, start.size) - 1, start.version)
            for first in range(len(start.data), start.size, PIECE_BYTES)
        ]
        pieces = [start, *await asyncio.gather(*requests)]
        if any(piece.version != start.version for piece in pieces):  # an emulator may not look
            raise StoreError("changed", "it was replaced meanwhile")
        data = b"".join(piece.data for piece in pieces)
        if len(data) != start.size:
            raise StoreError("wrong", f"{len(data):,} bytes came of {start.size:,}")
        return data, start.version

    async def exists(self, uri: str) -> bool:
        """Tell whether an object lies at `uri`."""
        try:
            # Not HEAD: its answer has no body, which is where stores say why they refuse.
            await self.get(uri, 0, 0)
        except StoreError as error:
            if error.kind in {"absent", "no bucket"}:
                return False
            raise
        return True

    async def is_folder(self, uri: str) -> bool:
        """Tell whether objects lie below `uri` and none at it."""
        return not await self.exists(uri) and bool((await self._page(uri, None, 1)).keys)

    async def names(self, uri: str) -> list[str]:
        """Return the names of the objects directly in the folder `uri`, sorted."""
        prefix = f"{uris.in_store(uri)[2]}/"
        page = await self._page(uri, None, _PAGE)
        keys = list(page.keys)
        while page.next is not None:
            page = await self._page(uri, page.next, _PAGE)
            keys += page.keys
        return sorted({key.removeprefix(prefix).rstrip("/") for key in keys} - {""})

    async def _page(self, uri: str, after: str | None, limit: int) -> Page:
        store, bucket, key = self._at(uri)
        return await self._patience.request(
            partial(store.page, bucket, f"{key}/", after, limit), f"LIST {uri}"
        )

    async def create(self, uri: str, data: bytes) -> None:
        """Write `data` as a new object; finding the same bytes there is success.

        Raises:
            ConflictError: the object exists with other bytes.
            ClusterError: the store would overwrite objects.
            TemporaryError: whether it was written can't be known now.
        """
        if len(data) > MAX_BYTES:
            raise OutputError(f"{uri} would have 5 GiB or more, too much for one request")
        store, bucket, _ = self._at(uri)
        place = (uris.in_store(uri)[0], bucket)
        if place in self._proven:
            await self._create(uri, data)
            return
        if await self._holds(uri, data) or not await self._create(uri, data):
            return
        try:
            await self._put(store, uri, data)
        except StoreError as error:
            if error.kind != "exists":
                raise
            self._proven.add(place)
        else:
            raise ClusterError(
                f"the store of {uri} overwrites objects that were to be created only: two pods of "
                "one run could destroy each other's work there; choose a store that honours "
                "If-None-Match (ifGenerationMatch on Google's)"
            )

    async def _create(self, uri: str, data: bytes) -> bool:
        """Create the object and return whether the store just took it; if not, it has our bytes."""
        store, bucket, _ = self._at(uri)
        try:
            await self._put(store, uri, data)
        except StoreError as error:
            if error.kind not in {"exists", "passing", "busy"}:
                raise
            if error.kind == "exists":
                self._proven.add((uris.in_store(uri)[0], bucket))
            if not await self._holds(uri, data):
                if error.kind == "exists":  # and was removed before it could be read
                    raise StoreError("busy", "it was there and is gone") from error
                raise
            return False
        return True

    async def _put(self, store: Store, uri: str, data: bytes) -> None:
        _, bucket, key = self._at(uri)
        async with self._at_once:
            await self._patience.request(partial(store.put_new, bucket, key, data), f"PUT {uri}")

    async def _holds(self, uri: str, data: bytes) -> bool:
        """Tell whether the object has the bytes `data`, or isn't there.

        Raises:
            ConflictError: it has others.
        """
        try:
            found = await self.get(uri, 0, min(FIRST_BYTES, len(data) + 1) - 1)
            if found.size == len(data):
                whole = len(found.data) == found.size
                theirs = found.data if whole else (await self.read(uri, len(data)))[0]
                if theirs == data:
                    return True
        except StoreError as error:
            if error.kind in {"absent", "no bucket"}:
                return False
            raise
        raise ConflictError(
            f"{uri} already exists with other content: nothing was overwritten; choose another "
            "--run-id or --output"
        )

    async def remove(self, uri: str) -> None:
        """Remove the object; that there is none is fine."""
        store, bucket, key = self._at(uri)
        await self._patience.request(partial(store.delete, bucket, key), f"DELETE {uri}")

    async def close(self) -> None:
        """Close all connections."""
        for store in self._stores.values():
            await store.close()

    def _at(self, uri: str) -> tuple[Store, str, str]:
        """Return store, bucket and key of `uri`, the store made if need be."""
        kind, bucket, key = uris.in_store(uri)
        if kind not in self._stores:
            seconds = self._patience.timeout_seconds
            # Each brings a second of imports: only the one that is needed.
            if kind == "s3":
                from job.storage.s3 import S3  # noqa: PLC0415

                self._stores[kind] = S3(
                    anonymous=self._anonymous, timeout_seconds=seconds, connections=CONCURRENT
                )
            else:
                # The half of gcsfs that speaks gRPC isn't used, and takes a while to import.
                os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
                from job.storage.gcs import GCS  # noqa: PLC0415

                self._stores[kind] = GCS(anonymous=self._anonymous, timeout_seconds=seconds)
        return self._stores[kind], bucket, key


def check_size(uri: str, size: int, limit_bytes: int) -> None:
    """Raise a DataError if an object of `size` bytes is more than `limit_bytes`."""
    if size > limit_bytes:
        raise DataError(
            f"{uri} has more than {limit_bytes // MEBIBYTE} MiB, the most this job reads of such a "
            "file: give a smaller one"
        )
