"""What a person calls a run -> its folder."""

import re

from job.config import check_run_id
from job.nightly import champions
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
