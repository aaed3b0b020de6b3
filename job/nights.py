"""The commands of nights: what a night does by itself, and what people may do to its log."""

from datetime import UTC, datetime

import typer

from job import console, flags
from job.config import RunConfig, parse_duration
from job.storage import Settings, parse

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


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
