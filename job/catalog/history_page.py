"""The page of an output: who was champion since when, what nights came to, and all runs.

Unlike the page of a run it changes: it is of the moment that it was drawn at, which it tells, and
each drawing replaces the one before.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from job import storage
from job.catalog import history, listing
from job.catalog.history import History, Night
from job.catalog.listing import Run
from job.catalog.reading import each
from job.errors import MissingInputError
from job.nightly.champions import Entry
from job.process.progress import Progress
from job.report import figures, page
from job.report.figures import Moment, Reign
from job.report.nights import VERDICTS
from job.report.origins import dictionary, moment
from job.report.page import Parts, count, digits_of, percent, render, seconds
from job.results.publishing import RunFolder
from job.results.statistics import wilson_interval
from job.storage import Place

NAME = "index.html"
MOST_ROWS = 1_000  # of a table: more are counted, not shown
MOST_LINKED = 250  # runs, the newest: whether each has a page is a question to the store
_GOOD = ("promoted", "unchanged")
_ACTS = {
    "promote": "promoted",
    "rollback": "rolled back to",
    "hold": "promotions held",
    "unhold": "promotions let go on",
}
_STATUSES = {
    "complete": "good",
    "failed": "bad",
    "stopped": "waiting",
    "silent": "waiting",
    "unknown": "bad",
}
Row = dict[str, Any]


def draw(output: Place, to: Place | None, progress: Progress, now: datetime) -> str:
    """Draw what lies below `output`; return in a line where the page is.

    Args:
        output: folder of runs and nights.
        to: where to write it; None for `index.html` there.
        progress: told of a log of champions that can't be understood.
        now: what is told is of this moment.

    Raises:
        MissingInputError: there is nothing.
        ConflictError: something else lies where the page is to go.
        JobError: what lies there can't be seen, or the page can't be written.
    """
    found = history.read(output)
    runs = listing.ordered(listing.Runs(output, progress).look(now), "time")
    if not (runs or found.nights or found.entries or found.unreadable):
        raise MissingInputError(
            f"no run and no night lies below {output}: check the path, or train one"
        )
    place = to or output / NAME
    replaced = page.save(place, page_of(output, found, runs, _pages(runs), now))
    return f"written to {place}" + (", in place of an older page" if replaced else "")


def page_of(
    output: Place, found: History, runs: Sequence[Run], pages: dict[str, str], now: datetime
) -> bytes:
    """Return the page of an output.

    Args:
        output: the folder.
        found: what nights and champions came to there.
        runs: those that lie there, in the order to show them in.
        pages: path of its page, from the output on, of each run that has one.
        now: what is told is of this moment.
    """
    parts = Parts()
    links = {run: quote(path) for run, path in pages.items()}
    newest = found.entries[-1] if found.entries else None
    nights = [_night(night, found, links) for night in reversed(found.nights)]
    refused = [row for row in nights if row["verdict"] not in _GOOD]
    return render(
        "history.html",
        name=str(output),
        headline=parts.of("Champion", lambda: _headline(newest, links)) if newest else None,
        held=newest.held if newest else None,
        facts=_facts(found, runs, now),
        champions=parts.of("Champions over time", lambda: _drawn(found, now)),
        log=parts.of("Log of champions", lambda: _log(found.entries, links)) or [],
        refused=refused[:MOST_ROWS],
        growth=parts.of("Data", lambda: _growth(found.nights)),
        nights=nights[:MOST_ROWS],
        runs=[_run(run, links) for run in runs[:MOST_ROWS]],
        most_linked=MOST_LINKED,
        counts={
            "log": len(found.entries),
            "refused": len(refused),
            "nights": len(nights),
            "runs": len(runs),
        },
        missing=[*parts.missing, *((str(place), why) for place, why in found.unreadable)],
    )


def _pages(runs: Sequence[Run]) -> dict[str, str]:
    """Return the path of its newest page of each of the first runs that has one."""

    def path(run: Run) -> str | None:
        folder = RunFolder(run.place)
        if run.status == "complete":
            own = folder.report
        elif run.attempts and run.code is not None:
            own = folder.attempt_page(run.attempts)
        else:
            return None
        return str(own).removeprefix(f"{run.place}/") if storage.exists(own) else None

    first = runs[:MOST_LINKED]
    found = zip(first, each(path, first), strict=True)
    return {run.run: f"{run.run}/{path}" for run, path in found if path is not None}


def _headline(entry: Entry, links: dict[str, str]) -> Row:
    model = entry.champion
    return {
        **_score(model.test_correct, model.test_examples),
        "examples": model.test_examples,
        "run": model.run,
        "link": links.get(model.run),
        "since": _minute(entry.since),
    }


def _facts(found: History, runs: Sequence[Run], now: datetime) -> list[tuple[str, str]]:
    """Return what there is in numbers; what isn't there is left out."""
    verdicts = Counter(night.verdict for night in found.nights)
    statuses = Counter(run.status for run in runs)
    facts = [("As of (UTC)", _minute(now)), ("Nights", count(len(found.nights)))]
    facts += [(f"of them {_words(name)}", count(number)) for name, number in verdicts.items()]
    facts.append(("Runs", count(len(runs))))
    facts += [(f"of them {name}", count(number)) for name, number in sorted(statuses.items())]
    return facts


