"""The runs below an output, and how each of them is doing.

One listing finds the folders, and then all of them are read at once: `metrics.json` of a run that
is complete, and of any other the record of its newest attempt and of how that ended. Members of
ensembles count with their ensemble; what nights and studies keep there is no run.

Of a run without a record of its end nobody can say for certain whether it runs: SIGKILL, or a
machine that is lost, leaves none. It counts as running as long as its last sign of life is young:
the start of its newest attempt, or its newest checkpoint. After that it is called silent.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from job import storage
from job.catalog.documents import at, count_at, number_at, text_at, time_at
from job.catalog.reading import each
from job.config import MOST_MEMBERS, PRESETS, RESERVED_RUN_IDS, RunConfig
from job.errors import DataError, MissingInputError, OutputError
from job.nightly import champions
from job.process.progress import Progress
from job.results import publishing
from job.results.publishing import RunFolder
from job.results.statistics import wilson_interval
from job.storage import Place

# A run saves every half minute, and ends by itself where it couldn't for ten.
SILENT_AFTER_SECONDS = 600.0

Status = Literal["complete", "running?", "silent", "stopped", "failed", "half removed", "unknown"]
Sort = Literal["time", "accuracy", "seconds", "run", "status"]

_STATUSES: tuple[Status, ...] = (
    *("running?", "silent", "failed", "stopped", "unknown", "half removed", "complete"),
)
"""In the order of what a person may have to do something about."""
_OF_A_PRESET = tuple(sorted({name for fields in PRESETS.values() for name in fields}))
_ATTEMPT = re.compile(r"([0-9]{4})\.json")
_UNSEEN = (DataError, MissingInputError, OutputError)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, as its folder shows it; None is what nothing tells."""

    run: str
    """Name of its folder below the output, which may be anybody's."""
    place: Place
    status: Status
    why: str = ""
    """How a run failed or was stopped; why nothing is known of another."""
    code: int | None = None
    """Exit code of an attempt that ended without completing the run."""
    model: str | None = None
    members: int = 1
    """Nets of which it publishes the mean."""
    preset: str | None = None
    """The preset whose values its config has."""
    correct: int | None = None
    """Test images that it classified rightly, of `examples`."""
    examples: int | None = None
    data: str | None = None
    """Where its data set lay."""
    test_fingerprint: str | None = None
    """Scores on one test set can be compared."""
    seconds: float | None = None
    """That its last attempt took, from the start of the process to its end."""
    train_seconds: float | None = None
    """In the training loop, over all attempts."""
    attempts: int | None = None
    began: datetime | None = None
    """When its last attempt began."""
    time: datetime | None = None
    """When it was complete or ended; else its last sign of life."""
    champion: bool = False

    @property
    def accuracy(self) -> float | None:
        """Share of the test images that it classified rightly."""
        if self.correct is None or not self.examples:
            return None
        return self.correct / self.examples

    @property
    def accuracy_interval_95(self) -> tuple[float, float] | None:
        """Wilson's interval."""
        if self.correct is None or not self.examples:
            return None
        return wilson_interval(self.correct, self.examples)


class Runs:
    """The runs below an output, looked at as often as one likes.

    What is complete never changes, and so is read once.
    """

    def __init__(
        self,
        output: Place,
        progress: Progress,
        silent_after_seconds: float = SILENT_AFTER_SECONDS,
    ) -> None:
        """Look at nothing yet.

        Args:
            output: holds the runs, and the log of champions.
            progress: told of a log that can't be understood.
            silent_after_seconds: from when on a run without a sign of life is called silent.
        """
        self.output = output
        self.silent_after_seconds = silent_after_seconds
        self._progress = progress
        self._complete: dict[str, Run] = {}
        self._told = False  # that the champion is unknown

    def look(self, now: datetime) -> list[Run]:
        """Return all runs that are there `now`, by their names.

        Raises:
            JobError: what is there can't be seen, which is not to say that there is nothing.
        """
        names = [name for name in storage.folders(self.output) if name not in RESERVED_RUN_IDS]
        unread = [name for name in names if name not in self._complete]
        looked = each(lambda name: _look(self.output, name), unread)
        found = {run.run: run for run in looked if run is not None}
        self._complete = {
            name: run
            for name, run in (self._complete | found).items()
            if run.status == "complete" and name in names
        }
        champion = self._champion()
        together = _with_members(self._complete | found)
        return [
            replace(_aged(run, now, self.silent_after_seconds), champion=run.run == champion)
            for run in sorted(together, key=lambda run: run.run)
        ]

    def _champion(self) -> str | None:
        """Return the run that is champion, or None where there is none, or nobody can say."""
        try:
            entry = champions.Log(self.output).newest()
        except DataError as error:
            if not self._told:
                self._progress.event("champion_unknown", reason=str(error))
            self._told = True
            return None
        return None if entry is None else entry.champion.run


