"""Several nets that are trained, each a run of its own, and published as one that averages them.

    <output>/<run>-1, <run>-2, ...    the members: complete runs, that differ in the seed
    <output>/<run>                    what is made of their published weights

So what holds for a run holds for an ensemble: killed anywhere it goes on with the member that it
was at, and two that publish it at once publish the same bytes. One process trains the members one
after another; of an Indexed Job each pod trains one, and whoever finds all of them complete
publishes.
"""

import gc
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from job.config import RunConfig
from job.data import source
from job.data.source import Dataset
from job.errors import ClusterError, ConflictError, MissingInputError
from job.process import memory, runtime
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.results import metrics, provenance, publishing
from job.results.publishing import RunFolder
from job.run import (
    check_threads,
    claim,
    complete_already,
    import_tensorflow,
    leaving_a_verdict,
    score,
    show,
    train_run,
)
from job.storage import Place
from job.workers.cluster import Cluster

if TYPE_CHECKING:
    import keras

    from job.training.strategy import Devices
    from job.training.train import Training

Documents = list[dict[str, Any]]


def train_ensemble(
    config: RunConfig, cluster: Cluster, preemption: Preemption, progress: Progress
) -> tuple[Place, dict[str, Any]]:
    """Train the members of an ensemble that are this process's, and publish it if all are there.

    Args:
        config: of the ensemble; `config.member` tells its runs.
        cluster: where this process runs; of an Indexed Job it trains one member.
        preemption: knows whether to stop, between members too.
        progress: told of each step.

    Returns:
        Where the ensemble lies, and its metrics; while others are missing, this pod's member.

    Raises:
        ClusterError: the Job has more pods than the ensemble members.
        ConflictError: a run that is to be a member exists with another config or other data.
        JobError: whatever else went wrong; nothing that exists was overwritten.
    """
    assert config.ensemble is not None
    index, count = cluster.completion_index, config.ensemble
    if index is not None and index >= count:
        raise ClusterError(
            f"JOB_COMPLETION_INDEX is {index}, and --ensemble {count} has no such member: give the "
            "Job as many completions"
        )
    folder = RunFolder(config.place, config.events)
    if (document := complete_already(folder, config, None, progress)) is not None:
        return config.place, document
    members = [config.member(number) for number in range(1, count + 1)]
    _finished(members)  # a member's name that is taken is found before anything is trained

    watch = runtime.Stopwatch()
    loading = runtime.beside(lambda: source.load(config.source, progress.beat))
    versions = import_tensorflow(preemption, progress)
    import_seconds = watch.lap()
    dataset = loading.result()
    config.check_examples(len(dataset.x_train))
    attempt = claim(folder, config, dataset, cluster, versions, progress)
    load_seconds = watch.lap()
    mine = members if index is None else [members[index]]
    trained = _train(mine, dataset, cluster, preemption, progress)
    found = _finished(members)
    missing = [member.run_id for member, each in zip(members, found, strict=True) if each is None]
    if missing:
        progress.event("members_missing", runs=missing)
        assert index is not None  # a process alone has trained all of them
        its_own = found[index]
        assert its_own is not None
        return members[index].place, its_own

    documents = [document for document in found if document is not None]
    watch.lap()  # the members have timed themselves
    with (
        leaving_a_verdict(attempt, progress, report=config.report),
        memory.explained("give the job more memory"),
    ):
        files_of_members = _read(members, documents, dataset)
        threads = runtime.wanted_threads(os.environ, attempt.facts["cores"])
        runtime.limit_threads(threads)
        with preemption.deferred():
            net, devices = _join(config, files_of_members, dataset)
            scores, files = score(net, dataset, config, preemption, progress)
        evaluate_seconds = watch.lap()
        artifacts = folder.publish(files)
        progress.beat()
        document = metrics.document(
            config=config,
            dataset=dataset,
            attempts=attempt.records(()),
            environment=provenance.environment(
                attempt.facts, provenance.in_force(attempt.facts, devices, [threads])
            ),
            parameters=net.count_params(),
            trained=_of_all(documents, trained),
            scores=scores,
            artifacts=artifacts,
            seconds=metrics.Seconds(import_seconds, load_seconds, evaluate_seconds, watch.lap()),
            init_weights=documents[0].get("init_weights"),
            members=tuple(map(_told, documents)),
        )
        document = folder.complete(config, document)
    show(folder, document, config, dataset, files, progress)
    progress.event("complete", **metrics.summary(str(folder.place), document))
    return folder.place, document


