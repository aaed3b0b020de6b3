"""Threads that nobody waits for at the end: one runs the requests, others what would block it."""

import asyncio
import atexit
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

CLOSE_SECONDS = 2  # what an exit spends on leaving connections in good order

Result = TypeVar("Result")


class Background:
    """A running event loop. The process may end at any time without waiting for it."""

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        """Start the loop; `close` is awaited in it at the end."""
        self._close = close
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="storage", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Return the result of `work`; a signal that raises ends the waiting, and the work."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def stop(self) -> None:
        """Give up whatever is under way, close, and end the loop."""
        atexit.unregister(self.stop)
        ending = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        with contextlib.suppress(TimeoutError):
            ending.result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._close()


async def in_thread(work: Callable[[], Result]) -> Result:
    """Return what `work()` does, called in a thread of its own.

    Unlike the threads of asyncio, one that is given up does not hold back the end of the process.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        if not done.cancelled():
            outcome()

    def run() -> None:
        try:
            outcome = partial(done.set_result, work())
        except Exception as error:  # noqa: BLE001  raised again where it is waited for
            outcome = partial(done.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name="storage-aside", daemon=True).start()
    return await done
