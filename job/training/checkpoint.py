"""All of a run's state <-> one verified object.

A checkpoint is one file, `<run>/checkpoints/<step>-<sha256>.safetensors`, from one create. Its
name carries the digest of its content, so it needs no mark that it is whole: a reader takes the
highest step whose bytes have the digest that the name says, and says so when it passes one by.

One that can't be written is said and given up, since the next may be written. Where that has no
hope, or went on for too long, the run ends: what it would compute from then on could not be saved.
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
from job.errors import (
    ClusterError,
    ConflictError,
    CredentialsError,
    DataError,
    JobError,
    MissingInputError,
    TemporaryError,
    UsageError,
)
from job.process.progress import Progress
from job.storage import Place

MAX_BYTES = 4096 * storage.MEBIBYTE
FORMAT = 1
MOST_FAILURES = 3  # of saves in a row; then the run ends
MOST_FAILING_SECONDS = 600.0  # or when they fail for so long, few as they are
RETRY_SECONDS = 30.0  # from a save that failed to the next: three in a row outlast a short trouble

_LOOKS = 2  # at what isn't as it was written: one odd answer is not the last word
_HOPELESS = (ClusterError, ConflictError, CredentialsError, MissingInputError, UsageError)
_NAME = re.compile(r"(\d{10})-([0-9a-f]{64})\.safetensors")


class DamagedError(DataError):
    """What was read is not what was written."""


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
        DamagedError: it is not what its name says, looked at twice.
        DataError: it is not one of this job's.
    """
    matched = _NAME.fullmatch(place.name)
    step, digest = matched.groups() if matched else ("", "")
    for _ in range(_LOOKS):
        data = storage.read(place, MAX_BYTES)
        found = hashlib.sha256(data).hexdigest()
        if found == digest:
            break
    else:
        raise DamagedError(
            f"{place} is damaged: its sha256 is {found[:12]}..., not what its name says"
        )
    state = from_bytes(data, str(place))
    if state.step != int(step):
        raise DataError(f"{place} holds step {state.step:,}, not what its name says")
    return state


