"""The command line: flags and environment in, exit code out. The only file that exits."""

import contextlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from job import __version__, api, storage
from job.api import CHAMPION
from job.commands import console, flags, looks, nights, tunes
from job.commands.console import HURRY_SECONDS
from job.commands.invocation import Invocation, failure_file
from job.config import RunConfig, fresh_run_id, parse_data
from job.errors import (
    ClusterError,
    CredentialsError,
    JobError,
    StoppedError,
    TemporaryError,
    UsageError,
)
from job.process import memory, verdict
from job.process import preemption as signals
from job.process.liveness import Liveness
from job.process.preemption import Preemption
from job.process.progress import Progress, drop_unwritten, hold_streams
from job.storage import Place, Settings, parse
from job.workers import watchdog
from job.workers.cluster import Cluster

PROGRAM = "mnist-job"
EXIT_BUG = JobError.exit_code
STANDARD_OUTPUT = "-"  # as a file
_BUG = "this is a bug in the job, not in what you did: please report it"

app = typer.Typer(
    name=PROGRAM,
    help="Train, score and publish a digit classifier.",
    rich_markup_mode=None,  # plain help: faster, and no box to cut names off
    pretty_exceptions_enable=False,
)
app.add_typer(nights.app)  # without a name: its commands stand beside these
app.add_typer(tunes.app)
app.add_typer(looks.app)


