"""What a worker and its watcher tell each other, through a socket that only the two have.

The worker says each second that it lives, and, by its main thread alone, what it is at: computing
with the others, having moved, or resting, which is whatever may take its time. Its watcher says
each second that it watches, and what it knows to be wrong with the other workers. Either ends the
other when it hears nothing for too long: a worker without a watcher would wait for a dead peer for
ever, and a frozen watcher would keep its pod.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from job.errors import JobError, TemporaryError
from job.process.preemption import Preemption
from job.process.progress import Progress

LINK = "MNIST_JOB_INTERNAL_LINK"  # variable that names the socket's file descriptor
SPENT = "MNIST_JOB_INTERNAL_SPENT_SECONDS"  # variable: of the time limit, before the worker began
RUN_AGAIN = "run all workers again, the run goes on from its last checkpoint"

FROZEN_SECONDS = 20.0  # without a sign of life; compiling may keep all threads of a worker quiet
# While workers connect, all at the same time, TensorFlow holds Python's lock.
FORMING_SECONDS = 120.0
HUNG_SECONDS = 30.0  # without a move in training, of which there is one each half a second
_HUNG_CHUNKS = 5  # for a model of which one step takes longer than that
DOUBT_SECONDS = 5.0  # after which a watcher tells others that its worker may be at fault

_BEAT_SECONDS = 1.0
_ROOM_SECONDS = 1.0  # for the watcher to make room for a line that must not be lost
_PAUSE_SECONDS = 2.0  # a watcher that wasn't running for so long saw nothing meanwhile
_AWAKEN_BEATS = 15  # of its own without any of the watcher's, after which a worker wakes it
_END_BEATS = 20  # and ends it

# Lines of a worker's; some have more behind the sign.
_ALIVE, _JOINS, _LEAVES, _MOVED, _RESTS, _WHY, _LAST = ".", "(", ")", "+", "-", "!", "?"
_READY = "="  # of a worker's; of a watcher's, before what it knows to be wrong: all are
_REPEATED = (_ALIVE, _MOVED)  # another will tell the same soon
_MAX_TEXT = 300  # characters; what is longer makes no better sentence


class Link:
    """One end of the socket: takes and gives lines."""

    def __init__(self, connection: socket.socket) -> None:
        """Use `connection`, a stream."""
        self.connection = connection
        self.connection.setblocking(False)
        self._rest = b""

    def say(self, line: str, wait_seconds: float = 0.0) -> None:
        """Send `line`; it is lost if the other end doesn't listen.

        Args:
            line: without its end.
            wait_seconds: how long to wait at most until there is room for it.

        Raises:
            OSError: there is no other end any more.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            with contextlib.suppress(BlockingIOError):
                self.connection.send(line.encode() + b"\n")
                return
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                return
            select.select([], [self.connection], [], left_seconds)

    def hear(self) -> list[str]:
        """Return the lines that have come."""
        try:
            while received := self.connection.recv(65_536):
                self._rest += received
        except (BlockingIOError, ConnectionError):
            pass  # nothing more; that the other end is gone shows when something is sent
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class Signs:
    """What a watcher has seen of its worker."""

    def __init__(self, link: Link) -> None:
        """Begin to watch whoever holds the other end of `link`."""
        self._link = link
        now = time.monotonic()
        self._looked, self._told = now, -_BEAT_SECONDS
        self._alive, self._moved = now, now
        self._longest_chunk_seconds = 0.0
        self._formed = self._due = self._together = False
        self._all_ready = False
        self.ready = False
        """Whether the worker is about to connect to the others."""
        self.why = ""
        """What the worker said of its end."""

    def look(self, fault: str | None, *, all_ready: bool = False) -> float:
        """Take in what the worker has said, and tell it what is known of the others.

        Args:
            fault: what is wrong with them, if anything is.
            all_ready: whether all workers are about to connect.

        Returns:
            For how many seconds this watcher itself was not running; 0 if it was.
        """
        now = time.monotonic()
        since, self._looked = now - self._looked, now
        paused_seconds = since if since > _PAUSE_SECONDS else 0.0
        self._alive += paused_seconds
        self._moved += paused_seconds
        for line in self._link.hear():
            self._alive = now
            if line != _ALIVE:
                self._take(line, now)
        if now - self._told >= _BEAT_SECONDS or all_ready is not self._all_ready:
            self._told, self._all_ready = now, all_ready
            with contextlib.suppress(OSError):  # it has ended, as its exit code will tell
                self._link.say((_READY if all_ready else "") + (fault or "")[:_MAX_TEXT])
        return paused_seconds

    @property
    def waits(self) -> bool:
        """Whether it does nothing but wait for the others, for as long as they need."""
        return self._together and not self._due

    def trouble(self) -> str | None:
        """Return why the worker must be ended, as in "it did so and so", or None."""
        if self._silent_seconds > (FROZEN_SECONDS if self._formed else FORMING_SECONDS):
            return self._no_life()
        if self._due and self._still_seconds > self._hung_seconds:
            return self._no_step()
        return None

    def doubt(self) -> str | None:
        """Return what others should know of it should they be in trouble, or None."""
        if self._formed and self._silent_seconds > DOUBT_SECONDS:
            return self._no_life()
        if self._due and not self._together and self._still_seconds > DOUBT_SECONDS:
            return self._no_step()
        return None

    def hangs_with_others(self) -> bool:
        """Tell whether it is due to move but in the hands of the others."""
        return self._due and self._together and self._silent_seconds <= DOUBT_SECONDS

    @property
    def _silent_seconds(self) -> float:
        return self._looked - self._alive

    @property
    def _still_seconds(self) -> float:
        return self._looked - self._moved

    @property
    def _hung_seconds(self) -> float:
        return max(HUNG_SECONDS, _HUNG_CHUNKS * self._longest_chunk_seconds)

    def _no_life(self) -> str:
        return f"showed no life for {self._silent_seconds:.0f} s"

    def _no_step(self) -> str:
        return f"did no step for {self._still_seconds:.0f} s"

    def _take(self, line: str, now: float) -> None:
        sign, text = line[:1], line[1:]
        if sign == _WHY:
            self.why = text
        elif sign == _LAST:
            self._told = now - _BEAT_SECONDS  # it waits for the answer
        else:
            self._moved = now
        if sign in (_JOINS, _LEAVES):
            self._together = sign == _JOINS
            self._formed = self._formed or sign == _LEAVES
        elif sign == _MOVED:
            self._due = True
            self._longest_chunk_seconds = max(self._longest_chunk_seconds, float(text))
        elif sign == _RESTS:
            self._due = False
        elif sign == _READY:
            self.ready = True


