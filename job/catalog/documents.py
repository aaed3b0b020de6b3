"""Values out of JSON that may be damaged or anybody's: as they should be, or None."""

from datetime import UTC, datetime
from typing import Any

_LARGEST = 1e15  # what is more counts nothing that there is, and no float takes it exactly


def at(document: Any, *path: str) -> Any:
    """Return what `document` holds at the end of a path of names; None where it ends before."""
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def text_at(document: Any, *path: str) -> str | None:
    """Return the text at the end of the path."""
    found = at(document, *path)
    return found if isinstance(found, str) else None


def number_at(document: Any, *path: str) -> float | None:
    """Return the number at the end of the path, if it is none of the negative or endless ones."""
    found = at(document, *path)
    real = isinstance(found, int | float) and not isinstance(found, bool)
    return float(found) if real and 0 <= found <= _LARGEST else None  # NaN is in no range


def count_at(document: Any, *path: str) -> int | None:
    """Return the whole number at the end of the path, from 0 on."""
    found = at(document, *path)
    return found if isinstance(found, int) and number_at(document, *path) is not None else None


def time_at(document: Any, *path: str) -> datetime | None:
    """Return the time at the end of the path, in UTC, if it has a zone."""
    try:
        found = datetime.fromisoformat(text_at(document, *path) or "")
        return None if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
