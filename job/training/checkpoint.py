"""All of a run's state <-> one verified object.

A checkpoint is one file, `<run>/checkpoints/<step>-<sha256>.safetensors`, from one create. Its
name carries the digest of its content, so it needs no mark that it is whole: a reader takes the
highest step whose bytes have the digest that the name says, and says so when it passes one by.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from job import storage
from job.errors import ConflictError, DataError, JobError, MissingInputError
from job.process.progress import Progress
from job.storage import Place

MAX_BYTES = 4096 * storage.MEBIBYTE
FORMAT = 1

_NAME = re.compile(r"(\d{10})-([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True)
class State:
    """Where a run stands after some optimizer steps: all that going on needs."""

    owner: dict[str, str]
    """Digests of the config and the data that the state belongs to."""
    threads: int
    """Threads that TensorFlow computes with: the bits of a sum depend on them."""
    step: int = 0
    """Optimizer steps done."""
    arrays: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Every variable of model and optimizer, and the sums of the epoch, by name."""
    history: tuple[dict[str, Any], ...] = ()
    """What will be published of each finished epoch."""
    train_seconds: float = 0.0
    """Time in the training loop, over all attempts."""
    epoch_seconds: float = 0.0
    """Of that, in the epoch under way."""
    made_by: tuple[dict[str, Any], ...] = ()
    """The attempts whose work is in it, oldest first: each its number, versions, devices and
    threads. Empty from a job that didn't write them down."""

    def after(self, steps: int, seconds: float) -> "State":
        """Return the state some steps and seconds later, its arrays not taken yet."""
        return replace(
            self,
            step=self.step + steps,
            train_seconds=self.train_seconds + seconds,
            epoch_seconds=self.epoch_seconds + seconds,
        )

    def after_epoch(self, finished: dict[str, Any]) -> "State":
        """Return the state with one more finished epoch in its history."""
        return replace(self, history=(*self.history, finished), epoch_seconds=0.0)

    def holding(self, arrays: dict[str, npt.NDArray[Any]]) -> "State":
        """Return the state with these arrays."""
        return replace(self, arrays=arrays)


def to_bytes(state: State) -> bytes:
    """Return `state` as a safetensors file; the same state is the same bytes."""
    facts = {name: value for name, value in vars(state).items() if name != "arrays"}
    # One key, since the order of several in the file's header is not defined.
    header = {"state": json.dumps({"format": FORMAT, **facts}, sort_keys=True)}
    return safetensors.save(
        {name: np.asarray(array, order="C") for name, array in state.arrays.items()}, header
    )


def from_bytes(data: bytes, uri: str) -> State:
    """Return the state in a safetensors file.

    Raises:
        DataError: it is not one of this job's.
    """
    try:
        arrays = safetensors.load(data)
        length = int.from_bytes(data[:8], "little")  # the header is JSON after its own length
        facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
        if facts.pop("format") != FORMAT:
            raise DataError(
                f"{uri} was written by another version of this job: choose a new run id"
            )
        lists = {"history": tuple(facts["history"]), "made_by": tuple(facts.get("made_by", ()))}
        if "cores" in facts:  # its name before
            facts["threads"] = facts.pop("cores")
        return State(arrays=arrays, **{**facts, **lists})
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{uri} is no checkpoint of this job ({str(error)[:80]})") from error


def names_in(folder: Place) -> list[str]:
    """Return the names of the checkpoints in `folder`, oldest first.

    Raises:
        OutputError: they can't be seen, which is not to say that there are none.
    """
    return [name for name in storage.names(folder) if _NAME.fullmatch(name)]


def read(place: Place) -> State:
    """Return the state of the checkpoint at `place`.

    Raises:
        MissingInputError: there is none, or it may not be read.
        DataError: it is not what its name says, or not one of this job's.
    """
    data = storage.read(place, MAX_BYTES)
    matched = _NAME.fullmatch(place.name)
    found = hashlib.sha256(data).hexdigest()
    if matched is None or found != matched[2]:
        raise DataError(
            f"{place} is damaged: its sha256 is {found[:12]}..., not what its name says"
        )
    state = from_bytes(data, str(place))
    if state.step != int(matched[1]):
        raise DataError(f"{place} holds step {state.step:,}, not what its name says")
    return state