def joined(config: RunConfig, dataset: Dataset) -> bytes:
    """Return the weights file of the ensemble of `config`, made of its members as they lie there.

    Raises:
        MissingInputError: a member isn't there, or not complete.
        JobError: one is damaged, or isn't what it was.
    """
    assert config.ensemble is not None
    members = [config.member(number) for number in range(1, config.ensemble + 1)]
    documents = []
    for member, document in zip(members, _finished(members), strict=True):
        if document is None:
            raise MissingInputError(f"{member.place} is no complete run: bring the member back")
        documents.append(document)
    files = _read(members, documents, dataset)
    runtime.prepare_tensorflow()
    net, _ = _join(config, files, dataset)
    from job.results import weights  # noqa: PLC0415
    from job.training import model  # noqa: PLC0415

    return weights.to_hdf5(model.with_probabilities(net))


def _finished(members: list[RunConfig]) -> list[dict[str, Any] | None]:
    """Return the metrics of each member, None of one that isn't complete."""
    return [RunFolder(member.place).finished(member) for member in members]


def _train(
    members: list[RunConfig],
    dataset: Dataset,
    cluster: Cluster,
    preemption: Preemption,
    progress: Progress,
) -> Documents:
    """Train those that aren't complete, one after another, and return their metrics."""
    trained: Documents = []
    for number, member in enumerate(members, 1):
        if RunFolder(member.place).finished(member) is not None:
            continue
        # Of the first one some steps are done whatever the time is, or none ever were.
        if trained and (stop := preemption.reason()) is not None:
            raise stop
        check_threads(member)
        progress.event("member_begins", run=member.run_id, member=number, members=len(members))
        document = train_run(member, cluster, preemption, progress, dataset=dataset)
        assert document is not None  # a member has one worker, which is the chief
        trained.append(document)
        # Net and data lie on their device in circles, which the next import would keep for good.
        gc.collect()
        runtime.give_back_memory()
    return trained


def _read(members: list[RunConfig], documents: Documents, dataset: Dataset) -> dict[Place, bytes]:
    """Return the published weights of each member.

    Raises:
        ConflictError: a member, which another process trained, was trained on other data, or did
            not begin with the weights that the others began with.
    """
    began = {(document.get("init_weights") or {}).get("sha256") for document in documents}
    if len(began - {None}) > 1:
        raise ConflictError(
            f"{members[0].init_weights} did not hold the same weights when {members[0].run_id} to "
            f"{members[-1].run_id} began: choose another --run-id"
        )
    for member, document in zip(members, documents, strict=True):
        if document["data"]["fingerprint"] != dataset.fingerprint:
            raise ConflictError(
                f"{member.place} was made of other data than lie at {member.data} now: nothing was "
                "overwritten; choose another --run-id"
            )
    places = [RunFolder(member.place).weights for member in members]
    return {
        place: publishing.read_artifact(place, publishing.MAX_WEIGHTS_BYTES)[0] for place in places
    }


def _join(
    config: RunConfig, files: dict[Place, bytes], dataset: Dataset
) -> tuple["keras.Model", "Devices"]:
    """Return one model of the members in `files`, and what it is scored on."""
    from job.results import weights  # noqa: PLC0415
    from job.training import model, strategy  # noqa: PLC0415

    chosen = strategy.choose(config.strategy, require_gpu=config.require_gpu)
    nets = []
    for place, content in files.items():
        nets.append(model.build(config.model, dataset.image_shape, dataset.classes))
        weights.load_hdf5(nets[-1], content, str(place))
    return model.together(nets), strategy.describe(chosen)


def _of_all(documents: Documents, trained: Documents) -> "Training":
    """Return what training all members took, and in this process those `trained` here."""
    from job.training.train import Training  # noqa: PLC0415

    speeds = [each["timing"]["images_per_second"] for each in documents]
    return Training(
        epochs=sum(each["train"]["epochs"] for each in documents),
        steps=sum(each["train"]["steps"] for each in documents),
        resumed_step=0,
        compile_seconds=sum(each["timing"]["compile_seconds"] for each in trained),
        train_seconds=sum(each["timing"]["train_seconds"] for each in documents),
        attempt_train_seconds=sum(each["timing"]["attempt_train_seconds"] for each in trained),
        history=(),
        images_per_second=float(np.median(speeds)),
    )


def _told(document: dict[str, Any]) -> dict[str, Any]:
    """Return what an ensemble's metrics tell of the member with the metrics `document`."""
    [weights] = [
        each["sha256"] for each in document["artifacts"] if each["path"] == "model_weights.h5"
    ]
    return {
        "run": document["run_id"],
        "seed": document["config"]["seed"],
        "weights_sha256": weights,
        "accuracy": document["test"]["accuracy"],
    }
