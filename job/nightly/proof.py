"""A champion trained again from its record, to the same bytes: provenance that is proven.

The record is the run's `metrics.json`: config, data by file and digest, threads, devices and
versions. Training is exact to the bit where these are the same, so the same weights must come of
it, and other weights mean that the record, or what is published, is not the truth.
"""

import tempfile
from dataclasses import dataclass, replace
from typing import Any

from job import ensemble
from job.config import RunConfig
from job.data import shards, source
from job.data.source import Dataset
from job.errors import ClusterError, DataError, MissingInputError, StoppedError, UsageError
from job.nightly.champions import Model
from job.process import runtime
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.results import provenance, publishing
from job.results.publishing import RunFolder
from job.run import train_run
from job.storage import Place
from job.workers.cluster import Cluster


@dataclass(frozen=True)
class Record:
    """What a run says of how it was made."""

    run: str
    weights_sha256: str
    """Of the weights that lie there."""
    config: RunConfig
    """That makes the same weights, and would where they lie."""
    data_fingerprint: str
    threads: int
    makers: tuple[dict[str, Any], ...]
    """What each attempt that had a part in the weights computed with."""
    began_with: str | None = None
    """Sha256 of the weights that it began with; None where it drew them, or nothing tells."""

    @classmethod
    def of_run(cls, output: Place, run: str) -> "Record":
        """Read the record of the complete run `run` below `output`, and compare its weights.

        Raises:
            MissingInputError: there is no complete run of that name.
            DataError: its weights are not what it published, or its metrics say too little.
            ClusterError: it can't be trained again by one process of this version.
        """
        folder = RunFolder(output / run)
        content, metrics = publishing.read_artifact(folder.weights, publishing.MAX_WEIGHTS_BYTES)
        if not metrics:
            raise MissingInputError(f"{folder.place} is no complete run: it has no metrics.json")
        try:
            return cls._parsed(output, run, publishing.describe("", content).sha256, metrics)
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise DataError(
                f"{folder.metrics} can't be followed by this version of the job ({error!r}): "
                "verify the run with the version that made it"
            ) from error

    @classmethod
    def _parsed(
        cls, output: Place, run: str, weights_sha256: str, metrics: dict[str, Any]
    ) -> "Record":
        environment = metrics["environment"]
        if environment["workers"] > 1:
            raise ClusterError(
                f"{run} was trained by {environment['workers']} workers together: one process "
                "can't do that again"
            )
        config = RunConfig(
            **metrics["config"],
            output=str(output),
            run_id=run,
            strategy=environment["strategy"],
            only=shards.recorded(metrics["data"]),
        )
        if config.digest != metrics["config_sha256"]:
            raise ValueError("its config has another digest")
        [threads] = environment["threads"]
        records = [record for record in metrics["attempt_records"] if "threads" in record]
        return cls(
            run=run,
            weights_sha256=weights_sha256,
            config=config,
            data_fingerprint=metrics["data"]["fingerprint"],
            threads=threads,
            makers=tuple(map(provenance.forces, [*records, environment])),
            began_with=(metrics.get("init_weights") or {}).get("sha256"),
        )


@dataclass(frozen=True)
class Proof:
    """A training, or of an ensemble a joining of its members, that came to the same weights."""

    record: Record
    changes: dict[str, list[Any]]
    """[then, now] of what was not as it was then, and made no difference."""

    def __str__(self) -> str:
        """Return it in a sentence."""
        also = f", also with {_told(self.changes)}" if self.changes else ""
        run, members = self.record.run, self.record.config.ensemble
        left = f"; verify {run}-1 to {run}-{members} too, to train them again" if members else ""
        return (
            f"proven: {run} {_done_again(self.record)} to the same bytes (model_weights.h5, sha256 "
            f"{self.record.weights_sha256}){also}{left}"
        )


