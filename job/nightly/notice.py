"""People are told what a night came to: its record is posted to a URL, which is kept secret.

Such URLs (Slack, Teams) let whoever knows them post. So no message here shows more of one than
its scheme and host, and none quotes an error, which may quote the URL.
"""

import json
import re
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from job import __version__
from job.errors import StoppedError, UsageError
from job.process import runtime
from job.process.progress import Progress

_MOST_SIGNS = 8192  # of a URL in a file
LIMIT_SECONDS = 10.0  # for all of it: the name, the connection, and however slow an answer

_SIGNS = re.compile("[!-~]+")  # of ASCII those that show; others cut a request short


def url_of(given: str) -> str | None:
    """Return the URL that the flag gives, by itself or in a file, such as a Secret's.

    Args:
        given: an http or https URL, or the absolute path of a file that holds one.

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
                f"--notify {given} cannot be read ({type(error).__name__}): give a readable file "
                "that holds a URL, or the URL"
            ) from error
    check(url)
    return url.strip()


def check(url: str) -> None:
    """See that `url` is one that can be posted to.

    Raises:
        UsageError: it isn't. The message doesn't show it.
    """
    url = url.strip()  # a Secret made of a file ends in a line feed
    try:
        parts = urlsplit(url)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or parts.username is not None or not _SIGNS.fullmatch(url):
        raise UsageError(
            "--notify must be an http:// or https:// URL in plain ASCII, without a user; it is "
            "not shown here, since it may be secret"
        )


def post(url: str, record: dict[str, Any], progress: Progress) -> None:
    """Post the record of a night as JSON, with a sentence `text` that Slack and Teams show.

    It never fails and never takes over `LIMIT_SECONDS`: what became of it is an event. Redirects
    are not followed, since they would carry the record to somebody else.

    Raises:
        StoppedError: the night was asked to stop meanwhile.
    """
    to = "the URL of --notify"
    try:
        check(url)
        parts = urlsplit(url)
        to = f"{parts.scheme}://{parts.hostname}"
        # Aside, since nothing else bounds how long a name takes to be resolved.
        runtime.beside(lambda: _send(url, record)).result(LIMIT_SECONDS)
    except StoppedError:
        raise
    except Exception as error:  # noqa: BLE001  being told is not what a night is for
        progress.event("not_notified", to=to, reason=_reason(error))
    else:
        progress.event("notified", to=to)


def text_of(record: dict[str, Any]) -> str:
    """Return the sentence that says what a night came to."""
    stale = ", and the champion is stale" if record.get("stale") else ""
    why = f": {record['why']}" if record.get("why") else ""
    return f"mnist-job night {record.get('night', '?')}: {record.get('verdict', '?')}{stale}{why}"


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


def _send(url: str, record: dict[str, Any]) -> None:
    body = json.dumps({**record, "text": text_of(record)}, allow_nan=False).encode()
    headers = {"Content-Type": "application/json", "User-Agent": f"mnist-job/{__version__}"}
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310  checked
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=LIMIT_SECONDS):
        pass


def _reason(error: Exception) -> str:
    """Return why it was not posted, in words that can't hold the URL."""
    if isinstance(error, HTTPError):
        error.close()
        return f"the answer was {error.code}"
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"it took over {LIMIT_SECONDS:g} s"
    return getattr(cause, "strerror", None) or type(cause).__name__