def _words(verdict: str) -> str:
    return verdict.replace("_", " ")


def _drawn(found: History, now: datetime) -> str | None:
    """Return the accuracy of each champion from when to when, and of those that became none."""
    changes = [
        entry
        for before, entry in zip((None, *found.entries), found.entries, strict=False)
        if before is None or entry.champion != before.champion
    ]
    if not changes:
        return None
    starts = [datetime.fromisoformat(entry.since).astimezone(UTC) for entry in changes]
    champions, before = [], None
    for entry, began, ended in zip(changes, starts, [*starts[1:], now], strict=True):
        model = entry.champion
        low, high = wilson_interval(model.test_correct, model.test_examples)
        joins = before is not None and before.test_fingerprint == model.test_fingerprint
        champions.append(Reign(began, max(began, ended), model.accuracy, low, high, joins))
        before = model
    others = [
        (night.ended, night.correct / night.examples)
        for night in found.nights
        if night.verdict != "promoted"
        and night.correct is not None
        and night.examples
        and night.correct <= night.examples
    ]
    label = (
        f"Accuracy over time of {len(champions)} champion{'s' if champions[1:] else ''}, the first "
        f"{percent(champions[0].share)}, the last {percent(champions[-1].share)}; the table below "
        "has each."
    )
    return figures.reigns("champions", label, champions, others)


def _growth(nights: Sequence[Night]) -> str | None:
    """Return how many images there were to train on, night by night."""
    told = [night for night in nights if night.train_examples is not None]
    if not told:
        return None
    of: dict[str, list[Moment]] = {
        "training": [(night.ended, night.train_examples or 0) for night in told],
        "test": [(night.ended, night.test_examples or 0) for night in told],
    }
    ends = [count(of["training"][at][1]) for at in (0, -1)]
    label = f"Images over time: from {ends[0]} to {ends[1]} to train on."
    return figures.growth("growth", "Images", of, label)


def _log(entries: Sequence[Entry], links: dict[str, str]) -> list[Row]:
    return [_entry(entry, links) for entry in entries[: -MOST_ROWS - 1 : -1]]


def _entry(entry: Entry, links: dict[str, str]) -> Row:
    model, who = entry.champion, dictionary(entry.who)
    person = who.get("job") or who.get("machine") or "a person"
    by = f"night {entry.night}" if entry.night else str(person)
    return {
        "number": entry.number,
        "time": _minute(entry.time),
        "act": _ACTS.get(entry.act, entry.act),
        "run": model.run,
        "link": links.get(model.run),
        **_score(model.test_correct, model.test_examples),
        "by": by,
        "why": entry.why,
    }


def _night(night: Night, found: History, links: dict[str, str]) -> Row:
    kind, _ = VERDICTS.get(night.verdict, ("", ""))
    return {
        "night": night.night,
        "link": f"nights/{quote(night.night)}.html" if night.night in found.pages else None,
        "ended": _minute(night.ended),
        "kind": kind,
        "verdict": night.verdict,
        "words": _words(night.verdict),
        "why": night.why,
        "run": night.run or "",
        "run_link": links.get(night.run or ""),
        **_score(night.correct, night.examples),
        "train_examples": _count(night.train_examples),
        "new": _count(night.new),
        "took": seconds(max(0.0, (night.ended - night.began).total_seconds())),
    }


def _run(run: Run, links: dict[str, str]) -> Row:
    net = (run.preset or run.model or "") + (f" x {run.members}" if run.members > 1 else "")
    return {
        "run": run.run,
        "link": links.get(run.run),
        "champion": run.champion,
        "kind": _STATUSES.get(run.status, ""),
        "status": run.status,
        "why": run.why,
        "net": net,
        **_score(run.correct, run.examples),
        "time": "" if run.time is None else _minute(run.time),
        "took": "" if run.seconds is None else seconds(run.seconds),
    }


def _score(correct: int | None, examples: int | None) -> Row:
    """Return an accuracy and its 95 % interval, in as many digits as the images allow."""
    if correct is None or not examples or correct > examples:
        return {"accuracy": "", "interval": ""}
    digits = digits_of(examples)
    low, high = (f"{100 * end:.{digits}f}" for end in wilson_interval(correct, examples))
    return {
        "accuracy": percent(correct / examples, digits),
        "interval": f"{low} to {high}",
    }


def _count(number: int | None) -> str:
    return "" if number is None else count(number)


def _minute(time: datetime | str) -> str:
    """Return a time in UTC without its seconds."""
    return moment(time)[: len("2026-11-26 01:00")]
