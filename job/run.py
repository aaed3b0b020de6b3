"""One run, from config to published: read it like a table of contents.

TensorFlow takes seconds to import, and the data set is read meanwhile. A finished run is found
before that. The rooms that need TensorFlow are imported after it.
"""

import contextlib
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from job import __version__, storage
from job.config import RunConfig
from job.data import source
from job.data.source import Dataset
from job.errors import ConflictError, JobError, TemporaryError
from job.process import runtime, verdict
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.results import metrics, publishing
from job.results.publishing import RunFolder
from job.storage import Place
from job.training.checkpoint import Checkpoints, State
from job.workers.cluster import Cluster

if TYPE_CHECKING:
    import keras

    from job.results.evaluation import Scores
    from job.training.strategy import Devices
    from job.workers.collectives import Collectives

END_SECONDS = 5.0  # of the 30 that Kubernetes gives a pod to end


def train_run(
    config: RunConfig, cluster: Cluster, preemption: Preemption, progress: Progress
) -> dict[str, Any] | None:
    """Train, evaluate and publish the run that `config` names, and return its metrics.

    A run that was stopped goes on where it was; one that is complete already is left as it is. Of
    several workers all train and the chief does the rest; the others return when it has published,
    without metrics where they can't see the output.

    Raises:
        JobError: whatever went wrong; nothing that exists was overwritten.
    """
    folder = RunFolder(config.place)
    if (document := folder.finished(config)) is not None:
        _check_data(document, config, progress)
        progress.event("already_complete", **metrics.summary(str(folder.place), document))
        return document

    watch = runtime.Stopwatch()
    loading = runtime.beside(lambda: source.load(config.data_place))
    with preemption.deferred():
        runtime.prepare_tensorflow()
        versions = runtime.import_tensorflow()
    import_seconds = watch.lap()
    dataset = loading.result()
    config.check_examples(len(dataset.x_train))
    progress.event("data_loaded", **dataset.facts())
    state = _state_to_begin_with(config, dataset, cluster)
    facts = _facts(config, cluster, versions, state.cores)
    attempts = _claim(folder, config, dataset, cluster, facts, progress)
    attempt = attempts[-1]["attempt"] if attempts else 0
    with _leaving_a_verdict(folder, attempt, progress):
        checkpoints = Checkpoints(folder.checkpoints, config.checkpoint_seconds, progress)
        if attempt > 1:
            state = _restore(checkpoints, state, progress)
        load_seconds = watch.lap()
        with preemption.deferred():
            net, collectives, devices = _prepare(
                config, dataset, cluster, state, preemption, progress
            )
        from job.training import train  # noqa: PLC0415

        trained = train.train(
            net, dataset, config, collectives, checkpoints, state, preemption, progress
        )
        if not collectives.is_chief:
            collectives.wait()  # until the chief has published: what it can't do, all do again
            progress.event("worker_done", worker=cluster.workers.index)
            return folder.finished(config)

        watch.lap()
        with preemption.deferred():
            scores, files = _score(net, dataset, folder)
        evaluate_seconds = watch.lap()
        progress.beat()
        artifacts = folder.publish(files)
        seconds = metrics.Seconds(import_seconds, load_seconds, evaluate_seconds, watch.lap())
        progress.beat()
        document = metrics.document(
            config=config,
            dataset=dataset,
            attempts=attempts,
            environment=_environment(devices, facts, cluster),
            parameters=net.count_params(),
            trained=trained,
            scores=scores,
            artifacts=artifacts,
            seconds=seconds,
        )
        document = folder.complete(config, document)
    checkpoints.prune(keep=1)
    with contextlib.suppress(TemporaryError):  # published is published, whoever is still there
        collectives.wait()
    progress.event("complete", **metrics.summary(str(folder.place), document))
    return document


def _check_data(document: dict[str, Any], config: RunConfig, progress: Progress) -> None:
    """See that a complete run was made of what lies at `config.data` now, if that can be seen.

    Raises:
        ConflictError: it was made of other data.
    """
    try:
        fingerprint = source.load(config.data_place).fingerprint
    except JobError as error:  # published is published, even where the data is gone
        progress.event("data_not_compared", reason=str(error))
        return
    if document.get("data", {}).get("fingerprint") != fingerprint:
        raise ConflictError(
            f"{config.place} is complete, but was made of other data than lie at {config.data} "
            "now: nothing was overwritten; choose another --run-id"
        )


