"""The command line: flags and environment in, exit code out. The only file that exits."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from job import __version__, flags, storage
from job.config import EMBEDDED_DATA, RunConfig, check_data, fresh_run_id
from job.errors import JobError, StoppedError, UsageError
from job.process import verdict
from job.process.liveness import Liveness
from job.process.preemption import Preemption
from job.process.progress import Progress, write_line
from job.storage import Settings, uris
from job.workers import watchdog
from job.workers.cluster import Cluster

PROGRAM = "mnist-job"
EXIT_BUG = JobError.exit_code
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
MAX_PREDICTIONS = 100_000
_BUG = "this is a bug in the job, not in what you did: please report it"
_NOT_OF_THE_RUN = (  # how it reads, writes and tells, not what it does
    *("storage_timeout", "anonymous", "cache"),
    *("log", "termination_log", "liveness_file"),
)

app = typer.Typer(
    name=PROGRAM,
    help="Train, score and publish a digit classifier.",
    rich_markup_mode=None,  # plain help: faster, and no box to cut names off
    pretty_exceptions_enable=False,
)


@app.command()
def train(
    data: flags.Data = EMBEDDED_DATA,
    output: flags.Output = RunConfig.output,
    run_id: flags.RunId = None,
    model: flags.Model = RunConfig.model,
    epochs: flags.Epochs = RunConfig.epochs,
    batch_size: flags.BatchSize = RunConfig.batch_size,
    learning_rate: flags.LearningRate = RunConfig.learning_rate,
    schedule: flags.Schedule = RunConfig.schedule,
    seed: flags.Seed = RunConfig.seed,
    weight_decay: flags.WeightDecay = RunConfig.weight_decay,
    label_smoothing: flags.LabelSmoothing = RunConfig.label_smoothing,
    augment: flags.Augment = RunConfig.augment,
    strategy: flags.Strategy = RunConfig.strategy,
    require_gpu: flags.RequireGpu = RunConfig.require_gpu,
    peer_timeout: flags.PeerTimeout = RunConfig.peer_timeout,
    precision: flags.Precision = RunConfig.precision,
    checkpoint_seconds: flags.CheckpointSeconds = RunConfig.checkpoint_seconds,
    time_limit: flags.TimeLimit = RunConfig.time_limit,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
    cache: flags.Cache = Settings.cache,
    log: flags.Log = "auto",
    termination_log: flags.TerminationLog = None,
    liveness_file: flags.LivenessFile = None,
) -> dict[str, Any]:
    """Train a model, score it on all test images, and publish weights and metrics."""
    fields = {name: value for name, value in locals().items() if name not in _NOT_OF_THE_RUN}
    verdict.check(termination_log)
    together = strategy in ("auto", "multiworker")
    cluster = Cluster.from_environment(os.environ, together=together)
    run_id = run_id or cluster.job
    if run_id is None and cluster.workers.count > 1:
        raise UsageError("--run-id is missing: several workers must all be given the same one")
    run_id = run_id or fresh_run_id(model)
    config = RunConfig(**fields | {"run_id": run_id})
    liveness = Liveness(liveness_file)
    progress = Progress(log, liveness=liveness)
    _use_storage(storage_timeout, anonymous, cache, progress)
    preemption = Preemption(time_limit)
    preemption.install()
    if cluster.workers.count > 1:
        from job.results import publishing  # noqa: PLC0415
        from job.workers import supervision  # noqa: PLC0415

        if watchdog.is_supervised():
            watchdog.start()
        elif publishing.finished(config) is None:
            team = f"{config.run_id} {config.digest}"
            code = supervision.supervise(
                sys.argv[1:], cluster.workers, team, peer_timeout, preemption, liveness
            )
            raise typer.Exit(code)
    from job.run import train_run  # noqa: PLC0415

    return verdict.success(config.run_uri, train_run(config, cluster, preemption, progress))


@app.command()
def evaluate(
    weights: flags.Weights,
    data: flags.Data = EMBEDDED_DATA,
    model: flags.Model = RunConfig.model,
    output: flags.Report = None,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
    cache: flags.Cache = Settings.cache,
) -> None:
    """Score published weights on all test images of a data set."""
    _use_storage(storage_timeout, anonymous, cache, Progress("text", sys.stderr))
    uris.check(weights, "--weights")
    if output is not None:
        uris.check(output, "--output")
    from job.results import inference  # noqa: PLC0415

    scores, report = inference.score(weights, check_data(data), model)
    _say(inference.summary(scores))
    if output is not None:
        _say(f"written to {inference.write_report(output, report)}")


@app.command()
def predict(
    weights: flags.Weights,
    data: flags.Data = EMBEDDED_DATA,
    model: flags.Model = RunConfig.model,
    num_images: flags.NumImages = 10,
    start: flags.Start = 0,
    image: flags.Image = None,
    figure: flags.Figure = None,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
    cache: flags.Cache = Settings.cache,
) -> None:
    """Predict test images, or pictures of your own."""
    _use_storage(storage_timeout, anonymous, cache, Progress("text", sys.stderr))
    from job.pictures import gallery  # noqa: PLC0415
    from job.results import inference  # noqa: PLC0415

    uris.check(weights, "--weights")
    check_data(data)
    most = MAX_PREDICTIONS if figure is None else gallery.MAX_IMAGES
    if not 1 <= num_images <= most:
        drawn = "" if figure is None else " with --figure"
        raise UsageError(f"--num-images must be from 1 to {most:,}{drawn}, not {num_images}")
    if start < 0:
        raise UsageError(f"--start must be 0 or more, not {start}")
    if figure is not None:
        uris.check(figure, "--figure")
    for uri in image or []:
        uris.check(uri, "--image")
    if image:
        predictions, seen = inference.predict_pictures(weights, data, model, image)
    else:
        predictions, seen = inference.predict_test_images(weights, data, model, start, num_images)
    _say(inference.table(predictions))
    if figure is not None:
        inference.write_gallery(figure, predictions, seen)
        _say(f"figure written to {figure}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def drill(context: typer.Context) -> None:
    """Prove that a stopped training resumes to the bit, with any flags of train."""
    from job import drill as proof  # noqa: PLC0415

    proof.drill(context.args, _say)


def _use_storage(timeout: float, anonymous: bool, cache: str | None, progress: Progress) -> None:
    storage.configure(
        Settings(timeout_seconds=timeout, anonymous=anonymous, cache=cache, notify=progress.event)
    )


def _say(text: str) -> None:
    write_line(sys.stdout, text)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        _say(f"{PROGRAM} {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        _say(context.get_help())
        raise typer.Exit(UsageError.exit_code)  # for 0 would mean published


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, having said on stderr what went wrong.

    Args:
        arguments: the words after the program's name; those of this process if None.
    """
    place = verdict.place(sys.argv[1:] if arguments is None else arguments, os.environ)
    code, ended = _run(arguments)
    try:
        _tell(place, ended)
    except (StoppedError, KeyboardInterrupt):  # a signal raises once, and here it comes too late
        _tell(place, ended)
    return code


