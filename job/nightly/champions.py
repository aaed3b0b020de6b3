"""Which model is the champion, since when, and why: a log that only grows.

    <output>/champion/000042.json

An entry is created once and never changed; the highest number is in force. Each carries the whole
state forward: champion, anchor, whether promotions are held, and what is barred. So one listing and
one read tell all that a night needs, and two writers can't both have the last word: of two that
append the same number one is refused, reads again, and decides anew.
"""

import os
import re
import socket
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from job import storage
from job.config import check_run_id
from job.errors import ConflictError, DataError, MissingInputError, UsageError
from job.results import publishing
from job.results.publishing import RunFolder
from job.storage import Place

SCHEMA_VERSION = 1
FOLDER = "champion"
Act = Literal["promote", "rollback", "hold", "unhold"]
_NAME = re.compile(r"[0-9]{6}\.json")


@dataclass(frozen=True)
class Model:
    """A published model, with its result on the test set that it was last judged on."""

    run: str
    """Name of its run's folder below the output."""
    architecture: str
    weights_sha256: str
    data_fingerprint: str
    """Of all the data that its run had."""
    test_fingerprint: str
    """Of the test images and labels alone."""
    test_correct: int
    test_examples: int

    @property
    def accuracy(self) -> float:
        """Share of the test images that it classified rightly."""
        return self.test_correct / self.test_examples

    @classmethod
    def of_run(cls, run: str, metrics: dict[str, Any]) -> "Model":
        """Return the model that the complete run `run` published, by its metrics.

        Raises:
            DataError: the metrics, which may be anybody's file, lack what that takes.
        """
        try:
            weights = next(
                each for each in metrics["artifacts"] if each["path"] == "model_weights.h5"
            )
            return _checked(
                cls(
                    run=run,
                    architecture=metrics["config"]["model"],
                    weights_sha256=weights["sha256"],
                    data_fingerprint=metrics["data"]["fingerprint"],
                    test_fingerprint=metrics["data"]["test_fingerprint"],
                    test_correct=metrics["test"]["correct"],
                    test_examples=metrics["test"]["examples"],
                )
            )
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise DataError(
                f"the metrics of the run {run} lack what a champion needs ({error!r}): was it made "
                "by an older version? train it again"
            ) from error


