"""The command of studies: trials, the best of them again, and a picture of all."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from job import __version__, storage
from job.commands import console, flags
from job.commands.invocation import Invocation
from job.config import PRESETS, RunConfig
from job.errors import ClusterError, ConflictError, DataError, MissingInputError, UsageError
from job.process import verdict
from job.process.liveness import Liveness
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.storage import Place, Settings, parse
from job.tuning import tuner
from job.tuning.space import Space, flag, lines
from job.tuning.study import MOST_TRIALS, Study
from job.workers import watchdog
from job.workers.cluster import Cluster

VALIDATION = 1 / 6  # 10,000 images of MNIST: as many as the test set has
MAX_SPACE_BYTES = storage.MEBIBYTE

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def tune(
    context: typer.Context,
    study: flags.StudyName = None,
    trials: flags.Trials = 16,
    trial: flags.Trial = None,
    vary: flags.Vary = None,
    space: flags.Space = None,
    objective: flags.Objective = "accuracy",
    reduction: flags.Reduction = 3,
    first_rung: flags.FirstRung = 1,
    best: flags.Best = False,
    report: flags.StudyReport = None,
    data: flags.Data = RunConfig.data,
    base: flags.Base = RunConfig.base,
    output: flags.Output = RunConfig.output,
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
    validation: flags.Validation = VALIDATION,
    validation_seed: flags.ValidationSeed = RunConfig.validation_seed,
    early_stopping: flags.EarlyStopping = RunConfig.early_stopping,
    strategy: flags.Strategy = RunConfig.strategy,
    require_gpu: flags.RequireGpu = RunConfig.require_gpu,
    precision: flags.Precision = RunConfig.precision,
    checkpoint_seconds: flags.CheckpointSeconds = RunConfig.checkpoint_seconds,
    time_limit: flags.TimeLimit = RunConfig.time_limit,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
    log: flags.Log = "auto",
    quiet: flags.Quiet = False,
    termination_log: flags.TerminationLog = None,
    liveness_file: flags.LivenessFile = None,
) -> dict[str, Any]:
    """Search for better flags: trials over a space, chosen on held-out images."""
    given = dict(locals())  # before anything but the flags has a name
    verdict.check(termination_log)
    invocation: Invocation = context.obj
    cluster = Cluster.from_environment(os.environ, together=strategy in ("auto", "multiworker"))
    if cluster.workers.count > 1 or strategy == "multiworker":
        raise UsageError("tune runs each trial as one process: start it without workers")
    name = study or cluster.job
    if name is None:
        raise UsageError("--study is missing: name the study; the same name goes on with it")
    if trial is not None and (best or report is not None):
        raise UsageError("--trial runs one alone: for --best and --report leave it out")
    _check_trials(trials, trial)
    if trial is None and not best and report is None:
        trial = _of_the_index(cluster.completion_index, trials)
    report_place = None if report is None else parse(report, "--report")
    progress = Progress(log, liveness=Liveness(liveness_file), quiet=quiet)
    console.use_storage(storage_timeout, anonymous, progress)
    values = flags.of_training(context, given)
    values |= {"data": data, "base": base, "precision": precision}
    rules = {"objective": objective, "reduction": reduction, "first_rung": first_rung}
    machine = {
        "strategy": strategy,
        "require_gpu": require_gpu,
        "checkpoint_seconds": checkpoint_seconds,
        "time_limit": time_limit,
    }

    explicit = _explicit(context, values | rules)
    texts = _texts(vary, space)
    if texts is None:
        given = explicit | (PRESETS[preset] if _explicit(context, ["preset"]) else {})
        told = {field: value for field, value in (values | rules).items() if field in given}
        plan = Study.opened(output, name, machine, told)
    else:
        plan = Study(
            output=output,
            name=name,
            space=Space.parse(texts),
            fixed=values,
            machine=machine,
            objective=objective,
            reduction=reduction,
            first_rung=first_rung,
        )
    for field in set(plan.space.names) & explicit.keys():
        raise UsageError(f"--{flag(field)} is given, and the study varies it: drop one of both")
    plan.check()
    started_for = tuner.which()
    if started_for is None:  # else who started this process has said so
        progress.event("started", version=__version__, run=str(plan.place))
        flags.warn_of_unknown_variables(os.environ, progress)
    preemption = Preemption(
        time_limit,
        spent_seconds=watchdog.spent_seconds(),
        when_asked=lambda: storage.hurry(console.HURRY_SECONDS),
        when_interrupted=None if started_for else lambda: progress.event("stopping"),
    )
    preemption.install()
    if started_for is not None or trial is not None:
        return _one(plan, started_for or (trial or 0, 0), cluster, preemption, progress)
    if not best and report_place is None:
        _ends_with(tuner.run_trials(plan, trials, invocation.words, preemption))
    summary = plan.summary()
    progress.event("study_over", **summary)
    if best:
        summary |= _best(plan, invocation.words, preemption, progress)
    if report_place is not None:
        _draw(plan, report_place, progress)
    return verdict.came_to(summary)


def _one(
    plan: Study,
    which: tuple[int, int],
    cluster: Cluster,
    preemption: Preemption,
    progress: Progress,
) -> dict[str, Any]:
    """Run the trial and fresh seed `which` in this process, and return the verdict on it."""
    from job.tuning.trial import run_trial  # noqa: PLC0415

    tuner.stop_with_parent()
    trial, fresh_seed = which
    result = run_trial(plan, trial, cluster, preemption, progress, fresh_seed=fresh_seed)
    told = {each: value for each, value in result.items() if each != "schema_version"}
    return verdict.came_to({"study": str(plan.place), **told})


def _check_trials(trials: int, trial: int | None) -> None:
    if not 1 <= trials <= MOST_TRIALS:
        raise UsageError(f"--trials must be from 1 to {MOST_TRIALS:,}, not {trials}")
    if trial is not None and not 0 <= trial < trials:
        raise UsageError(f"--trial must be from 0 to {trials - 1}, below --trials, not {trial}")


def _of_the_index(index: int | None, trials: int) -> int | None:
    """Return which trial this pod of an Indexed Job is to run; None where it is of no such Job."""
    if index is not None and index >= trials:
        raise ClusterError(
            f"JOB_COMPLETION_INDEX is {index}, and --trials {trials} has no such trial: give the "
            "Job as many completions"
        )
    return index


def _best(
    plan: Study, words: Sequence[str], preemption: Preemption, progress: Progress
) -> dict[str, Any]:
    """Run the best trials again, tell who can't be told apart, and return who was chosen."""
    from job.tuning import finals  # noqa: PLC0415

    _ends_with(finals.run(plan, words, preemption))
    compared, failed = finals.finalists(plan), finals.failures(plan)
    if not compared:
        raise UsageError(
            f"{plan.place}: each of the best trials failed with another seed, the first one so: "
            f"{failed[0]['why']}"
        )
    chosen = finals.cheapest(compared)
    told = {"trial": chosen.trial, "command": finals.command(plan, chosen)}
    documents = [each.document for each in compared]
    progress.event("chosen", **told, seeds=finals.SEEDS, finalists=documents, failed=failed)
    return {"chosen": told}


