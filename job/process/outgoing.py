"""Requests to servers of others: bounded, never led elsewhere, and their URLs stay secret.

Such URLs (Slack's, a Pushgateway's) let whoever knows them post. So no message here shows more of
one than its scheme and host, and none quotes an error, which may quote the URL.
"""

import base64
import re
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from job import __version__
from job.errors import UsageError
from job.process import runtime

_MOST_SIGNS = 8192  # of a URL in a file
_MOST_BYTES = 4 * 1024 * 1024  # of an answer
_SIGNS = re.compile("[!-~]+")  # of ASCII those that show; others cut a request short
Result = TypeVar("Result")


def url_of(given: str, flag: str, *, user: bool = False) -> str | None:
    """Return the URL that a flag gives, by itself or in a file, such as a Secret's.

    Args:
        given: an http or https URL, or the absolute path of a file that holds one.
        flag: that gives it, for messages.
        user: whether the URL may name a user and a password.

    Returns:
        None where the file isn't there: a Secret may be left out.

    Raises:
        UsageError: it is neither, or the file can't be read.
    """
    url = given
    if given.startswith("/"):
        try:
            with Path(given).open(encoding="ascii") as file:
                url = file.read(_MOST_SIGNS)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{flag} {given} cannot be read ({type(error).__name__}): give a readable file "
                "that holds a URL, or the URL"
            ) from error
    check(url, flag, user=user)
    return url.strip()


def check(url: str, flag: str, *, user: bool = False) -> None:
    """See that `url` is one that a request can go to.

    Raises:
        UsageError: it isn't. The message doesn't show it.
    """
    url = url.strip()  # a Secret made of a file ends in a line feed
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or (parts.username is not None and not user) or not _SIGNS.fullmatch(url):
        raise UsageError(
            f"{flag} must be an http:// or https:// URL in plain ASCII"
            f"{'' if user else ', without a user'}; it is not shown here, since it may be secret"
        )


def shown(url: str) -> str:
    """Return what may be shown of a URL: scheme and host."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}"


def without_user(url: str) -> tuple[str, dict[str, str]]:
    """Return `url` without user and password, and the header that says them instead."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, {}
    host = parts.netloc.rpartition("@")[2]
    user, password = unquote(parts.username), unquote(parts.password or "")
    return parts._replace(netloc=host).geturl(), basic(user, password)


def basic(user: str, password: str) -> dict[str, str]:
    """Return the header that names a user and a password."""
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def send(
    url: str,
    body: bytes | None,
    headers: Mapping[str, str],
    timeout_seconds: float,
    method: str = "POST",
    context: ssl.SSLContext | None = None,
) -> bytes:
    """Send one request, and return the body of its answer, of at most 4 MiB.

    Redirects are not followed, since they would carry what is sent, and its credentials, to
    somebody else. Who vouches for the server, `context` says; None leaves it to the system.

    Raises:
        OSError: nothing was sent, or the answer is no yes (HTTPError).
        HTTPException: what came is no answer of HTTP.
    """
    given = {"User-Agent": f"mnist-job/{__version__}", **headers}
    request = urllib.request.Request(url, body, given, method=method)  # noqa: S310  checked
    opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=context))
    with opener.open(request, timeout=timeout_seconds) as answer:
        content: bytes = answer.read(_MOST_BYTES)
        return content


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Return what `work` does, in at most so many seconds.

    Aside, since nothing else bounds how long a name takes to be resolved, or a slow answer.

    Raises:
        TimeoutError: it takes longer; its thread is left alone.
    """
    return runtime.beside(work).result(seconds)


def why(error: Exception, limit_seconds: float) -> str:
    """Return why a request came to nothing, in words that can't hold the URL."""
    if isinstance(error, HTTPError):
        error.close()
        return f"the answer was {error.code}"
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"it took over {limit_seconds:g} s"
    return getattr(cause, "strerror", None) or type(cause).__name__


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        """Let a redirect be what it is: an answer other than yes."""
