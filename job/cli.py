"""The command line: flags and environment in, exit code out. The only file that exits."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from job import __version__, flags, storage, uris
from job.cluster import Cluster
from job.config import EMBEDDED_DATA, RunConfig, check_data, fresh_run_id
from job.errors import JobError, UsageError
from job.preemption import Preemption
from job.progress import Progress, write_line
from job.storage import Settings

PROGRAM = "mnist-job"
EXIT_BUG = JobError.exit_code
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
MAX_PREDICTIONS = 100_000
_NOT_OF_THE_RUN = ("log", "storage_timeout", "anonymous", "cache")

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
    precision: flags.Precision = RunConfig.precision,
    checkpoint_seconds: flags.CheckpointSeconds = RunConfig.checkpoint_seconds,
    time_limit: flags.TimeLimit = RunConfig.time_limit,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
    cache: flags.Cache = Settings.cache,
    log: flags.Log = "auto",
) -> None:
    """Train a model, score it on all test images, and publish weights and metrics."""
    fields = {name: value for name, value in locals().items() if name not in _NOT_OF_THE_RUN}
    cluster = Cluster.from_environment(os.environ)
    run_id = run_id or cluster.job or fresh_run_id(model)
    config = RunConfig(**fields | {"run_id": run_id})
    progress = Progress(log)
    _use_storage(storage_timeout, anonymous, cache, progress)
    preemption = Preemption(time_limit)
    preemption.install()
    from job.run import train_run  # noqa: PLC0415

    train_run(config, cluster, preemption, progress)


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
    from job import scoring  # noqa: PLC0415

    scores, report = scoring.score(weights, check_data(data), model)
    low, high = scores.accuracy_interval_95
    _say(
        f"test accuracy: {scores.accuracy:.4f}  ({scores.correct:,} of {scores.examples:,}; 95 % "
        f"interval {low:.4f} to {high:.4f})"
    )
    _say(f"test loss: {scores.loss:.4f}")
    if output is not None:
        _say(f"written to {scoring.write_report(output, report)}")


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
    from job import gallery, scoring  # noqa: PLC0415

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
        predictions, seen = scoring.predict_pictures(weights, data, model, image)
    else:
        predictions, seen = scoring.predict_test_images(weights, data, model, start, num_images)
    _say(scoring.table(predictions))
    if figure is not None:
        scoring.write_gallery(figure, predictions, seen)
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
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name=PROGRAM, standalone_mode=False) or 0
    except JobError as error:
        return _failed(str(error), error.exit_code)
    except typer.TyperException as error:
        return _failed(_what_is_wrong(error), UsageError.exit_code)
    except Exception:  # noqa: BLE001  anything else is a bug, and says so
        traceback.print_exc()
        return _failed("this is a bug in the job, not in what you did: please report it", EXIT_BUG)
    # Typer ends an interrupted command with this code, and without a word.
    return _failed("interrupted", code) if code == EXIT_INTERRUPTED else code


def _what_is_wrong(error: typer.TyperException) -> str:
    """Return Typer's message, and the value, which it leaves out when pydantic refused it."""
    message = " ".join(error.format_message().split())
    refused: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    return ", not ".join([message, *(repr(refusal["input"]) for refusal in refused)])


def _failed(message: str, code: int) -> int:
    write_line(sys.stderr, f"{PROGRAM}: error: {message} (exit {code})")
    return code


def entry_point() -> None:
    """Run the command that the process was started with, and exit with its code."""
    sys.exit(main())
