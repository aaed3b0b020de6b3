"""The commands of nights: what a night does by itself, and what people do to the log."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from job import __version__, storage
from job.commands import console, flags
from job.commands.invocation import Invocation
from job.config import DataSource, RunConfig, check_run_id, fresh_run_id, parse_data, parse_duration
from job.errors import (
    ConflictError,
    DataError,
    JobError,
    MissingInputError,
    StoppedError,
    UsageError,
)
from job.process import verdict
from job.process.liveness import Liveness
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.storage import Settings, parse

if TYPE_CHECKING:
    from job.nightly import champions

_MOST_RACES = 20

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def retrain(
    context: typer.Context,
    data: flags.Data = RunConfig.data,
    base: flags.Base = RunConfig.base,
    output: flags.Output = RunConfig.output,
    night: flags.Night = None,
    promote: flags.Promote = "no-worse",
    gate_alpha: flags.GateAlpha = 0.05,
    gate_minimum: flags.GateMinimum = 0.9,
    skip_bad_shards: flags.SkipBadShards = False,
    accept_changed_shards: flags.AcceptChangedShards = False,
    leak_allow: flags.LeakAllow = None,
    accept_drift: flags.AcceptDrift = None,
    stale_after: flags.StaleAfter = None,
    notify: flags.Notify = None,
    again: flags.Again = False,
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
    export: flags.Export = RunConfig.export,
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
    no_report: flags.NoReport = False,
    tensorboard: flags.Tensorboard = False,
    pushgateway: flags.Pushgateway = None,
    failure_file: flags.FailureFile = None,
    platform: flags.Platform = "auto",
) -> dict[str, Any]:
    """Let a night happen: train on what is new, judge, promote."""
    given = dict(locals())  # before anything but the flags has a name
    verdict.check(termination_log)
    verdict.check(failure_file, verdict.FAILURE)
    invocation: Invocation = context.obj
    from job.nightly import notice  # noqa: PLC0415  the other commands need no HTTP

    url = None if notify is None else notice.url_of(notify)
    cluster = invocation.cluster(os.environ, together=strategy in ("auto", "multiworker"))
    if cluster.workers.count > 1 or strategy == "multiworker":
        raise UsageError("retrain runs as one process: start it as one pod, without workers")
    from job.nightly import desk, gate, guard  # noqa: PLC0415
    from job.nightly import night as nights_work  # noqa: PLC0415

    console.prepare_tensorboard(tensorboard)
    training = flags.of_training(context, given)
    config = RunConfig(
        data=data,
        base=base,
        output=output,
        run_id="night",  # until code, config and data have named the run
        **training,
        init_weights=init_weights,
        export=export,
        strategy=strategy,
        require_gpu=require_gpu,
        precision=precision,
        checkpoint_seconds=checkpoint_seconds,
        time_limit=time_limit,
        report=not no_report,
        tensorboard=tensorboard,
    )
    plan = desk.Plan(
        night=_night_id(night or cluster.job),
        rules=gate.Rules(alpha=gate_alpha, minimum=gate_minimum, promote=promote),
        skip_bad_shards=skip_bad_shards,
        accept_changed_shards=accept_changed_shards,
        leak_allow=tuple(sorted(guard.allowed_leaks(leak_allow or ()))),
        accept_drift=tuple(sorted(accept_drift or ())),
        stale_after_seconds=(
            None if stale_after is None else parse_duration(stale_after, "--stale-after")
        ),
        again=again,
    )
    progress = Progress(log, liveness=Liveness(liveness_file), quiet=quiet)
    console.use_storage(storage_timeout, anonymous, progress)
    watchers = console.watchers(pushgateway, cluster, progress)
    invocation.tell(progress)
    progress.event("started", version=__version__, run=f"{config.output}, night {plan.night}")
    if notify is not None and url is None:
        progress.event("not_notified", to=notify, reason="there is no such file")
    flags.warn_of_unknown_variables(os.environ, progress)
    preemption = Preemption(
        time_limit,
        when_asked=lambda: storage.hurry(console.HURRY_SECONDS),
        when_interrupted=lambda: progress.event("stopping"),
    )
    preemption.install()
    try:
        record = nights_work.retrain(plan, config, cluster, preemption, progress)
    except StoppedError:
        raise  # to be continued: there is nothing to tell, and little time
    except Exception as error:
        left = desk.record_of_failure(plan, config, error)
        told = desk.summary_of_failure(plan, left, error)
        if url is not None:
            notice.post(url, told, progress)
        watchers.night_over(parse(output, "--output"), plan.night, left, told["code"])
        if not isinstance(error, JobError):
            raise
        return told  # which says more than `error` does: how old the champion is
    told = desk.summary(record)
    if url is not None:
        notice.post(url, told, progress)
    watchers.night_over(parse(output, "--output"), plan.night, record, 0)
    return verdict.came_to(told)


@app.command()
def champion(
    output: flags.Output = RunConfig.output,
    as_json: flags.AsJson = False,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Show which model is the champion, and how it came to be."""
    console.progress_aside(storage_timeout, anonymous)
    from job.nightly import champions, history  # noqa: PLC0415

    log = champions.Log(parse(output, "--output"))
    log.needed()
    entries = log.entries()
    if as_json:
        console.say(json.dumps([champions.document(entry) for entry in entries], indent=2))
    else:
        console.say(history.table(entries))