class Checkpoints:
    """The checkpoints of one run, written beside the training and not in its way."""

    def __init__(
        self,
        folder: Place,
        every_seconds: float,
        progress: Progress,
        after_save: Callable[[State], None] = lambda _: None,
    ) -> None:
        """Keep them in `folder`; write one at most every `every_seconds` unless told to.

        `after_save` is called with each state that is saved, where it was: beside the training, or
        at its end. It must not raise.
        """
        self._folder = folder
        self._every_seconds = every_seconds
        self._progress = progress
        self._after_save = after_save
        self._last = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Exception | None] | None = None
        self._known: list[str] = []  # names, oldest first
        self._saved_step: int | None = None
        self._failures = 0  # in a row
        self._failing_since = 0.0

    def restore(self, owner: dict[str, str]) -> State | None:
        """Return the newest state that verifies, or None if there is no checkpoint.

        Raises:
            ConflictError: it belongs to another config or other data.
            DataError: there are checkpoints, and none verifies.
            TemporaryError: the same of an object store, which has only what was written whole, and
                of a folder in which a twin writes and removes faster than this reads.
            MissingInputError: one may not be read, which is not to say that it is damaged.
            OutputError: they can't be seen, which is not to say that there are none.
        """
        return self._newest_intact(owner, seen_before=0)

    def _newest_intact(self, owner: dict[str, str], seen_before: int) -> State | None:
        """Do what `restore` does; `seen_before` is how many a look before this one saw."""
        self._known = names_in(self._folder)
        seen, odd = max(seen_before, len(self._known)), seen_before > 0
        for name in reversed(self._known):
            place = self._folder / name
            try:
                state = read(place)
            except (DataError, MissingInputError) as error:
                if isinstance(error.__cause__, PermissionError):
                    raise
                if isinstance(error, MissingInputError) and not seen_before:
                    # A twin has removed it, and so has written another.
                    return self._newest_intact(owner, seen)
                odd |= isinstance(error, DamagedError)
                self._progress.event("checkpoint_passed_by", uri=str(place), reason=str(error))
                continue
            if state.owner != owner:
                raise ConflictError(
                    f"{place} belongs to another config or other data: choose another --run-id"
                )
            # What was passed by goes first when the oldest are removed, before what is whole.
            after = self._known.index(name) + 1
            self._known = [*self._known[after:], *self._known[:after]]
            self._saved_step = state.step
            return state
        if not seen:
            return None
        said = (
            f"{self._folder} showed {seen} checkpoints and none is intact: not starting from "
            "scratch over them"
        )
        if names_in(self._folder) != self._known:
            raise TemporaryError(
                f"{said}; they change meanwhile: if another process works on this run, let it, and "
                "try again later"
            )
        if odd and self._folder.kind != "file":
            raise TemporaryError(
                f"{said}; a store holds only whole ones, so try again, and if that ends the same, "
                "choose another --run-id"
            )
        raise DataError(f"{said}; bring one back, or choose another --run-id")

    def offer(self, state: Callable[[], State]) -> None:
        """Write `state()` in the background if that is due and the last one is written.

        One that can't be written is given up, and the log says so.

        Raises:
            JobError, MemoryError: no more can be saved, by what the last one met or how many in a
                row failed; the message tells the last step that is saved.
            Exception: the last one met a bug, or nothing can be said any more.
        """
        if self._pending is not None and not self._pending.done():
            return
        if (ending := self._outcome()) is not None:
            raise ending
        wait = RETRY_SECONDS if self._failures else self._every_seconds
        if time.monotonic() - self._last < wait:
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
        self._writer.shutdown(wait=True)
        self._save(state)
        lost = self._outcome()
        # What kept an older state from being saved doesn't matter any more; a bug does.
        if lost is not None and not isinstance(lost, JobError | MemoryError):
            raise lost

    def close(self) -> None:
        """Wait for what is being written. Nothing can be offered after that.

        Raises:
            Exception: it met something, and even that could not be said.
        """
        self._writer.shutdown(wait=True)
        self._outcome()  # which the log tells already, unless this raises it

    def tidy(self) -> None:
        """Remove all but the newest checkpoint, of a run that is complete."""
        try:
            self._known = names_in(self._folder)
        except JobError as error:
            self._progress.event("checkpoint_kept", uri=str(self._folder), reason=str(error))
        self.prune(keep=1)

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
        self._saved_step, self._failures = state.step, 0
        self._progress.event("checkpoint_saved", step=state.step, uri=str(place))
        self._after_save(state)

    def _try_to_save(self, state: State) -> Exception | None:
        """Write `state`; what goes wrong is said here, and returned if it must end the run."""
        began = time.monotonic()
        try:
            self._save(state)
            self.prune(keep=2)  # the newest, and one to step back to
        except BaseException as error:  # noqa: BLE001  in this thread nobody would hear of it
            said = str(error) if isinstance(error, JobError) else repr(error)
            self._progress.event("checkpoint_failed", step=state.step, reason=said)
            return self._ending(error, said, began)
        return None

    def _ending(self, error: BaseException, said: str, began: float) -> Exception | None:
        """Return what to end the run with after a save that began then met `error`, or None."""
        self._failing_since = self._failing_since if self._failures else began
        self._failures += 1
        seconds = time.monotonic() - self._failing_since
        if not isinstance(error, JobError | MemoryError):  # a bug
            return error if isinstance(error, Exception) else RuntimeError(f"a save met {said}")
        # Training is worth more than one checkpoint. Memory, too, may be there again for the next.
        if isinstance(error, _HOPELESS):
            why = "nothing more can be saved"
        elif self._failures >= MOST_FAILURES or seconds >= MOST_FAILING_SECONDS:
            why = f"{self._failures} saves in a row failed, for {seconds:.0f} s"
        else:
            return None
        step = self._saved_step
        last = "no step is saved" if step is None else f"the last step saved is {step:,}"
        message = f"{said}; {why}: {last}"
        if isinstance(error, MemoryError):
            return MemoryError(message)
        return type(error)(message)

    def _outcome(self) -> Exception | None:
        """Return, once, what the last save in the background says must end the run.

        Raises:
            Exception: it could not even say what it met.
        """
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()
