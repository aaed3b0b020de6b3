"""What a person calls a run, or an output -> its folder."""

import re
from dataclasses import dataclass

from job import storage
from job.config import check_run_id
from job.nightly import champions
from job.results.publishing import RunFolder
from job.storage import Place, parse

_WORD = re.compile(r"[A-Za-z0-9._-]+")


def folder_of(name: str, output: str) -> Place:
    """Return the folder of the run that `name` means; whether anything lies there isn't looked at.

    Args:
        name: a run id, below `output`; `champion`, for whoever is champion there; or, with a slash
            in it, path or URI of a run's folder.
        output: folder or URI that runs lie below.

    Raises:
        UsageError: it means none.
        MissingInputError: there never was a champion.
    """
    if name == champions.FOLDER:
        log = champions.Log(parse(output, "--output"))
        return log.output / log.needed().champion.run
    if _WORD.fullmatch(name) and name not in {".", ".."}:
        return parse(output, "--output") / check_run_id(name)
    return parse(name, "RUN")


@dataclass(frozen=True)
class Output:
    """What runs lie below, where a person means no single one of them."""

    folder: Place


def run_or_output(name: str | None, output: str) -> Place | Output:
    """Return the folder of the run that `name` means, or the output that it is.

    Args:
        name: what `folder_of` takes; an output itself, by its path; None for `output`.
        output: folder or URI that runs lie below.

    Raises:
        UsageError: it means none.
        MissingInputError: there never was a champion.
        OutputError: what lies there can't be seen.
    """
    if name is None or name.rstrip("/") == output.rstrip("/"):
        return Output(parse(output, "--output"))
    folder = RunFolder(folder_of(name, output))
    if "/" not in name or storage.exists(folder.metrics) or storage.names(folder.attempts):
        return folder.place
    # Nothing of a run lies there. A person who mistyped a run's path is told by either.
    return Output(folder.place)
