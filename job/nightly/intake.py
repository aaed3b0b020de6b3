"""Taking the data in: which files a night trains on, guarded, and what was left out and why."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from job.data import shards, source
from job.data.card import Card
from job.data.source import Dataset
from job.nightly import guard
from job.nightly.champions import Entry
from job.nightly.contest import Contender
from job.nightly.desk import Desk, RefusedError
from job.nightly.records import Seen
from job.process.preemption import Preemption


@dataclass(frozen=True)
class Taken:
    """What a night trains on."""

    dataset: Dataset
    parts: tuple[shards.Part, ...]
    """The files it is made of."""
    told: dict[str, Any]
    """What the record tells of how they were taken."""


def take_in(desk: Desk, found: shards.Look, preemption: Preemption) -> Taken:
    """Return the data set that this night trains on, guarded."""
    plan, progress, entry = desk.plan, desk.progress, desk.log.newest()
    seen = desk.records.shards(desk.config.data, plan.night)
    taken: dict[str, Any] = {
        "new": [part.name for part in seen.new(found.parts)],
        "changed": [part.name for part in seen.changed(found.parts)],
        "gone": seen.gone(found.parts),
    }
    if taken["gone"]:
        progress.event("shards_gone", names=taken["gone"])
    if taken["changed"] and not plan.accept_changed_shards:
        raise RefusedError(
            f"{', '.join(taken['changed'])} at {desk.config.data}: the bytes are not those that an "
            "earlier night had; bring the old ones back under this name, or accept the new ones "
            "with --accept-changed-shards",
            **taken,
        )
    champion = None if entry is None else Contender.of(desk.output, entry.champion)
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
        bad = {finding.shard for finding in findings}
        if not plan.skip_bad_shards or not bad <= {shard.name for shard in dataset.shards}:
            told = [asdict(finding) for finding in findings]
            why = "; ".join(finding.sentence for finding in findings)
            raise RefusedError(why, **taken, skipped=skipped, findings=told)
        for finding in findings:
            progress.event("shard_skipped", shard=finding.shard, reason=finding.sentence)
            skipped[finding.shard] = finding.sentence
        parts = tuple(part for part in parts if part.name not in bad)
    seen.accept(parts)
    return Taken(dataset, parts, {**taken, "skipped": skipped})


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
    new = [part.name for part in seen.new(parts) if part.name in dataset.segments]
    card = Card.from_document(entry.card) if entry.card else _card_without(dataset, new)

    def classify(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        desk.progress.beat()
        return champion.classes(images)

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


def _card_without(dataset: Dataset, new: Sequence[str]) -> Card:
    """Return the card of what is trained on but for new shards: of a champion that has none."""
    known = np.ones(len(dataset.x_train), np.bool_)
    for name in new:
        if name in dataset.held_out:  # one to train on
            known[dataset.segments[name]] = False
    return Card.of(dataset.x_train[known], dataset.y_train[known], dataset.classes)
