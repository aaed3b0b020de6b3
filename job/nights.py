"""The commands of nights: what a night does by itself, and what people may do to its log."""

from typing import Annotated

import typer

from job import console, flags
from job.config import DataSource, parse_data
from job.storage import Settings, parse

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
data = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(data, name="data", help="Look at data before a night does.")


@data.callback()
def _data() -> None:
    """Look at data before a night does."""


@data.command("check")
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
    checked = guard.check(dataset, names, reference, allowed=allowed)
    console.say(guard.table(dataset, checked))
    guard.refuse(checked.refusals(accept_drift or []))