def _state_to_begin_with(config: RunConfig, dataset: Dataset, cluster: Cluster) -> State:
    cores = runtime.available_cores(container_limit=cluster.cpu_limit)
    return State({"config": config.digest, "data": dataset.fingerprint}, cores)


def _facts(
    config: RunConfig, cluster: Cluster, versions: dict[str, str], cores: int
) -> dict[str, Any]:
    """Return who begins an attempt, when, and with what, for its record."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "job_version": __version__,
        "git_commit": runtime.git_commit(os.environ),
        "python": platform.python_version(),
        **versions,
        "platform": runtime.platform_name(),
        "cores": cores,
        "strategy": config.strategy,
        "workers": cluster.workers.count,
        **cluster.names,
    }


def _claim(
    folder: RunFolder,
    config: RunConfig,
    dataset: Dataset,
    cluster: Cluster,
    facts: dict[str, Any],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return the records of all attempts at the run, this one last; the chief alone has any."""
    if not cluster.workers.is_chief:
        return []
    attempts = folder.claim(config, dataset.fingerprint, facts)
    progress.event("attempt_started", run=str(folder.place), attempt=attempts[-1]["attempt"])
    return attempts


def _restore(checkpoints: Checkpoints, state: State, progress: Progress) -> State:
    """Return the newest state of the run that verifies, or `state` if none was saved."""
    restored = checkpoints.restore(state.owner)
    if restored is None:
        return state
    progress.event("resumed", step=restored.step, cores=restored.cores)
    return restored


@contextlib.contextmanager
def _leaving_a_verdict(folder: RunFolder, attempt: int, progress: Progress) -> Iterator[None]:
    """Write beside the attempt how it ended if it fails or is stopped: a pod's log goes with it."""
    try:
        yield
    except BaseException as error:
        if attempt:
            record = publishing.to_json(verdict.of_error(error))
            # Aside, and not for long: SIGKILL follows SIGTERM, and a store may not answer.
            writing = runtime.beside(lambda: storage.create(folder.end(attempt), record))
            try:
                writing.result(END_SECONDS)
            except (JobError, TimeoutError) as lost:
                progress.event("end_not_recorded", reason=str(lost) or "no answer in time")
        raise


def _prepare(
    config: RunConfig,
    dataset: Dataset,
    cluster: Cluster,
    state: State,
    preemption: Preemption,
    progress: Progress,
) -> tuple["keras.Model", "Collectives", "Devices"]:
    """Choose the devices, make the model on them, and connect to the other workers."""
    runtime.limit_threads(state.cores)
    from job.training import model, strategy  # noqa: PLC0415
    from job.workers.collectives import Collectives  # noqa: PLC0415

    progress.beat()
    chosen = strategy.choose(config.strategy, cluster.workers, require_gpu=config.require_gpu)
    preemption.install()  # again, since a starting cluster takes SIGTERM for TensorFlow
    devices = strategy.describe(chosen)
    progress.event("device_chosen", devices=list(devices.devices), cores=state.cores)
    with chosen.scope():
        net = model.build(
            config.model,
            dataset.image_shape,
            dataset.classes,
            seed=config.seed,
            precision=config.precision,
        )
    collectives = Collectives(chosen, cluster.workers)
    collectives.check_alike("data", dataset.fingerprint)
    return net, collectives, devices


def _score(
    net: "keras.Model", dataset: Dataset, folder: RunFolder
) -> tuple["Scores", dict[Place, bytes]]:
    """Return the scores of what will be published, and its files."""
    from job.results import evaluation, weights  # noqa: PLC0415
    from job.training import model  # noqa: PLC0415

    plain = model.in_float32(net)
    scores = evaluation.evaluate(plain, dataset.x_test, dataset.y_test)
    final = model.with_probabilities(plain)
    return scores, {
        folder.weights: weights.to_hdf5(final),
        folder.archive: weights.to_keras_archive(final),
    }


def _environment(devices: "Devices", facts: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    """Return what the run really ran on, for its metrics."""
    return {
        **{name: value for name, value in facts.items() if name != "started"},
        "strategy": devices.strategy,
        "workers": cluster.workers.count,
        "replicas": devices.replicas,
        "devices": list(devices.devices),
    }
