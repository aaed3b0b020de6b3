"""A run, wherever it lies, copied to a folder of this machine, whole and checked.

    <folder>/<run>/...    what metrics.json names, checked by digest; the records of attempts; what
                          was drawn of the run, if it was; metrics.json, last

As when a run is published: where `metrics.json` is, all it names is there. Nothing is overwritten,
and what is there already, with the right digest, isn't fetched again, so the same command goes on
where one was stopped. Of a run that isn't complete come its records and its newest checkpoint: all
that a training needs to go on with it.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from job import storage
from job.catalog.documents import at, text_at
from job.catalog.reading import each
from job.config import check_run_id
from job.errors import ConflictError, DataError, MissingInputError, TemporaryError, UsageError
from job.process.progress import Progress
from job.results import publishing
from job.results.publishing import METRICS, RunFolder
from job.storage import Place
from job.training import checkpoint

MAX_BYTES = checkpoint.MAX_BYTES
MAX_DRAWN_BYTES = 64 * storage.MEBIBYTE
DRAWN = ("report.html", "metrics.prom")  # made of a run when it was complete, and named by nothing
_AT_ONCE = 4  # files, each held in memory once
_LOOKS = 2  # at what isn't as it was written: one odd answer is not the last word
_RECORD = re.compile(r"[0-9]{4}(-end)?\.json")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Arrived:
    """A file that is there now."""

    path: str
    """Relative to the run's folder."""
    size: int
    """Bytes."""
    fetched: bool
    """False where it was there before."""


@dataclass(frozen=True)
class Fetched:
    """A run that was brought home."""

    place: Place
    complete: bool
    files: tuple[Arrived, ...]


def fetch(
    source: Place, folder: Place, tell: Callable[[Arrived], None], progress: Progress
) -> Fetched:
    """Copy the run at `source` into a folder of its name in `folder`, and return what is there.

    Args:
        source: folder of the run.
        folder: of this machine.
        tell: called with each file as soon as it is there, by several threads.
        progress: told that the run isn't complete, of a checkpoint that is passed by, and of what
            was drawn that is another drawing here.

    Raises:
        UsageError: `folder` is not of this machine, or the source's name is that of no run.
        MissingInputError: there is no run, or a file that it names is gone.
        ConflictError: another file lies where one of the run's is to be, or the run is being
            removed.
        DataError, TemporaryError: a file isn't what the run says, looked at twice.
    """
    if folder.kind != "file":
        raise UsageError(
            f"DIR is {folder}: a run is brought to a folder of this machine; give a local path"
        )
    home = RunFolder(folder / check_run_id(source.name))
    run = RunFolder(source)
    run.check_kept()
    trip = _Trip(run, home, tell, progress)
    try:
        content = storage.read(run.metrics, publishing.MAX_JSON_BYTES)
    except MissingInputError:
        return trip.incomplete()
    return trip.complete(content, publishing.parsed(content, run.metrics))


