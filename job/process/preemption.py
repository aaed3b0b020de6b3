"""SIGTERM and time limits -> a stop at a moment that loses nothing: the only user of signals.

Where a run reads and writes it can be left at any instant, because whatever it writes appears whole
or not at all; there a signal raises at once. TensorFlow and Keras swallow or wrap what is raised
inside them, and the training loop holds work that exists nowhere else; so both run `deferred`: a
signal is noted, the loop looks at `reason` between its chunks, saves, and stops.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from job.errors import StoppedError, TemporaryError

_REPEAT_SECONDS = 0.5


def ignore() -> None:
    """Take no signal any more: there is nothing left to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Preemption:
    """Knows whether the run has been asked to stop."""

    def __init__(
        self, time_limit_seconds: float | None = None, *, spent_seconds: float = 0.0
    ) -> None:
        """Start the clock of the limit, of which `spent_seconds` have passed; None is no limit."""
        self._began = time.monotonic() - spent_seconds
        self._deadline = None if time_limit_seconds is None else self._began + time_limit_seconds
        self._limit_seconds = time_limit_seconds
        self._signal: int | None = None
        self._deferring = False

    def install(self) -> None:
        """Take SIGTERM and SIGINT from now on, in the main thread of the process."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def reason(self, needed_seconds: float = 0) -> BaseException | None:
        """Return what to raise after saving, or None to go on.

        Args:
            needed_seconds: how long the next piece of work takes; if the time limit would pass
                meanwhile, that is a reason to stop now.
        """
        if (stop := self.stop()) is not None:
            return stop
        if self._deadline is not None and time.monotonic() + needed_seconds > self._deadline:
            return TemporaryError(
                f"--time-limit {self._limit_seconds:g} reached, the work is saved"
            )
        return None

    def stop(self) -> BaseException | None:
        """Return what to raise because of a signal, or None to go on."""
        if self._signal == signal.SIGINT:
            return KeyboardInterrupt()
        if self._signal is not None:
            return StoppedError("stopped by SIGTERM, the work is saved")
        return None

    def spent_seconds(self) -> float:
        """Return the seconds since the clock of the limit was started."""
        return time.monotonic() - self._began

    def took(self, number: int) -> bool:
        """Tell whether `number` is the signal that asked the run to stop."""
        return number == self._signal

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note signals inside this block; if one came, the block's end raises."""
        outer, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = outer
        if not outer and self._signal is not None and (reason := self.reason()) is not None:
            raise reason

    @contextlib.contextmanager
    def passed_on(self, process_id: int) -> Iterator[None]:
        """Pass signals on to the process `process_id` inside this block, until it has ended.

        They are repeated, since TensorFlow takes SIGTERM for itself for a moment
        while workers connect; a process like this one heeds the first only.
        """
        over = threading.Event()

        def pass_on() -> None:
            while not over.wait(_REPEAT_SECONDS):
                if self._signal is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process_id, self._signal)

        repeater = threading.Thread(target=pass_on, daemon=True, name="signals")
        outer, self._deferring = self._deferring, True
        repeater.start()
        try:
            yield
        finally:
            over.set()
            repeater.join()
            self._deferring = outer

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        first = self._signal is None
        self._signal = number if first else self._signal
        if first and not self._deferring and (reason := self.reason()) is not None:
            raise reason