@dataclass(frozen=True)
class Bar:
    """What is barred from automatic promotion, since a person rolled it back."""

    run: str
    weights_sha256: str
    data_fingerprint: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the log, and with it the state that holds from there on."""

    number: int
    """Counts from 1."""
    act: Act
    champion: Model
    anchor: Model
    """The best champion there was on the test set that the champion was judged on."""
    before: str | None
    """Run of the champion before; None in the first entry."""
    since: str
    """When the champion became champion, UTC."""
    held: str | None = None
    """Why nothing may be promoted; None where nothing is held."""
    barred: tuple[Bar, ...] = ()
    night: str | None = None
    """The night that promoted; None for an act of a person."""
    scores: dict[str, Any] | None = None
    """Of challenger, champion and anchor of that night, on the test set and the newest images."""
    gate: dict[str, Any] | None = None
    """The verdict that let it in, and where that lies; None for an act of a person."""
    card: dict[str, Any] | None = None
    """The champion's data card, which the next night's data are compared with."""
    time: str
    who: dict[str, Any]
    why: str

    def bars(self, weights_sha256: str, data_fingerprint: str) -> Bar | None:
        """Return what bars these weights or these data from automatic promotion, if anything."""
        for bar in self.barred:
            if bar.weights_sha256 == weights_sha256 or bar.data_fingerprint == data_fingerprint:
                return bar
        return None

    def age_seconds(self, now: datetime) -> float:
        """Return how long the champion has been champion."""
        return max(0.0, (now - datetime.fromisoformat(self.since)).total_seconds())


class OvertakenError(ConflictError):
    """Another writer has appended an entry of the same number."""


class Log:
    """The log of champions below an output."""

    def __init__(self, output: Place) -> None:
        self.output = output
        self.folder = output / FOLDER

    def newest(self) -> Entry | None:
        """Return the entry in force, or None where there never was a champion.

        Raises:
            DataError: it can't be understood.
            JobError: whether there is one can't be seen.
        """
        numbers = self.numbers()
        return self.read(numbers[-1]) if numbers else None

    def entries(self, last: int | None = None) -> list[Entry]:
        """Return the newest `last` entries, or all, the oldest first."""
        numbers = self.numbers()
        return [self.read(number) for number in (numbers if last is None else numbers[-last:])]

    def needed(self) -> Entry:
        """Return the entry in force.

        Raises:
            MissingInputError: there never was a champion.
        """
        entry = self.newest()
        if entry is None:
            raise MissingInputError(
                f"{self.folder} has no entry: no model was ever promoted there; check --output"
            )
        return entry

    def read(self, number: int) -> Entry:
        """Return one entry.

        Raises:
            MissingInputError: there is none of that number.
            DataError: it is no entry.
        """
        place = self.place(number)
        content = publishing.read_json(place)
        try:
            return _entry(content, number)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{place} is no entry of a champion log ({error!r}): bring it back from a copy"
            ) from error

    def append(self, entry: Entry) -> None:
        """Write `entry` as the newest.

        Raises:
            OvertakenError: another one of that number was there first: read again, decide anew.
            ConflictError: the run of its champion is being removed.
        """
        RunFolder(self.output / entry.champion.run).check_kept()
        try:
            storage.create(self.place(entry.number), publishing.to_json(document(entry)))
        except ConflictError as error:
            raise OvertakenError(str(error)) from error

    def place(self, number: int) -> Place:
        """Say where the entry of that number lies."""
        return self.folder / f"{number:06}.json"

    def numbers(self) -> list[int]:
        """Return the numbers of all entries, the oldest first."""
        names = storage.names(self.folder)
        return sorted(int(name[:6]) for name in names if _NAME.fullmatch(name))


def first(champion: Model, **facts: Any) -> Entry:
    """Return the first entry of a log; `facts` are the rest of its fields."""
    now = utc_now()
    return Entry(
        number=1,
        act="promote",
        champion=champion,
        anchor=champion,
        before=None,
        since=now,
        time=now,
        who=who(),
        **facts,
    )


def promotion(former: Entry | None, champion: Model, anchor: Model | None, **facts: Any) -> Entry:
    """Return the entry that makes `champion` the champion.

    Args:
        former: the entry in force; None where there is none.
        champion: as judged now.
        anchor: the best champion before, on the same test set; None where there is none.
        facts: the other fields.
    """
    if former is None:
        return first(champion, **facts)
    best = champion
    if anchor is not None and anchor.test_fingerprint == champion.test_fingerprint:
        best = max(anchor, champion, key=lambda model: model.test_correct)  # of equals the first
    now = utc_now()
    return replace(
        former,
        number=former.number + 1,
        act="promote",
        champion=champion,
        anchor=best,
        before=former.champion.run,
        since=now,
        time=now,
        who=who(),
        **{"night": None, "scores": None, "gate": None, "card": None, **facts},
    )


def promotion_by_hand(
    former: Entry | None, champion: Model, why: str, anchor: Model | None = None
) -> Entry:
    """Return the entry by which a person makes `champion` the champion; it is barred no longer.

    Args:
        former: the entry in force; None where there is none.
        champion: by `published`.
        why: the reason that the person gives.
        anchor: takes the place of the former one, whose run is gone; None where it is there.

    Raises:
        UsageError: it is the champion already, or promotions are held.
    """
    if former is None:
        return first(champion, why=why)
    if former.held is not None:
        raise UsageError(f"promotions are held ({former.held}): mnist-job unhold --reason first")
    if former.champion.weights_sha256 == champion.weights_sha256:
        if anchor is None:
            raise UsageError(f"{champion.run} is the champion already: nothing was changed")
        return _act(former, "promote", why, anchor=anchor)
    left = tuple(bar for bar in former.barred if bar.weights_sha256 != champion.weights_sha256)
    return replace(promotion(former, champion, anchor or former.anchor, why=why), barred=left)


def published(output: Place, run: str) -> Model:
    """Return the model of the complete run `run` below `output`.

    Raises:
        UsageError: that names no run.
        MissingInputError: there is no complete run of that name.
        DataError: its weights are not what it published.
    """
    folder = RunFolder(output / check_run_id(run))
    folder.check_kept()
    if not storage.exists(folder.metrics):
        raise MissingInputError(
            f"{folder.place} is no complete run: it has no {folder.metrics.name}"
        )
    _, metrics = publishing.read_artifact(folder.weights, publishing.MAX_WEIGHTS_BYTES)
    return Model.of_run(run, metrics)


def anchor_instead(log: Log, entry: Entry) -> Model | None:
    """Return what is to be the anchor where that of `entry` is gone or damaged; None where not.

    The best former champion that is there, was judged on the same test set, and is not barred.
    """

    def is_there(model: Model) -> bool:
        try:
            return published(log.output, model.run).weights_sha256 == model.weights_sha256
        except (MissingInputError, DataError, ConflictError):
            return False

    if is_there(entry.anchor):
        return None
    peers = [
        model
        for each in log.entries()
        for model in (each.anchor, each.champion)  # an anchor may be of an older test set
        if model.test_fingerprint == entry.champion.test_fingerprint
        and entry.bars(model.weights_sha256, "") is None
    ]
    best_first = sorted(peers, key=lambda model: model.test_correct, reverse=True)
    return next(filter(is_there, best_first), entry.champion)


def holding(former: Entry, why: str) -> Entry:
    """Return the entry after which nothing is promoted.

    Raises:
        UsageError: that is so already.
    """
    if former.held is not None:
        raise UsageError(f"promotions are held already ({former.held}): nothing was changed")
    return _act(former, "hold", why, held=why)


def releasing(former: Entry, why: str) -> Entry:
    """Return the entry after which nights promote again.

    Raises:
        UsageError: nothing is held.
    """
    if former.held is None:
        raise UsageError("promotions are not held: nothing was changed")
    return _act(former, "unhold", why, held=None)


def rollback(entries: list[Entry], to: int | None, why: str) -> Entry:
    """Return the entry that brings an earlier champion back, and bars all that came after it.

    Not barred is what a rollback that is taken back so had brought back itself: that is older.

    Args:
        entries: the whole log, the oldest first.
        to: number of the entry whose champion to bring back; None for the champion before.
        why: the reason that a person gives.

    Raises:
        UsageError: there is no such champion, or it is in force.
    """
    newest = entries[-1]
    if to is None:
        others = [
            entry
            for entry in entries
            if entry.champion.weights_sha256 != newest.champion.weights_sha256
            and newest.bars(entry.champion.weights_sha256, "") is None
        ]
        if not others:
            raise UsageError(
                f"no champion before {newest.champion.run} is left that was not rolled back: name "
                "one by --to"
            )
        target = others[-1]
    else:
        found = [entry for entry in entries if entry.number == to]
        if not found:
            raise UsageError(f"--to {to} is no entry of the log: give one of 1 to {newest.number}")
        target = found[0]
    if target.champion.weights_sha256 == newest.champion.weights_sha256:
        raise UsageError(f"{target.champion.run} of entry {target.number} is the champion already")
    back = target.champion
    known = {bar.weights_sha256 for bar in newest.barred}
    weights = [entry.champion.weights_sha256 for entry in entries]
    older = set(weights[: weights.index(back.weights_sha256)])
    later = {
        entry.champion.weights_sha256: entry.champion
        for entry in entries
        if entry.number > target.number
        and entry.champion.weights_sha256 != back.weights_sha256
        and (entry.act == "promote" or entry.champion.weights_sha256 not in older)
    }
    bars = (
        *(bar for bar in newest.barred if bar.weights_sha256 != back.weights_sha256),
        *(
            Bar(model.run, sha256, model.data_fingerprint, why)
            for sha256, model in later.items()
            if sha256 not in known
        ),
    )
    barred = {bar.weights_sha256 for bar in bars}
    peers = [
        model
        for entry in entries
        for model in (entry.anchor, entry.champion)  # an anchor may be of an older test set
        if model.test_fingerprint == back.test_fingerprint and model.weights_sha256 not in barred
    ]
    now = utc_now()
    return replace(
        _act(newest, "rollback", why),
        champion=back,
        anchor=max(peers, key=lambda model: model.test_correct),
        before=newest.champion.run,
        since=now,
        time=now,
        barred=bars,
        scores=target.scores,
        gate=target.gate,
        card=target.card,
    )


def who() -> dict[str, Any]:
    """Return who writes: job and pod where Kubernetes tells them, else machine and process."""
    names = {name: os.environ.get(f"K8S_{name.upper()}_NAME") or None for name in ("job", "pod")}
    return {**names, "machine": socket.gethostname(), "process": os.getpid()}


def utc_now() -> str:
    """Return the time, UTC, as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _act(former: Entry, act: Act, why: str, **changes: Any) -> Entry:
    return replace(
        former,
        number=former.number + 1,
        act=act,
        before=former.champion.run,
        night=None,
        time=utc_now(),
        who=who(),
        why=why,
        **changes,
    )


