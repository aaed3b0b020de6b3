"""The job for other programs: train, evaluate and predict, as the command line does.

    from job import RunConfig, evaluate, predict, train

Nothing is printed unless `log` asks for it, no signal handler is installed, and what goes wrong is
raised as one of `job.errors`, whose messages call a field by its flag. The work is done in a thread
while the caller waits, so that Ctrl-C, in a notebook as well, comes where TensorFlow can't swallow
it; a second one no longer waits. Calls from several threads take turns.

All take `storage_timeout`, the seconds that each try of a request to an object store may take, and
`anonymous`, to use stores without credentials.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from job import storage
from job.config import ModelName, RunConfig, parse_data
from job.errors import UsageError
from job.process import runtime
from job.process.preemption import Asked, Preemption
from job.process.progress import LogFormat, Progress, Silence
from job.storage import Place, Settings, parse
from job.workers.cluster import Cluster

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from job.results.answers import Prediction

CHAMPION = "champion"  # as weights: those of whoever is champion below the output

Where = str | os.PathLike[str] | Place
Result = TypeVar("Result")
_turn = threading.Lock()  # how storage is used is settled once for the process


def train(
    config: RunConfig,
    *,
    log: LogFormat | None = None,
    stop: threading.Event | None = None,
    storage_timeout: float = Settings.timeout_seconds,
    anonymous: bool = Settings.anonymous,
) -> dict[str, Any]:
    """Train, evaluate and publish the run that `config` names, and return its metrics.

    The same config again goes on with the run, or finds it complete. What watchers are told
    (Pushgateway, MLflow, termination log) is of the command line alone.

    Args:
        config: such as `RunConfig.of(preset="fast", epochs=3)`; it is published at `config.place`.
        log: `text`, `json` or `auto` print to standard output what the command would.
        stop: set it, in a signal handler or another thread, to save and stop.
        storage_timeout: in seconds.
        anonymous: use stores without credentials.

    Returns:
        The content of `metrics.json`, as `job/assets/metrics.schema.json` describes it.

    Raises:
        ClusterError: what the config asks for isn't installed, or not there.
        JobError: whatever else went wrong; nothing that exists was overwritten.
        StoppedError, TemporaryError: `stop` was set, or the time limit reached; all work is saved.
        TemporaryError: the run was begun with other threads than this process computes with; only
            a new process can go on with it.
        KeyboardInterrupt: by Ctrl-C; all work is saved, unless it came twice.
    """
    if config.strategy == "multiworker":
        raise UsageError(
            "train() is one process, and strategy 'multiworker' several: start mnist-job train on "
            "each of them"
        )
    from job.report import tensorboard  # noqa: PLC0415
    from job.run import check_threads  # noqa: PLC0415

    with _using(log, storage_timeout, anonymous) as progress:
        runtime.count_from_here()
        asked = Asked(config.time_limit, stop)
        cluster = Cluster.from_environment(os.environ, together=False)
        cluster = replace(cluster, completion_index=None)  # who calls has asked for all members

        def work() -> dict[str, Any] | None:
            if config.tensorboard:
                tensorboard.load()
            run = settled(config)
            if run.ensemble is None:  # whose members are runs of their own
                check_threads(run)
            return trained(run, cluster, asked, progress)[1]

        document = _aside(work, asked.interrupt)
    assert document is not None  # of a process alone there always are metrics
    return _as_json(document)


def evaluate(
    weights: Where,
    data: Where | None = None,
    *,
    model: str | None = None,
    output: Where = RunConfig.output,
    log: LogFormat | None = None,
    storage_timeout: float = Settings.timeout_seconds,
    anonymous: bool = Settings.anonymous,
) -> dict[str, Any]:
    """Score published weights on all test images of a data set.

    Args:
        weights: a `model_weights.h5`, the folder of a run, or `champion`, below `output`.
        data: None for the data set of the run.
        model: architecture; None for that of the run.
        output: where the champion is looked for.
        log: prints warnings, such as that the data are not those of the run.
        storage_timeout: in seconds.
        anonymous: use stores without credentials.

    Returns:
        The evaluation, as `job/assets/evaluation.schema.json` describes it; `["test"]` holds the
        scores.

    Raises:
        JobError: weights or data are missing, bad, or don't fit each other.
    """
    from job.results import inference  # noqa: PLC0415

    with _using(log, storage_timeout, anonymous) as progress:
        _check_model(model)
        where, on = weights_at(_text(weights), _text(output)), _data(data)

        def work() -> dict[str, Any]:
            return inference.score(inference.Published.open(where, on, model, progress))[1]

        return _as_json(_aside(work))


def predict(
    weights: Where,
    images: "npt.NDArray[np.uint8] | Where | Sequence[Where] | None" = None,
    *,
    indices: Sequence[int] | None = None,
    data: Where | None = None,
    model: str | None = None,
    output: Where = RunConfig.output,
    log: LogFormat | None = None,
    storage_timeout: float = Settings.timeout_seconds,
    anonymous: bool = Settings.anonymous,
) -> "list[Prediction]":
    """Predict images of your own, or those of the test set.

    Args:
        weights: a `model_weights.h5`, the folder of a run, or `champion`, below `output`.
        images: uint8 of shape (images, *shape of the model's), 0 being paper and 255 ink as in
            MNIST; or paths of PNG or JPEG pictures of one digit each. None for test images.
        indices: of test images, from 0; None for all of them. What the run has published of them
            isn't computed again.
        data: whose test images; None for the data set of the run.
        model: architecture; None for that of the run.
        output: where the champion is looked for.
        log: prints warnings.
        storage_timeout: in seconds.
        anonymous: use stores without credentials.

    Returns:
        For each image, in the order given, its `predicted` class, the `probabilities` of all,
        `confidence`, and for a test image its `true` label and whether that is `right`. `image` is
        the index, or the picture's place.

    Raises:
        UsageError: `images` and `indices` are both given, or reach beyond what there is.
        JobError: weights, data or a picture are missing, bad, or don't fit each other.
    """
    if images is not None and indices is not None:
        raise UsageError("predict() takes images or indices of test images: leave one out")
    import numpy as np  # noqa: PLC0415

    from job.results import inference  # noqa: PLC0415

    with _using(log, storage_timeout, anonymous) as progress:
        _check_model(model)
        where, on = weights_at(_text(weights), _text(output)), _data(data)

        def work() -> "list[Prediction]":
            published = inference.Published.open(where, on, model, progress)
            if images is None:
                return inference.predict_at(published, indices)
            if isinstance(images, str | os.PathLike | Place):
                pictures = [parse(_text(images), "images")]
            elif any(hasattr(each, "__array__") for each in (images, *images)):
                return inference.predict_images(published, np.asarray(images))
            else:
                pictures = [parse(_text(each), "images") for each in images]
            if not pictures:
                return []
            return inference.predict_pictures(published, pictures).predictions

        return _aside(work)


# --- what the command line does with the same code --------------------------------------------


def trained(
    config: RunConfig, cluster: Cluster, preemption: Preemption, progress: Progress
) -> tuple[Place, dict[str, Any] | None]:
    """Train what `config` says, and return where it lies, and its metrics where they are ours."""
    if config.ensemble is not None:
        from job.ensemble import train_ensemble  # noqa: PLC0415

        return train_ensemble(config, cluster, preemption, progress)
    from job.run import train_run  # noqa: PLC0415

    return config.place, train_run(config, cluster, preemption, progress)


def settled(config: RunConfig) -> RunConfig:
    """Return `config` with the run in place of the champion that it begins with, if it does.

    A run that was begun goes on with the champion of then.
    """
    if config.init_weights != CHAMPION:
        return config
    from job.nightly import champions  # noqa: PLC0415
    from job.results.publishing import RunFolder  # noqa: PLC0415

    begun = RunFolder(config.place).begun_as() or {}
    log = champions.Log(parse(config.output, "--output"))
    found = begun.get("init_weights")
    if found is None or not any(
        found == str(log.output / entry.champion.run) for entry in log.entries()
    ):
        found = str(_champion(config.output))  # of a run that began with no champion, it differs
    return replace(config, init_weights=str(found))


def weights_at(weights: str, output: str) -> Place:
    """Return where weights lie; those of the champion below `output` are looked up.

    Raises:
        UsageError: it is no place that the job accepts.
        MissingInputError: there is no champion.
    """
    return _champion(output) if weights == CHAMPION else parse(weights, "--weights")


def _champion(output: str) -> Place:
    from job.nightly import champions  # noqa: PLC0415

    log = champions.Log(parse(output, "--output"))
    return log.output / log.needed().champion.run


# --- around the work --------------------------------------------------------------------------


@contextlib.contextmanager
def _using(log: LogFormat | None, timeout: float, anonymous: bool) -> Iterator[Progress]:
    """Take a turn, with storage used as a caller wants it; yield what is told of the work."""
    progress = Silence() if log is None else Progress(log)
    settings = Settings(timeout_seconds=timeout, anonymous=anonymous, notify=progress.event)
    with _turn:
        storage.configure(settings)
        yield progress


def _aside(work: Callable[[], Result], interrupt: Callable[[], None] = lambda: None) -> Result:
    """Return what `work` returns, done in a thread of its own.

    Ctrl-C calls `interrupt` and waits until the work has ended, since an import of TensorFlow that
    is cut off can't be repeated, and a training wants to save.
    """
    done: Future[Result] = Future()
    try:
        return runtime.beside(work, done).result()
    except KeyboardInterrupt:
        interrupt()
        if not done.cancel():  # which only work can be that hasn't begun
            done.result()
        raise


def _as_json(document: dict[str, Any]) -> dict[str, Any]:
    """Return `document` as it is read again: a tuple comes back as a list."""
    found: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return found


def _check_model(name: str | None) -> None:
    if name is not None and name not in get_args(ModelName):
        raise UsageError(f"--model must be one of {', '.join(get_args(ModelName))}, not {name!r}")


def _text(where: Where) -> str:
    return str(where) if isinstance(where, Place) else os.fspath(where)


def _data(data: Where | None) -> Place | None:
    return None if data is None else parse_data(_text(data))
