"""What nights and people made of an output: every night's record, and the log of champions.

Each of both folders is listed once, and what lies there read at once. A file that can't be
understood is told of, and ends nothing: one bad record must not hide the history of a year.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeVar

from job import storage
from job.catalog.documents import at, count_at, number_at, text_at, time_at
from job.catalog.reading import each
from job.errors import DataError, MissingInputError
from job.nightly.champions import Entry, Log
from job.nightly.records import NIGHTS
from job.results import publishing
from job.storage import Place

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Night:
    """A night that is over, as its record has it; None is what that doesn't tell."""

    night: str
    verdict: str
    """`promoted`, `refused`, ...: job/assets/night.schema.json describes each."""
    why: str
    """In a sentence."""
    exit_code: int | None
    began: datetime
    ended: datetime
    run: str | None
    """The challenger's, if it came to that; it may have been pruned since."""
    correct: int | None
    """Test images that the challenger classified rightly, of `examples`."""
    examples: int | None
    test_fingerprint: str | None
    data: str | None
    """Where the data lay."""
    train_examples: int | None
    """That it trained on."""
    test_examples: int | None
    files: int | None
    """That lay there, bad ones too."""
    size: int | None
    """Bytes of them."""
    shards: int | None
    """That were taken."""
    new: int | None
    """Files that no night had accepted before."""
    champion: str | None
    """The run that was champion when the night ended."""
    champion_accuracy: float | None
    champion_age_seconds: float | None
    stale: bool
    held: bool
    """Whether promotions were held."""


@dataclass(frozen=True)
class History:
    """What an output has seen."""

    nights: tuple[Night, ...]
    """The first to end first."""
    entries: tuple[Entry, ...]
    """The log of champions, the oldest entry first; the last one is in force."""
    unreadable: tuple[tuple[Place, str], ...]
    """What could not be understood, and why."""
    pages: frozenset[str] = frozenset()
    """Nights that have a page."""


def read(output: Place) -> History:
    """Return the history of an output; an empty one where nothing ever happened there.

    Raises:
        JobError: what is there can't be seen, which is not to say that there is nothing.
    """
    log = Log(output)
    names = storage.names(output / NIGHTS)
    records = [output / NIGHTS / name for name in names if name.endswith(".json")]
    nights, bad_nights = _understood(_night, records)
    entries, bad_entries = _understood(
        lambda place: log.read(int(place.name.partition(".")[0])),
        [log.place(number) for number in log.numbers()],
    )
    return History(
        nights=tuple(sorted(nights, key=lambda night: (night.ended, night.night))),
        entries=tuple(entries),
        unreadable=(*bad_nights, *bad_entries),
        pages=frozenset(name.removesuffix(".html") for name in names if name.endswith(".html")),
    )


def _understood(
    read_one: Callable[[Place], Found], places: list[Place]
) -> tuple[list[Found], list[tuple[Place, str]]]:
    """Return what is read of `places`, in their order, and those that can't be understood."""
    good: list[Found] = []
    bad: list[tuple[Place, str]] = []
    for place, found in zip(places, each(partial(_tried, read_one), places), strict=True):
        if isinstance(found, DataError | MissingInputError):
            bad.append((place, str(found)))
        else:
            good.append(found)
    return good, bad


def _tried(
    read_one: Callable[[Place], Found], place: Place
) -> Found | DataError | MissingInputError:
    try:
        return read_one(place)
    except (DataError, MissingInputError) as error:
        return error


def _night(place: Place) -> Night:
    """Return the night whose record lies at `place`.

    Raises:
        MissingInputError: it is gone, or may not be read.
        DataError: it is no record of a night.
    """
    record = publishing.read_json(place)
    verdict, ended = text_at(record, "verdict"), time_at(record, "ended")
    if verdict is None or ended is None:
        raise DataError(f"{place} is no record of a night: it has no verdict, or no end")
    files, shards = at(record, "data", "files"), at(record, "data", "shards")
    sizes = [count_at(file, "size") or 0 for file in files] if isinstance(files, list) else []
    new = at(record, "new")
    scores = ("gate", "scores", "challenger")
    return Night(
        night=place.name.removesuffix(".json"),
        verdict=verdict,
        why=text_at(record, "why") or "",
        exit_code=count_at(record, "exit_code"),
        began=time_at(record, "began") or ended,
        ended=ended,
        run=text_at(record, "run"),
        correct=count_at(record, *scores, "correct"),
        examples=count_at(record, "gate", "examples"),
        test_fingerprint=text_at(record, "data", "test_fingerprint"),
        data=text_at(record, "data", "uri"),
        train_examples=count_at(record, "data", "train_examples"),
        test_examples=count_at(record, "data", "test_examples"),
        files=len(files) if isinstance(files, list) else None,
        size=sum(sizes) if isinstance(files, list) else None,
        shards=len(shards) if isinstance(shards, list) else None,
        new=len(new) if isinstance(new, list) else None,
        champion=text_at(record, "champion", "run"),
        champion_accuracy=number_at(record, "champion", "accuracy"),
        champion_age_seconds=number_at(record, "champion", "age_seconds"),
        stale=at(record, "champion", "stale") is True,
        held=at(record, "champion", "held") is not None,
    )