def ordered(runs: Iterable[Run], by: Sort) -> list[Run]:
    """Return `runs` sorted; what can't be compared comes last, by name.

    Args:
        runs: by name.
        by: `time`, the newest first; `accuracy`, the best first; `seconds`, the quickest first;
            `run`, by name; `status`, first what may need somebody.
    """
    keys: dict[Sort, Callable[[Run], float | None]] = {
        "time": lambda run: -run.time.timestamp() if run.time else None,
        "accuracy": lambda run: -run.accuracy if run.accuracy is not None else None,
        "seconds": lambda run: run.seconds,
        "run": lambda _: 0,
        "status": lambda run: _STATUSES.index(run.status),
    }
    key = keys[by]
    return sorted(runs, key=lambda run: (key(run) is None, key(run) or 0, run.run))


def document(run: Run) -> dict[str, Any]:
    """Return a run as JSON has it."""
    return {
        "run": run.run,
        "uri": str(run.place),
        "status": run.status,
        "why": run.why or None,
        "code": run.code,
        "champion": run.champion,
        "model": run.model,
        "ensemble": run.members if run.members > 1 else None,
        "preset": run.preset,
        "accuracy": run.accuracy,
        "accuracy_interval_95": run.accuracy_interval_95,
        "correct": run.correct,
        "examples": run.examples,
        "data": run.data,
        "test_fingerprint": run.test_fingerprint,
        "attempts": run.attempts,
        "began": run.began.isoformat(timespec="milliseconds") if run.began else None,
        "time": run.time.isoformat(timespec="milliseconds") if run.time else None,
        "seconds": run.seconds,
        "train_seconds": run.train_seconds,
    }


def preset_of(config: Any) -> str | None:
    """Return the preset whose values a run's config, which may be anybody's, has; or None."""
    for preset, fields in PRESETS.items():
        expected = {name: fields.get(name, getattr(RunConfig, name, None)) for name in _OF_A_PRESET}
        if all(at(config, name) == _as_recorded(name, expected[name]) for name in expected):
            return preset
    return None


def _as_recorded(name: str, value: Any) -> Any:
    """Return a field as a config's identity has it, which leaves out some that nobody gave."""
    return None if name in {"dropout", "augment_strength"} and not value else value


def _look(output: Place, name: str) -> Run | None:
    """Return what the folder `name` shows, if it is a run's."""
    folder = RunFolder(output / name)
    try:
        try:
            return _complete(name, folder, publishing.read_json(folder.metrics))
        except MissingInputError as error:
            if isinstance(error.__cause__, PermissionError):
                raise
        return _incomplete(name, folder)
    except _UNSEEN as error:
        return Run(run=name, place=folder.place, status="unknown", why=str(error))


def _complete(name: str, folder: RunFolder, metrics: dict[str, Any]) -> Run:
    correct, examples = count_at(metrics, "test", "correct"), count_at(metrics, "test", "examples")
    if correct is None or not examples or correct > examples:
        why = f"{folder.metrics.name} holds no score: this job didn't write it"
        return Run(run=name, place=folder.place, status="unknown", why=why)
    began = time_at(metrics, "started")
    seconds = number_at(metrics, "timing", "total_seconds")
    made_as = text_at(metrics, "run_id")
    return Run(
        run=name,
        place=folder.place,
        status="complete",
        why="" if made_as in {name, None} else f"made as {made_as}",
        **_of_config(at(metrics, "config")),
        correct=correct,
        examples=examples,
        test_fingerprint=text_at(metrics, "data", "test_fingerprint"),
        seconds=seconds,
        train_seconds=number_at(metrics, "timing", "train_seconds"),
        attempts=count_at(metrics, "attempts"),
        began=began,
        time=_later(began, seconds),
    )