def document(entry: Entry) -> dict[str, Any]:
    """Return `entry` as its file has it, with what people look for first."""
    fields = asdict(entry)
    champion = fields["champion"]
    return {
        "schema_version": SCHEMA_VERSION,
        "number": fields.pop("number"),
        "act": fields.pop("act"),
        "from": fields.pop("before"),
        "to": champion["run"],
        "why": fields.pop("why"),
        "time": fields.pop("time"),
        "who": fields.pop("who"),
        **fields,
    }


def _entry(document: dict[str, Any], number: int) -> Entry:
    if document["number"] != number or document["act"] not in get_args(Act):
        raise ValueError("number or act")
    datetime.fromisoformat(document["since"])
    return Entry(
        number=number,
        act=document["act"],
        champion=_checked(Model(**document["champion"])),
        anchor=_checked(Model(**document["anchor"])),
        before=document["from"],
        since=document["since"],
        held=document["held"],
        barred=tuple(Bar(**bar) for bar in document["barred"]),
        night=document["night"],
        scores=document["scores"],
        gate=document["gate"],
        card=document["card"],
        time=document["time"],
        who=document["who"],
        why=document["why"],
    )


def _checked(model: Model) -> Model:
    texts = (model.run, model.architecture, model.weights_sha256)
    prints = (model.data_fingerprint, model.test_fingerprint)
    if not all(isinstance(text, str) and text for text in (*texts, *prints)):
        raise TypeError("a text is missing")
    if "/" in model.run or not 0 <= model.test_correct <= model.test_examples > 0:
        raise ValueError("run or result")
    return model