def prove(record: Record, data: str | None, preemption: Preemption, progress: Progress) -> Proof:
    """Train what `record` tells of again, and compare the weights; leave nothing behind.

    An ensemble isn't trained itself: the published weights of its members are joined again.

    Args:
        record: of the run.
        data: where its data lie now; None for where they lay.
        preemption: knows whether to stop.
        progress: told how the training goes.

    Raises:
        MissingInputError: a member of the ensemble is gone.
        DataError: the data are not those of the record; or the weights differ although all that
            they depend on is the same.
        ClusterError: the weights differ, and so does what they depend on.
        JobError: the training failed.
    """
    config = record.config if data is None else replace(record.config, data=data)
    dataset = _its_data(record, config, progress)
    runtime.limit_threads(record.threads)
    try:
        if config.ensemble is None:
            found, now = _trained_again(record, config, dataset, preemption, progress)
        else:
            content = ensemble.joined(record.config, dataset)
            found, now = publishing.describe("", content).sha256, provenance.code_version()
    except StoppedError as error:
        raise StoppedError("stopped by SIGTERM: nothing is proven, begin again") from error
    changes: dict[str, list[Any]] = {}
    for maker in record.makers:
        changes |= provenance.changes(maker, now)
    if found == record.weights_sha256:
        return Proof(record, changes)
    differs = (
        f"not proven: {record.run} {_done_again(record)}, to the weights {found[:12]}..., but has "
        f"{record.weights_sha256[:12]}..."
    )
    if changes:
        raise ClusterError(f"{differs}; not all is as it was then: {_told(changes)}; repeat it so")
    raise DataError(
        f"{differs}, although all that they depend on is as it was: its weights, its record or its "
        f"{'data' if config.ensemble is None else 'members'} are not what they were; trust none of "
        "them"
    )


def _trained_again(
    record: Record,
    config: RunConfig,
    dataset: Dataset,
    preemption: Preemption,
    progress: Progress,
) -> tuple[str, dict[str, Any]]:
    """Return the digest of the weights that a training again gives, and what is in force here."""
    with tempfile.TemporaryDirectory(prefix="mnist-job-proof-") as folder:
        config = replace(config, output=folder)
        metrics = train_run(config, Cluster(), preemption, progress, dataset=dataset)
    assert metrics is not None  # there is one worker, which is the chief
    _check_beginning(record, metrics)
    [found] = [
        each["sha256"] for each in metrics["artifacts"] if each["path"] == "model_weights.h5"
    ]
    return found, provenance.forces(metrics["environment"])


def check_named(record: Record, model: Model, place: Place) -> None:
    """See that `record` is of the weights and data that an entry of the log, at `place`, names.

    Raises:
        DataError: it is not.
    """
    for what, here, there in (
        ("weights", record.weights_sha256, model.weights_sha256),
        ("data", record.data_fingerprint, model.data_fingerprint),
    ):
        if here != there:
            raise DataError(
                f"{place} names the {what} {there[:12]}... of {model.run}, but its run has "
                f"{here[:12]}...: it was replaced since; bring it back, or roll back"
            )


def _its_data(record: Record, config: RunConfig, progress: Progress) -> Dataset:
    dataset = source.load(config.source, progress.beat)
    if dataset.fingerprint != record.data_fingerprint:
        raise DataError(
            f"{config.data} holds other data than {record.run} was trained on (fingerprint "
            f"{dataset.fingerprint[:12]}..., not {record.data_fingerprint[:12]}...): bring them "
            "back, or name them with --data"
        )
    return dataset


def _check_beginning(record: Record, metrics: dict[str, Any]) -> None:
    began = metrics.get("init_weights") or {}
    if record.began_with not in {None, began.get("sha256")}:
        raise DataError(
            f"{began.get('uri')} holds other weights now than those that {record.run} began with "
            f"(sha256 {record.began_with[:12]}...): bring them back"
        )


def _done_again(record: Record) -> str:
    if record.config.ensemble is None:
        return "was trained again from its record"
    return "was joined again from its members"


def _told(changes: dict[str, list[Any]]) -> str:
    return ", ".join(f"{name} {now!r} instead of {then!r}" for name, (then, now) in changes.items())
