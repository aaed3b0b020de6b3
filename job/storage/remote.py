"""The verbs of `local` for objects in a store, waited for here and carried out by `objects`."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from job.storage.background import Background
from job.storage.objects import Objects
from job.storage.refusals import explained
from job.storage.retrying import Patience
from job.storage.stores import StoreError

Result = TypeVar("Result")


class Remote:
    """All object stores. Every verb may raise whatever `refusals` knows."""

    def __init__(self, patience: Patience, *, anonymous: bool) -> None:
        """Connect to nothing yet.

        Args:
            patience: how long to wait for a store, and whom to tell of retries.
            anonymous: use no credentials, and look for none.
        """
        self._objects = Objects(patience, anonymous=anonymous)
        self._background = Background(self._objects.close)

    def read(self, uri: str, limit_bytes: int) -> bytes:
        """Return the whole object at `uri`, which may have at most `limit_bytes` bytes.

        Raises:
            MissingInputError: there is none.
            DataError: it is larger than the limit.
        """
        return self.read_version(uri, limit_bytes)[0]

    def read_version(self, uri: str, limit_bytes: int) -> tuple[bytes, str]:
        """Return what `read` does, and what the store calls this content."""
        return self._run(self._objects.read(uri, limit_bytes), uri, "reading")

    def version(self, uri: str) -> str:
        """Return what the store calls the object's content now.

        Raises:
            MissingInputError: there is no object.
        """
        return self._run(self._objects.get(uri, 0, 0), uri, "reading").version

    def is_folder(self, uri: str) -> bool:
        """Tell whether objects lie below `uri` and none at it."""
        return self._run(self._objects.is_folder(uri), uri, "looking for")

    def exists(self, uri: str) -> bool:
        """Tell whether an object lies at `uri`."""
        return self._run(self._objects.exists(uri), uri, "looking for")

    def names(self, uri: str) -> list[str]:
        """Return the names of the objects directly in the folder `uri`, sorted."""
        return self._run(self._objects.names(uri), uri, "listing")

    def create(self, uri: str, data: bytes) -> None:
        """Write `data` as a new object at `uri`; finding the same bytes there is success.

        Raises:
            ConflictError: the object exists with other bytes.
            ClusterError: the store would overwrite objects.
            TemporaryError: whether it was written can't be known now.
        """
        self._run(self._objects.create(uri, data), uri, "writing")

    def create_all(self, objects: Mapping[str, bytes]) -> None:
        """Create each object, URI to content, all at the same time.

        Raises:
            JobError: as `create`; each of the others was written or failed as well.
        """
        self._run(self._create_all(objects), "", "writing")

    async def _create_all(self, objects: Mapping[str, bytes]) -> None:
        async def one(uri: str, data: bytes) -> None:
            try:
                await self._objects.create(uri, data)
            except StoreError as error:
                raise explained(error, uri, "writing") from error

        # All to their ends, even if one fails: none is left half done.
        ends = await asyncio.gather(
            *(one(uri, data) for uri, data in objects.items()), return_exceptions=True
        )
        for end in ends:
            if end is not None:
                raise end

    def remove(self, uri: str) -> None:
        """Remove the object at `uri`; that it is gone already is success."""
        self._run(self._objects.remove(uri), uri, "removing")

    def close(self) -> None:
        """Give up whatever is under way and close all connections."""
        self._background.stop()

    def _run(self, work: Coroutine[Any, Any, Result], uri: str, doing: str) -> Result:
        try:
            return self._background.run(work)
        except StoreError as error:
            raise explained(error, uri, doing) from error