def _incomplete(name: str, folder: RunFolder) -> Run | None:
    """Return what a run without metrics shows; None where nothing says that it is a run."""
    if storage.exists(folder.tombstone):
        why = "mnist-job prune --yes goes on with that"
        return Run(run=name, place=folder.place, status="half removed", why=why)
    written = storage.written(folder.attempts)
    numbers = [int(found[1]) for found in map(_ATTEMPT.fullmatch, written) if found]
    if not numbers:
        return None
    newest = max(numbers)
    record = publishing.read_json(folder.attempt(newest))
    began = time_at(record, "started") or written[folder.attempt(newest).name]
    run = Run(
        run=name,
        place=folder.place,
        status="running?",
        **_of_config(at(record, "config")),
        attempts=newest,
        began=began,
        time=began,
    )
    end = folder.attempt_end(newest)
    if end.name in written:
        return _ended(run, publishing.read_json(end), written[end.name])
    saved = storage.written(folder.checkpoints).values()
    signs = [time for time in (began, *saved) if time is not None]
    return replace(run, time=max(signs, default=None))


def _ended(run: Run, end: dict[str, Any], written: datetime | None) -> Run:
    """Return `run` as the record of the end of its newest attempt has it."""
    seconds = number_at(end, "seconds")
    return replace(
        run,
        status="failed" if at(end, "status") == "failed" else "stopped",
        why=text_at(end, "error") or "",
        code=count_at(end, "code"),
        seconds=seconds,
        time=written or _later(run.began, seconds),
    )


def _of_config(config: Any) -> dict[str, Any]:
    """Return what a run's config, which may be anybody's, says of it."""
    members = count_at(config, "ensemble") or 1
    return {
        "model": text_at(config, "model"),
        "members": members if members <= MOST_MEMBERS else 1,
        "preset": preset_of(config),
        "data": text_at(config, "data"),
    }


def _later(time: datetime | None, seconds: float | None) -> datetime | None:
    try:
        return None if time is None else time + timedelta(seconds=seconds or 0)
    except OverflowError:
        return time


def _with_members(runs: dict[str, Run]) -> list[Run]:
    """Return `runs` without the members of ensembles, which tell how theirs is doing."""
    members: dict[str, list[Run]] = {
        name: [
            runs[member]
            for number in range(1, run.members + 1)
            if (member := f"{name}-{number}") in runs
        ]
        for name, run in runs.items()
        if run.members > 1
    }
    hidden = {member.run for found in members.values() for member in found}
    return [
        _as_its_members(run, members.get(name, []))
        for name, run in runs.items()
        if name not in hidden
    ]


def _as_its_members(run: Run, members: list[Run]) -> Run:
    """Return an ensemble that isn't complete as its liveliest member is.

    It writes nothing itself while they train, not even when it is stopped.
    """
    signs = [(member.time, member) for member in members if member.time is not None]
    if run.status != "running?" or not signs:
        return run
    time, liveliest = max(signs, key=lambda sign: sign[0])
    if run.time is not None and run.time > time:  # it was begun again, or is being joined
        return run
    if liveliest.status in {"stopped", "failed"}:
        facts = {name: getattr(liveliest, name) for name in ("status", "code", "why", "seconds")}
        return replace(run, time=time, **facts)
    return replace(run, time=time)


def _aged(run: Run, now: datetime, silent_after_seconds: float) -> Run:
    """Return `run`, called silent if its last sign of life is too old."""
    if run.status != "running?":
        return run
    age = (now - run.time).total_seconds() if run.time else silent_after_seconds
    return run if age < silent_after_seconds else replace(run, status="silent")
