"""People are told what a night came to: its record is posted to a URL, which is kept secret."""

import json
from typing import Any

from job.errors import StoppedError
from job.process import outgoing
from job.process.progress import Progress

FLAG = "--notify"
LIMIT_SECONDS = 10.0  # for all of it: the name, the connection, and however slow an answer


def url_of(given: str) -> str | None:
    """Return the URL that the flag gives, by itself or in a file; None where that isn't there.

    Raises:
        UsageError: it is neither, or the file can't be read.
    """
    return outgoing.url_of(given, FLAG)


def check(url: str) -> None:
    """See that `url` is one that can be posted to.

    Raises:
        UsageError: it isn't. The message doesn't show it.
    """
    outgoing.check(url, FLAG)


def post(url: str, record: dict[str, Any], progress: Progress) -> None:
    """Post the record of a night as JSON, with a sentence `text` that Slack and Teams show.

    It never fails and never takes over `LIMIT_SECONDS`: what became of it is an event.

    Raises:
        StoppedError: the night was asked to stop meanwhile.
    """
    to = f"the URL of {FLAG}"
    try:
        check(url)
        to = outgoing.shown(url)
        outgoing.within(LIMIT_SECONDS, lambda: _send(url, record))
    except StoppedError:
        raise
    except Exception as error:  # noqa: BLE001  being told is not what a night is for
        progress.event("not_notified", to=to, reason=outgoing.why(error, LIMIT_SECONDS))
    else:
        progress.event("notified", to=to)


def text_of(record: dict[str, Any]) -> str:
    """Return the sentence that says what a night came to."""
    stale = ", and the champion is stale" if record.get("stale") else ""
    why = f": {record['why']}" if record.get("why") else ""
    return f"mnist-job night {record.get('night', '?')}: {record.get('verdict', '?')}{stale}{why}"


def _send(url: str, record: dict[str, Any]) -> None:
    body = json.dumps({**record, "text": text_of(record)}, allow_nan=False).encode()
    outgoing.send(url.strip(), body, {"Content-Type": "application/json"}, LIMIT_SECONDS)
