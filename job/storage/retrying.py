"""One request to a store, tried again while that can help, each try with a deadline.

Whoever counts: a request is tried at most `ATTEMPTS` times, each for at most the given timeout,
with at most `LONGEST_WAITS_SECONDS` in all between them. Nothing below retries on its own, but for
aiohttp, which sends a request once more if the connection it had kept open turns out to be closed.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from job.storage.connection import StoreError

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5  # doubles each time, and is spread by half to either side
LONGEST_WAITS_SECONDS = 1.5 * FIRST_WAIT_SECONDS * (2 ** (ATTEMPTS - 1) - 1)

Result = TypeVar("Result")

_WORTH_ANOTHER_TRY = ("passing", "busy")


@dataclass(frozen=True)
class Patience:
    """How long to wait for a store, and whom to tell when it has to be asked again."""

    timeout_seconds: float
    """Deadline of each try."""
    notify: Callable[..., None]
    """Called with the name of an event and its details."""

    async def request(self, send: Callable[[], Awaitable[Result]], what: str) -> Result:
        """Return what `send()` returns, sent anew after failures that pass.

        Args:
            send: makes one request.
            what: describes it for the log, such as `PUT s3://bucket/key`.

        Raises:
            StoreError: of the last try.
        """
        attempt = 1
        while True:
            try:
                return await self._once(send)
            except StoreError as error:
                if error.kind not in _WORTH_ANOTHER_TRY or attempt == ATTEMPTS:
                    raise
                wait = FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311
                attempt += 1
                self._tell(what, error.detail, attempt, wait)
            await asyncio.sleep(wait)

    async def _once(self, send: Callable[[], Awaitable[Result]]) -> Result:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                return await send()
        except TimeoutError as error:
            raise StoreError("passing", f"no answer in {self.timeout_seconds:g} s") from error

    def _tell(self, what: str, reason: str, attempt: int, wait: float) -> None:
        self.notify(
            "storage_retry",
            request=what,
            reason=reason,
            attempt=attempt,
            attempts=ATTEMPTS,
            wait_seconds=round(wait, 3),
        )