@app.command()
def train(
    context: typer.Context,
    data: flags.Data = RunConfig.data,
    base: flags.Base = RunConfig.base,
    output: flags.Output = RunConfig.output,
    run_id: flags.RunId = None,
    preset: flags.Preset = "reference",
    model: flags.Model = RunConfig.model,
    epochs: flags.Epochs = RunConfig.epochs,
    batch_size: flags.BatchSize = RunConfig.batch_size,
    learning_rate: flags.LearningRate = RunConfig.learning_rate,
    schedule: flags.Schedule = RunConfig.schedule,
    seed: flags.Seed = RunConfig.seed,
    weight_decay: flags.WeightDecay = RunConfig.weight_decay,
    label_smoothing: flags.LabelSmoothing = RunConfig.label_smoothing,
    augment: flags.Augment = RunConfig.augment,
    augment_strength: flags.AugmentStrength = RunConfig.augment_strength,
    dropout: flags.Dropout = RunConfig.dropout,
    validation: flags.Validation = RunConfig.validation,
    validation_seed: flags.ValidationSeed = RunConfig.validation_seed,
    early_stopping: flags.EarlyStopping = RunConfig.early_stopping,
    init_weights: flags.InitWeights = RunConfig.init_weights,
    ensemble: flags.Ensemble = RunConfig.ensemble,
    export: flags.Export = RunConfig.export,
    strategy: flags.Strategy = RunConfig.strategy,
    require_gpu: flags.RequireGpu = RunConfig.require_gpu,
    peer_timeout: flags.PeerTimeout = RunConfig.peer_timeout,
    precision: flags.Precision = RunConfig.precision,
    exchange: flags.Exchange = RunConfig.exchange,
    checkpoint_seconds: flags.CheckpointSeconds = RunConfig.checkpoint_seconds,
    time_limit: flags.TimeLimit = RunConfig.time_limit,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
    log: flags.Log = "auto",
    quiet: flags.Quiet = False,
    termination_log: flags.TerminationLog = None,
    liveness_file: flags.LivenessFile = None,
    no_report: flags.NoReport = False,
    tensorboard: flags.Tensorboard = False,
    tensorboard_dir: flags.TensorboardDir = RunConfig.tensorboard_dir,
    pushgateway: flags.Pushgateway = None,
    model_dir: flags.ModelDir = None,
    failure_file: flags.FailureFile = None,
    platform: flags.Platform = "auto",
) -> dict[str, Any]:
    """Train a model, score it on all test images, and publish weights and metrics."""
    given = dict(locals())  # before anything but the flags has a name
    verdict.check(termination_log)
    verdict.check(failure_file, verdict.FAILURE)
    invocation: Invocation = context.obj
    together = strategy in ("auto", "multiworker")
    cluster = invocation.cluster(os.environ, together=together)
    run_id = run_id or cluster.job
    _check_workers(cluster, run_id, ensemble)
    from job.results.handover import Recipient  # noqa: PLC0415

    recipient = Recipient.named(model_dir, is_chief=cluster.workers.is_chief)
    training = flags.of_training(context, given)
    config = RunConfig(
        data=data,
        base=base,
        output=output,
        run_id=run_id or fresh_run_id(training["model"]),
        **training,
        init_weights=init_weights,
        ensemble=ensemble,
        export=export,
        strategy=strategy,
        require_gpu=require_gpu,
        peer_timeout=peer_timeout,
        precision=precision,
        exchange=exchange,
        checkpoint_seconds=checkpoint_seconds,
        time_limit=time_limit,
        report=not no_report,
        tensorboard=tensorboard if flags.is_given(context, "tensorboard") else None,
        tensorboard_dir=tensorboard_dir,
    )
    console.prepare_tensorboard(config.tensorboard)
    liveness = Liveness(liveness_file)
    progress = Progress(log, liveness=liveness, quiet=quiet)
    console.use_storage(storage_timeout, anonymous, progress)
    watchers = console.watchers(pushgateway, cluster, progress)
    if not watchdog.is_supervised():  # its watcher has said so
        invocation.tell(progress)
        # Before anything large: who is out of memory at once shows how far it came.
        progress.event("started", version=__version__, run=str(config.place))
    flags.warn_of_unknown_variables(os.environ, progress)
    preemption = Preemption(
        time_limit,
        spent_seconds=watchdog.spent_seconds(),
        when_asked=lambda: storage.hurry(HURRY_SECONDS),
        when_interrupted=None if watchdog.is_supervised() else lambda: progress.event("stopping"),
    )
    preemption.install()
    from job.results.publishing import RunFolder  # noqa: PLC0415

    config = api.settled(config)
    recipient.check_free(config)
    if cluster.workers.count > 1:
        from job.workers import supervision  # noqa: PLC0415

        if watchdog.is_supervised():
            watchdog.start(progress)
        elif RunFolder(config.place).finished(config) is None:
            team = f"{config.run_id} {config.digest}"
            code = supervision.supervise(
                invocation.words, cluster.workers, team, peer_timeout, preemption, progress
            )
            watchers.failed(code)
            raise typer.Exit(code)
    elif strategy == "multiworker" and RunFolder(config.place).finished(config) is None:
        raise ClusterError(
            "--strategy multiworker: fewer than two workers are named; name two or more in "
            "TF_CONFIG, or in K8S_WORKERS and JOB_COMPLETION_INDEX as k8s/train-multiworker.yaml "
            "does; one alone trains with --strategy auto"
        )
    alone = cluster.workers.count == 1
    telling_failures = (
        contextlib.nullcontext() if watchdog.is_supervised() else watchers.telling_failures()
    )
    with (
        watchdog.telling_why(),
        _telling_how_to_go_on(invocation.words, config.run_id, alone=alone),
        telling_failures,
        watchers.following(),
    ):
        place, document = api.trained(config, cluster, preemption, progress)
        if document is not None and place == config.place:
            recipient.take(RunFolder(place), document, progress)
    if document is not None and place == config.place:  # not a member of an ensemble
        watchers.run_over(place, document)
    return verdict.success(str(place), document)


def _check_workers(cluster: Cluster, run_id: str | None, ensemble: int | None) -> None:
    """See that several workers were given what they need.

    Raises:
        UsageError: they were not.
    """
    if cluster.workers.count == 1:
        return
    if run_id is None:
        raise UsageError("--run-id is missing: several workers must all be given the same one")
    if ensemble is not None:
        raise UsageError(
            "--ensemble trains each member in one process: leave K8S_WORKERS and TF_CONFIG out, "
            "and each pod of an Indexed Job trains the member of its index"
        )


