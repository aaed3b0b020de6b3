"""One night: look at the data, guard, train, judge, promote; read it like a table of contents.

A night may be killed between any two of its writes and begun again, by the same pod or another one,
and two nights may overlap: the run's name follows from code, config and data, so that whoever comes
continues the same run to the same bytes; the log of champions is appended to by number, so that
only one of two writers gets the next; and what the night came to is written last.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from job import __version__
from job.config import RunConfig
from job.data import shards, source
from job.data.card import Card
from job.data.source import Dataset
from job.errors import ConflictError, DataError, JobError, TemporaryError, UsageError
from job.nightly import champions, gate, guard, servable
from job.nightly.champions import Entry, Log, Model
from job.nightly.contest import Contender
from job.nightly.records import SCHEMA_VERSION, Records, Seen
from job.process import runtime, verdict
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.results import publishing, statistics
from job.results.publishing import RunFolder
from job.run import train_run
from job.storage import parse
from job.workers.cluster import Cluster

RECORDED_PROBABILITIES = 100  # images whose probabilities a stranger must find again
_MOST_RACES = 20  # lost ones in a row: far more than nights that overlap
_RECENT = 20  # entries that others may have written between a night's own and its record


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a night is asked to do, beside what its run is."""

    night: str
    """Names the night: the same id again is the same night."""
    rules: gate.Rules = field(default_factory=gate.Rules)
    skip_bad_shards: bool = False
    """Leave a bad shard out, loudly, instead of refusing the night."""
    accept_changed_shards: bool = False
    """Take shards whose bytes are not those that an earlier night had."""
    leak_allow: tuple[str, ...] = ()
    """Digests of test images that may be in the training data."""
    accept_drift: tuple[str, ...] = ()
    """Names of shards that are taken however they differ from what was there before."""
    stale_after_seconds: float | None = None
    """Age from which the champion is called stale."""
    again: bool = False
    """Decide even where an earlier night has decided on the same."""


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
    desk = _Desk(plan, config, progress)
    if (record := desk.records.night(plan.night)) is not None:
        return _as_it_ended(record, desk)
    mine = desk.promoted_by_this_night()
    try:
        found = shards.look(config.source, progress.beat)
    except DataError as error:
        if mine is not None:
            return _as_it_ended(desk.close_as_promoted(mine), desk)
        desk.close("bad_data", str(error), found=None)
        raise
    progress.event("night_started", night=plan.night, data=config.data, files=len(found.parts))
    key = _key(plan, config, found.fingerprint)
    if mine is not None and not Records.is_of(mine.gate, key):
        return _as_it_ended(desk.close_as_promoted(mine), desk)
    if (before := desk.decided_before(key)) is not None:
        return desk.close(
            "unchanged",
            f"nothing new: night {before} has decided on the same code, config and data",
            found=found,
        )
    entry = desk.log.newest()
    # Before the data are looked into: that its file is damaged is no fault of theirs.
    champion = None if entry is None else Contender.of(desk.output, entry.champion)
    with desk.recording_failures(found):
        taken = _take_in(desk, found, entry, champion, preemption)
        dataset = taken.dataset
        if (bar := desk.barred(dataset.fingerprint)) is not None:
            return desk.close("barred", _barred(bar), found=found, dataset=dataset, **taken.told)
        config = _run_of(config, taken)
        document = train_run(config, cluster, preemption, progress, dataset=dataset)
    assert document is not None  # a night has one worker, which is the chief
    outcome = _decide(desk, key, config, dataset, document, preemption)
    return desk.close(
        outcome.verdict,
        outcome.why,
        found=found,
        dataset=dataset,
        run=config.run_id,
        gate=outcome.gate,
        **taken.told,
    )


@dataclass(frozen=True)
class _Outcome:
    """What deciding on a challenger came to."""

    verdict: str
    why: str
    gate: dict[str, Any] | None = None
    """The gate's verdict, and where it lies."""


