"""SIGTERM and time limits -> a stop at a moment that loses nothing: the only user of signals.

Who calls the job from Python keeps the signals, and asks (`Asked`).

Where a run reads and writes it can be left at any instant, because whatever it writes appears whole
or not at all; there a signal raises at once. TensorFlow and Keras swallow or wrap what is raised
inside them, and the training loop holds work that exists nowhere else; so both run `deferred`: a
signal is noted, the loop looks at `reason` between its chunks, saves, and stops.

A second Ctrl-C ends the process at once, for the same reason: no write is ever half done. A thread
listens for it, since Python's own handlers wait until TensorFlow's code returns.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from job.errors import StoppedError, TemporaryError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
DOUBLED_SECONDS = 0.5  # one Ctrl-C may come twice: from the terminal, and from whoever started us
_REPEAT_SECONDS = 0.5


def ignore() -> None:
    """Heed no signal any more but a second Ctrl-C: there is nothing left to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda *_: None)  # SIG_IGN would hide it from `_listen`


def end_when_interrupted(last_words: Callable[[], None]) -> None:
    """Let Ctrl-C end this process at once: TensorFlow's import swallows or wraps what is raised."""

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)  # should nobody take the last words
        with contextlib.suppress(Exception):
            last_words()
        os._exit(EXIT_INTERRUPTED)

    signal.signal(signal.SIGINT, end)


def raise_when_interrupted() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, where that is how a command is ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Preemption:
    """Knows whether the run has been asked to stop."""

    def __init__(
        self,
        time_limit_seconds: float | None = None,
        *,
        spent_seconds: float = 0.0,
        when_asked: Callable[[], None] | None = None,
        when_interrupted: Callable[[], None] | None = None,
    ) -> None:
        """Start the clock of the limit.

        Args:
            time_limit_seconds: None is no limit.
            spent_seconds: how much of it has passed.
            when_asked: called inside the handler of the first signal, so it must wait for nothing.
            when_interrupted: called in a thread soon after a first SIGINT that hasn't ended the
                command; a second one then does, at once, with 130. None leaves that to the process
                which watches over this one, and repeats to it the first.
        """
        self._began = time.monotonic() - spent_seconds
        self._deadline = None if time_limit_seconds is None else self._began + time_limit_seconds
        self._limit_seconds = time_limit_seconds
        self._signal: int | None = None
        self._deferring = False
        self._when_asked = when_asked
        self._when_interrupted = when_interrupted
        self._listens = False
        self._child: int | None = None

    def install(self) -> None:
        """Take SIGTERM and SIGINT from now on, in the main thread of the process."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        if not self._listens:
            self._listens = True
            _hear(None if self._when_interrupted is None else self._listen)

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
        if not outer and (stop := self.stop()) is not None:
            raise stop

    @contextlib.contextmanager
    def passed_on(self, process_id: int) -> Iterator[None]:
        """Pass signals on to the process `process_id` inside this block, until it has ended.

        They are repeated, since TensorFlow takes SIGTERM for itself for a moment
        while workers connect; a process like this one heeds the first only. What ends this one at
        once ends that one as well.
        """
        over = threading.Event()

        def pass_on() -> None:
            while not over.wait(_REPEAT_SECONDS):
                if self._signal is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process_id, self._signal)

        repeater = threading.Thread(target=pass_on, daemon=True, name="signals")
        outer, self._deferring = self._deferring, True
        self._child = process_id
        repeater.start()
        try:
            yield
        finally:
            self._child = None
            over.set()
            repeater.join()
            self._deferring = outer

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        first = self._signal is None
        self._signal = number if first else self._signal
        if first and self._when_asked is not None:
            self._when_asked()
        if first and not self._deferring and (reason := self.reason()) is not None:
            raise reason

    def _listen(self, reader: int) -> None:
        if not _interrupted(reader):
            return
        time.sleep(DOUBLED_SECONDS)
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 4096)  # the same Ctrl-C again
        os.set_blocking(reader, True)
        # Nothing to say once the command has ended; and saying must not keep this thread from
        # listening, as it would where nobody reads a full pipe.
        if self._when_interrupted is not None and signal.getsignal(signal.SIGINT) == self._handle:
            threading.Thread(target=self._when_interrupted, daemon=True, name="stopping").start()
        if not _interrupted(reader):
            return
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)
        os._exit(EXIT_INTERRUPTED)


class Asked(Preemption):
    """The same for who calls the job from Python: no signal is taken, and any thread will do."""

    def __init__(
        self, time_limit_seconds: float | None = None, asked: threading.Event | None = None
    ) -> None:
        """Start the clock of the limit; stop when `asked` is set, if there is such an event."""
        super().__init__(time_limit_seconds)
        self._asked = asked

    def install(self) -> None:
        """Leave all signals to whoever has them."""

    def interrupt(self) -> None:
        """Let the run save and end as by Ctrl-C."""
        self._signal = signal.SIGINT

    def stop(self) -> BaseException | None:
        """Return what to raise because somebody asked, or None to go on."""
        if self._signal is not None:
            return KeyboardInterrupt("the work is saved: train the same config to go on")
        if self._asked is not None and self._asked.is_set():
            return StoppedError("stopped as asked, the work is saved")
        return None


def _hear(listen: Callable[[int], None] | None) -> None:
    """Let `listen` read the numbers of signals in a thread as they come, and nobody else."""
    global _writer
    former, _writer = _writer, -1
    if listen is not None:
        reader, _writer = os.pipe()
        os.set_blocking(_writer, False)
        threading.Thread(target=listen, args=(reader,), daemon=True, name="interrupts").start()
    signal.set_wakeup_fd(_writer, warn_on_full_buffer=False)
    if former != -1:
        os.close(former)  # by which the thread before ends


def _interrupted(reader: int) -> bool:
    """Wait for SIGINT; False if nobody will send it any more."""
    while number := os.read(reader, 1):
        if number[0] == signal.SIGINT:
            return True
    return False


_writer = -1
