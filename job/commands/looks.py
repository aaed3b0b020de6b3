"""The commands that look at what was published: none of them trains, and none changes a run."""

import json
import os
import shlex
import shutil
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from job import storage
from job.commands import console, flags
from job.config import RunConfig, parse_data, parse_duration
from job.errors import MissingInputError, TemporaryError, UsageError
from job.process import preemption as signals
from job.process.progress import Progress
from job.storage import Place, Settings, parse

if TYPE_CHECKING:
    from job.catalog.comparing import Side
    from job.catalog.listing import Sort
    from job.results.predictions import Predictions

WATCH_SECONDS = 3.0  # from one look to the next

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def runs(
    output: flags.Output = RunConfig.output,
    sort: flags.SortRuns = "time",
    silent_after: flags.SilentAfter = "10m",
    watch: flags.Watch = False,
    as_json: flags.AsJson = False,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """List the runs below an output: how each is doing, and how good it is.

    Status: complete; stopped (the same command goes on) or failed, as its newest attempt has left
    word; without such word 'running?' as long as its newest start or checkpoint is younger than
    --silent-after, which nobody can be sure of, and 'silent' after that: killed, most likely.
    Members of ensembles, and what nights and studies keep, are no runs.
    """
    progress = console.progress_aside(storage_timeout, anonymous)
    seconds = parse_duration(silent_after, "--silent-after")
    if watch and as_json:
        raise UsageError("--watch draws a table, and --json prints none: drop one of both")
    if watch and not sys.stdout.isatty():
        raise UsageError("--watch draws on a terminal, and standard output is none: drop it")
    from job.catalog import listing, tables  # noqa: PLC0415

    place = parse(output, "--output")
    if watch:
        _watch(place, sort, seconds, Settings(timeout_seconds=storage_timeout, anonymous=anonymous))
        return
    now = datetime.now(UTC)
    found = listing.ordered(listing.Runs(place, progress, seconds).look(now), sort)
    if as_json:
        console.say(json.dumps([listing.document(run) for run in found], indent=2))
    elif not found:
        console.say(_nothing_at(place))
    elif sys.stdout.isatty():
        console.say(tables.for_terminal(found, now, seconds))
    else:
        console.say(tables.plain(found, now, seconds))


def _watch(output: Place, sort: "Sort", silent_after_seconds: float, settings: Settings) -> None:
    """Draw the runs again and again until Ctrl-C, which is a good end.

    A store that doesn't answer is no end: the table stays, and says so.
    """
    from rich.console import Console, Group  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from job.catalog import listing, tables  # noqa: PLC0415

    terminal, found = Console(highlight=False), []
    signals.raise_when_interrupted()
    try:
        with Live(console=terminal, auto_refresh=False) as live:
            progress = Progress("text", sys.stderr)  # which is now shown above the table
            storage.configure(replace(settings, notify=progress.event))
            looked = listing.Runs(output, progress, silent_after_seconds)
            while True:
                now, told = datetime.now(UTC), ""
                try:
                    found = listing.ordered(looked.look(now), sort)
                    told = "" if found else _nothing_at(output)
                except TemporaryError as error:
                    told = f"not looked at anew: {error}"
                table = tables.fitting(found, now, silent_after_seconds, terminal)
                live.update(Group(table, Text(told)) if told else table, refresh=True)
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        storage.hurry(0)  # what is being asked is not waited for


def _nothing_at(output: Place) -> str:
    return f"no run lies below {output}: check --output, or train one"


@app.command()
def compare(
    run: flags.OneRun,
    other: flags.OtherRun,
    output: flags.Output = RunConfig.output,
    compute: flags.Compute = False,
    as_json: flags.AsJson = False,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Compare two runs: what differs, and whether one is better, by an exact paired test."""
    progress = console.progress_aside(storage_timeout, anonymous)
    from job.catalog import comparing, naming  # noqa: PLC0415
    from job.catalog.reading import each  # noqa: PLC0415

    places = [naming.folder_of(name, output) for name in (run, other)]
    a, b = each(comparing.Side.read, places)
    paired, why_not = None, comparing.unpaired(a, b)
    if why_not is None:
        predictions = [_predictions(side, progress, compute=compute) for side in (a, b)]
        lacking = [side for side, found in zip((a, b), predictions, strict=True) if found is None]
        if lacking:
            names = " and ".join(str(side.place) for side in lacking)
            why_not = f"{names} published no predictions.safetensors; --compute makes up for it"
        else:
            paired = comparing.paired(*(found for found in predictions if found is not None))
    told = comparing.document(a, b, paired, why_not)
    console.say(json.dumps(told, indent=2) if as_json else comparing.table(told))


def _predictions(side: "Side", progress: Progress, *, compute: bool) -> "Predictions | None":
    """Return what a run said of each test image: as published, or computed again if wanted."""
    from job.results.predictions import Predictions  # noqa: PLC0415
    from job.results.publishing import RunFolder  # noqa: PLC0415

    try:
        return Predictions.read(RunFolder(side.place))
    except MissingInputError:
        if not compute:
            return None
    from job.results import inference  # noqa: PLC0415

    return inference.predictions_again(inference.Published.open(side.place, None, None, progress))


@app.command()
def fetch(
    run: flags.OneRun,
    folder: flags.HomeFolder,
    output: flags.Output = RunConfig.output,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Bring a run to a folder of this machine, every file checked; the same again goes on."""
    progress = console.progress_aside(storage_timeout, anonymous)
    place = parse(folder, "DIR")
    from job.catalog import fetching, naming  # noqa: PLC0415

    fetched = fetching.fetch(
        naming.folder_of(run, output),
        place,
        lambda file: console.say(fetching.line(file)),
        progress,
    )
    console.say(fetching.summary(fetched))


@app.command()
def report(
    shown: flags.Shown = None,
    output: flags.Output = RunConfig.output,
    to: flags.ReportTo = None,
    data: flags.ProvedData = None,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Draw a run, a night, or all that lies below an output, into one HTML file."""
    progress = console.progress_aside(storage_timeout, anonymous)
    data_place = None if data is None else parse_data(data)
    to_place = None if to is None else parse(to, "--to")
    from job.report import nights, runs  # noqa: PLC0415

    if shown is not None and nights.is_record(shown):
        console.say(nights.draw(parse(shown, "RUN"), data_place, to_place))
        return
    from job.catalog import history_page, naming  # noqa: PLC0415

    place = naming.run_or_output(shown, output)
    if isinstance(place, naming.Output):
        if data is not None:
            raise UsageError(
                f"--data is for a run or a night, and {place.folder} is no run: drop it"
            )
        now = datetime.now(UTC)
        console.say(history_page.draw(place.folder, to_place, progress, now))
        return
    console.say(runs.draw(place, data_place, to_place))


@app.command(context_settings={"allow_extra_args": True})
def tensorboard(
    context: typer.Context,
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="Folder of a run, or of runs: an --output.")
    ],
    print_only: flags.PrintOnly = False,
    storage_timeout: flags.StorageTimeout = Settings.timeout_seconds,
    anonymous: flags.Anonymous = Settings.anonymous,
) -> None:
    """Look at curves in TensorBoard; what follows -- is handed to it."""
    console.progress_aside(storage_timeout, anonymous)
    place = parse(uri, "URI")
    from job.report import logdir  # noqa: PLC0415

    brought = logdir.bring(place, os.environ)
    command = ["tensorboard", "--logdir", str(brought.folder), *context.args]
    # The one beside this Python first: an environment that isn't activated is on no PATH.
    beside = shutil.which("tensorboard", path=os.path.dirname(sys.executable))  # noqa: PTH120
    program = beside or shutil.which("tensorboard")
    if program is None or print_only:
        console.say(shlex.join(command))
        return
    console.say(f"{brought.runs} runs in {brought.folder}")
    os.execv(program, command)  # noqa: S606
