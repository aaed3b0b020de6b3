"""The command line: flags and environment in, exit code out. The only file that exits.

Each flag can be given as an environment variable, `MNIST_JOB_` and its name: `MNIST_JOB_EPOCHS=3`.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from job import __version__, storage
from job.cluster import Cluster
from job.config import (
    EMBEDDED_DATA,
    Augmentation,
    ModelName,
    Precision,
    RunConfig,
    Schedule,
    Strategy,
    check_data,
    fresh_run_id,
)
from job.errors import JobError, UsageError
from job.progress import LogFormat, Progress, write_line

PROGRAM = "mnist-job"
EXIT_BUG = JobError.exit_code
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
MAX_PREDICTIONS = 100_000

app = typer.Typer(
    name=PROGRAM,
    help="Train, score and publish a digit classifier.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: faster, and no box to cut names off
    pretty_exceptions_enable=False,
)


def _flag(name: str, text: str, **more: Any) -> Any:
    """Return the flag `--name`, which the environment can give as well."""
    variable = "MNIST_JOB_" + name.upper().replace("-", "_")
    return typer.Option(f"--{name}", envvar=variable, help=text, **more)


DataFlag = Annotated[
    str, _flag("data", "'mnist' (embedded), an .npz, or a folder with the four IDX files.")
]
ModelFlag = Annotated[ModelName, _flag("model", "Architecture.")]
WeightsFlag = Annotated[str, _flag("weights", "A model_weights.h5, or the folder of a run.")]


@app.command()
def train(
    data: DataFlag = EMBEDDED_DATA,
    output: Annotated[
        str, _flag("output", "Folder that runs are published in, each in one of its own.")
    ] = RunConfig.output,
    run_id: Annotated[
        str | None,
        _flag("run-id", "Name of the run; the same again is the same run. [default: a fresh one]"),
    ] = None,
    model: ModelFlag = RunConfig.model,
    epochs: Annotated[int, _flag("epochs", "Passes over the training set.")] = RunConfig.epochs,
    batch_size: Annotated[
        int, _flag("batch-size", "Examples per optimizer step.")
    ] = RunConfig.batch_size,
    learning_rate: Annotated[
        float, _flag("learning-rate", "Peak learning rate, reached after a tenth of all steps.")
    ] = RunConfig.learning_rate,
    schedule: Annotated[
        Schedule, _flag("schedule", "How the learning rate falls after that.")
    ] = RunConfig.schedule,
    seed: Annotated[
        int, _flag("seed", "Source of all randomness: the same seed, the same weights.")
    ] = RunConfig.seed,
    weight_decay: Annotated[
        float, _flag("weight-decay", "Share of the learning rate by which kernels shrink a step.")
    ] = RunConfig.weight_decay,
    label_smoothing: Annotated[
        float, _flag("label-smoothing", "Share of each target spread over all classes.")
    ] = RunConfig.label_smoothing,
    augment: Annotated[
        Augmentation, _flag("augment", "'shift' moves training images by up to two pixels.")
    ] = RunConfig.augment,
    strategy: Annotated[
        Strategy, _flag("strategy", "Device; 'auto' takes a GPU if there is one.")
    ] = RunConfig.strategy,
    precision: Annotated[
        Precision, _flag("precision", "Numbers inside the hidden layers.")
    ] = RunConfig.precision,
    log: Annotated[
        LogFormat, _flag("log", "'auto': text on a terminal, elsewhere JSON, one object a line.")
    ] = "auto",
) -> None:
    """Train a model, score it on all test images, and publish weights and metrics."""
    cluster = Cluster.from_environment(os.environ)
    config = RunConfig(
        data=data,
        output=output,
        run_id=run_id or cluster.job or fresh_run_id(model),
        model=model,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        seed=seed,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        augment=augment,
        strategy=strategy,
        precision=precision,
    )
    from job.run import train_run  # noqa: PLC0415

    train_run(config, cluster, Progress(log))


@app.command()
def evaluate(
    weights: WeightsFlag,
    data: DataFlag = EMBEDDED_DATA,
    model: ModelFlag = RunConfig.model,
    output: Annotated[
        str | None, _flag("output", "Also write a metrics JSON: a file .json, or a folder.")
    ] = None,
) -> None:
    """Score published weights on all test images of a data set."""
    storage.check_uri(weights, "--weights")
    if output is not None:
        storage.check_uri(output, "--output")
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
    weights: WeightsFlag,
    data: DataFlag = EMBEDDED_DATA,
    model: ModelFlag = RunConfig.model,
    num_images: Annotated[int, _flag("num-images", "How many test images to predict.")] = 10,
    start: Annotated[int, _flag("start", "Index of the first test image, from 0.")] = 0,
    image: Annotated[
        list[str] | None,
        _flag("image", "A PNG or JPEG of one digit, instead of test images; may be repeated."),
    ] = None,
    figure: Annotated[
        str | None, _flag("figure", "Also draw the images and predictions into this PNG.")
    ] = None,
) -> None:
    """Predict test images, or pictures of your own."""
    storage.check_uri(weights, "--weights")
    check_data(data)
    if not 1 <= num_images <= MAX_PREDICTIONS:
        raise UsageError(f"--num-images must be from 1 to {MAX_PREDICTIONS:,}, not {num_images}")
    if start < 0:
        raise UsageError(f"--start must be 0 or more, not {start}")
    if figure is not None:
        storage.check_uri(figure, "--figure")
    for uri in image or []:
        storage.check_uri(uri, "--image")
    from job import scoring  # noqa: PLC0415

    if image:
        predictions, seen = scoring.predict_pictures(weights, data, model, image)
    else:
        predictions, seen = scoring.predict_test_images(weights, data, model, start, num_images)
    _say(scoring.table(predictions))
    if figure is not None:
        scoring.write_gallery(figure, predictions, seen)
        _say(f"figure written to {figure}")


def _say(text: str) -> None:
    write_line(sys.stdout, text)


def _print_version(wanted: bool) -> None:
    if wanted:
        _say(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, having said on stderr what went wrong.

    Args:
        arguments: the words after the program's name; those of this process if None.
    """
    command = typer.main.get_command(app)
    try:
        return command.main(arguments, prog_name=PROGRAM, standalone_mode=False) or 0
    except JobError as error:
        return _failed(str(error), error.exit_code)
    except typer.TyperException as error:
        return _failed(" ".join(error.format_message().split()), UsageError.exit_code)
    except KeyboardInterrupt:
        return _failed("interrupted", EXIT_INTERRUPTED)
    except Exception:  # noqa: BLE001  anything else is a bug, and says so
        traceback.print_exc()
        return _failed("this is a bug in the job, not in what you did: please report it", EXIT_BUG)


def _failed(message: str, code: int) -> int:
    write_line(sys.stderr, f"{PROGRAM}: error: {message} (exit {code})")
    return code


def entry_point() -> None:
    """Run the command that the process was started with, and exit with its code."""
    sys.exit(main())
