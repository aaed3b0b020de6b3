"""Old runs make room for new ones; what the newest entries of the log of champions name stays.

A run is removed in an order that any other process understands, and that goes on wherever it was
broken off:

1. `pruned.json` in its folder says who removes it, and why. From then on no training begins the run
   or takes it for complete; a training that was faster has left its record in the folder before.
2. The log and the folder are looked at again. Where a promotion or a training was faster the run
   stays after all, and `pruned.json` goes.
3. `metrics.json` goes first, so that nobody trusts what is left, then all else, `pruned.json` last.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from job import storage
from job.config import check_run_id
from job.errors import ConflictError, DataError, MissingInputError, UsageError
from job.nightly import champions
from job.nightly.champions import Log
from job.results import publishing
from job.results.publishing import METRICS, PRUNED, RunFolder
from job.storage import Place

SCHEMA_VERSION = 1
JUDGING_SECONDS = 3600.0  # a night may be about to promote what has been complete for less
SHORTEST_LEFTOVER_SECONDS = 3600.0  # nothing tells a run that was left from one that runs but age
_DAY_SECONDS = 86_400.0
_ATTEMPT = re.compile(r"[0-9]{4}\.json")
_UNREADABLE = (DataError, MissingInputError, KeyError, TypeError, ValueError, OverflowError)

State = Literal["complete", "incomplete", "half removed", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which runs stay."""

    keep: int = 30
    """Of the complete runs the newest so many."""
    keep_entries: int = 10
    """What the newest so many entries of the log name: champion and anchor of each."""
    leftovers_after_seconds: float = 7 * _DAY_SECONDS
    """Incomplete runs that were begun, the last time, less than so long ago."""

    def __post_init__(self) -> None:
        for option, value in (("--keep", self.keep), ("--keep-entries", self.keep_entries)):
            if value < 1:
                raise UsageError(f"{option} must be 1 or more, not {value}")
        if self.leftovers_after_seconds < SHORTEST_LEFTOVER_SECONDS:
            raise UsageError(
                f"--leftovers-after must be 1h or more, not {self.leftovers_after_seconds:g} s: "
                "what was begun later may be running"
            )


@dataclass(frozen=True)
class Found:
    """A run, as its folder shows it."""

    run: str
    """Name of its folder below the output."""
    state: State
    since: datetime | None = None
    """When it was complete, or when its newest attempt began; None where nothing tells."""
    size: int | None = None
    """Bytes that it published; None where nothing tells."""
    doubt: str = ""
    """Why nothing is known of it."""


@dataclass(frozen=True)
class Fate:
    """What is to become of a run."""

    found: Found
    goes: bool
    why: str


def plan(output: Place, rules: Rules, now: datetime) -> list[Fate]:
    """Return what is to become of each run below `output`, the oldest first; change nothing.

    Args:
        output: holds the runs and the log of champions.
        rules: say what stays.
        now: the time, with its zone.

    Raises:
        DataError: an entry of the log can't be understood, so nobody knows what it names.
        OutputError: what lies there can't be seen.
    """
    named = _named(output, rules)
    looks = (_look(output, name) for name in storage.folders(output))
    runs = sorted(
        (found for found in looks if found is not None),
        key=lambda found: (found.since or now, found.run),
    )
    complete = [found.run for found in runs if found.state == "complete"]
    newest = set(complete[-rules.keep :])
    fates = []
    for found in runs:
        why = _why_it_stays(found, named.get(found.run), found.run in newest, rules, now)
        fates.append(Fate(found, why is None, _why_it_goes(found, rules) if why is None else why))
    return fates


def remove(output: Place, fate: Fate, rules: Rules) -> str | None:
    """Remove a run that is to go; return why it stays after all, or None when it is gone.

    Args:
        output: holds the run.
        fate: of the run, by `plan`.
        rules: as they were for that.

    Raises:
        JobError: it can't be removed whole; the same again goes on.
    """
    found = fate.found
    folder = RunFolder(output / found.run)
    if found.state != "half removed":
        with suppress(ConflictError):  # another process has decided the same
            storage.create(folder.tombstone, publishing.to_json(_tombstone(fate)))
    if (reason := _why_it_stays_after_all(output, found, rules)) is not None:
        storage.remove(folder.tombstone)
        return reason
    storage.remove(folder.metrics)
    _clear(folder.place, PRUNED)
    storage.remove(folder.tombstone)
    storage.remove_folder(folder.place)
    return None


def table(fates: list[Fate]) -> str:
    """Return a line for each run: whether it goes, what it is, and why."""
    rows = [
        (
            "goes" if fate.goes else "stays",
            fate.found.run,
            fate.found.state,
            f"{fate.found.since:%Y-%m-%d %H:%M}" if fate.found.since else "-",
            "-" if fate.found.size is None else f"{fate.found.size / storage.MEBIBYTE:.1f} MiB",
            fate.why,
        )
        for fate in fates
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)] if rows else []
    return "\n".join(
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[5]])
        for row in rows
    )


