"""Data sets that were fetched before, by their digest, in a folder of this machine.

    <folder>/versions/<sha256 of URI and version>   the digest of that content
    <folder>/objects/<digest>                       the content

A store gives new content a new version, so an object that changed is fetched anew; and content is
taken only if its bytes have the digest that is its name. A cache may be removed at any time, is
never needed, and never the reason why a job fails.
"""

import hashlib
import shutil
from collections.abc import Callable

from job.errors import JobError
from job.storage.files import Files
from job.storage.place import Place

ROOM = 2  # free space asked for, in sizes of the content: others write to the disk as well


class Cache:
    """Content that was fetched before."""

    def __init__(self, folder: Place, notify: Callable[..., None]) -> None:
        """Keep it in `folder`, made when first needed; `notify` is told what can't be kept."""
        self._folder = folder
        self._files = Files()
        self._notify = notify

    def find(self, place: Place, version: str, limit_bytes: int) -> bytes | None:
        """Return the content of `place` in that version if it is here and undamaged, else None."""
        try:
            digest = self._files.read(self._versions(place, version), 64)[0].decode()
            data = self._files.read(self._objects(digest), limit_bytes)[0]
        except (JobError, ValueError):
            return None
        if hashlib.sha256(data).hexdigest() == digest:
            return data
        self._forget(self._objects(digest))
        return None

    def keep(self, place: Place, version: str, data: bytes) -> None:
        """Keep `data`, the content of `place` in that version, if there is room for it."""
        digest = hashlib.sha256(data).hexdigest()
        try:
            self._folder.path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder.path).free
            if free < ROOM * len(data):
                self._notify("cache_skipped", reason=f"{self._folder} is short of room")
                return
            self._files.create(self._objects(digest), data)
            entry = self._versions(place, version)
            self._files.remove(entry)  # one that is there was of no use to `find`
            self._files.create(entry, digest.encode())
        except (JobError, OSError) as error:
            self._notify("cache_skipped", reason=str(error))

    def _versions(self, place: Place, version: str) -> Place:
        name = hashlib.sha256(f"{place}\n{version}".encode()).hexdigest()
        return self._folder / f"versions/{name}"

    def _objects(self, digest: str) -> Place:
        # What a damaged file says may be no name for a file.
        return self._folder / f"objects/{digest if digest.isalnum() else 'none'}"

    def _forget(self, place: Place) -> None:
        try:
            self._files.remove(place)
        except JobError as error:
            self._notify("cache_skipped", reason=str(error))