class Checkpoints:
    """The checkpoints of one run, written beside the training and not in its way."""

    def __init__(self, folder: Place, every_seconds: float, progress: Progress) -> None:
        """Keep them in `folder`; write one at most every `every_seconds` unless told to."""
        self._folder = folder
        self._every_seconds = every_seconds
        self._progress = progress
        self._last = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._known: list[str] = []  # names, oldest first

    def restore(self, owner: dict[str, str]) -> State | None:
        """Return the newest state that verifies, or None if there is no checkpoint.

        Raises:
            ConflictError: it belongs to another config or other data.
            DataError: there are checkpoints, and none verifies.
            OutputError: they can't be seen, which is not to say that there are none.
        """
        self._known = names_in(self._folder)
        for name in reversed(self._known):
            place = self._folder / name
            try:
                state = read(place)
            except (DataError, MissingInputError) as error:
                self._progress.event("checkpoint_passed_by", uri=str(place), reason=str(error))
                continue
            if state.owner != owner:
                raise ConflictError(
                    f"{place} belongs to another config or other data: choose another --run-id"
                )
            # What was passed by goes first when the oldest are removed, before what is whole.
            after = self._known.index(name) + 1
            self._known = [*self._known[after:], *self._known[:after]]
            return state
        if self._known:
            raise DataError(
                f"{self._folder} holds {len(self._known)} checkpoints and none is intact: not "
                "starting from scratch over them; bring one back, or choose another --run-id"
            )
        return None

    def offer(self, state: Callable[[], State]) -> None:
        """Write `state()` in the background if that is due and the last one is written.

        One that can't be written is given up, and the log says so.

        Raises:
            Exception: the last one met a bug, or nothing can be said any more.
        """
        busy = self._pending is not None and not self._pending.done()
        if not busy:
            self._raise_lost()
        if busy or time.monotonic() - self._last < self._every_seconds:
            return
        self._last = time.monotonic()
        # The state is taken now; its bytes are made and written while training goes on.
        self._pending = self._writer.submit(self._try_to_save, state())

    def save(self, state: State) -> None:
        """Write `state` now, after whatever is being written. Nothing can be offered after that.

        Raises:
            OutputError: it can't be written.
            Exception: it is written, but one in the background met a bug.
        """
        self.close()
        self._save(state)
        self._raise_lost()

    def close(self) -> None:
        """Wait for what is being written. Nothing can be offered after that."""
        self._writer.shutdown(wait=True)

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` of the checkpoints known here.

        One that can't be removed stays, and the log says so: it costs room and nothing else.
        """
        for name in self._known[:-keep]:
            place = self._folder / name
            try:
                storage.remove(place)
            except JobError as error:
                self._progress.event("checkpoint_kept", uri=str(place), reason=str(error))
        self._known = self._known[-keep:]

    def _save(self, state: State) -> None:
        data = to_bytes(state)
        name = f"{state.step:010}-{hashlib.sha256(data).hexdigest()}.safetensors"
        place = self._folder / name
        storage.create(place, data)
        # The same state may be saved twice, which makes one file and must count as one.
        self._known = [*(known for known in self._known if known != name), name]
        self._progress.event("checkpoint_saved", step=state.step, uri=str(place))

    def _try_to_save(self, state: State) -> None:
        try:
            self._save(state)
            self.prune(keep=2)  # the newest, and one to step back to
        except Exception as error:
            said = str(error) if isinstance(error, JobError) else repr(error)
            self._progress.event("checkpoint_failed", step=state.step, reason=said)
            # Training is worth more than a checkpoint; publishing will tell if the store is gone.
            # Memory may be there again for the next one. Anything else is a bug.
            if not isinstance(error, JobError | MemoryError):
                raise

    def _raise_lost(self) -> None:
        """Raise, once, what the writer raised: in its own thread nobody would hear of it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
