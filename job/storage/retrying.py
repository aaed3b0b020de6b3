"""A store is asked until it answers, it says no, or the time for it is over.

A request runs in the loop that fsspec keeps in a thread of its own; whoever asks waits here, so a
signal that raises ends the waiting, and the request. Each try has a deadline, each operation with
all its requests and tries another, and everything ends with the time that `storage.hurry` leaves.
Nothing below retries on its own, but for aiohttp, which sends a request once more if the
connection it had kept open turns out to be closed.
"""

import asyncio
import concurrent.futures
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from fsspec.asyn import get_loop

from job.storage.connection import StoreError

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5  # doubles each time, and is spread by half to either side
LONGEST_WAITS_SECONDS = 1.5 * FIRST_WAIT_SECONDS * (2 ** (ATTEMPTS - 1) - 1)
OPERATION_TIMEOUTS = 3  # an operation has so many times the deadline of a try
_LOOK_SECONDS = 0.1  # how soon it is seen that there is less time than there was

Result = TypeVar("Result")

_WORTH_ANOTHER_TRY = ("passing", "busy", "not yet")


class _Aside(ThreadPoolExecutor):
    """Threads that hold no exit: a look for a host's name may take a minute, and can't be ended.

    There are as many as were ever busy at once: Google's requests take three turns each.
    """

    def __init__(self) -> None:
        super().__init__()
        self._given: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._free = threading.Semaphore(0)

    def submit(self, work: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        done: Future[Any] = Future()

        def run() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(work(*args, **more))
                except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
                    done.set_exception(error)

        self._given.put(run)
        if not self._free.acquire(blocking=False):
            threading.Thread(target=self._serve, daemon=True, name="storage aside").start()
        return done

    def _serve(self) -> None:
        while True:
            self._given.get()()
            self._free.release()


_ASIDE = _Aside()


@dataclass(frozen=True)
class Patience:
    """How long to wait for a store, and whom to tell when it has to be asked again."""

    timeout_seconds: float
    """Deadline of each try."""
    notify: Callable[..., None]
    """Called with the name of an event and its details."""
    ends_at: Callable[[], float] = lambda: math.inf
    """Returns the moment when all must be over, by time.monotonic; it may come nearer."""


@dataclass
class Operation:
    """Some requests that belong together, with a deadline for them all."""

    patience: Patience
    given_up: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for the result any more."""

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + OPERATION_TIMEOUTS * self.patience.timeout_seconds
        self._before = ""

    def request(self, send: Callable[[], Awaitable[Result]], what: str) -> Result:
        """Return what `send()` returns, sent anew after failures that pass.

        Args:
            send: makes one request. Whatever it raises that is no StoreError counts as one that
                passes: neither botocore nor google-auth tells all that it can raise.
            what: describes it for the log, such as `PUT s3://bucket/key`.

        Raises:
            StoreError: of the last try.
        """
        attempt = 1
        while True:
            try:
                return self.once(send)
            except StoreError as error:
                error.tries, self._before = attempt, f"{error.detail}, and "
                spread = random.uniform(0.5, 1.5)  # noqa: S311
                backoff = FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * spread
                wait = max(backoff, error.after_seconds)
                hopeless = error.kind not in _WORTH_ANOTHER_TRY or attempt == ATTEMPTS
                if hopeless or wait >= self._left():
                    raise
                attempt += 1
                self._tell(what, error.detail, attempt, wait)
            self._sleep(wait)

    def once(self, send: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `send()` returns, sent once."""
        seconds = min(self.patience.timeout_seconds, self._left())
        if seconds <= 0:
            raise StoreError("passing", f"{self._before}no time is left")

        found: list[Result] = []

        async def bounded() -> Exception | None:
            try:
                async with asyncio.timeout(seconds):
                    found.append(await send())
            except Exception as error:  # noqa: BLE001  one that is raised to nobody would be logged
                return error
            return None

        ends = time.monotonic() + seconds
        loop = get_loop()
        loop.set_default_executor(_ASIDE)
        work = asyncio.run_coroutine_threadsafe(bounded(), loop)
        try:
            # The loop itself sees to the deadline, unless something blocks it.
            while min(ends - time.monotonic(), self._left()) > -_LOOK_SECONDS:
                if concurrent.futures.wait([work], _LOOK_SECONDS).done:
                    break
            failure = work.result() if work.done() else TimeoutError()
            if failure is None:
                return found[0]
        finally:
            work.cancel()
        if isinstance(failure, StoreError | MemoryError):
            raise failure
        late, waited = isinstance(failure, TimeoutError), seconds + time.monotonic() - ends
        reason = f"no answer in {min(seconds, waited):.3g} s" if late else type(failure).__name__
        raise StoreError("passing", reason) from failure

    def _left(self) -> float:
        """Return the seconds that are left for the operation."""
        if self.given_up.is_set():
            return -math.inf
        return min(self._deadline, self.patience.ends_at()) - time.monotonic()

    def _sleep(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := min(ends - time.monotonic(), self._left())) > 0:
            time.sleep(min(left, _LOOK_SECONDS))

    def _tell(self, what: str, reason: str, attempt: int, wait: float) -> None:
        self.patience.notify(
            "storage_retry",
            request=what,
            reason=reason,
            attempt=attempt,
            attempts=ATTEMPTS,
            wait_seconds=round(wait, 3),
        )
