"""Pages of runs, left where they belong: beside what was published, or beside the attempt.

A run is published, and an attempt ends with its own code, whatever becomes of the page: what goes
wrong here is one warning, and `mnist-job report` makes the page later. So what draws is imported
inside of that, and no training waits for it.
"""

import time
from collections.abc import Mapping
from typing import Any

from job import storage
from job.data.source import Dataset
from job.process import runtime
from job.process.progress import Progress
from job.report.page import only_a_warning, place_it
from job.results import publishing
from job.results.publishing import RunFolder
from job.storage import Place

DRAWING_SECONDS = 2.5  # more than it takes to draw the page of an attempt, on a busy core


def draw(place: Place, data: Place | None, to: Place | None) -> str:
    """Draw the run in the folder `place` as it is now; return in a line where the page is.

    Args:
        place: of a run of any status.
        data: where the data of a complete run lie now; None for where they lay.
        to: where to write it; None to choose, see `place_it`.

    Raises:
        MissingInputError: there is no run.
        DataError: its metrics are no JSON.
        ConflictError: something else lies where the page is to go.
        JobError: what lies there can't be seen, or the page can't be written.
    """
    from job.report import complete, material, unfinished  # noqa: PLC0415

    folder = RunFolder(place)
    if storage.exists(folder.metrics):
        metrics = publishing.read_json(folder.metrics)
        page = complete.page_of(material.of_complete(folder, metrics, data=data))
        return place_it(page, folder.report, to, place.name)
    page = unfinished.page_of(material.of_unfinished(folder))
    return place_it(page, None, to, place.name)


def leave(
    folder: RunFolder,
    metrics: dict[str, Any],
    dataset: Dataset | None,
    progress: Progress,
    *,
    files: Mapping[Place, bytes] | None = None,
) -> None:
    """Write the page of a complete run into its folder, unless one is there.

    Args:
        folder: of the run.
        metrics: what its `metrics.json` holds.
        dataset: the run's, where it is loaded; None to load it if it is needed.
        progress: told if it can't be written.
        files: what the run has published, by a process that published it just now.
    """
    with only_a_warning(folder.report, progress):
        from job.report import complete, material  # noqa: PLC0415

        watch = runtime.Stopwatch()
        if files is None and storage.exists(folder.report):
            return
        run = material.of_complete(folder, metrics, dataset, files=files)
        storage.create(folder.report, complete.page_of(run))
        progress.event("report_written", page=str(folder.report), seconds=watch.lap())


def leave_of_attempt(folder: RunFolder, number: int, until: float, progress: Progress) -> None:
    """Write the page of an attempt that failed or was stopped beside its record.

    Args:
        folder: of the run.
        number: of the attempt.
        until: when to have ended, by `time.monotonic`; the process is about to be killed.
        progress: told if it can't be written.
    """
    place = folder.attempt_page(number)
    with only_a_warning(place, progress):
        from job.report import material, unfinished  # noqa: PLC0415

        watch = runtime.Stopwatch()
        # Stores are waited for aside. The drawing is not: a thread that draws while Python ends
        # could abort the process, and with it the exit code.
        run = runtime.beside(lambda: material.of_unfinished(folder)).result(
            max(0.0, until - DRAWING_SECONDS - time.monotonic())
        )
        page = unfinished.page_of(run)
        runtime.beside(lambda: storage.create(place, page)).result(
            max(0.0, until - time.monotonic())
        )
        progress.event("report_written", page=str(place), seconds=watch.lap())