def summary(fates: list[Fate]) -> str:
    """Return in one line how much goes."""
    going = [fate.found for fate in fates if fate.goes]
    size = sum(found.size or 0 for found in going) / storage.MEBIBYTE
    return f"{len(going)} of {len(fates)} runs go, which published {size:.1f} MiB"


def _named(output: Place, rules: Rules) -> dict[str, str]:
    """Return what the newest entries of the log name: runs, and what each is there."""
    named = {}
    for entry in Log(output).entries(rules.keep_entries):
        named[entry.anchor.run] = f"anchor in entry {entry.number} of the log"
        named[entry.champion.run] = f"champion in entry {entry.number} of the log"
    return named


def _look(output: Place, name: str) -> Found | None:
    """Return what the folder `name` shows; None if it is no run's."""
    try:
        check_run_id(name)
    except UsageError:
        return None
    folder = RunFolder(output / name)
    there = storage.names(folder.place)
    try:
        if PRUNED in there:
            return _half_removed(name, publishing.read_json(folder.tombstone))
        return _as_it_was(folder, name, there)
    except _UNREADABLE as error:
        return Found(name, "unknown", doubt=f"its records can't be understood ({error!r:.80})")


def _half_removed(name: str, tombstone: dict[str, Any]) -> Found:
    if tombstone["run"] != name:
        raise ValueError(f"{PRUNED} is of {tombstone['run']!r}")
    return Found(name, "half removed", _time(tombstone["since"]))


def _as_it_was(folder: RunFolder, name: str, there: list[str]) -> Found | None:
    """Return what a run is, whether or not somebody removes it."""
    if METRICS in there:
        metrics = publishing.read_json(folder.metrics)
        if metrics["run_id"] != name:
            raise ValueError(f"it was made as {metrics['run_id']!r}")
        seconds = timedelta(seconds=metrics["timing"]["total_seconds"])
        size = sum(artifact["size"] for artifact in metrics["artifacts"])
        return Found(name, "complete", _time(metrics["started"]) + seconds, size)
    records = folder.place / "attempts"
    below = storage.names(records) if records.name in storage.folders(folder.place) else []
    numbers = [each for each in below if _ATTEMPT.fullmatch(each)]
    if not numbers:
        return None
    newest = publishing.read_json(records / max(numbers))
    if not newest["config_sha256"]:
        raise ValueError("an attempt without a config")
    return Found(name, "incomplete", _time(newest["started"]))


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return time


def _why_it_stays(
    found: Found, named: str | None, newest: bool, rules: Rules, now: datetime
) -> str | None:
    """Return why a run stays, or None if it goes."""
    if named is not None:
        also = {
            "incomplete": "; it is not complete: train it again",
            "half removed": "; its removal was begun, and will be taken back",
            "unknown": f"; {found.doubt}",
        }
        return named + also.get(found.state, "")
    if found.since is None:
        return found.doubt
    age = (now - found.since).total_seconds()
    if found.state == "incomplete":
        young = age < rules.leftovers_after_seconds
        return f"begun less than {_days(rules)} ago: it may be running" if young else None
    if found.state == "complete":
        if newest:
            return f"one of the newest {rules.keep}"
        young = age < JUDGING_SECONDS
        return "complete for less than an hour: a night may be judging it" if young else None
    return None


def _why_it_goes(found: Found, rules: Rules) -> str:
    return {
        "complete": f"none of the newest {rules.keep}, and not named by the log",
        "incomplete": f"begun over {_days(rules)} ago, and never complete",
    }.get(found.state, "its removal was begun, and not ended")


def _days(rules: Rules) -> str:
    return f"{rules.leftovers_after_seconds / _DAY_SECONDS:.3g} days"


def _tombstone(fate: Fate) -> dict[str, Any]:
    assert fate.found.since is not None  # else it stays
    return {
        "schema_version": SCHEMA_VERSION,
        "run": fate.found.run,
        "state": fate.found.state,
        "since": fate.found.since.isoformat(),
        "why": fate.why,
        "time": champions.utc_now(),
        "who": champions.who(),
    }


def _why_it_stays_after_all(output: Place, found: Found, rules: Rules) -> str | None:
    """Return why a run that was to go stays: the log names it now, or it was begun again."""
    if (named := _named(output, rules).get(found.run)) is not None:
        return named
    folder = RunFolder(output / found.run)
    try:
        now = _as_it_was(folder, found.run, storage.names(folder.place))
    except _UNREADABLE:
        return None  # half of it is gone
    if now and now.since and found.since and now.since > found.since:
        return "begun again meanwhile"
    return None


def _clear(folder: Place, spared: str = "") -> None:
    """Remove all that lies in `folder` but the object `spared`; the folder itself stays."""
    below = storage.folders(folder)
    for name in storage.names(folder):
        if name in below:
            _clear(folder / name)
            storage.remove_folder(folder / name)
        elif name != spared:
            storage.remove(folder / name)
