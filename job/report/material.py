"""What a run has left -> all that its page is made of, and of what is missing, why.

A page is made whatever is missing: predictions that an older version didn't publish, data that lie
somewhere else by now, a store that doesn't answer for a part of it. Nothing here needs TensorFlow.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from job import storage
from job.data import source
from job.data.source import Dataset
from job.errors import DataError, MissingInputError
from job.report.page import Parts
from job.results import hdf5, publishing
from job.results.predictions import MAX_BYTES, Predictions
from job.results.publishing import MAX_WEIGHTS_BYTES, RunFolder
from job.storage import Place
from job.training import checkpoint

MOST_ATTEMPTS = 30  # that are read and told of, the newest
_ATTEMPT = re.compile(r"(\d{4})(-end)?\.json")
_DENSE = "mlp"  # of whose first layer each unit has a weight for each pixel


@dataclass(frozen=True)
class Attempts:
    """Who began a run, and how that ended."""

    records: tuple[dict[str, Any], ...]
    """Of the newest attempts, the oldest first; each has `attempt`, its number from 1."""
    ends: Mapping[int, dict[str, Any]]
    """How attempts ended that left a word, by number."""
    earlier: int = 0
    """How many attempts there were before those."""


@dataclass(frozen=True, eq=False)  # comparing arrays gives arrays
class Complete:
    """What the page of a complete run is made of."""

    name: str
    metrics: dict[str, Any]
    predictions: Predictions | None
    dataset: Dataset | None
    kernel: npt.NDArray[np.float32] | None
    """Of the first layer of a dense net, shape (pixels, units)."""
    ends: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    missing: tuple[tuple[str, str], ...] = ()
    """Each part that isn't there, and why."""


@dataclass(frozen=True)
class Unfinished:
    """What the page of a run is made of that isn't complete."""

    place: Place
    attempts: Attempts
    history: tuple[dict[str, Any], ...]
    """What is known of each finished epoch, by the newest checkpoint."""
    step: int | None
    """Steps that are saved; None where none are, or nobody can tell."""
    missing: tuple[tuple[str, str], ...] = ()


def of_complete(
    folder: RunFolder,
    metrics: dict[str, Any],
    dataset: Dataset | None = None,
    *,
    data: Place | None = None,
    files: Mapping[Place, bytes] | None = None,
) -> Complete:
    """Gather what the page of the complete run in `folder` is made of.

    Args:
        folder: of the run.
        metrics: what its `metrics.json` holds, which may be anybody's.
        dataset: the run's, where it is loaded already; None to load it here.
        data: where its data lie now; None for where they lay.
        files: what it has published, where that is known already; None to read it.
    """
    parts = Parts()

    def content(place: Place, limit_bytes: int) -> bytes:
        if files is not None:
            return files[place]
        return publishing.read_artifact(place, limit_bytes)[0]

    def predictions() -> Predictions:
        found = content(folder.predictions, MAX_BYTES)
        return Predictions.from_bytes(found, str(folder.predictions))

    def kernel() -> npt.NDArray[np.float32]:
        first = hdf5.read(content(folder.weights, MAX_WEIGHTS_BYTES), str(folder.weights))[0]
        if first.ndim != 2:
            raise DataError(f"{folder.weights} begins with no dense layer: it has {first.shape}")
        return first

    return Complete(
        name=folder.place.name,
        metrics=metrics,
        predictions=parts.of("Mistakes, close calls and reliability", predictions),
        dataset=parts.of("Pictures and the data", lambda: dataset or _data(metrics, data)),
        kernel=parts.of("Weights of the first layer", kernel) if _is_dense(metrics) else None,
        ends=parts.of("How attempts ended", lambda: _ends(folder, metrics)) or {},
        missing=tuple(parts.missing),
    )


def _is_dense(metrics: Mapping[str, Any]) -> bool:
    model = metrics.get("model")
    return isinstance(model, dict) and model.get("name") == _DENSE and "ensemble" not in model


def _data(metrics: dict[str, Any], data: Place | None) -> Dataset:
    """Return the data that a run was made of.

    Raises:
        DataError: others lie there now.
    """
    dataset = source.load(source.of_run(metrics, data))
    facts = metrics.get("data")
    wanted = facts.get("fingerprint") if isinstance(facts, dict) else None
    if wanted != dataset.fingerprint:
        raise DataError(
            f"{dataset.uri} holds other data than those of the run (fingerprint "
            f"{dataset.fingerprint[:12]}..., not {str(wanted)[:12]}...): bring them back, or name "
            "them with --data"
        )
    return dataset


def _ends(folder: RunFolder, metrics: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return how the attempts before the last one ended; a run of one attempt has no such."""
    number = metrics.get("attempts")
    return dict(attempts_of(folder).ends) if isinstance(number, int) and number > 1 else {}


def of_unfinished(folder: RunFolder) -> Unfinished:
    """Gather what is known of a run that isn't complete.

    Raises:
        MissingInputError: there is no run.
        JobError: what lies there can't be seen.
    """
    attempts = attempts_of(folder)
    if not attempts.records and not attempts.ends:
        raise MissingInputError(
            f"{folder.place} holds no run: neither metrics.json nor attempts; check the path"
        )
    parts = Parts()
    state = parts.of("Curves so far", lambda: _newest_state(folder))
    return Unfinished(
        place=folder.place,
        attempts=attempts,
        history=() if state is None else state.history,
        step=None if state is None else state.step,
        missing=tuple(parts.missing),
    )


def attempts_of(folder: RunFolder) -> Attempts:
    """Return the newest attempts at a run; a record that is damaged is left out."""
    found = [_ATTEMPT.fullmatch(name) for name in storage.names(folder.attempts)]
    numbers = sorted({int(each[1]) for each in found if each})
    ended = {int(each[1]) for each in found if each and each[2]}
    newest = numbers[-MOST_ATTEMPTS:]
    parts = Parts()

    def read(place: Place) -> dict[str, Any]:
        return parts.of("", lambda: publishing.read_json(place)) or {}

    return Attempts(
        records=tuple(read(folder.attempt(each)) | {"attempt": each} for each in newest),
        ends={each: read(folder.attempt_end(each)) for each in newest if each in ended},
        earlier=len(numbers) - len(newest),
    )


def _newest_state(folder: RunFolder) -> checkpoint.State | None:
    """Return the newest state that verifies; None where none was saved."""
    names = checkpoint.names_in(folder.checkpoints)
    for name in reversed(names):
        try:
            return checkpoint.read(folder.checkpoints / name)
        except (DataError, MissingInputError):  # removed meanwhile, or damaged: one before may do
            if name == names[0]:
                raise
    return None