@app.command()
def promote(
    run: flags.RunName,
    reason: flags.Reason,
    output: flags.Output = RunConfig.output,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Make the model of a complete run the champion."""
    console.progress_aside(storage_timeout, anonymous)
    from job.nightly import champions  # noqa: PLC0415

    place = parse(output, "--output")
    model = champions.published(place, run)

    def entry(log: champions.Log) -> champions.Entry:
        former = log.newest()
        anchor = None if former is None else champions.anchor_instead(log, former)
        return champions.promotion_by_hand(former, model, _given(reason), anchor)

    _append(champions.Log(place), entry)


@app.command()
def rollback(
    reason: flags.Reason,
    to: flags.To = None,
    output: flags.Output = RunConfig.output,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Bring an earlier champion back, and bar what came after."""
    console.progress_aside(storage_timeout, anonymous)
    from job.nightly import champions  # noqa: PLC0415

    def entry(log: champions.Log) -> champions.Entry:
        log.needed()
        back = champions.rollback(log.entries(), to, _given(reason))
        try:
            champions.published(log.output, back.champion.run)  # it may have been pruned
        except (MissingInputError, DataError) as error:
            raise type(error)(f"{error}; or bring another champion back, by --to") from error
        anchor = champions.anchor_instead(log, back)
        return back if anchor is None else replace(back, anchor=anchor)

    _append(champions.Log(parse(output, "--output")), entry)


@app.command()
def hold(
    reason: flags.Reason,
    output: flags.Output = RunConfig.output,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Let nights train and judge, but promote nothing."""
    console.progress_aside(storage_timeout, anonymous)
    from job.nightly import champions  # noqa: PLC0415

    _append(
        champions.Log(parse(output, "--output")),
        lambda log: champions.holding(log.needed(), _given(reason)),
    )


@app.command()
def unhold(
    reason: flags.Reason,
    output: flags.Output = RunConfig.output,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Let nights promote again."""
    console.progress_aside(storage_timeout, anonymous)
    from job.nightly import champions  # noqa: PLC0415

    _append(
        champions.Log(parse(output, "--output")),
        lambda log: champions.releasing(log.needed(), _given(reason)),
    )


@app.command()
def prune(
    output: flags.Output = RunConfig.output,
    keep: flags.Keep = 30,
    keep_entries: flags.KeepEntries = 10,
    leftovers_after: flags.LeftoversAfter = "7d",
    yes: flags.Yes = False,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Remove old runs, but none that the log of champions names; without --yes only show them."""
    console.progress_aside(storage_timeout, anonymous)
    from job.nightly import pruning  # noqa: PLC0415

    rules = pruning.Rules(
        keep=keep,
        keep_entries=keep_entries,
        leftovers_after_seconds=parse_duration(leftovers_after, "--leftovers-after"),
    )
    place = parse(output, "--output")
    fates = pruning.plan(place, rules, datetime.now(UTC))
    if fates:
        console.say(pruning.table(fates))
    if not yes:
        console.say(f"{pruning.summary(fates)}: nothing was removed, give --yes to do it")
        return
    removed = 0
    for fate in fates:
        if not fate.goes and fate.found.state != "half removed":
            continue
        stays = pruning.remove(place, fate, rules)
        removed += stays is None
        run = fate.found.run
        console.say(f"removed {run}" if stays is None else f"kept {run}: {stays}")
    console.say(f"{removed} of {len(fates)} runs were removed")


@app.command()
def verify(
    run: flags.Proved,
    output: flags.Output = RunConfig.output,
    data: flags.ProvedData = None,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Train a run again from its record, and see that the same bytes come of it.

    Of an ensemble, join the published weights of its members again.
    """
    progress = console.progress_aside(storage_timeout, anonymous)
    from job.nightly import champions, proof  # noqa: PLC0415

    place = parse(output, "--output")
    if run == champions.FOLDER:  # which no run may be called
        log = champions.Log(place)
        entry = log.needed()
        record = proof.Record.of_run(place, entry.champion.run)
        proof.check_named(record, entry.champion, log.place(entry.number))
    else:
        record = proof.Record.of_run(place, check_run_id(run))
    preemption = Preemption()
    preemption.install()
    console.say(str(proof.prove(record, data, preemption, progress)))


def _append(
    log: "champions.Log", entry_for: Callable[["champions.Log"], "champions.Entry"]
) -> None:
    """Append what `entry_for` makes of the log as it is; of what it is now, if others wrote too."""
    from job.nightly import champions  # noqa: PLC0415

    for _ in range(_MOST_RACES):
        entry = entry_for(log)
        try:
            log.append(entry)
        except champions.OvertakenError:
            continue
        console.say(f"{log.place(entry.number)}: {entry.act}; the champion is {entry.champion.run}")
        return
    raise ConflictError(f"{log.folder} is written by others all the time: try again")


def _given(reason: str) -> str:
    if not reason.strip():
        raise UsageError("--reason is empty: say why, for whoever reads the log later")
    return reason.strip()


def _night_id(given: str | None) -> str:
    try:
        return check_run_id(given or fresh_run_id("night"))
    except UsageError as error:
        raise UsageError(str(error).replace("--run-id", "--night")) from error


looking = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(looking, name="data", help="Look at data before a night does.")


@looking.callback()
def _data() -> None:
    """Look at data before a night does."""


@looking.command("check")
def check_data(
    uri: Annotated[str, typer.Argument(metavar="URI", help="What --data of retrain is to name.")],
    base: flags.Base = None,
    output: flags.ChampionsOutput = None,
    leak_allow: flags.LeakAllow = None,
    accept_drift: flags.AcceptDrift = None,
    skip_bad_shards: flags.SkipBadShards = False,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Measure what a night would refuse data for, without training; exit 65 if it would."""
    progress = console.progress_aside(storage_timeout, anonymous)
    base_place = None if base is None else parse_data(base, "--base")
    source = DataSource(parse_data(uri, "URI"), base_place)
    output_place = None if output is None else parse(output, "--output")
    from job.data.card import Card  # noqa: PLC0415  NumPy is for those who need it
    from job.data.source import load  # noqa: PLC0415
    from job.nightly import guard  # noqa: PLC0415
    from job.nightly.champions import Log  # noqa: PLC0415

    allowed = guard.allowed_leaks(leak_allow or [])
    entry = None if output_place is None else Log(output_place).newest()
    known = entry.card if entry is not None else None
    dataset = load(source, skip_bad=skip_bad_shards)
    for name, details in dataset.remarks():
        progress.event(name, **details)
    reference = (
        Card.from_document(known) if known else Card.of(*dataset.base_examples, dataset.classes)
    )
    names = [guard.BASE, *(shard.name for shard in dataset.shards)]
    champion = None
    if entry is not None and output_place is not None:
        from job.nightly.contest import Contender  # noqa: PLC0415

        champion = Contender.of(output_place, entry.champion)
    checked = guard.check(
        dataset,
        names,
        reference,
        allowed=allowed,
        classify=None if champion is None else champion.classes,
        accuracy=0.0 if champion is None else champion.model.accuracy,
    )
    console.say(guard.table(dataset, checked))
    guard.refuse(checked.refusals(accept_drift or []))