class _Desk:
    """What all steps of a night share: its records, the log, and how it is closed."""

    def __init__(self, plan: Plan, config: RunConfig, progress: Progress) -> None:
        self.plan = plan
        self.config = config
        self.progress = progress
        self.output = parse(config.output, "--output")
        self.records = Records(self.output)
        self.log = Log(self.output)
        self.began = champions.utc_now()

    def decided_before(self, key: str) -> str | None:
        """Return the night that decided on `key` and is over, or None where there is more to do."""
        last = self.records.last_verdict(key)
        if last is None or self.plan.again:
            return None
        night = str(last[1].get("night"))
        record = None if night == self.plan.night else self.records.night(night)
        if record is None:  # it was killed before it was over: this one goes on with it
            return None
        entry = self.log.newest()
        if record.get("verdict") == "held" and (entry is None or entry.held is None):
            return None
        if record.get("verdict") == "refused":
            judged = (record.get("gate") or {}).get("champion") or {}
            now = None if entry is None else entry.champion.weights_sha256
            if judged.get("weights_sha256") != now:  # what it lost to may have been rolled back
                return None
        return night

    def promoted_by_this_night(self) -> Entry | None:
        """Return the entry that this night has written before it was killed, if it did."""
        mine = (each for each in self.log.entries(_RECENT) if each.night == self.plan.night)
        return next(mine, None)

    def barred(self, data_fingerprint: str) -> champions.Bar | None:
        """Return what bars the data from making a champion by themselves."""
        entry = self.log.newest()
        return None if entry is None else entry.bars("", data_fingerprint)

    @contextlib.contextmanager
    def recording_failures(self, found: shards.Look) -> Iterator[None]:
        """Close the night if its data are bad or its training comes to nothing."""
        try:
            yield
        except _RefusedError as refused:
            self.close("bad_data", str(refused), found=found, **refused.taken)
            raise
        except DataError as error:
            self.close("bad_data", str(error), found=found)
            raise
        except UsageError as error:
            self.close("failed", str(error), found=found, exit_code=error.exit_code)
            raise

    def close(
        self,
        verdict: str,
        why: str,
        *,
        found: shards.Look | None,
        dataset: Dataset | None = None,
        exit_code: int | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Write what the night came to, tell it, and return it."""
        code = DataError.exit_code if verdict == "bad_data" else exit_code or 0
        facts = {} if dataset is None else dataset.facts()
        files = [asdict(part) for part in found.parts] if found else []
        fingerprint = found.fingerprint if found else None
        record = {
            "schema_version": SCHEMA_VERSION,
            "night": self.plan.night,
            "verdict": verdict,
            "why": why,
            "exit_code": code,
            "began": self.began,
            "ended": champions.utc_now(),
            "who": champions.who(),
            "code": code_version(),
            "config_sha256": self.config.digest,
            "config": self.config.identity,
            "data": {"uri": self.config.data, "fingerprint": fingerprint, "files": files} | facts,
            "champion": self._champion(),
            **more,
        }
        return self._keep(record)

    def close_as_promoted(self, mine: Entry) -> dict[str, Any]:
        """Close a night that has promoted, was killed, and was begun again on other things.

        What it came to stands in the log; the record tells of that run and its data.
        """
        metrics = publishing.read_json(RunFolder(self.output / mine.champion.run).metrics)
        return self._keep(
            {
                "schema_version": SCHEMA_VERSION,
                "night": self.plan.night,
                "verdict": "promoted",
                "why": mine.why,
                "exit_code": 0,
                "began": self.began,
                "ended": champions.utc_now(),
                "who": champions.who(),
                "code": code_version(),
                "config_sha256": metrics.get("config_sha256"),
                "config": metrics.get("config"),
                "data": metrics.get("data"),
                "champion": self._champion(),
                "run": mine.champion.run,
                "gate": mine.gate,
            }
        )

    def _keep(self, record: dict[str, Any]) -> dict[str, Any]:
        kept = self.records.keep(self.plan.night, record)
        told = summary(kept)
        self.progress.event("night_over", **told)
        if told["stale"]:
            age = told["champion_age_seconds"]
            self.progress.event("champion_stale", champion=told["champion"], age_seconds=age)
        return kept

    def _champion(self) -> dict[str, Any] | None:
        entry = self.log.newest()
        return None if entry is None else champion_now(entry, self.plan.stale_after_seconds)


class _RefusedError(DataError):
    """The data were refused, with what was found."""

    def __init__(self, message: str, **taken: Any) -> None:
        super().__init__(message)
        self.taken = taken


def _as_it_ended(record: dict[str, Any], desk: "_Desk") -> dict[str, Any]:
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


def _take_in(
    desk: _Desk,
    found: shards.Look,
    entry: Entry | None,
    champion: Contender | None,
    preemption: Preemption,
) -> "_Taken":
    """Return the data set that this night trains on, guarded."""
    plan, progress = desk.plan, desk.progress
    seen = desk.records.shards(desk.config.source.place, plan.night)
    taken: dict[str, Any] = {
        "new": [part.name for part in seen.new(found.parts)],
        "changed": [part.name for part in seen.changed(found.parts)],
        "gone": seen.gone(found.parts),
    }
    if taken["gone"]:
        progress.event("shards_gone", names=taken["gone"])
    if taken["changed"] and not plan.accept_changed_shards:
        raise _RefusedError(
            f"{', '.join(taken['changed'])} at {desk.config.data}: the bytes are not those that an "
            "earlier night had; bring the old ones back under this name, or accept the new ones "
            "with --accept-changed-shards",
            **taken,
        )
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
        newcomers = {part.name for part in seen.new(parts)}
        blamed = {_to_blame(finding, newcomers): finding for finding in findings}
        bad = set(blamed)
        if not plan.skip_bad_shards or not bad <= {shard.name for shard in dataset.shards}:
            told = [asdict(finding) for finding in findings]
            why = "; ".join(finding.sentence for finding in findings)
            raise _RefusedError(why, **taken, skipped=skipped, findings=told)
        for name, finding in blamed.items():
            progress.event("shard_skipped", shard=name, reason=finding.sentence)
            skipped[name] = finding.sentence
        parts = tuple(part for part in parts if part.name not in bad)
    seen.accept(parts)
    return _Taken(dataset, parts, {**taken, "skipped": skipped})


@dataclass(frozen=True)
class _Taken:
    """What a night trains on."""

    dataset: Dataset
    parts: tuple[shards.Part, ...]
    """The files it is made of."""
    told: dict[str, Any]
    """What the record tells of how they were taken."""


def _findings(
    desk: _Desk,
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


def _to_blame(finding: guard.Finding, newcomers: Collection[str]) -> str:
    """Return the shard that brings what is wrong: of a leak a new one to test with, if none else.

    Else one bad test shard would take from the training all that it was copied from.
    """
    if finding.tested_by in newcomers and finding.shard not in newcomers:
        return str(finding.tested_by)
    return finding.shard


def _card_without(dataset: Dataset, new: Sequence[str]) -> Card:
    """Return the card of what is trained on but for new shards: of a champion that has none."""
    known = np.ones(len(dataset.x_train), np.bool_)  # a new base too: there is nothing else
    for name in new:
        if name in dataset.held_out:  # one to train on
            known[dataset.segments[name]] = False
    return Card.of(dataset.x_train[known], dataset.y_train[known], dataset.classes)


def _run_of(config: RunConfig, taken: _Taken) -> RunConfig:
    """Return the config of the run that code, config and data name, and no other."""
    told = json.dumps([code_version(), config.digest, taken.dataset.fingerprint], sort_keys=True)
    run = f"night-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    only = tuple((part.name, part.sha256) for part in taken.parts)
    return replace(config, run_id=run, only=only)


def _decide(
    desk: _Desk,
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
            judged = _judge(desk, contender, entry, dataset)
        told = _keep_verdict(desk, key, judged)
        desk.progress.event("judged", passed=judged.verdict.passed, why=judged.verdict.why)
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


def _against(
    desk: _Desk, contender: Contender, judged: "_Judged", entry: Entry | None
) -> tuple[str, str] | None:
    """Return the verdict and the reason if something speaks against promoting, else None."""
    why = judged.verdict.why
    if not judged.verdict.passed:
        return "refused", why
    if desk.plan.rules.promote == "manual":
        waits = f"passed, and waits for mnist-job promote {contender.model.run} --reason ..."
        return "awaiting", f"{waits}; {why}"
    if entry is not None and entry.held is not None:
        return "held", f"passed, but promotions are held: {entry.held}; {why}"
    broken = servable.check(
        contender.archive(), contender.weights, judged.images, judged.probabilities
    )
    if broken is not None:
        what = "plain Keras does not get from the published files what was recorded"
        return "refused", f"{what}: {broken}"
    return None


def _promoted_already(desk: _Desk, challenger: Model, entry: Entry | None) -> _Outcome | None:
    """Return what is to be said if the challenger is, or was by this night, promoted."""
    if (mine := desk.promoted_by_this_night()) is not None:
        return _Outcome("promoted", mine.why, mine.gate)
    if entry is not None and entry.champion.weights_sha256 == challenger.weights_sha256:
        by = f"by night {entry.night}" if entry.night else f"by a person ({entry.why})"
        return _Outcome("unchanged", f"these weights are the champion already, {by}")
    return None


@dataclass(frozen=True)
class _Judged:
    """A verdict of the gate, and what it was made of."""

    verdict: gate.Verdict
    challenger: Model
    champion: Model | None
    anchor: Model | None
    """The better of champion and anchor of the log, on this test set."""
    scores: dict[str, Any]
    document: dict[str, Any]
    images: npt.NDArray[np.uint8]
    """The first test images: what a stranger must find the probabilities of again."""
    probabilities: npt.NDArray[np.float64]
    card: dict[str, Any]


def _judge(desk: _Desk, challenger: Contender, entry: Entry | None, dataset: Dataset) -> _Judged:
    """Let challenger, champion and anchor classify the same images, and compare them in pairs."""
    output, beat = desk.output, desk.progress.beat
    champion = None if entry is None else Contender.of(output, entry.champion)
    anchor = champion
    if entry is not None and entry.anchor.weights_sha256 != entry.champion.weights_sha256:
        anchor = Contender.of(output, entry.anchor)
    newest = _newest(dataset, champion)
    probabilities = challenger.probabilities(dataset.x_test)
    beat()
    named = {"challenger": challenger, "champion": champion, "anchor": anchor}
    guesses = {"challenger": probabilities.argmax(axis=1)}
    fresh: dict[str, Any] = {}
    for name, contender in named.items():
        if contender is None:
            continue
        if name not in guesses:
            same = name == "anchor" and anchor is champion
            guesses[name] = guesses["champion"] if same else contender.classes(dataset.x_test)
        if newest is not None:
            fresh[name] = _score(contender.classes(newest[0]), newest[1])
        beat()
    models = {
        name: _judged_on(dataset, contender.model, guesses[name])
        for name, contender in named.items()
        if contender is not None
    }
    # On another test set than before the champion may be the better of the two.
    if "anchor" in models and models["champion"].test_correct > models["anchor"].test_correct:
        models["anchor"], guesses["anchor"] = models["champion"], guesses["champion"]
    rules, apart = desk.plan.rules, models.get("anchor") != models.get("champion")
    verdict = gate.judge(
        dataset.y_test,
        guesses["challenger"],
        guesses.get("champion"),
        guesses.get("anchor") if apart else None,  # nobody is to lose to the same model twice
        rules,
        dataset.classes,
    )
    recorded = probabilities[:RECORDED_PROBABILITIES]
    document = {
        **{name: asdict(models[name]) if name in models else None for name in named},
        "settings": asdict(rules),
        **verdict.document,
        "newest": fresh or None,
        "probabilities": recorded.tolist(),
    }
    return _Judged(
        verdict=verdict,
        challenger=models["challenger"],
        champion=models.get("champion"),
        anchor=models.get("anchor"),
        scores={
            "test_fingerprint": dataset.test_fingerprint,
            "test": verdict.document["scores"],
            "newest": fresh or None,
        },
        document=document,
        images=dataset.x_test[:RECORDED_PROBABILITIES],
        probabilities=recorded,
        card=Card.of(dataset.x_train, dataset.y_train, dataset.classes).document(),
    )


def _newest(
    dataset: Dataset, champion: Contender | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]] | None:
    """Return the images kept from training of all shards that the champion didn't have."""
    had = set()
    if champion is not None:
        listed = champion.metrics.get("data", {}).get("shards") or []
        had = {(each.get("name"), each.get("sha256")) for each in listed}
    names = [
        shard.name
        for shard in dataset.shards
        if shard.name in dataset.held_out and (shard.name, shard.sha256) not in had
    ]
    kept = [dataset.held_out[name] for name in names if len(dataset.held_out[name][1])]
    if not kept:
        return None
    images, labels = zip(*kept, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _score(guess: npt.NDArray[np.int64], labels: npt.NDArray[np.int32]) -> dict[str, Any]:
    correct = int((guess == labels).sum())
    return {
        "examples": len(labels),
        "correct": correct,
        "accuracy": correct / len(labels),
        "accuracy_interval_95": list(statistics.wilson_interval(correct, len(labels))),
    }


def _judged_on(dataset: Dataset, model: Model, guess: npt.NDArray[np.int64]) -> Model:
    """Return `model` with its result on the data's test images."""
    return replace(
        model,
        test_fingerprint=dataset.test_fingerprint,
        test_correct=int((guess == dataset.y_test).sum()),
        test_examples=len(guess),
    )


def _keep_verdict(desk: _Desk, key: str, judged: _Judged) -> dict[str, Any]:
    """Write the verdict, unless this night did so before it was killed.

    Returns:
        What other records tell of it: where it lies, and all of it but the probabilities.
    """
    canonical = json.dumps(judged.document, sort_keys=True)
    inputs = hashlib.sha256(canonical.encode()).hexdigest()
    test = judged.challenger.test_fingerprint
    while True:
        last = desk.records.last_verdict(key)
        mine = last is not None and last[1].get("night") == desk.plan.night
        if last is not None and mine and last[1].get("inputs") == inputs:
            return _told(desk.records.verdict_path(key, last[0], test), last[1])
        number = 1 if last is None else last[0] + 1
        document = {
            "schema_version": SCHEMA_VERSION,
            "night": desk.plan.night,
            "time": champions.utc_now(),
            "inputs": inputs,
            "test_set_decided_before": desk.records.verdicts_on(test),
            **judged.document,
        }
        try:
            desk.records.keep_verdict(key, number, test, document)
        except ConflictError:
            if last == desk.records.last_verdict(key):
                raise
            continue  # another night was faster: look what it wrote
        return _told(desk.records.verdict_path(key, number, test), document)


def _told(path: str, document: dict[str, Any]) -> dict[str, Any]:
    return {"path": path, **{k: v for k, v in document.items() if k != "probabilities"}}


def _append(desk: _Desk, judged: _Judged, entry: Entry | None, told: dict[str, Any]) -> bool:
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


def _key(plan: Plan, config: RunConfig, data_fingerprint: str) -> str:
    """Return what a night decides on: where nothing of it has changed there is nothing to do."""
    settings = {
        name: value
        for name, value in asdict(plan).items()
        if name not in {"night", "again", "stale_after_seconds"}
    }
    told = [code_version(), config.digest, data_fingerprint, settings]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def code_version() -> dict[str, str | None]:
    """Return what a training depends on beside config and data, without loading it."""
    commit, keras = runtime.git_commit(os.environ), metadata.version("keras")
    found: dict[str, str | None] = {
        "job_version": __version__,
        "git_commit": commit,
        "keras": keras,
    }
    for name in ("tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found["tensorflow"] = metadata.version(name)
    return found


def champion_now(entry: Entry, stale_after_seconds: float | None) -> dict[str, Any]:
    """Return what every record tells of the champion in force."""
    age = entry.age_seconds(datetime.now(UTC))
    return {
        "number": entry.number,
        "run": entry.champion.run,
        "weights_sha256": entry.champion.weights_sha256,
        "accuracy": entry.champion.accuracy,
        "since": entry.since,
        "age_seconds": round(age, 3),
        "stale": stale_after_seconds is not None and age > stale_after_seconds,
        "held": entry.held,
    }


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a person wants to know first of a night."""
    champion = record.get("champion") or {}
    return {
        "night": record.get("night"),
        "verdict": record.get("verdict"),
        "why": record.get("why"),
        "exit_code": record.get("exit_code"),
        "run": record.get("run"),
        "champion": champion.get("run"),
        "champion_number": champion.get("number"),
        "champion_accuracy": champion.get("accuracy"),
        "champion_age_seconds": champion.get("age_seconds"),
        "stale": champion.get("stale", False),
    }


def summary_of_failure(plan: Plan, config: RunConfig, error: Exception) -> dict[str, Any]:
    """Return what to tell of a night that ended with `error`: its record, where it left one."""
    ended = verdict.of_error(error)
    try:
        record = Records(parse(config.output, "--output")).night(plan.night)
    except JobError:  # the output may be what is wrong
        record = None
    if record is not None and record.get("exit_code") == ended["code"]:
        return {**ended, **summary(record)}
    more = {"verdict": ended["status"], "why": ended["error"], "exit_code": ended["code"]}
    return {"night": plan.night, **ended, **more}


def _barred(bar: champions.Bar) -> str:
    return (
        f"weights or data are those of {bar.run}, which was rolled back ({bar.why}): only a "
        "person may promote them"
    )
