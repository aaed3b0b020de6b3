"""The commands that look at what was published: none of them trains, and none changes a run."""

import os
import shlex
import shutil
import sys
from typing import Annotated

import typer

from job import console, flags
from job.storage import Settings, parse

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


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
