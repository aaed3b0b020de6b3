"""What commands share: where they print, how they end, how they use storage."""

import os
import sys

from job import storage
from job.commands import flags
from job.errors import OutputError
from job.process import preemption as signals
from job.process import verdict
from job.process.progress import Progress, drop_unwritten, reason, write_line
from job.report.watchers import Watchers
from job.storage import Settings
from job.workers.cluster import Cluster

# A pod on a spot node has 25 seconds to end: these are for saving, run.END_SECONDS for the record
# of the end, and the rest for a chunk of training to finish and the process to exit.
HURRY_SECONDS = 15.0


def progress_aside(timeout: float, anonymous: bool) -> Progress:
    """Return where a command that prints its result says anything else, and use storage so.

    Such a command has no work to save: Ctrl-C ends it at once.
    """
    ended = verdict.failure("interrupted", signals.EXIT_INTERRUPTED)
    signals.end_when_interrupted(lambda: tell_failure(Progress("text", sys.stderr), ended))
    progress = Progress("text", sys.stderr)
    use_storage(timeout, anonymous, progress)
    flags.warn_of_unknown_variables(os.environ, progress)
    return progress


def use_storage(timeout: float, anonymous: bool, progress: Progress) -> None:
    """Use storage as the flags of a command say."""
    storage.configure(Settings(timeout_seconds=timeout, anonymous=anonymous, notify=progress.event))


def watchers(pushgateway: str | None, cluster: Cluster, progress: Progress) -> Watchers:
    """Return whom to tell when a run or a night is over; of several workers the chief tells.

    Raises:
        UsageError: the flag --pushgateway gives no URL.
    """
    if not cluster.workers.is_chief:
        return Watchers(progress)
    return Watchers.named(pushgateway, cluster.job, os.environ, progress)


def prepare_tensorboard(wanted: bool | None) -> None:
    """Import what writes event files, if they are wanted.

    Raises:
        ClusterError: what writes them isn't installed.
    """
    if wanted:
        from job.report import tensorboard  # noqa: PLC0415

        tensorboard.load()


def tell_failure(progress: Progress, ended: dict[str, object]) -> None:
    """Say in the form of the log what went wrong, if anything did."""
    if ended["code"] != 0:
        progress.event("failed", error=ended["error"], code=ended["code"])


def say(text: str) -> None:
    """Print what the command was called for.

    Raises:
        OutputError: it can't be printed. That nobody reads on is no failure.
    """
    try:
        write_line(sys.stdout, text)
    except BrokenPipeError:
        drop_unwritten()
    except (OSError, ValueError) as error:
        raise unprinted(error) from error


def unprinted(error: Exception) -> OutputError:
    """Return what to raise because standard output can't be written."""
    return OutputError(
        f"standard output cannot be written ({reason(error)}): check where it goes, and its room"
    )
