"""One run, from config to published: read it like a table of contents.

TensorFlow takes seconds to import, and the data set is read meanwhile. A finished run is found
before that. The rooms that need TensorFlow are imported after it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from job import storage
from job.config import RunConfig
from job.data import source
from job.data.source import Dataset
from job.errors import (
    ConflictError,
    DataError,
    JobError,
    MissingInputError,
    StoppedError,
    TemporaryError,
)
from job.process import memory, runtime, verdict
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.report import openmetrics, runs, tensorboard
from job.results import metrics, provenance, publishing
from job.results.predictions import Predictions
from job.results.publishing import RunFolder
from job.results.scores import Scores
from job.results.scores import score as scored
from job.storage import Place, parse
from job.training import checkpoint
from job.training.checkpoint import Checkpoints, State
from job.workers import watchdog
from job.workers.cluster import Cluster, Workers

if TYPE_CHECKING:
    import keras

    from job.training.train import AfterEpoch
    from job.workers.collectives import Collectives

END_SECONDS = 5.0  # of the 30 that Kubernetes gives a pod to end
COMPARE_SECONDS = 10.0  # for looking at the data of a run that is complete anyway


def train_run(
    config: RunConfig,
    cluster: Cluster,
    preemption: Preemption,
    progress: Progress,
    *,
    dataset: Dataset | None = None,
    after_epoch: "AfterEpoch | None" = None,
) -> dict[str, Any] | None:
    """Train, evaluate and publish the run that `config` names, and return its metrics.

    A run that was stopped goes on where it was; one that is complete already is left as it is. Of
    several workers all train and the chief does the rest; the others return when it has published,
    without metrics where its output isn't theirs to see: each has a local folder of its own.

    Args:
        config: says what is to be done.
        cluster: where this process runs.
        preemption: knows whether to stop.
        progress: told of each step.
        dataset: of `config.source`, where it is loaded already; None to load it here.
        after_epoch: see `train.train`. A run that it ends isn't scored on the test set, nor
            published; its state is saved, and there are no metrics.

    Raises:
        JobError: whatever went wrong; nothing that exists was overwritten.
    """
    folder = RunFolder(config.place, config.events)
    if (document := complete_already(folder, config, dataset, progress)) is not None:
        return document

    watch = runtime.Stopwatch()
    loading = runtime.beside(lambda: dataset or source.load(config.source, progress.beat))
    versions = import_tensorflow(preemption, progress)
    import_seconds = watch.lap()
    dataset = loading.result()
    config.check_examples(len(dataset.x_train))
    progress.event("data_loaded", **dataset.summary())
    for name, details in dataset.remarks():
        progress.event(name, **details)
    attempt = claim(folder, config, dataset, cluster, versions, progress)
    with (
        leaving_a_verdict(attempt, progress, report=config.report),
        memory.explained(_less_memory(config)),
    ):
        checkpoints = Checkpoints(
            folder.checkpoints,
            config.checkpoint_seconds,
            progress,
            _after_save(attempt, config, dataset, progress),
        )
        try:
            start = _where_to_begin(
                attempt, checkpoints, config, dataset, cluster.workers, progress
            )
        except (DataError, TemporaryError):
            # A twin may have completed the run meanwhile, and removed what was looked for.
            if (document := complete_already(folder, config, dataset, progress)) is None:
                raise
            return document
        initial = _initial_weights(folder, config, cluster.workers, start, progress)
        load_seconds = watch.lap()
        with preemption.deferred():
            net, collectives, in_force = _prepare(
                config, dataset, cluster.workers, attempt, start, initial, preemption, progress
            )
        start = _made_by(attempt, in_force, start, progress)
        from job.training import model, train  # noqa: PLC0415

        trained = train.train(
            net,
            dataset,
            config,
            collectives,
            checkpoints,
            start,
            preemption,
            progress,
            after_epoch,
        )
        if trained.halted:
            checkpoints.prune(keep=1)
            _leave_halted(attempt, trained.epochs)
            collectives.wait()
            return None
        if not collectives.is_chief:
            collectives.wait()  # until the chief has published: what it can't do, all do again
            progress.event("worker_done", worker=cluster.workers.index)
            return folder.finished(config)

        watch.lap()  # the training has timed itself
        with preemption.deferred():
            plain = model.in_float32(net)
            scores, files = score(plain, dataset, config, preemption, progress)
        evaluate_seconds = watch.lap()
        progress.beat()
        artifacts = folder.publish(files)
        seconds = metrics.Seconds(import_seconds, load_seconds, evaluate_seconds, watch.lap())
        progress.beat()
        document = metrics.document(
            config=config,
            dataset=dataset,
            attempts=attempt.records(start.made_by),
            environment=provenance.environment(attempt.facts, in_force),
            parameters=net.count_params(),
            trained=trained,
            scores=scores,
            artifacts=artifacts,
            seconds=seconds,
            init_weights=_begun_with(folder, config),
        )
        document = folder.complete(config, document)
    show(folder, document, config, dataset, files, progress)
    checkpoints.prune(keep=1)
    with contextlib.suppress(TemporaryError):  # published is published, whoever is still there
        collectives.wait()
    progress.event("complete", **metrics.summary(str(folder.place), document))
    return document


def check_threads(config: RunConfig) -> None:
    """See that this process may go on with the run of `config`, having computed before perhaps.

    Raises:
        TemporaryError: it was begun with other threads, which a process sets only once.
    """
    if (threads := runtime.threads_in_force()) is None:
        return
    folder, begun = RunFolder(config.place, config.events), threads
    if folder.finished(config) is not None:
        return
    with contextlib.suppress(DataError, MissingInputError):  # the training says what is wrong
        for newest in checkpoint.names_in(folder.checkpoints)[-1:]:
            begun = checkpoint.read(folder.checkpoints / newest).threads
    if begun != threads:
        raise TemporaryError(
            f"this process computes with {threads} threads, and {config.run_id} was begun with "
            f"{begun}, which its bytes depend on: go on with it in a new process"
        )


@dataclass(frozen=True)
class Attempt:
    """One attempt at the run, as this worker sees it."""

    folder: RunFolder
    number: int
    """Counts from 1; 0 for a worker that isn't the chief."""
    facts: dict[str, Any]
    """Who began it, when, and with what."""

    def records(self, made_by: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
        """Return the records of all attempts, this one last, with what the run's makers had."""
        makers = {maker["attempt"]: maker for maker in made_by}
        mine = {"attempt": self.number, **self.facts}
        records = [*self.folder.records_before(self.number), mine]
        return [record | makers.get(record["attempt"], {}) for record in records]


def complete_already(
    folder: RunFolder, config: RunConfig, dataset: Dataset | None, progress: Progress
) -> dict[str, Any] | None:
    """Return the metrics of a run that is complete, else None; compare its data, and tidy it.

    What shows it is made again where it is missing.
    """
    if (document := folder.finished(config)) is None:
        return None
    dataset = _compare_data(document, config, dataset, progress)
    openmetrics.write(folder.exposition, openmetrics.of_run(document), progress)
    if config.report:
        runs.leave(folder, document, dataset, progress)
    Checkpoints(folder.checkpoints, config.checkpoint_seconds, progress).tidy()
    progress.event("already_complete", **metrics.summary(str(folder.place), document))
    return document


def _compare_data(
    document: dict[str, Any], config: RunConfig, dataset: Dataset | None, progress: Progress
) -> Dataset | None:
    """See that a complete run was made of what lies at `config.data` now, if that is soon seen.

    Returns:
        The data; None where they could not be seen, which the log tells.

    Raises:
        ConflictError: it was made of other data.
    """
    loading = runtime.beside(lambda: dataset or source.load(config.source))
    try:
        found = loading.result(COMPARE_SECONDS)
    except StoppedError:
        raise
    except Exception as error:  # noqa: BLE001  published is published, whatever became of the data
        late = isinstance(error, TimeoutError)
        reason = f"reading them takes over {COMPARE_SECONDS:g} s" if late else str(error)
        progress.event("data_not_compared", reason=reason or repr(error))
        return None
    if document.get("data", {}).get("fingerprint") != found.fingerprint:
        raise ConflictError(
            f"{config.place} is complete, but was made of other data than lie at {config.data} "
            "now: nothing was overwritten; choose another --run-id"
        )
    return found


def import_tensorflow(preemption: Preemption, progress: Progress) -> dict[str, str]:
    """Import TensorFlow and Keras, and return their versions."""
    with preemption.deferred():
        runtime.prepare_tensorflow()
        versions = runtime.import_tensorflow()
    progress.beat()
    return versions


def claim(
    folder: RunFolder,
    config: RunConfig,
    dataset: Dataset,
    cluster: Cluster,
    versions: dict[str, str],
    progress: Progress,
) -> Attempt:
    """Write down that an attempt begins; of several workers the chief does."""
    facts = provenance.begun(config, cluster, versions)
    if not cluster.workers.is_chief:
        return Attempt(folder, 0, facts)
    number = folder.claim(config, dataset.fingerprint, facts)
    progress.event("attempt_started", run=str(folder.place), attempt=number)
    return Attempt(folder, number, facts)


def _after_save(
    attempt: Attempt, config: RunConfig, dataset: Dataset, progress: Progress
) -> Callable[[State], None]:
    """Return what is done with each state that is saved."""
    if not config.tensorboard:
        return lambda _: None
    steps = config.steps_per_epoch(len(dataset.x_train))
    return tensorboard.Board(attempt.folder, attempt.number, steps, progress).add


def show(
    folder: RunFolder,
    document: dict[str, Any],
    config: RunConfig,
    dataset: Dataset,
    files: Mapping[Place, bytes],
    progress: Progress,
) -> None:
    """Write what people and dashboards look at, of a run that has just published `files`.

    No failure here spoils it.
    """
    openmetrics.write(folder.exposition, openmetrics.of_run(document), progress)
    if config.tensorboard:
        tensorboard.add_scores(folder, document, dataset.x_test, progress)
    if config.report:
        runs.leave(folder, document, dataset, progress, files=files)


@contextlib.contextmanager
def leaving_a_verdict(attempt: Attempt, progress: Progress, *, report: bool) -> Iterator[None]:
    """Write beside the attempt how it ended if it fails or is stopped: a pod's log goes with it.

    By `report` a page shows that, and how far it came.
    """
    try:
        yield
    except BaseException as error:
        if attempt.number:
            until = time.monotonic() + END_SECONDS
            place, record = attempt.folder.attempt_end(attempt.number), verdict.of_error(error)
            try:
                # Aside, and not for long: SIGKILL follows SIGTERM, and a store may not answer.
                writing = runtime.beside(lambda: storage.create(place, publishing.to_json(record)))
                writing.result(END_SECONDS)
            except Exception as lost:  # noqa: BLE001  nothing counts more than `error` itself
                late = isinstance(lost, TimeoutError)
                reason = "no answer in time" if late else str(lost) or repr(lost)
                progress.event("end_not_recorded", reason=reason)
            if report:
                runs.leave_of_attempt(attempt.folder, attempt.number, until, progress)
        raise


def _leave_halted(attempt: Attempt, epochs: int) -> None:
    """Write beside the attempt that it was ended on purpose, or it would look as if killed."""
    if attempt.number:
        record = {"status": "halted", "code": 0, "epochs": epochs}
        storage.create(attempt.folder.attempt_end(attempt.number), publishing.to_json(record))


def _less_memory(config: RunConfig) -> str:
    return f"lower --batch-size, now {config.batch_size:,}, or give the job more memory"


def _where_to_begin(
    attempt: Attempt,
    checkpoints: Checkpoints,
    config: RunConfig,
    dataset: Dataset,
    workers: Workers,
    progress: Progress,
) -> State:
    """Return the newest state of the run that verifies, or one of step 0 if none was saved.

    Workers other than the chief are given its state later, and look only for the threads they had.
    """
    owner = {"config": config.digest, "data": dataset.fingerprint}
    fresh = State(owner, runtime.wanted_threads(os.environ, attempt.facts["cores"]))
    try:
        # A first attempt looks as well: records may have been moved away, and checkpoints not.
        saved = checkpoints.restore(owner)
    except StoppedError:
        raise
    except JobError:
        if workers.is_chief:
            raise
        return fresh  # the chief says what is wrong with a checkpoint
    if saved is None:
        if attempt.number > 1:  # or it was ended before it could save anything
            progress.event("nothing_saved_before", attempts=attempt.number - 1)
        return fresh
    if workers.is_chief:
        if attempt.number == 1:
            progress.event("records_missing", step=saved.step)
        progress.event("resumed", step=saved.step, threads=saved.threads)
        return saved
    threads = saved.made_by[-1]["threads"] if saved.made_by else []
    known = len(threads) == workers.count
    return replace(fresh, threads=threads[workers.index] if known else saved.threads)


def _initial_weights(
    folder: RunFolder, config: RunConfig, workers: Workers, start: State, progress: Progress
) -> bytes | None:
    """Return the file of weights that step 0 begins with, where one was given; the chief reads it.

    Raises:
        MissingInputError, DataError: there is none, or it is damaged.
        ConflictError: it isn't the one that an attempt before began with.
    """
    if config.init_weights is None or start.step or not workers.is_chief:
        return None
    place = publishing.weights_of(parse(config.init_weights, "--init-weights"))
    content, _ = publishing.read_artifact(place, publishing.MAX_WEIGHTS_BYTES)
    folder.begin_with(config.init_weights, content)
    progress.event("begins_with", weights=str(place))
    return content


def _begun_with(folder: RunFolder, config: RunConfig) -> dict[str, Any] | None:
    if config.init_weights is None:
        return None
    return folder.begun_with() or {"uri": config.init_weights, "sha256": None}


def _prepare(
    config: RunConfig,
    dataset: Dataset,
    workers: Workers,
    attempt: Attempt,
    start: State,
    initial: bytes | None,
    preemption: Preemption,
    progress: Progress,
) -> tuple["keras.Model", "Collectives", dict[str, Any]]:
    """Choose the devices, make the model on them, and connect to the other workers.

    Returns:
        The model, the workers, and what the bits of the run depend on beside config and data.
    """
    runtime.limit_threads(start.threads)
    from job.training import model, strategy  # noqa: PLC0415
    from job.workers.collectives import Collectives  # noqa: PLC0415

    progress.beat()
    watchdog.ready(preemption, progress)
    chosen = strategy.choose(config.strategy, workers, require_gpu=config.require_gpu)
    preemption.install()  # again, since a starting cluster takes SIGTERM for TensorFlow
    devices = strategy.describe(chosen)
    progress.event("device_chosen", devices=list(devices.devices), threads=start.threads)
    with chosen.scope():
        net = model.build(
            config.model,
            dataset.image_shape,
            dataset.classes,
            seed=config.seed,
            precision=config.precision,
            dropout=config.dropout,
            form="convolutions" if devices.on_gpu else "matrices",
        )
    if initial is not None:
        from job.results import weights  # noqa: PLC0415

        weights.load_hdf5(net, initial, f"--init-weights {config.init_weights}")
    collectives = Collectives(chosen, workers)
    collectives.check_alike("data", dataset.fingerprint)
    mine = [start.threads if index == workers.index else 0 for index in range(workers.count)]
    threads = [int(count) for count in collectives.total(mine)]
    if start.threads != threads[0]:
        progress.event(
            "threads_differ", worker=workers.index, threads=start.threads, chief_threads=threads[0]
        )
    return net, collectives, provenance.in_force(attempt.facts, devices, threads)


def _made_by(attempt: Attempt, in_force: dict[str, Any], start: State, progress: Progress) -> State:
    """Return `start` as that of this attempt too, having told what changed since it was saved."""
    before = start.made_by[-1] if start.made_by else {}
    if start.step and (changed := provenance.changes(before, in_force)):
        progress.event("resumed_differently", changes=changed)
    return replace(start, made_by=(*start.made_by, {"attempt": attempt.number, **in_force}))


def score(
    plain: "keras.Model",
    dataset: Dataset,
    config: RunConfig,
    preemption: Preemption,
    progress: Progress,
) -> tuple[Scores, dict[Place, bytes]]:
    """Return the scores of `plain`, which has the form that is published, and its files.

    Raises:
        StoppedError, KeyboardInterrupt: asked to stop, between two batches.
        JobError: what is to be served gives other probabilities.
    """

    def look_up() -> None:
        progress.beat()
        if (stop := preemption.stop()) is not None:
            raise stop

    from job.results import evaluation, weights  # noqa: PLC0415
    from job.training import model  # noqa: PLC0415

    logits = evaluation.predict_logits(plain, dataset.x_test, look_up)
    predictions = Predictions(logits.astype(np.float32), dataset.y_test)
    final = model.with_probabilities(plain)
    folder = RunFolder(config.place)
    files = {
        folder.weights: weights.to_hdf5(final),
        folder.archive: weights.to_keras_archive(final),
        folder.predictions: predictions.to_bytes(),
    }
    if config.export is not None:
        progress.beat()
        files |= _served(final, dataset, folder, predictions)
    return scored(logits, dataset.y_test), files


def _served(
    final: "keras.Model", dataset: Dataset, folder: RunFolder, predictions: Predictions
) -> dict[Place, bytes]:
    """Return the files that TensorFlow Serving takes, having loaded them as it does."""
    from job.results import serving  # noqa: PLC0415
    from job.training.model import PIXEL_SCALE  # noqa: PLC0415

    files = serving.to_saved_model(final)
    images = dataset.x_test[: serving.CHECKED].astype(np.float32)
    serving.check(files, images * PIXEL_SCALE, predictions.probabilities[: serving.CHECKED])
    return {folder.place / f"{serving.FOLDER}/{path}": data for path, data in files.items()}