@app.command()
def evaluate(
    context: typer.Context,
    weights: flags.Weights,
    data: flags.RunData = None,
    model: flags.RunModel = None,
    output: flags.Output = RunConfig.output,
    report: flags.Report = None,
    as_json: flags.AsJson = False,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Score published weights on all test images of a data set."""
    progress = console.progress_aside(storage_timeout, anonymous)
    data_place = None if data is None else parse_data(data)
    report_place = None if report is None else parse(report, "--report")
    weights_place = _weights(context, weights, output)
    from job.results import inference  # noqa: PLC0415

    published = inference.Published.open(weights_place, data_place, model, progress)
    scores, document = inference.score(published)
    if as_json:
        console.say(json.dumps(document, indent=2, allow_nan=False))
    else:
        console.say(f"{inference.summary(scores)}\n\n{inference.class_table(scores)}")
    if report_place is not None:
        written = inference.write_report(report_place, document)
        if not as_json:
            console.say(f"written to {written}")


@app.command()
def predict(
    context: typer.Context,
    weights: flags.Weights,
    data: flags.RunData = None,
    model: flags.RunModel = None,
    output: flags.Output = RunConfig.output,
    num_images: flags.NumImages = 10,
    start: flags.Start = 0,
    only: flags.Only = None,
    digit: flags.Digit = None,
    sort: flags.SortImages = "index",
    image: flags.Image = None,
    figure: flags.Figure = None,
    as_json: flags.AsJson = False,
    as_csv: flags.AsCsv = None,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Predict test images, or pictures of your own."""
    progress = console.progress_aside(storage_timeout, anonymous)
    from job.results import answers, inference  # noqa: PLC0415

    data_place = None if data is None else parse_data(data)
    figure_place = None if figure is None else parse(figure, "--figure")
    pictures = [parse(text, "--image") for text in image or []]
    choice = answers.Choice(start=start, count=num_images, only=only, digit=digit, sort=sort)
    if pictures and choice.picks:
        raise UsageError(
            "--only, --digit and --sort pick test images, and --image gives pictures of your own: "
            "drop one of both"
        )
    csv_to_stdout = as_csv == STANDARD_OUTPUT
    if as_json and csv_to_stdout:
        raise UsageError("--json and --csv - both go to standard output: name a file for the CSV")
    csv_place = None if as_csv is None or csv_to_stdout else parse(as_csv, "--csv")
    weights_place = _weights(context, weights, output)
    published = inference.Published.open(weights_place, data_place, model, progress)
    if pictures:
        shown = inference.predict_pictures(published, pictures)
    else:
        drawn = figure_place is not None
        shown = inference.predict_test_images(published, choice, images=drawn)
    written = answers.write(shown, csv_place, figure_place)
    if as_json:
        console.say(answers.to_json(shown.predictions))
    elif csv_to_stdout:
        console.say(answers.to_csv(shown.predictions).removesuffix("\n"))
    else:
        console.say("\n".join([answers.table(shown), *written]))


def _weights(context: typer.Context, weights: str, output: str) -> Place:
    """Return where the weights lie that the flags of a command name."""
    if weights == CHAMPION:
        return api.weights_at(weights, output)
    source = context.get_parameter_source("output")
    if source is not None and source.name == "COMMANDLINE":
        raise UsageError(
            f"--output says below which folder the {CHAMPION} is looked for, and --weights names "
            "none: leave it out; scores are written to --report"
        )
    return api.weights_at(weights, output)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def drill(context: typer.Context) -> None:
    """Prove that a stopped training resumes to the bit, with any flags of train."""
    from job.commands import drill as proof  # noqa: PLC0415

    proof.drill(context.args, console.say)


@contextlib.contextmanager
def _telling_how_to_go_on(words: Sequence[str], run_id: str, *, alone: bool) -> Iterator[None]:
    """Add to whatever stops the run of `words` the command that goes on with it, run id included.

    Several workers were given their run id, and say themselves that all must be run again.
    """
    named = any(word.partition("=")[0] == "--run-id" for word in words)
    command = shlex.join([PROGRAM, *words, *([] if named else ["--run-id", run_id])])
    try:
        yield
    except (StoppedError, TemporaryError, CredentialsError) as error:
        if not alone:
            raise
        raise type(error)(f"{error}; go on with: {command}") from error
    except KeyboardInterrupt:
        raise JobError(
            f"interrupted, the work is saved; go on with: {command}",
            exit_code=signals.EXIT_INTERRUPTED,
        ) from None


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        console.say(f"{PROGRAM} {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        console.say(context.get_help())
        raise typer.Exit(UsageError.exit_code)  # for 0 would mean published


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, having said on stderr what went wrong.

    Args:
        arguments: the words after the program's name; those of this process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    invocation = Invocation(words)  # what is known of it until its surroundings are understood
    ended: dict[str, Any] | None
    try:
        invocation = Invocation.of(words, command, os.environ)
    except JobError as error:
        code, ended = _failed(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  as in `_run`
        code, ended = _unforeseen(error)
    else:
        code, ended = _run(command, invocation)
    try:
        _tell(invocation, ended)
    except (StoppedError, KeyboardInterrupt):  # a signal raises once, and here it comes too late
        _tell(invocation, ended)
    return code


def _run(command: Any, invocation: Invocation) -> tuple[int, dict[str, Any] | None]:
    """Run one command; return its exit code and the verdict on it, if it has one."""
    ended: Any
    try:
        ended = command.main(
            invocation.words,
            prog_name=PROGRAM,
            standalone_mode=False,
            obj=invocation,
            default_map=invocation.defaults,
        )
    except UsageError as error:
        return _failed(invocation.explain(str(error)), error.exit_code)
    except JobError as error:
        return _failed(str(error), error.exit_code)
    except typer.TyperException as error:
        return _failed(invocation.explain(_what_is_wrong(error)), UsageError.exit_code)
    except Exception as error:  # noqa: BLE001  anything else is a bug, and says so
        return _unforeseen(error)
    if isinstance(ended, dict):
        return ended["code"], ended
    # Typer ends an interrupted command with this code, and without a word.
    return (
        _failed("interrupted", ended) if ended == signals.EXIT_INTERRUPTED else (ended or 0, None)
    )


def _unforeseen(error: Exception) -> tuple[int, dict[str, Any]]:
    refused: JobError | None = memory.refusal(error, "give the job more memory")
    if isinstance(error, OSError) and traceback.extract_tb(error.__traceback__)[-1].name == "echo":
        refused = console.unprinted(error)  # Typer's, which prints the help by itself
    if refused is not None:
        return _failed(str(refused), refused.exit_code)
    with contextlib.suppress(OSError, ValueError):
        traceback.print_exc()
    return _failed(str(JobError(f"{_BUG} ({error!r})")), EXIT_BUG)


def _what_is_wrong(error: typer.TyperException) -> str:
    """Return Typer's message, and the value, which it leaves out when pydantic refused it."""
    name = getattr(error, "option_name", None)
    if isinstance(name, str) and name in flags.GONE:
        return f"{name} is gone: {flags.GONE[name]}"
    message = " ".join(error.format_message().split())
    refused: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    return ", not ".join([message, *(repr(refusal["input"]) for refusal in refused)])


def _failed(message: str, code: int) -> tuple[int, dict[str, Any]]:
    return code, verdict.failure(message, code)


def _tell(invocation: Invocation, ended: dict[str, Any] | None) -> None:
    """Say what went wrong, if anything did, and leave the verdict in its place."""
    if ended is None:
        return
    words = invocation.words
    # As the log of the run has it, even where the flags could not be understood.
    logs = words[:1] in (
        ["train"],
        ["retrain"],
        ["tune"],
    )  # the others print what they were called for
    wanted = invocation.given("--log", os.environ) if logs else "text"
    progress = Progress(wanted or "auto", sys.stderr)
    console.tell_failure(progress, ended)
    log = invocation.given(verdict.OPTION, os.environ) or verdict.path(words, os.environ)
    refusals = [verdict.write(log, ended)]
    if words[:1] in (["train"], ["retrain"]):
        refusals.append(verdict.write_failure(failure_file(words, os.environ), ended))
    for refusal in refusals:
        if refusal is not None:
            progress.event("verdict_not_written", reason=refusal)


def entry_point() -> None:
    """Run the command that the process was started with, and exit with its code."""
    hold_streams()
    try:
        code = main()
        signals.ignore()  # what comes from now on comes too late
    except (StoppedError, KeyboardInterrupt) as late:  # too late as well: the command has ended
        code = verdict.of_error(late)["code"]
    drop_unwritten()
    if watchdog.is_supervised() or code == ClusterError.exit_code:
        # Without its peers, or after memory ran out, TensorFlow's own shutdown waits, or aborts
        # with a code of its own.
        watchdog.leave(code)
    sys.exit(code)
