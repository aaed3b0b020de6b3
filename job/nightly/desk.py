"""What all steps of a night share: what it is asked, its records, the log, and how it is closed."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from job.config import RunConfig
from job.data import shards
from job.data.source import Dataset
from job.errors import DataError, JobError, UsageError
from job.nightly import champions, gate
from job.nightly.champions import Entry, Log
from job.nightly.records import SCHEMA_VERSION, Records
from job.process import verdict
from job.process.progress import Progress
from job.report import openmetrics
from job.report.page import only_a_warning
from job.results import publishing
from job.results.provenance import code_version
from job.results.publishing import RunFolder
from job.storage import parse

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


class Desk:
    """What all steps of a night share: its records, the log, and how it is closed."""

    def __init__(self, plan: Plan, config: RunConfig, progress: Progress) -> None:
        self.plan = plan
        self.config = config
        self.progress = progress
        self.output = parse(config.output, "--output")
        self.records = Records(self.output)
        self.log = Log(self.output)
        self.began = champions.utc_now()
        self.found: shards.Look | None = None  # until the data are looked at

    def look(self) -> shards.Look:
        """Look at what lies at the source, and keep it for the record."""
        self.found = shards.look(self.config.source, self.progress.beat)
        return self.found

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
    def recording_failures(self) -> Iterator[None]:
        """Close the night if its data are bad or its training comes to nothing."""
        try:
            yield
        except RefusedError as refused:
            self.close("bad_data", str(refused), **refused.taken)
            raise
        except DataError as error:
            self.close("bad_data", str(error))
            raise
        except UsageError as error:
            self.close("failed", str(error), exit_code=error.exit_code)
            raise

    def close(
        self,
        verdict: str,
        why: str,
        *,
        dataset: Dataset | None = None,
        exit_code: int | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Write what the night came to, tell it, and return it; `more` goes over the rest.

        If a twin of this process was faster, its word stands.
        """
        code = DataError.exit_code if verdict == "bad_data" else exit_code or 0
        facts = {} if dataset is None else dataset.facts()
        files = [asdict(part) for part in self.found.parts] if self.found else []
        fingerprint = self.found.fingerprint if self.found else None
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
        kept = self.records.keep(self.plan.night, record)
        self.show(kept, dataset)
        told = summary(kept)
        self.progress.event("night_over", **told)
        if told["stale"]:
            age = told["champion_age_seconds"]
            self.progress.event("champion_stale", champion=told["champion"], age_seconds=age)
        return kept

    def show(self, record: dict[str, Any], dataset: Dataset | None = None) -> None:
        """Write the record of this night, which is over, for dashboards and for people too.

        Args:
            record: of the night.
            dataset: that it had; None to load it where its images are needed.
        """
        place = self.records.exposition(self.plan.night)
        openmetrics.write(place, openmetrics.of_night(record), self.progress)
        if self.config.report:
            page = self.records.page(self.plan.night)
            with only_a_warning(page, self.progress):
                from job.report import nights  # noqa: PLC0415  no night waits for what draws

                nights.leave(page, self.output, record, dataset, self.progress)

    def close_as_promoted(self, mine: Entry) -> dict[str, Any]:
        """Close a night that has promoted, was killed, and was begun again on other things.

        What it came to stands in the log; the record tells of that run and its data.
        """
        metrics = publishing.read_json(RunFolder(self.output / mine.champion.run).metrics)
        of_run = {name: metrics.get(name) for name in ("config_sha256", "config", "data")}
        return self.close("promoted", mine.why, run=mine.champion.run, gate=mine.gate, **of_run)

    def _champion(self) -> dict[str, Any] | None:
        entry = self.log.newest()
        return None if entry is None else champion_now(entry, self.plan.stale_after_seconds)


class RefusedError(DataError):
    """The data were refused, with what was found."""

    def __init__(self, message: str, **taken: Any) -> None:
        super().__init__(message)
        self.taken = taken


def run_of(config: RunConfig, fingerprint: str, parts: Sequence[shards.Part]) -> RunConfig:
    """Return the config of the run that code, config and data name, and no other.

    Args:
        config: of the night.
        fingerprint: of the data set that is trained on.
        parts: the files that it is made of.
    """
    told = json.dumps([code_version(), config.digest, fingerprint], sort_keys=True)
    run = f"night-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    return replace(config, run_id=run, only=tuple((part.name, part.sha256) for part in parts))


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


def record_of_failure(plan: Plan, config: RunConfig, error: Exception) -> dict[str, Any] | None:
    """Return the record that a night left which ended with `error`, None where it left none."""
    try:
        record = Records(parse(config.output, "--output")).night(plan.night)
    except JobError:  # the output may be what is wrong
        return None
    code = verdict.of_error(error)["code"]
    return record if record is not None and record.get("exit_code") == code else None


def summary_of_failure(
    plan: Plan, record: dict[str, Any] | None, error: Exception
) -> dict[str, Any]:
    """Return what to tell of a night that ended with `error`: its `record`, where it left one."""
    ended = verdict.of_error(error)
    if record is not None:
        return {**ended, **summary(record)}
    more = {"verdict": ended["status"], "why": ended["error"], "exit_code": ended["code"]}
    return {"night": plan.night, **ended, **more}
