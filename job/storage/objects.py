"""Objects in a store: whole or not at all, and never overwritten.

An object is created by one request that fails where it exists. When such a request ends in any way
but proven success, the object itself is asked: with our bytes in it we have written it, whatever
the answer was or wasn't.

S3 and Google honour "create only" for certain; some stores that speak their language ignore it. So
the first object that a process creates in a bucket is looked for before, and sent a second time
after, with the same bytes, which harms nobody: a store that accepts that would overwrite, and is
refused.
"""

import atexit
import contextlib
import io
import mmap
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial

from job.errors import ClusterError, ConflictError, OutputError
from job.storage.backend import MEBIBYTE, check_size
from job.storage.connection import Connection, Page, Piece, StoreError, explained
from job.storage.place import Kind, Place
from job.storage.retrying import Operation, Patience

FIRST_BYTES = 4 * MEBIBYTE  # asked for before the size is known, and all there is of most objects
PIECE_BYTES = 16 * MEBIBYTE  # of a large object, fetched several at once
CONCURRENT = 8  # requests for pieces of an object
CONNECTIONS = 32  # at most: who reads many small objects asks for several at once
MAX_BYTES = 5 * 1024 * MEBIBYTE  # what S3 takes in one PUT
CLOSE_SECONDS = 2.0  # what an exit spends on leaving connections in good order
_LOOKS = 3  # at an object that changes while it is read, or whose writing isn't proven
_PAGE = 1_000  # names
_MAX_PAGES = 1_000


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
        self._connecting = threading.Lock()
        self._connected: Connection | None = None
        self._proven: set[str] = set()  # buckets whose store never overwrites
        atexit.register(self.close)

    def read(self, place: Place, limit_bytes: int) -> bytes:
        """Return the content; a TemporaryError may say that it changes all the time."""
        with self._operation(place, "reading") as operation:
            return self._read(operation, place, limit_bytes)

    def mapped(self, place: Place, above_bytes: int) -> mmap.mmap | None:
        """Return None: what lies in a store is fetched whole."""
        del place, above_bytes
        return None

    def is_folder(self, place: Place) -> bool:
        """Tell whether objects lie below `place` and none at it; raise if that can't be seen."""
        with self._operation(place, "looking for") as operation:
            there = self._is_there(operation, place)
            return not there and bool(self._page(operation, place, None, 1).keys)

    def exists(self, place: Place) -> bool:
        """Tell whether an object lies there; in a bucket that isn't there, none does."""
        with self._operation(place, "looking for") as operation:
            return self._is_there(operation, place)

    def names(self, place: Place) -> list[str]:
        """Return the names of objects, and of what has objects below it."""
        return sorted({name.rstrip("/") for name in self._listed(place)} - {""})

    def written(self, place: Place) -> dict[str, datetime | None]:
        """Return when objects were written, as far as the store tells."""
        listed = self._listed(place)
        return {name: time for name, time in listed.items() if name and not name.endswith("/")}

    def folders(self, place: Place) -> list[str]:
        """Return the names of what has objects below it."""
        listed = self._listed(place)
        return sorted({name.rstrip("/") for name in listed if name.endswith("/")} - {""})

    def _listed(self, place: Place) -> dict[str, datetime | None]:
        """Return the names in the folder, of what has objects below it with a slash at the end.

        With each comes when it was written, where that is known.
        """
        keys: dict[str, datetime | None] = {}
        marks: list[str | None] = [None]
        while len(marks) <= _MAX_PAGES:
            with self._operation(place, "listing") as operation:  # one for each: they move on
                page = self._page(operation, place, marks[-1], _PAGE)
                if page.next in marks[1:]:
                    raise StoreError("passing", "the listing does not move on")
            keys.update({key: page.written.get(key) for key in page.keys})
            if page.next is None:
                prefix = f"{place.key}/"
                return {key.removeprefix(prefix): time for key, time in keys.items()}
            marks.append(page.next)
        raise OutputError(f"{place} holds over {_MAX_PAGES * _PAGE:,} names: give another folder")

    def create(self, place: Place, data: bytes) -> None:
        """Write an object; a ClusterError says that the store would overwrite others."""
        if len(data) > MAX_BYTES:
            raise OutputError(f"{place} would have more than 5 GiB, too much for one request")
        with self._operation(place, "writing") as operation:
            if place.bucket in self._proven:
                self._take(operation, place, data)
            elif not self._holds(operation, place, data) and self._take(operation, place, data):
                self._prove(operation, place, data)

    def remove(self, place: Place) -> None:
        """Remove the object; what lies below its name stays."""
        with self._operation(place, "removing") as operation:
            delete = partial(self._connection().delete, place.bucket, place.key)
            operation.request(delete, f"DELETE {place}")

    def remove_folder(self, place: Place) -> None:
        """Do nothing: a folder is there as long as objects are."""

    def close(self) -> None:
        """Close the connection."""
        atexit.unregister(self.close)
        if self._connected is not None:
            closing = Operation(Patience(CLOSE_SECONDS, self._patience.notify))
            with contextlib.suppress(StoreError):
                closing.once(self._connected.close)

    # --- how they are carried out --------------------------------------------------------------

    @contextlib.contextmanager
    def _operation(self, place: Place, doing: str) -> Iterator[Operation]:
        """Return what sends requests that end together, and tell of failures in the job's words."""
        store = self._connection()  # before the time runs: it may take a second of imports
        try:
            yield Operation(self._patience)
        except StoreError as error:
            raise explained(error, place, doing, store) from error

    def _get(self, operation: Operation, place: Place, first: int, last: int) -> Piece:
        """Return the bytes `first` to `last`, or as many as there are."""
        get = partial(self._connection().get, place.bucket, place.key, first, last)
        return operation.request(get, f"GET {place}")

    def _read(self, operation: Operation, place: Place, limit_bytes: int) -> bytes:
        looks = 1
        while True:
            start = self._get(operation, place, 0, min(FIRST_BYTES, limit_bytes + 1) - 1)
            check_size(place, start.size, limit_bytes)
            try:
                return start.data if len(start.data) == start.size else self._rest(place, start)
            except StoreError as error:
                if error.kind != "changed" or looks == _LOOKS:
                    raise
            looks += 1

    def _rest(self, place: Place, start: Piece) -> bytes:
        """Return the whole object that begins with `start`."""
        content = io.BytesIO()  # it gives its value away without a copy
        content.seek(start.size - 1)
        content.write(b"\0")  # makes room for all of it
        given_up = threading.Event()

        def fetch(first: int) -> None:
            last = min(first + PIECE_BYTES, start.size) - 1
            # One that comes is progress, so each has a deadline of its own.
            piece = self._get(Operation(self._patience, given_up), place, first, last)
            if piece.version != start.version:
                raise StoreError("changed", "it was replaced meanwhile")
            room[first : last + 1] = piece.data

        pool = ThreadPoolExecutor(CONCURRENT, thread_name_prefix="storage")
        try:
            with content.getbuffer() as room:
                room[: len(start.data)] = start.data
                for _ in pool.map(fetch, range(len(start.data), start.size, PIECE_BYTES)):
                    pass
        finally:
            given_up.set()
            pool.shutdown(cancel_futures=True)
        return content.getvalue()

    def _is_there(self, operation: Operation, place: Place) -> bool:
        try:
            # Not HEAD: its answer has no body, which is where stores say why they refuse.
            self._get(operation, place, 0, 0)
        except StoreError as error:
            if error.kind in {"absent", "no bucket"}:
                return False
            raise
        return True

    def _page(self, operation: Operation, place: Place, after: str | None, limit: int) -> Page:
        page = partial(self._connection().page, place.bucket, f"{place.key}/", after, limit)
        return operation.request(page, f"LIST {place}")

    def _put(self, operation: Operation, place: Place, data: bytes) -> bool:
        """Create the object, and return whether the answer proves it."""
        put = partial(self._connection().put_new, place.bucket, place.key, data)
        try:
            return operation.request(put, f"PUT {place}")
        except StoreError as error:
            if error.kind == "exists":
                self._proven.add(place.bucket)
            raise

    def _take(self, operation: Operation, place: Place, data: bytes) -> bool:
        """Create the object and return whether the store just took it; if not, it has our bytes."""
        for _ in range(_LOOKS):
            try:
                proven = self._put(operation, place, data)
            except StoreError as error:
                if error.kind not in {"exists", "passing", "busy"}:
                    raise
                if not self._holds(operation, place, data):
                    if error.kind == "exists":  # and was removed before it could be read
                        raise StoreError("busy", "it was there and is gone") from error
                    raise
                return False
            if proven or self._holds(operation, place, data):
                return True
        raise StoreError("passing", "it was said to be written, and is not there")

    def _prove(self, operation: Operation, place: Place, data: bytes) -> None:
        """See that the store does not overwrite the object, which has the bytes `data`."""
        for _ in range(_LOOKS):
            try:
                overwritten = self._put(operation, place, data)
            except StoreError as error:
                if error.kind != "exists":
                    raise
                return
            if overwritten:
                raise ClusterError(
                    f"the store of {place} overwrites objects that were to be created only: two "
                    "pods of one run could destroy each other's work there; choose a store that "
                    "honours If-None-Match (ifGenerationMatch on Google's)"
                )
        raise StoreError("passing", "it was said to be written twice")

    def _holds(self, operation: Operation, place: Place, data: bytes) -> bool:
        """Tell whether the object has the bytes `data`, or isn't there.

        Raises:
            ConflictError: it has others.
        """
        try:
            found = self._get(operation, place, 0, min(FIRST_BYTES, len(data) + 1) - 1)
            if found.size == len(data):
                whole = len(found.data) == found.size
                if data == (found.data if whole else self._read(operation, place, len(data))):
                    return True
        except StoreError as error:
            if error.kind in {"absent", "no bucket"}:
                return False
            raise
        raise ConflictError(
            f"{place} already exists with other content: nothing was overwritten; choose another "
            "--run-id or --output"
        )

    def _connection(self) -> Connection:
        """Return the connection, made if need be: each kind brings a second of imports."""
        with self._connecting:  # two threads make one
            if self._connected is None:
                self._connected = self._connect(self._patience.timeout_seconds)
            return self._connected

    def _connect(self, seconds: float) -> Connection:
        if self._kind == "s3":
            from job.storage.s3 import S3  # noqa: PLC0415

            return S3(anonymous=self._anonymous, timeout_seconds=seconds, connections=CONNECTIONS)
        # The half of gcsfs that speaks gRPC isn't used, and takes a while to import.
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
        os.environ["NETRC"] = os.devnull  # aiohttp and requests would send what is in it
        from job.storage.gcs import GCS  # noqa: PLC0415

        return GCS(anonymous=self._anonymous, timeout_seconds=seconds)