def _draw(plan: Study, place: Place, progress: Progress) -> None:
    from job.tuning import picture  # noqa: PLC0415

    results = plan.results()
    if not results:
        raise MissingInputError(f"{plan.place} has no trial yet that could be drawn: run some")
    try:
        storage.create(place, picture.draw(plan, results).encode())
    except ConflictError as error:
        raise ConflictError(
            f"{place} is another file: nothing was overwritten; choose another --report"
        ) from error
    progress.event("study_drawn", at=str(place), trials=len(results))


def _ends_with(code: int) -> None:
    """End with the code of a process that didn't come to its end, and has told why."""
    if code:
        raise typer.Exit(code)


def _explicit(context: typer.Context, names: Iterable[str]) -> dict[str, None]:
    """Return those of `names` that a flag or a variable gives, in their order."""
    return {name: None for name in names if flags.is_given(context, name)}


def _texts(vary: list[str] | None, space: str | None) -> list[str] | None:
    """Return what is to be varied, a text for each dimension; None where nothing is said."""
    if not vary and space is None:
        return None
    texts = list(vary or ())
    if space is not None:
        place = parse(space, "--space")
        try:
            found = lines(storage.read(place, MAX_SPACE_BYTES).decode())
        except UnicodeDecodeError as error:
            raise DataError(f"{place} is no text: give lines such as dropout=0..0.5") from error
        if not found:
            raise DataError(f"{place} declares nothing: give lines such as dropout=0..0.5")
        texts += found
    return texts
