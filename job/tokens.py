"""Google's access tokens: found the way every Google tool does, and renewed in time.

google-auth looks for application default credentials: GOOGLE_APPLICATION_CREDENTIALS, gcloud's
login, workload identity. It waits for answers without a deadline of ours, so it works in a thread
that neither the requests nor the end of the process wait for.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import google.auth
from google.auth import exceptions
from google.auth.transport.requests import Request

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
RENEW_BEFORE = timedelta(minutes=5)


class Tokens:
    """The access token of this process."""

    def __init__(self, timeout_seconds: float) -> None:
        """Look for nothing yet; each question to a server of tokens may take that long."""
        self._timeout_seconds = timeout_seconds
        self._credentials: Any = None

    async def valid(self) -> str:
        """Return a token that holds for some minutes.

        Raises:
            GoogleAuthError: there are no credentials, or they are not honoured.
        """
        found = self._credentials
        if found is None or not found.valid or _ends_soon(found):
            renew = partial(_renewed, found, self._timeout_seconds)
            self._credentials = found = await _in_thread(renew)
        return str(found.token)


def _ends_soon(credentials: Any) -> bool:
    ends = credentials.expiry  # in UTC, without saying so
    return ends is not None and ends.replace(tzinfo=UTC) - datetime.now(UTC) < RENEW_BEFORE


def _renewed(credentials: Any, timeout_seconds: float) -> Any:
    """Return credentials with a fresh token; looks for them first if there are none."""
    logging.getLogger("google.auth").setLevel(logging.ERROR)  # what fails is ours to report
    request: Any = partial(Request(), timeout=timeout_seconds)
    if credentials is None:
        try:
            credentials, _ = google.auth.default(scopes=[SCOPE], request=request)
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            # google-auth trusts a file of credentials to be one.
            raise exceptions.DefaultCredentialsError from error
    credentials.refresh(request)
    return credentials


async def _in_thread(work: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001  raised again where it is waited for
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="google-credentials", daemon=True).start()
    return await done
