"""One night: look at the data, guard, train, judge, promote; read it like a table of contents.

A night may be killed between any two of its writes and begun again, by the same pod or another one,
and two nights may overlap: the run's name follows from code, config and data, so that whoever comes
continues the same run to the same bytes; the log of champions is appended to by number, so that
only one of two writers gets the next; and what the night came to is written last.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from job.config import RunConfig
from job.data import shards
from job.data.source import Dataset
from job.errors import ConflictError, DataError, TemporaryError, UsageError
from job.nightly import champions, servable
from job.nightly.champions import Entry, Model
from job.nightly.contest import Contender
from job.nightly.desk import Desk, Plan, run_of, summary
from job.nightly.intake import take_in
from job.nightly.judging import Judged, judge, keep_verdict
from job.nightly.records import Records
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.results.provenance import code_version
from job.run import train_run
from job.workers.cluster import Cluster

_MOST_RACES = 20  # lost ones in a row: far more than nights that overlap


def retrain(
    plan: Plan, config: RunConfig, cluster: Cluster, preemption: Preemption, progress: Progress
) -> dict[str, Any]:
    """Let one night happen, and return its record.

    Args:
        plan: of the night.
        config: of its run, but for the run id and the files of the data set, which follow.
        cluster: where this process runs.
        preemption: knows whether to stop.
        progress: told of each step.

    Raises:
        DataError: the data were refused, or the training came to nothing; that is recorded.
        JobError: whatever else went wrong; the night isn't over, and the same command goes on.
    """
    desk = Desk(plan, config, progress)
    if (record := desk.records.night(plan.night)) is not None:
        desk.show(record)  # should it have been killed before that
        return _as_it_ended(record, desk)
    mine = desk.promoted_by_this_night()
    if mine is not None and not _is_as_it_was(mine, plan, config):
        return _as_it_ended(desk.close_as_promoted(mine), desk)
    with desk.recording_failures():
        found = desk.look()
    progress.event("night_started", night=plan.night, data=config.data, files=len(found.parts))
    key = _key(plan, config, found.fingerprint)
    if (before := desk.decided_before(key)) is not None:
        return desk.close(
            "unchanged",
            f"nothing new: {before} has decided on the same code, config and data",
        )
    entry = desk.log.newest()
    # Before the data are looked into: that its file is damaged is no fault of theirs.
    champion = None if entry is None else Contender.of(desk.output, entry.champion)
    with desk.recording_failures():
        taken = take_in(desk, found, entry, champion, preemption)
        dataset = taken.dataset
        # What has promoted already and was rolled back since has promoted all the same.
        if mine is None and (bar := desk.barred(dataset.fingerprint)) is not None:
            return desk.close("barred", _barred(bar), dataset=dataset, **taken.told)
        config = _beginning_with_champion(config, desk, mine or entry, before=mine is not None)
        config = run_of(config, taken.dataset.fingerprint, taken.parts)
        document = train_run(config, cluster, preemption, progress, dataset=dataset)
    assert document is not None  # a night has one worker, which is the chief
    outcome = _decide(desk, key, config, dataset, document, preemption)
    return desk.close(
        outcome.verdict,
        outcome.why,
        dataset=dataset,
        run=config.run_id,
        gate=outcome.gate,
        **taken.told,
    )


def _beginning_with_champion(
    config: RunConfig, desk: Desk, entry: Entry | None, *, before: bool
) -> RunConfig:
    """Return `config` with the run of the champion of `entry` in the place of its name.

    A night that has promoted, and goes on, began with the one `before`. The first night of all has
    none, and draws its weights.
    """
    if config.init_weights != champions.FOLDER:
        return config
    run = None if entry is None else entry.before if before else entry.champion.run
    return replace(config, init_weights=None if run is None else str(desk.output / run))


def _is_as_it_was(mine: Entry, plan: Plan, config: RunConfig) -> bool:
    """Tell whether this night, begun again, would decide on what it has promoted: entry `mine`."""
    try:
        found = shards.look(config.source)
    except DataError:
        return False
    return Records.is_of(mine.gate, _key(plan, config, found.fingerprint))


def _as_it_ended(record: dict[str, Any], desk: Desk) -> dict[str, Any]:
    """Return the record of a night that is over, or raise as it did.

    Raises:
        ConflictError: it was one of another config.
    """
    plan, config = desk.plan, desk.config
    desk.progress.event("night_over_already", **summary(record))
    if record.get("config_sha256") != config.digest:
        raise ConflictError(
            f"night {plan.night} at {desk.output} is over, and was one of another config "
            f"({config.difference(record.get('config') or {})}): give another --night"
        )
    code, why = record.get("exit_code"), f"{record.get('why')} (night {plan.night} is over)"
    if code == DataError.exit_code:
        raise DataError(why)
    if code == UsageError.exit_code:
        raise UsageError(why)
    return record


def _key(plan: Plan, config: RunConfig, data_fingerprint: str) -> str:
    """Return what a night decides on: where nothing of it has changed there is nothing to do."""
    settings = {
        name: value
        for name, value in asdict(plan).items()
        if name not in {"night", "again", "stale_after_seconds"}
    }
    told = [code_version(), config.digest, data_fingerprint, settings]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Outcome:
    """What deciding on a challenger came to."""

    verdict: str
    why: str
    gate: dict[str, Any] | None = None
    """The gate's verdict, and where it lies."""