class _Worker:
    """A worker's side: its link, and what it heard of its watcher."""

    def __init__(self, link: Link, progress: Progress) -> None:
        self.link = link
        self.fault = ""
        self.heard = threading.Event()
        self.all_ready = threading.Event()
        self._progress = progress
        self._watcher = os.getppid()

    def beat(self) -> None:
        """Say each second that this process lives, and see that its watcher does."""
        silent = 0
        while True:
            select.select([self.link.connection], [], [], _BEAT_SECONDS)
            if lines := self.link.hear():
                self.fault = lines[-1].removeprefix(_READY)
                if lines[-1].startswith(_READY):
                    self.all_ready.set()
                self.heard.set()
            # Counted in beats of its own: if the whole pod was paused, nobody was silent.
            silent = 0 if lines else silent + 1
            if silent == _AWAKEN_BEATS:
                self._signal(signal.SIGCONT)
                self._progress.event("watcher_silent", seconds=silent * _BEAT_SECONDS)
            if silent >= _END_BEATS:
                self._signal(signal.SIGKILL)
            try:
                self.link.say(_ALIVE)
            except OSError:  # nobody watches any more, so nobody would notice if a peer were lost
                os.kill(os.getpid(), signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if os.getppid() == self._watcher:
            os.kill(self._watcher, number)


_worker: _Worker | None = None


def is_supervised() -> bool:
    """Tell whether this process is a worker that somebody watches over."""
    return LINK in os.environ


def start(progress: Progress) -> None:
    """Begin to show the watcher that this process is alive; without a watcher it ends.

    Args:
        progress: told of a watcher that is silent.
    """
    global _worker  # noqa: PLW0603  a process has one watcher
    connection = socket.socket(fileno=int(os.environ[LINK]))
    _worker = _Worker(Link(connection), progress)
    threading.Thread(target=_worker.beat, daemon=True, name="link").start()


def spent_seconds() -> float:
    """Return how much of the run's time limit had passed when this worker was started."""
    return float(os.environ.get(SPENT) or 0)


def ready(preemption: Preemption, progress: Progress) -> None:
    """Say that this worker is about to connect, and wait until all others are as well.

    Who waited inside TensorFlow would hold Python's lock, and be deaf and silent meanwhile.

    Args:
        preemption: asked whether to stop.
        progress: beats meanwhile.

    Raises:
        TemporaryError: another worker is lost, or the time limit is reached.
        StoppedError, KeyboardInterrupt: asked to stop.
    """
    _say(_READY)
    while _worker is not None and not _worker.all_ready.wait(_BEAT_SECONDS / 10):
        progress.beat()
        if (reason := preemption.reason()) is not None:
            raise reason
        if _worker.fault:
            raise TemporaryError(f"{_worker.fault}: {RUN_AGAIN}")


def moved(seconds: float) -> None:
    """Say that a chunk of training was done in `seconds`, and that the next is due."""
    _say(f"{_MOVED}{seconds:.3f}")


def rests() -> None:
    """Say that training is over or stopped: what comes now may take its time."""
    _say(_RESTS)


@contextlib.contextmanager
def resting_after() -> Iterator[None]:
    """Say when this block ends, however it does, that what comes now may take its time."""
    try:
        yield
    finally:
        rests()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Say that inside this block all workers need each other, so that each may wait for another."""
    _say(_JOINS)
    try:
        yield
    finally:
        _say(_LEAVES)


def fault(wait_seconds: float) -> str | None:
    """Return what the watcher knows to be wrong with another worker, as a sentence.

    Args:
        wait_seconds: how long to wait until it knows something.
    """
    deadline = time.monotonic() + wait_seconds
    while _worker is not None:
        if _worker.fault or time.monotonic() > deadline:
            return _worker.fault or None
        time.sleep(_BEAT_SECONDS / 10)
    return None


@contextlib.contextmanager
def telling_why() -> Iterator[None]:
    """Tell the watcher, and through it the other workers, of the error that ends this block."""
    try:
        yield
    except JobError as error:
        _say(_WHY + short(str(error)))
        raise
    except Exception as error:
        _say(_WHY + short(str(JobError(repr(error)))))
        raise


def leave(code: int) -> NoReturn:
    """End this process with the exit code `code`, at once unless its watcher doesn't move."""
    if _worker is not None:
        _worker.heard.clear()
        _say(_LAST)
        _worker.heard.wait(_END_BEATS * 2 * _BEAT_SECONDS)  # it is woken or ended before that
    os._exit(code)


def _say(line: str) -> None:
    if _worker is not None:
        with contextlib.suppress(OSError):  # the thread that beats sees to that
            _worker.link.say(line, 0 if line[:1] in _REPEATED else _ROOM_SECONDS)


def short(text: str) -> str:
    """Return of an error's text what the other workers should know."""
    return text.removesuffix(RUN_AGAIN).rstrip(":; ")[:_MAX_TEXT]


def open_link() -> tuple[Link, Any]:
    """Return the watcher's end, and the socket that its worker shall inherit."""
    mine, theirs = socket.socketpair()
    return Link(mine), theirs
