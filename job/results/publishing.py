"""What a run leaves behind: its attempts, its artifacts, and `metrics.json` last.

Whoever finds `metrics.json` may trust the whole folder: it is written after everything it names,
and names size and sha256 of each. Until then the run isn't complete, and the same command goes on
with it.

    <run>/attempts/0001.json    who began, when, with which config; one for each start
    <run>/model_weights.h5, model.keras
    <run>/metrics.json
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from job import storage
from job.config import RunConfig
from job.errors import ConflictError, DataError
from job.storage import uris
from job.workers.cluster import Cluster

METRICS = "metrics.json"
WEIGHTS = "model_weights.h5"
ARCHIVE = "model.keras"
MAX_JSON_BYTES = 64 * storage.MEBIBYTE  # a confusion matrix of 1,000 classes has 8 MiB
_MAX_ATTEMPTS = 9_999


@dataclass(frozen=True)
class Artifact:
    """A published file, as `metrics.json` names it."""

    path: str
    """Relative to the run's folder."""
    size: int
    """Bytes."""
    sha256: str


def finished(config: RunConfig) -> dict[str, Any] | None:
    """Return the metrics of the run that `config` names if it is complete already, else None.

    Raises:
        ConflictError: the run is complete, but was made with another config.
        DataError: its metrics can't be understood.
    """
    uri = uris.join(config.run_uri, METRICS)
    if not storage.exists(uri):
        return None
    document = read_json(uri)
    _check_owner(document, config, uri)
    if lacking := [part for part in ("test", "timing", "artifacts") if part not in document]:
        raise DataError(f"{uri} lacks {', '.join(lacking)}: move the run away and train it again")
    return document


def claim(config: RunConfig, fingerprint: str, cluster: Cluster, started: str) -> int:
    """Write down that an attempt at the run begins, and return its number, from 1.

    The first thing a run writes: it shows that the output can be written before anything is
    computed, and keeps a run id to the config and data that took it first.

    Raises:
        ConflictError: the run was begun with another config or other data.
        OutputError: the output can't be written.
    """
    record = {
        "started": started,
        "config_sha256": config.digest,
        "config": config.identity,
        "data_fingerprint": fingerprint,
        **cluster.names,
    }
    number = 1
    while number <= _MAX_ATTEMPTS:
        uri = _attempt_uri(config, number)
        try:
            storage.create(uri, to_json({"attempt": number, **record}))
        except ConflictError:
            before = read_json(uri)
            _check_owner(before, config, uri)
            if before.get("data_fingerprint") != fingerprint:
                raise ConflictError(
                    f"{uri}: the run was begun with other data at {config.data}: nothing was "
                    "overwritten; choose another --run-id"
                ) from None
            number = _first_free(config, number + 1)
        else:
            return number
    raise ConflictError(
        f"{config.run_uri} was begun {_MAX_ATTEMPTS:,} times: choose another --run-id"
    )


def _attempt_uri(config: RunConfig, number: int) -> str:
    return uris.join(config.run_uri, "attempts", f"{number:04}.json")


def _first_free(config: RunConfig, number: int) -> int:
    """Return the first attempt from `number` on that nobody has claimed.

    Attempts have no gaps, since each claims the first that is free; so doubling steps and then
    halving them finds it in a few looks, however often the run was begun.
    """
    step, taken = 1, number - 1
    while number <= _MAX_ATTEMPTS and storage.exists(_attempt_uri(config, number)):
        step, taken, number = 2 * step, number, number + 2 * step
    while number - taken > 1:
        middle = (taken + number) // 2
        if storage.exists(_attempt_uri(config, middle)):
            taken = middle
        else:
            number = middle
    return number


def publish(run_uri: str, files: dict[str, bytes]) -> tuple[Artifact, ...]:
    """Write the artifacts, all but `metrics.json`, at once, and return what to say of them there.

    Raises:
        ConflictError: one exists with other bytes.
        OutputError: one can't be written.
    """
    storage.create_all({uris.join(run_uri, path): data for path, data in files.items()})
    return tuple(describe(path, data) for path, data in files.items())


def describe(path: str, data: bytes) -> Artifact:
    """Return what `metrics.json` says of the file `path` with the content `data`."""
    return Artifact(path, len(data), hashlib.sha256(data).hexdigest())


def complete(config: RunConfig, document: dict[str, Any]) -> dict[str, Any]:
    """Write `metrics.json`, which makes the run complete, and return what it now says.

    If a twin of this process was faster, its word stands: with the same config it has published
    the same artifacts, and only clock times differ.

    Raises:
        ConflictError: the run was completed with another config or with other artifacts.
        OutputError: it can't be written.
    """
    uri = uris.join(config.run_uri, METRICS)
    try:
        storage.create(uri, to_json(document))
    except ConflictError:
        twin = read_json(uri)
        _check_owner(twin, config, uri)
        if twin.get("artifacts") != document["artifacts"]:
            raise
        return twin
    return document


def weights_uri(uri: str) -> str:
    """Return the URI of a weights file, given that or the folder of a run."""
    return uris.join(uri, WEIGHTS) if storage.is_folder(uri) else uri


def read_artifact(uri: str, limit_bytes: int) -> bytes:
    """Return a published file, checked against the `metrics.json` beside it where there is one.

    Args:
        uri: the file.
        limit_bytes: refuse more.

    Raises:
        MissingInputError: no such file.
        DataError: it is not the file that was published, or `metrics.json` can't be understood.
    """
    data = storage.read(uri, limit_bytes)
    metrics_uri = uris.beside(uri, METRICS)
    if not storage.exists(metrics_uri):
        return data
    named = read_json(metrics_uri).get("artifacts")
    name, digest = uris.name(uri), describe(uri, data).sha256
    for artifact in named if isinstance(named, list) else []:
        if not isinstance(artifact, dict) or artifact.get("path") != name:
            continue
        if artifact.get("sha256") != digest:
            raise DataError(
                f"{uri} is damaged: its sha256 is {digest[:12]}..., but {METRICS} beside it says "
                f"{str(artifact.get('sha256'))[:12]}...; fetch or train it again"
            )
    return data


def to_json(document: dict[str, Any]) -> bytes:
    """Return `document` as JSON text; NaN and infinity, which JSON lacks, are bugs."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def read_json(uri: str) -> dict[str, Any]:
    """Return the JSON object at `uri`.

    Raises:
        MissingInputError: there is none.
        DataError: it is not JSON, or not an object.
    """
    try:
        document = json.loads(storage.read(uri, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{uri} is not the JSON this job writes ({str(error)[:80]}): move it away, or choose "
            "another --run-id"
        ) from error
    if not isinstance(document, dict):
        raise DataError(f"{uri} holds JSON, but not an object: move it away")
    return document


def _check_owner(document: dict[str, Any], config: RunConfig, uri: str) -> None:
    if document.get("config_sha256") == config.digest:
        return
    theirs = document.get("config")
    difference = config.difference(theirs if isinstance(theirs, dict) else {})
    raise ConflictError(
        f"{uri} belongs to a run with another config ({difference}): nothing was overwritten; "
        "choose another --run-id or --output"
    )