class _Trip:
    """The way of one run from its folder to that at home."""

    def __init__(
        self, run: RunFolder, home: RunFolder, tell: Callable[[Arrived], None], progress: Progress
    ) -> None:
        self._run = run
        self._home = home
        self._tell = tell
        self._progress = progress

    def complete(self, content: bytes, metrics: dict[str, Any]) -> Fetched:
        """Bring a complete run; `content` is the file of its `metrics`."""
        named = list(_named(metrics, self._run.metrics))
        self._check_home(content)
        files = each(lambda artifact: self._bring(*artifact), named, _AT_ONCE)
        files += each(self._copy, self._records())
        files += each(self._copy_drawing, self._there(DRAWN))
        files.append(self._put(METRICS, content))
        return Fetched(self._home.place, complete=True, files=tuple(files))

    def incomplete(self) -> Fetched:
        """Bring what is there of a run that isn't complete.

        The checkpoint comes first: records alone would let a training begin at step 0.
        """
        self._check_home(None)
        records = self._records()
        if not records:
            raise MissingInputError(
                f"{self._run.place} is no run: it has neither {METRICS} nor a record of an "
                "attempt; mnist-job runs --output ... shows those that there are"
            )
        state = self._newest_state()
        self._progress.event(
            "fetched_incomplete", run=str(self._run.place), state=state is not None
        )
        files = [] if state is None else [state]
        return Fetched(self._home.place, complete=False, files=(*files, *each(self._copy, records)))

    def _check_home(self, content: bytes | None) -> None:
        """See that no other run lies at home: one that is complete, with other metrics."""
        mine = self._at_home(METRICS)
        if mine is not None and mine != content:
            raise ConflictError(
                f"{self._home.place} holds another run, or another state of this one: nothing was "
                "fetched; give another DIR"
            )

    def _records(self) -> list[str]:
        """Return the paths of the records of attempts, and of the weights it began with."""
        names = storage.names(self._run.attempts)
        attempts = [
            f"{self._run.attempts.name}/{name}" for name in names if _RECORD.fullmatch(name)
        ]
        return [*attempts, *self._there([self._run.origin.name])]

    def _there(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if storage.exists(self._run.place / name)]

    def _newest_state(self) -> Arrived | None:
        """Bring the newest checkpoint that is what its name says; None where none was saved.

        Raises:
            DataError: there are some, and none is.
        """
        folder = self._run.checkpoints
        for _ in range(_LOOKS):  # whoever trains meanwhile removes the old ones
            gone, names = False, checkpoint.names_in(folder)
            for name in reversed(names):
                digest = name.partition("-")[2].partition(".")[0]
                try:
                    return self._bring(f"{folder.name}/{name}", digest)
                except MissingInputError as error:
                    if isinstance(error.__cause__, PermissionError):
                        raise
                    gone = True
                    break
                except (DataError, TemporaryError) as error:
                    reason = str(error)
                    self._progress.event(
                        "checkpoint_passed_by", uri=str(folder / name), reason=reason
                    )
            if not gone:
                break
        if not names:
            return None
        if gone:
            raise TemporaryError(f"{folder} changes while it is read: try again")
        raise DataError(f"{folder} holds checkpoints, and none is intact: nothing was fetched")

    def _bring(self, path: str, sha256: str) -> Arrived:
        """Bring a file whose digest is known, unless it is at home."""
        there = self._at_home(path)
        if there is not None:
            self._check_same(path, hashlib.sha256(there).hexdigest() == sha256)
            return self._arrived(path, there, fetched=False)
        return self._put(path, self._verified(path, sha256))

    def _copy(self, path: str) -> Arrived:
        """Bring a small file whose digest nobody tells."""
        return self._put(path, storage.read(self._run.place / path, MAX_DRAWN_BYTES))

    def _copy_drawing(self, path: str) -> Arrived:
        """Bring what was drawn of the run; another drawing that is at home stays."""
        try:
            return self._copy(path)
        except ConflictError:
            self._progress.event("drawn_otherwise", file=str(self._home.place / path))
            there = self._at_home(path) or b""
            return self._arrived(path, there, fetched=False)

    def _put(self, path: str, content: bytes) -> Arrived:
        there = self._at_home(path)
        if there is not None:
            self._check_same(path, there == content)
        else:
            storage.create(self._home.place / path, content)
        return self._arrived(path, content, fetched=there is None)

    def _arrived(self, path: str, content: bytes, *, fetched: bool) -> Arrived:
        arrived = Arrived(path, len(content), fetched)
        self._tell(arrived)
        return arrived

    def _at_home(self, path: str) -> bytes | None:
        """Return the file that is at home; None where there is none."""
        place = self._home.place / path
        return storage.read(place, MAX_BYTES) if storage.exists(place) else None

    def _check_same(self, path: str, same: bool) -> None:
        if not same:
            raise ConflictError(
                f"{self._home.place / path} is not the file of {self._run.place}: nothing was "
                "overwritten; move it away, or give another DIR"
            )

    def _verified(self, path: str, sha256: str) -> bytes:
        """Return a file of the run that has this digest."""
        place = self._run.place / path
        for _ in range(_LOOKS):
            content = storage.read(place, MAX_BYTES)
            found = hashlib.sha256(content).hexdigest()
            if found == sha256:
                return content
        kind = DataError if place.kind == "file" else TemporaryError
        raise kind(
            f"{place} is damaged: its sha256 is {found[:12]}..., not {sha256[:12]}... as it was "
            "written; try again, and if that ends the same, train it again"
        )


def _named(metrics: dict[str, Any], place: Place) -> Iterator[tuple[str, str]]:
    """Yield path and digest of each artifact that a run's metrics, which may be foreign, name.

    Raises:
        DataError: they name none, or what can't be a file in the folder of the run.
    """
    listed = at(metrics, "artifacts")
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{place} names no files: this job didn't write it")
    for artifact in listed:
        path, sha256 = text_at(artifact, "path") or "", text_at(artifact, "sha256") or ""
        plain = all(_PART.fullmatch(part) for part in path.split("/")) and path != METRICS
        if not plain or not _SHA256.fullmatch(sha256):
            raise DataError(
                f"{place} names the file {path[:80]!r} with the digest {sha256[:80]!r}, which no "
                "run publishes: nothing was fetched"
            )
        yield path, sha256


def line(file: Arrived) -> str:
    """Say that a file is there."""
    how = "" if file.fetched else "  was there"
    return f"{file.path}  {_size(file.size)}{how}"


def summary(fetched: Fetched) -> str:
    """Say in one line what was fetched."""
    new = [file for file in fetched.files if file.fetched]
    size = _size(sum(file.size for file in new))
    state = "complete" if fetched.complete else "not complete: the same command fetches the rest"
    return f"{fetched.place}: {len(new)} of {len(fetched.files)} files fetched, {size}; {state}"


def _size(size_bytes: int) -> str:
    if size_bytes < storage.MEBIBYTE / 10:
        return f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / storage.MEBIBYTE:.1f} MiB"