def _run(arguments: Sequence[str] | None) -> tuple[int, dict[str, Any] | None]:
    """Run one command; return its exit code and the verdict on it, if it has one."""
    command = typer.main.get_command(app)
    try:
        ended = command.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except JobError as error:
        return _failed(str(error), error.exit_code)
    except typer.TyperException as error:
        return _failed(_what_is_wrong(error), UsageError.exit_code)
    except Exception as error:  # noqa: BLE001  anything else is a bug, and says so
        traceback.print_exc()
        return _failed(str(JobError(f"{_BUG} ({error!r})")), EXIT_BUG)
    if isinstance(ended, dict):
        return 0, ended
    # Typer ends an interrupted command with this code, and without a word.
    return _failed("interrupted", ended) if ended == EXIT_INTERRUPTED else (ended or 0, None)


def _what_is_wrong(error: typer.TyperException) -> str:
    """Return Typer's message, and the value, which it leaves out when pydantic refused it."""
    message = " ".join(error.format_message().split())
    refused: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    return ", not ".join([message, *(repr(refusal["input"]) for refusal in refused)])


def _failed(message: str, code: int) -> tuple[int, dict[str, Any]]:
    return code, verdict.failure(message, code)


def _tell(place: str | None, ended: dict[str, Any] | None) -> None:
    """Say what went wrong, if anything did, and leave the verdict in its place."""
    if ended is None:
        return
    if ended["code"] != 0:
        line = f"{PROGRAM}: error: {ended['error']} (exit {ended['code']})"
        write_line(sys.stderr, line)
    if (refusal := verdict.write(place, ended)) is not None:
        write_line(sys.stderr, f"{PROGRAM}: warning: {refusal}")


def entry_point() -> None:
    """Run the command that the process was started with, and exit with its code."""
    code = main()
    if watchdog.is_supervised():
        # Without its peers TensorFlow's own shutdown waits, or aborts with a code of its own.
        os._exit(code)
    sys.exit(code)
