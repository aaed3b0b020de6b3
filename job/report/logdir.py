"""Event files of runs, brought to where TensorBoard can read them: it knows no object stores.

    <cache>/mnist-job/tensorboard/<output>/<run>/*.tfevents

What lies on this machine is read where it is. Event files never change, so each is fetched once; a
run that was removed and made anew under the same name is known by its first attempt's record.
"""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from job import storage
from job.config import check_run_id
from job.errors import ConflictError, MissingInputError, OutputError, UsageError
from job.results.publishing import RunFolder
from job.storage import Place

MAX_BYTES = 256 * storage.MEBIBYTE  # of one event file
_READERS = 16  # requests at a time
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}\.tfevents")
_BEGUN = ".begun"  # in a cached run's folder: the digest of its first attempt's record


@dataclass(frozen=True)
class Brought:
    """What TensorBoard is to be started on."""

    folder: Path
    runs: int
    """That have event files."""
    fetched: int
    """Files that were not there before."""


def bring(place: Place, environment: Mapping[str, str]) -> Brought:
    """Bring the event files of a run, or of all runs below an output, to this machine.

    Args:
        place: the folder of a run, or of runs.
        environment: names the cache, by XDG_CACHE_HOME.

    Raises:
        MissingInputError: there are none.
        JobError: they can't be read, or kept.
    """
    runs = [RunFolder(place)] if storage.names(RunFolder(place).events) else _below(place)
    if place.kind == "file":
        found = sum(1 for run in runs if storage.names(run.events))
        return _some(place, Brought(place.path, found, 0))
    output = hashlib.sha256(f"{place.kind} {place.bucket} {place.key}".encode()).hexdigest()[:16]
    folder = cache(environment) / "mnist-job" / "tensorboard" / output
    try:
        with ThreadPoolExecutor(_READERS) as readers:
            counts = list(readers.map(lambda run: _bring_run(run, folder / run.place.name), runs))
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({error.strerror}): name another cache in XDG_CACHE_HOME"
        ) from error
    found = sum(1 for there, _ in counts if there)
    return _some(place, Brought(folder, found, sum(fetched for _, fetched in counts)))


def cache(environment: Mapping[str, str]) -> Path:
    """Return the folder that caches lie in, by the XDG base directory specification.

    Raises:
        UsageError: there is no home to have one in.
    """
    named = environment.get("XDG_CACHE_HOME", "")
    if named.startswith("/"):  # the specification ignores others
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise UsageError("no home is known: name a folder for caches in XDG_CACHE_HOME") from error


def _below(output: Place) -> list[RunFolder]:
    """Return the folders below an output that may be runs."""
    runs = []
    for name in storage.folders(output):
        with contextlib.suppress(UsageError):
            runs.append(RunFolder(output / check_run_id(name)))
    return runs


def _bring_run(run: RunFolder, folder: Path) -> tuple[int, int]:
    """Return how many event files a run has, and how many of them were fetched now."""
    names = [name for name in storage.names(run.events) if _NAME.fullmatch(name)]
    if not names:
        shutil.rmtree(folder, ignore_errors=True)
        return 0, 0
    _empty_if_of_another(run, folder)
    missing = [name for name in names if not (folder / name).exists()]
    for name in missing:
        content = storage.read(run.events / name, MAX_BYTES)
        with contextlib.suppress(ConflictError):  # another process fetched another state of it
            storage.create(Place.of(folder / name), content)
    return len(names), len(missing)


def _empty_if_of_another(run: RunFolder, folder: Path) -> None:
    """Remove what is cached of a run if it was made anew since."""
    try:
        record = storage.read(run.attempt(1), storage.MEBIBYTE)
    except MissingInputError:
        record = b""
    begun = hashlib.sha256(record).hexdigest()
    mark = folder / _BEGUN
    if mark.exists() and mark.read_text() != begun:
        shutil.rmtree(folder)
    if not mark.exists():
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(begun)


def _some(place: Place, brought: Brought) -> Brought:
    if not brought.runs:
        raise MissingInputError(
            f"{place} has no event files: runs have them that were trained with --tensorboard"
        )
    return brought
