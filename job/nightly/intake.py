"""Taking the data in: which files a night trains on, guarded, and what was left out and why."""

import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from job import storage
from job.data import shards, source
from job.data.card import Card
from job.data.source import Dataset
from job.nightly import guard
from job.nightly.champions import Entry
from job.nightly.contest import Contender
from job.nightly.desk import Desk, RefusedError, run_of
from job.nightly.records import Seen
from job.process import runtime
from job.process.preemption import Preemption
from job.results import publishing
from job.results.publishing import RunFolder


@dataclass(frozen=True)
class Taken:
    """What a night trains on."""

    dataset: Dataset
    parts: tuple[shards.Part, ...]
    """The files it is made of."""
    told: dict[str, Any]
    """What the record tells of how they were taken."""


def take_in(
    desk: Desk,
    found: shards.Look,
    entry: Entry | None,
    champion: Contender | None,
    preemption: Preemption,
) -> Taken:
    """Return the data set that this night trains on, guarded, and write down what was accepted.

    Args:
        desk: of the night.
        found: what lies at the source; no other bytes are taken.
        entry: of the log, in force; None where there never was a champion.
        champion: its model, which labels are compared with; None where there is none.
        preemption: knows whether to stop.

    Raises:
        RefusedError: the data are refused, with all that was found.
        DataError: a file is damaged, or not what was found.
    """
    plan, progress = desk.plan, desk.progress
    seen = desk.records.shards(desk.config.source.place, plan.night)
    taken = _compared(desk, found, seen)
    new = set(taken["new"])
    parts, skipped = found.parts, dict[str, str]()
    while True:
        only = tuple((part.name, part.sha256) for part in parts)
        dataset = source.load(
            replace(desk.config.source, only=only), progress.beat, skip_bad=plan.skip_bad_shards
        )
        skipped |= dict(dataset.skipped)
        parts = tuple(part for part in parts if part.name not in skipped)
        findings = _findings(desk, parts, dataset, seen, entry, champion, preemption)
        if not findings:
            break
        bad: dict[str, str] = {}
        for finding in findings:
            name = _to_blame(finding, new)
            bad[name] = f"{bad[name]}; {finding.sentence}" if name in bad else finding.sentence
        if not plan.skip_bad_shards or not set(bad) <= {shard.name for shard in dataset.shards}:
            told = [asdict(finding) for finding in findings]
            raise RefusedError("; ".join(bad.values()), **taken, skipped=skipped, findings=told)
        skipped |= bad
        parts = tuple(part for part in parts if part.name not in bad)
        del dataset  # before the next is loaded: memory may have room for one only
    seen.accept(parts)
    # The run tells and records all that was left out, what the guard refused as well.
    dataset = replace(dataset, skipped=tuple(skipped.items()))
    return Taken(dataset, parts, {**taken, "skipped": skipped})


def _compared(desk: Desk, found: shards.Look, seen: Seen) -> dict[str, Any]:
    """Return the names of what is new, changed and gone since earlier nights.

    Raises:
        RefusedError: files have changed, and nobody has accepted that.
    """
    taken: dict[str, Any] = {
        "new": [part.name for part in seen.new(found.parts)],
        "changed": [part.name for part in seen.changed(found.parts)],
        "gone": seen.gone(found.parts),
    }
    if taken["gone"]:
        desk.progress.event("shards_gone", names=taken["gone"])
    if taken["changed"] and not desk.plan.accept_changed_shards:
        raise RefusedError(
            f"{', '.join(taken['changed'])} at {desk.config.data}: the bytes are not those that an "
            "earlier night had; bring the old ones back under this name, or accept the new ones "
            "with --accept-changed-shards",
            **taken,
        )
    return taken


def _to_blame(finding: guard.Finding, new: Collection[str]) -> str:
    """Return what a finding speaks against: of a leak between an old and a new shard, the new."""
    newer = finding.against in new and finding.shard not in new
    return finding.against if newer else finding.shard


def _findings(
    desk: Desk,
    parts: Sequence[shards.Part],
    dataset: Dataset,
    seen: Seen,
    entry: Entry | None,
    champion: Contender | None,
    preemption: Preemption,
) -> Sequence[guard.Finding]:
    """Return what is wrong with the data: leaks anywhere, and drift or labels of new shards."""
    allowed = desk.plan.leak_allow
    if entry is None or champion is None:
        return guard.leaks(dataset, allowed)  # there is nothing to compare with
    # Those to test with as well: flipped labels there would bend the gate.
    fresh = [part.name for part in seen.new(parts)]
    new = [name for name in fresh if name in dataset.segments]
    if len(new) < len(fresh):  # what they add to is new too: a set in one piece, or other bytes
        new.insert(0, guard.BASE)
    card = Card.from_document(entry.card) if entry.card else _card_without(dataset, new)

    def classify(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        return champion.classes(images, desk.progress.beat)

    _compute_as_begun(desk, dataset, parts)
    with preemption.deferred():
        checked = guard.check(
            dataset,
            new,
            card,
            allowed=allowed,
            classify=classify,
            accuracy=entry.champion.accuracy,
        )
    return checked.refusals(desk.plan.accept_drift)


def _compute_as_begun(desk: Desk, dataset: Dataset, parts: Sequence[shards.Part]) -> None:
    """Let TensorFlow take as many threads as the night's run began with, if it has begun.

    It counts them once, which is now and not when the run goes on; and the bits depend on them.
    """
    first = RunFolder(run_of(desk.config, dataset.fingerprint, parts).place).attempt(1)
    if not storage.exists(first):
        return
    cores = publishing.read_json(first).get("cores")
    if isinstance(cores, int) and cores > 0:
        runtime.limit_threads(runtime.wanted_threads(os.environ, cores))


def _card_without(dataset: Dataset, new: Sequence[str]) -> Card:
    """Return the card of what is trained on but for new shards: of a champion that has none."""
    card = Card.of(*dataset.base_examples, dataset.classes)
    for name in dataset.held_out:  # those to train on
        if name not in new:
            at = dataset.segments[name]
            card = card.merge(Card.of(dataset.x_train[at], dataset.y_train[at], dataset.classes))
    return card
