"""The published files of a run, copied to where somebody else looks for a model: `--model-dir`.

Platforms take a model from a folder of theirs, and know nothing of runs. The copy is as good as the
run's folder: each file is checked, none is overwritten, `metrics.json` comes last, and the commands
that take a run take it as well.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job import storage
from job.config import RunConfig
from job.errors import ConflictError, DataError, OutputError
from job.process.progress import Progress
from job.results.publishing import MAX_JSON_BYTES, MAX_WEIGHTS_BYTES, RunFolder, describe
from job.storage import Place, parse


@dataclass(frozen=True)
class Recipient:
    """A folder that is to have a copy of what a run publishes; or none, where none was named."""

    place: Place | None = None

    @classmethod
    def named(cls, folder: str | None, *, is_chief: bool) -> "Recipient":
        """Return the recipient that `--model-dir` names; of several workers the chief has one.

        Raises:
            UsageError: it is no folder that the job accepts.
        """
        place = None if folder is None else parse(folder, "--model-dir")
        return cls(place if is_chief else None)

    def check_free(self, config: RunConfig) -> None:
        """See, before anything is computed, that the folder can take the model of this run.

        Raises:
            ConflictError: another run's model lies there.
            OutputError: it is a local one that may not be written.
        """
        if self.place is None:
            return
        there = RunFolder(self.place)
        for place in (there.metrics, there.weights):
            # In this order: a twin copies after it has completed the run, and never before.
            if storage.exists(place) and RunFolder(config.place).finished(config) is None:
                raise ConflictError(
                    f"--model-dir {self.place} holds the {place.name} of another run: nothing was "
                    "overwritten; choose another --model-dir, or move that away"
                )
        if self.place.kind == "file" and not storage.exists(there.metrics):
            _check_writable(self.place)

    def take(self, folder: RunFolder, document: dict[str, Any], progress: Progress) -> None:
        """Copy what a complete run has published; done again, it finds its own copies.

        Args:
            folder: of the run.
            document: its metrics.
            progress: told of the end, and shown that the run moves after each file.

        Raises:
            ConflictError: a file is there with other bytes.
            DataError: what is published is damaged.
            OutputError: a file can't be written.
        """
        if self.place is None:
            return
        paths = []
        for artifact in document["artifacts"]:
            path = artifact["path"]
            content = storage.read(folder.place / path, MAX_WEIGHTS_BYTES)
            if describe(path, content).sha256 != artifact["sha256"]:
                raise DataError(
                    f"{folder.place / path} is damaged: its sha256 is not the one that "
                    f"{folder.metrics.name} names; bring it back, or train the run again"
                )
            storage.create(self.place / path, content)
            paths.append(path)
            progress.beat()
        for source in (folder.report, folder.metrics):
            if not storage.exists(source):  # a run may have no page
                continue
            to = self.place / source.name
            if source != folder.report or not storage.exists(to):  # it may be drawn anew any time
                storage.create(to, storage.read(source, MAX_JSON_BYTES))
            paths.append(source.name)
        progress.event("model_copied", to=str(self.place), files=paths)


def _check_writable(place: Place) -> None:
    folder = Path(place.path)
    # Not Path.exists, which raises where a folder above may not be searched.
    there = next(each for each in (folder, *folder.parents) if os.path.exists(each))  # noqa: PTH110
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(
            f"--model-dir {place} can't be written: {there} is no folder, or not one that uid "
            f"{os.geteuid()} may write; nothing was trained; give another"
        )
