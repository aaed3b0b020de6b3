"""What is kept of nights, beside the log of champions: each is created once and never changed.

    <output>/nights/<id>.json                        what a night came to, refusals too
    <output>/nights/<id>.prom                        the same for Prometheus, made of that
    <output>/nights/<id>.html                        the same to look at
    <output>/gates/<key>.<test set>.<01>.json        a verdict of the gate; all of one test set
                                                     together are how often that has decided
    <output>/shards/<source>/<name>@<digest>@<night>.json    a shard that a night has accepted

Names carry what is looked for, so that one listing answers and nothing has to be read.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from job import storage
from job.config import EMBEDDED
from job.data.shards import Part
from job.errors import ConflictError
from job.nightly.champions import utc_now
from job.results import publishing
from job.storage import Place

SCHEMA_VERSION = 1
NIGHTS, GATES, SHARDS = "nights", "gates", "shards"
SHORT = 16  # signs of a digest that a name carries: 64 bits
_MAX_VERDICTS = 99  # on one key: each needs another champion, or other acts of people
_GATE = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{16})\.([0-9]{2})\.json")
_SHARD = re.compile(r"(.+)@([0-9a-f]{16})@([A-Za-z0-9._-]+)\.json")


@dataclass(frozen=True)
class Records:
    """The records below an output."""

    output: Place

    def night(self, night: str) -> dict[str, Any] | None:
        """Return what the night came to, or None if it isn't over."""
        place = self._night(night)
        return publishing.read_json(place) if storage.exists(place) else None

    def keep(self, night: str, record: dict[str, Any]) -> dict[str, Any]:
        """Write down what the night came to, and return what its record says now.

        If a twin of this process was faster, its word stands.
        """
        try:
            storage.create(self._night(night), publishing.to_json(record))
        except ConflictError:
            return publishing.read_json(self._night(night))
        return record

    def exposition(self, night: str) -> Place:
        """Say where what the night came to lies in a form for Prometheus."""
        return self.output / NIGHTS / f"{night}.prom"

    def page(self, night: str) -> Place:
        """Say where the page lies that shows what the night came to."""
        return self.output / NIGHTS / f"{night}.html"

    def last_verdict(self, key: str) -> tuple[int, dict[str, Any]] | None:
        """Return the number and the content of the gate's last verdict on `key`, if there is one.

        Args:
            key: of the night: code, config, data and settings, in hex.
        """
        found = [(number, name) for known, _, number, name in self._gates() if known == short(key)]
        if not found:
            return None
        number, name = max(found)
        return number, publishing.read_json(self.output / GATES / name)

    def verdicts_on(self, test_fingerprint: str) -> int:
        """Return how often this test set has decided."""
        return sum(test == short(test_fingerprint) for _, test, _, _ in self._gates())

    def verdict_path(self, key: str, number: int, test_fingerprint: str) -> str:
        """Return the path of a verdict of the gate, below the output."""
        return f"{GATES}/{short(key)}.{short(test_fingerprint)}.{number:02}.json"

    @staticmethod
    def is_of(told: dict[str, Any] | None, key: str) -> bool:
        """Say whether the verdict that an entry tells of was one on `key`."""
        return str((told or {}).get("path")).startswith(f"{GATES}/{short(key)}.")

    def keep_verdict(
        self, key: str, number: int, test_fingerprint: str, document: dict[str, Any]
    ) -> None:
        """Write a verdict of the gate.

        Raises:
            ConflictError: another night wrote one of that number: look again.
        """
        if number > _MAX_VERDICTS:
            raise ConflictError(
                f"{self.output / GATES} holds {_MAX_VERDICTS} verdicts on one set of code, config "
                "and data: change one of them, or give another --output"
            )
        path = self.verdict_path(key, number, test_fingerprint)
        storage.create(self.output / path, publishing.to_json(document))

    def shards(self, source: Place, night: str) -> "Seen":
        """Return the shards of a source that nights have accepted, `night` itself not counted."""
        folder = self.output / SHARDS / _source(source)
        seen: dict[str, set[str]] = {}
        for name in storage.names(folder):
            found = _SHARD.fullmatch(name)
            # One that was killed and is begun again must see what it saw.
            if found and found[3] != night:
                seen.setdefault(found[1], set()).add(found[2])
        return Seen(folder, seen, night)

    def _gates(self) -> list[tuple[str, str, int, str]]:
        """Return key, test set, number and name of each verdict."""
        names = storage.names(self.output / GATES)
        found = [each for each in map(_GATE.fullmatch, names) if each]
        return [(each[1], each[2], int(each[3]), each[0]) for each in found]

    def _night(self, night: str) -> Place:
        return self.output / NIGHTS / f"{night}.json"


@dataclass(frozen=True)
class Seen:
    """The shards of one source that other nights have accepted, with the digests they then had."""

    folder: Place
    digests: dict[str, set[str]]
    night: str

    def new(self, parts: Iterable[Part]) -> list[Part]:
        """Return those of `parts` that no night has accepted as they are."""
        return [part for part in parts if short(part.sha256) not in self._of(part)]

    def changed(self, parts: Iterable[Part]) -> list[Part]:
        """Return those of `parts` that nights have accepted, but with other bytes."""
        return [part for part in self.new(parts) if self._of(part)]

    def gone(self, parts: Iterable[Part]) -> list[str]:
        """Return the names of shards that were accepted and are not there any more."""
        return sorted(set(self.digests) - {part.name for part in parts})

    def accept(self, parts: Iterable[Part]) -> None:
        """Write down that this night has accepted `parts`."""
        for part in self.new(parts):
            record = {"name": part.name, "size": part.size, "sha256": part.sha256}
            document = {"schema_version": SCHEMA_VERSION, **record, "night": self.night}
            place = self.folder / f"{part.name}@{short(part.sha256)}@{self.night}.json"
            with contextlib.suppress(ConflictError):  # it was killed, and has written that before
                storage.create(place, publishing.to_json({**document, "time": utc_now()}))

    def _of(self, part: Part) -> set[str]:
        return self.digests.get(part.name, set())


def short(digest: str) -> str:
    """Return as much of a digest as a name carries."""
    return digest[:SHORT]


def _source(place: Place) -> str:
    """Return what names a source, however it was written."""
    if place == EMBEDDED:  # which lies wherever the job is installed
        return short(hashlib.sha256(EMBEDDED.text.encode()).hexdigest())
    # Not what a link leads to, which others may change under its name.
    key = place.key.rstrip("/")
    if place.kind == "file":
        key = os.path.abspath(key)  # noqa: PTH100
    return short(hashlib.sha256(os.fsencode(f"{place.kind} {place.bucket} {key}")).hexdigest())
