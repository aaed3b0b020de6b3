"""One run, from config to published: read it like a table of contents.

TensorFlow takes seconds to import, and the data set is read meanwhile. A finished run is found
before that. The rooms that need TensorFlow are imported after it.
"""

import contextlib
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from job import __version__
from job.config import RunConfig
from job.data import source
from job.errors import TemporaryError
from job.process import runtime
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.results import publishing
from job.training.checkpoint import Checkpoints, State
from job.workers.cluster import Cluster

if TYPE_CHECKING:
    from job.training.strategy import Devices

SCHEMA_VERSION = 1


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
    if (document := publishing.finished(config)) is not None:
        progress.event("already_complete", **_summary(config, document))
        return document

    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    watch = runtime.Stopwatch()
    loading = runtime.beside(lambda: source.load(config.data))
    with preemption.deferred():
        runtime.prepare_tensorflow()
        runtime.import_tensorflow()
    import_seconds = watch.lap()
    dataset = loading.result()
    config.check_examples(len(dataset.x_train))
    progress.event("data_loaded", **dataset.facts())
    checkpoints = Checkpoints(config.run_uri, config.checkpoint_seconds, progress)
    attempt, state = _begin(config, dataset, cluster, checkpoints, started, progress)
    load_seconds = watch.lap()
    with preemption.deferred():
        runtime.limit_threads(state.cores)
        from job.results import evaluation, weights  # noqa: PLC0415
        from job.training import model, strategy, train  # noqa: PLC0415
        from job.workers.collectives import Collectives  # noqa: PLC0415

        progress.beat()
        chosen = strategy.choose(config.strategy, cluster.workers, require_gpu=config.require_gpu)
        preemption.install()  # again, since a starting cluster takes SIGTERM for TensorFlow
        environment = _environment(strategy.describe(chosen), state.cores, cluster)
        progress.event("device_chosen", devices=environment["devices"], cores=environment["cores"])
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
    trained = train.train(
        net, dataset, config, collectives, checkpoints, state, preemption, progress
    )
    if not collectives.is_chief:
        collectives.wait()  # until the chief has published: what it can't do, all must do again
        progress.event("worker_done", worker=cluster.workers.index)
        return publishing.finished(config)

    with preemption.deferred():
        watch.lap()
        final = model.for_publishing(net)
        scores = evaluation.evaluate(net, dataset.x_test, dataset.y_test)
        evaluate_seconds = watch.lap()
        progress.beat()
        files = {
            publishing.WEIGHTS: weights.to_hdf5(final),
            publishing.ARCHIVE: weights.to_keras_archive(final),
        }
    artifacts = publishing.publish(config.run_uri, files)
    publish_seconds = watch.lap()
    progress.beat()
    used = runtime.usage()
    document = publishing.complete(
        config,
        {
            "schema_version": SCHEMA_VERSION,
            "run_id": config.run_id,
            "status": "complete",
            "started": started,
            "attempts": attempt,
            "config_sha256": config.digest,
            "config": config.identity,
            "model": {"name": config.model, "parameters": net.count_params()},
            "data": dataset.facts(),
            "test": asdict(scores),
            "train": {
                "epochs": trained.epochs,
                "steps": trained.steps,
                "resumed_step": trained.resumed_step,
                "history": list(trained.history),
            },
            "timing": {
                "import_seconds": import_seconds,
                "load_seconds": load_seconds,
                "compile_seconds": trained.compile_seconds,
                "train_seconds": trained.train_seconds,
                "evaluate_seconds": evaluate_seconds,
                "publish_seconds": publish_seconds,
                "total_seconds": used.wall_seconds,
                "images_per_second": trained.images_per_second,
            },
            "resources": {
                "peak_memory_mib": used.peak_memory_mib,
                "cpu_seconds": used.cpu_seconds,
            },
            "environment": environment,
            "artifacts": [asdict(artifact) for artifact in artifacts],
        },
    )
    checkpoints.prune(keep=1)
    with contextlib.suppress(TemporaryError):  # published is published, whoever is still there
        collectives.wait()
    progress.event("complete", **_summary(config, document))
    return document


def _begin(
    config: RunConfig,
    dataset: source.Dataset,
    cluster: Cluster,
    checkpoints: Checkpoints,
    started: str,
    progress: Progress,
) -> tuple[int, State]:
    """Return the number of this attempt at the run, and the state that it goes on from.

    Workers other than the chief learn both, as far as they need them, from the chief.
    """
    cores = runtime.available_cores(container_limit=cluster.cpu_limit)
    state = State({"config": config.digest, "data": dataset.fingerprint}, cores)
    if not cluster.workers.is_chief:
        return 0, state
    attempt = publishing.claim(config, dataset.fingerprint, cluster, started)
    progress.event("attempt_started", run=config.run_uri, attempt=attempt)
    if attempt > 1 and (restored := checkpoints.restore(state.owner)) is not None:
        progress.event("resumed", step=restored.step, cores=restored.cores)
        return attempt, restored
    return attempt, state


def _environment(devices: "Devices", cores: int, cluster: Cluster) -> dict[str, Any]:
    return {
        "job_version": __version__,
        "git_commit": runtime.git_commit(os.environ),
        "python": platform.python_version(),
        "tensorflow": devices.tensorflow,
        "keras": devices.keras,
        "platform": runtime.platform_name(),
        "cores": cores,
        "strategy": devices.strategy,
        "workers": cluster.workers.count,
        "replicas": devices.replicas,
        "devices": list(devices.devices),
        **cluster.names,
    }


def _summary(config: RunConfig, document: dict[str, Any]) -> dict[str, Any]:
    """Return what a person wants to know first of a complete run."""
    return {
        "run": config.run_uri,
        "accuracy": document["test"]["accuracy"],
        "accuracy_interval_95": document["test"]["accuracy_interval_95"],
        "examples": document["test"]["examples"],
        "total_seconds": document["timing"]["total_seconds"],
        "train_seconds": document["timing"]["train_seconds"],
        "images_per_second": document["timing"]["images_per_second"],
        "files": [*(artifact["path"] for artifact in document["artifacts"]), publishing.METRICS],
    }