def _decide(
    desk: Desk,
    key: str,
    config: RunConfig,
    dataset: Dataset,
    document: dict[str, Any],
    preemption: Preemption,
) -> _Outcome:
    """Judge the challenger against whoever is champion, and promote it if all allows.

    Where another night or a person was faster, the log is read again and all is decided anew.
    """
    challenger = Model.of_run(config.run_id, document)
    contender = Contender.of(desk.output, challenger)
    for _ in range(_MOST_RACES):
        entry = desk.log.newest()
        if (done := _promoted_already(desk, challenger, entry)) is not None:
            return done
        if entry is not None:
            bar = entry.bars(challenger.weights_sha256, challenger.data_fingerprint)
            if bar is not None:
                return _Outcome("barred", _barred(bar))
        with preemption.deferred():
            judged = judge(desk, contender, entry, dataset)
        told = keep_verdict(desk, key, judged)
        desk.progress.event(
            "judged",
            passed=judged.verdict.passed,
            why=judged.verdict.why,
            decided_before=told["test_set_decided_before"],
        )
        against = _against(desk, contender, judged, entry)
        if against is not None:
            return _Outcome(*against, told)
        if _append(desk, judged, entry, told):
            return _Outcome("promoted", judged.verdict.why, told)
        desk.progress.event("overtaken", night=desk.plan.night)
    raise TemporaryError(
        f"{desk.log.folder} was written by others {_MOST_RACES} times while this night decided: "
        "try again"
    )


def _promoted_already(desk: Desk, challenger: Model, entry: Entry | None) -> _Outcome | None:
    """Return what is to be said if the challenger is, or was by this night, promoted."""
    if (mine := desk.promoted_by_this_night()) is not None:
        return _Outcome("promoted", mine.why, mine.gate)
    if entry is not None and entry.champion.weights_sha256 == challenger.weights_sha256:
        by = f"by {entry.night}" if entry.night else f"by a person ({entry.why})"
        return _Outcome("unchanged", f"these weights are the champion already, {by}")
    return None


def _against(
    desk: Desk, contender: Contender, judged: Judged, entry: Entry | None
) -> tuple[str, str] | None:
    """Return the verdict and the reason if something speaks against promoting, else None."""
    why = judged.verdict.why
    if not judged.verdict.passed:
        return "refused", why
    if not judged.verdict.promotes:
        waits = f"passed, and waits for mnist-job promote {contender.model.run} --reason ..."
        return "awaiting", f"{waits}; {why}"
    if entry is not None and entry.held is not None:
        return "held", f"passed, but promotions are held: {entry.held}; {why}"
    broken = servable.check(
        *(contender.archive(), contender.weights, judged.images, judged.probabilities),
        desk.progress.beat,
        contender.serving(),
    )
    if broken is not None:
        what = "a stranger does not get from the published files what was recorded"
        return "refused", f"{what}: {broken}"
    return None


def _append(desk: Desk, judged: Judged, entry: Entry | None, told: dict[str, Any]) -> bool:
    """Append the promotion to the log; False if another writer was faster."""
    new = champions.promotion(
        entry,
        judged.challenger,
        judged.anchor,
        night=desk.plan.night,
        scores=judged.scores,
        gate=told,
        card=judged.card,
        why=judged.verdict.why,
    )
    try:
        desk.log.append(new)
    except champions.OvertakenError:
        return False
    desk.progress.event("promoted", number=new.number, run=new.champion.run)
    return True


def _barred(bar: champions.Bar) -> str:
    return (
        f"weights or data are those of {bar.run}, which was rolled back ({bar.why}): only a "
        "person may promote them"
    )
