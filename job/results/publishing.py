"""A run's folder: what lies in it, and the order it appears in, `metrics.json` last.

Whoever finds `metrics.json` may trust the whole folder: it is written after everything it names,
and names size and sha256 of each. Until then the run isn't complete, and the same command goes on
with it.

    <run>/attempts/0001.json    who began, when, with which config and versions; one for each start
    <run>/attempts/0001-end.json    how it ended, if it didn't complete the run
    <run>/init_weights.json     which weights it began with, if they were given
    <run>/checkpoints/          see job/training/checkpoint.py
    <run>/model_weights.h5, model.keras, predictions.safetensors
    <run>/serving/1/            the model for TensorFlow Serving, if asked for: see serving.py
    <run>/metrics.json
    <run>/metrics.prom          made of metrics.json, which names it not: see job/report/
    <run>/tensorboard/          event files, if they were asked for: see job/report/tensorboard.py
    <run>/report.html           the run to look at, and attempts/0001.html an attempt that did not
                                complete it: see job/report/runs.py
    <run>/pruned.json          only while the run is being removed: see job/nightly/pruning.py
"""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from job import storage
from job.config import RunConfig
from job.errors import ConflictError, DataError, MissingInputError, TemporaryError
from job.storage import Place

MAX_WEIGHTS_BYTES = 1024 * storage.MEBIBYTE
MAX_JSON_BYTES = 64 * storage.MEBIBYTE  # a confusion matrix of 1,000 classes has 8 MiB
METRICS = "metrics.json"  # in the folder of a run, beside all that it names
WEIGHTS, PREDICTIONS = "model_weights.h5", "predictions.safetensors"
SERVING = "serving/"  # the folder of what TensorFlow Serving takes, if it was asked for
PRUNED = "pruned.json"  # there while `prune` takes the run away
_MAX_ATTEMPTS = 9_999
_MAX_RECORDS = 100


@dataclass(frozen=True)
class Artifact:
    """A published file, as `metrics.json` names it."""

    path: str
    """Relative to the run's folder."""
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    place: Place
    events_elsewhere: Place | None = None
    """The folder of the event files where that is no folder of the run's own."""

    @property
    def metrics(self) -> Place:
        """What is written last."""
        return self.place / METRICS

    @property
    def tombstone(self) -> Place:
        """What is written first, and removed last, when the run is removed."""
        return self.place / PRUNED

    @property
    def weights(self) -> Place:
        """The weights that plain Keras loads."""
        return self.place / WEIGHTS

    @property
    def archive(self) -> Place:
        """The model as a Keras archive."""
        return self.place / "model.keras"

    @property
    def predictions(self) -> Place:
        """What the model said of each test image: see job/results/predictions.py."""
        return self.place / PREDICTIONS

    @property
    def exposition(self) -> Place:
        """What the metrics say, for Prometheus."""
        return self.place / "metrics.prom"

    @property
    def events(self) -> Place:
        """The folder of the event files for TensorBoard."""
        return self.events_elsewhere or self.place / "tensorboard"

    @property
    def checkpoints(self) -> Place:
        """The folder of the training's states."""
        return self.place / "checkpoints"

    @property
    def origin(self) -> Place:
        """What tells which weights the run began with, if they were given."""
        return self.place / "init_weights.json"

    @property
    def report(self) -> Place:
        """The page that shows the run, which `metrics.json` doesn't name: it is made after it."""
        return self.place / "report.html"

    @property
    def attempts(self) -> Place:
        """The folder of the records of attempts."""
        return self.place / "attempts"

    def attempt(self, number: int) -> Place:
        """Say where the record of an attempt, counted from 1, lies."""
        return self.attempts / f"{number:04}.json"

    def attempt_end(self, number: int) -> Place:
        """Say where the record of how an attempt failed or was stopped lies."""
        return self.attempts / f"{number:04}-end.json"

    def attempt_page(self, number: int) -> Place:
        """Say where the page lies that an attempt left which failed or was stopped."""
        return self.attempts / f"{number:04}.html"

    def finished(self, config: RunConfig) -> dict[str, Any] | None:
        """Return the run's metrics if it is complete already, else None.

        Raises:
            ConflictError: the run is being removed; or it is complete, but was made with another
                config.
            DataError: its metrics can't be understood, or what they name isn't there.
        """
        self.check_kept()
        if not storage.exists(self.metrics):
            return None
        document = read_json(self.metrics)
        _check_owner(document, config, self.metrics)
        named = _artifacts(document)
        lacking = [part for part in ("test", "timing") if part not in document]
        if lacking := lacking + ["artifacts"] * (not named):
            raise DataError(
                f"{self.metrics} lacks {', '.join(lacking)}: move the run away and train it again"
            )
        for path in (str(artifact["path"]) for artifact in named):
            if not storage.exists(self.place / path):
                raise DataError(
                    f"{self.place / path} is not there, but {METRICS} names it: bring it back; or "
                    f"move {METRICS} away, and the same command publishes both again"
                )
        return document

    def claim(self, config: RunConfig, fingerprint: str, facts: dict[str, Any]) -> int:
        """Write down that an attempt at the run begins, and return its number, counted from 1.

        The first thing a run writes: it shows that the output can be written before anything is
        computed, and keeps a run id to the config and data that took it first.

        Args:
            config: of the run.
            fingerprint: of its data.
            facts: who begins, when, with which versions.

        Raises:
            ConflictError: the run was begun with another config or other data, or is being removed.
            OutputError: the output can't be written.
        """
        record = {
            "config_sha256": config.digest,
            "config": config.identity,
            "data_fingerprint": fingerprint,
            **facts,
        }
        number = 1
        while number <= _MAX_ATTEMPTS:
            place = self.attempt(number)
            try:
                storage.create(place, to_json({"attempt": number, **record}))
            except ConflictError:
                first = read_json(place)
                _check_owner(first, config, place)
                if first.get("data_fingerprint") != fingerprint:
                    raise ConflictError(
                        f"{place}: the run was begun with other data at {config.data}: nothing was "
                        "overwritten; choose another --run-id"
                    ) from None
                number = self._first_free(number + 1)
            else:
                self.check_kept()  # after the claim: so either this sees a removal, or it this
                return number
        raise ConflictError(
            f"{self.place} was begun {_MAX_ATTEMPTS:,} times: choose another --run-id"
        )

    def begin_with(self, uri: str, weights: bytes) -> None:
        """Write down that step 0 begins with the weights in the file `weights`, found at `uri`.

        Raises:
            ConflictError: an attempt before began with others.
            OutputError: it can't be written.
        """
        origin = {"uri": uri, "sha256": hashlib.sha256(weights).hexdigest()}
        try:
            storage.create(self.origin, to_json(origin))
        except ConflictError as error:
            raise ConflictError(
                f"{uri} holds the weights {origin['sha256'][:12]}..., but {self.origin} says that "
                "the run was begun with others: bring those back, or choose another --run-id"
            ) from error

    def begun_with(self) -> dict[str, Any] | None:
        """Return uri and sha256 of what `begin_with` wrote down; None where nothing tells."""
        with contextlib.suppress(MissingInputError, DataError):
            return read_json(self.origin)
        return None

    def begun_as(self) -> dict[str, Any] | None:
        """Return the identity of the config of the first attempt; None where nothing tells."""
        with contextlib.suppress(MissingInputError):
            config = read_json(self.attempt(1)).get("config")
            return config if isinstance(config, dict) else None
        return None

    def check_kept(self) -> None:
        """See that nobody has begun to remove the run.

        Raises:
            ConflictError: somebody has.
        """
        if storage.exists(self.tombstone):
            raise ConflictError(
                f"{self.place} is being removed, as {PRUNED} in it says: let `mnist-job prune "
                "--yes` end that first, or choose another --run-id"
            )

    def records_before(self, number: int) -> list[dict[str, Any]]:
        """Return the records of the attempts before, of which the newest 99 are told.

        One that is gone or damaged is left out: a record of the past must not end a run.
        """
        records = []
        for each in range(max(1, number - _MAX_RECORDS + 1), number):
            with contextlib.suppress(MissingInputError, DataError):
                records.append({"attempt": each} | read_json(self.attempt(each)))
        return records

    def _first_free(self, number: int) -> int:
        """Return the first attempt from `number` on that nobody has claimed.

        Attempts have no gaps, since each claims the first that is free; so doubling steps and then
        halving them finds it in a few looks, however often the run was begun.
        """
        step, taken = 1, number - 1
        while number <= _MAX_ATTEMPTS and storage.exists(self.attempt(number)):
            step, taken, number = 2 * step, number, number + 2 * step
        while number - taken > 1:
            middle = (taken + number) // 2
            if storage.exists(self.attempt(middle)):
                taken = middle
            else:
                number = middle
        return number

    def publish(self, files: dict[Place, bytes]) -> tuple[Artifact, ...]:
        """Write the artifacts, all but `metrics.json`, and return what to say of them.

        Raises:
            ConflictError: one exists with other bytes.
            OutputError: one can't be written.
        """
        for place, data in files.items():
            storage.create(place, data)
        return tuple(describe(self._path(place), data) for place, data in files.items())

    def _path(self, place: Place) -> str:
        """Return the path of a place in this folder, relative to it."""
        return place.key.removeprefix((self.place / "").key)

    def complete(self, config: RunConfig, document: dict[str, Any]) -> dict[str, Any]:
        """Write `metrics.json`, which makes the run complete, and return what it now says.

        If a twin of this process was faster, its word stands: with the same config it has published
        the same artifacts, and only clock times differ.

        Raises:
            ConflictError: the run was completed with another config or with other artifacts.
            OutputError: it can't be written.
        """
        try:
            storage.create(self.metrics, to_json(document))
        except ConflictError:
            twin = read_json(self.metrics)
            _check_owner(twin, config, self.metrics)
            if twin.get("artifacts") != document["artifacts"]:
                raise
            return twin
        return document


def describe(path: str, data: bytes) -> Artifact:
    """Return what `metrics.json` says of the file `path` with the content `data`."""
    return Artifact(path, len(data), hashlib.sha256(data).hexdigest())


def weights_of(place: Place) -> Place:
    """Return where a weights file lies, given that or the folder of a run."""
    return RunFolder(place).weights if storage.is_folder(place) else place


def metrics_beside(place: Place) -> dict[str, Any]:
    """Return the metrics of the run that published the file `place`: {} where none lie beside it.

    Raises:
        DataError: they can't be understood.
    """
    metrics = place.beside(METRICS)
    return read_json(metrics) if storage.exists(metrics) else {}


def read_artifact(place: Place, limit_bytes: int) -> tuple[bytes, dict[str, Any]]:
    """Return a published file, and the metrics of its run: {} where none lie beside it.

    Args:
        place: the file, which is checked against `metrics.json`.
        limit_bytes: refuse more.

    Raises:
        MissingInputError: no such file.
        DataError: it is not the file that was published, or `metrics.json` can't be understood.
        TemporaryError: a store gave other bytes, twice; it holds only whole objects: try again.
    """
    data = storage.read(place, limit_bytes)
    metrics = metrics_beside(place)
    named = [each.get("sha256") for each in _artifacts(metrics) if each["path"] == place.name]
    if not _is(data, named):
        data = storage.read(place, limit_bytes)  # one odd answer is not the last word
    if not _is(data, named):
        remote = place.kind != "file"
        advice = "try again, and if that ends the same, " if remote else ""
        raise (TemporaryError if remote else DataError)(
            f"{place} is damaged: its sha256 is {hashlib.sha256(data).hexdigest()[:12]}..., but "
            f"{METRICS} beside it says {str(named[0])[:12]}...; {advice}fetch or train it again"
        )
    return data, metrics


def _is(data: bytes, sha256: list[Any]) -> bool:
    """Tell whether `data` has each of these digests."""
    return all(each == hashlib.sha256(data).hexdigest() for each in sha256)


def _artifacts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a run's metrics, which may be foreign, say of its artifacts."""
    named = document.get("artifacts")
    return [
        each
        for each in (named if isinstance(named, list) else [])
        if isinstance(each, dict) and isinstance(each.get("path"), str)
    ]


def to_json(document: dict[str, Any]) -> bytes:
    """Return `document` as JSON text; NaN and infinity, which JSON lacks, are bugs."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def read_json(place: Place) -> dict[str, Any]:
    """Return the JSON object at `place`.

    Raises:
        MissingInputError: there is none.
        DataError: it is not JSON, or not an object, looked at twice.
    """
    try:
        return _json_object(place)
    except DataError:  # one odd answer is not the last word
        return _json_object(place)


def _json_object(place: Place) -> dict[str, Any]:
    return parsed(storage.read(place, MAX_JSON_BYTES), place)


def parsed(content: bytes, place: Place) -> dict[str, Any]:
    """Return the JSON object in `content`, which was read at `place`.

    Raises:
        DataError: it is not JSON, or not an object.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place} is not the JSON this job writes ({str(error)[:80]}): move it away, or choose "
            "another --run-id"
        ) from error
    if not isinstance(document, dict):
        raise DataError(f"{place} holds JSON, but not an object: move it away")
    return document


def _check_owner(document: dict[str, Any], config: RunConfig, place: Place) -> None:
    if document.get("config_sha256") == config.digest:
        return
    theirs = document.get("config")
    difference = config.difference(theirs if isinstance(theirs, dict) else {})
    raise ConflictError(
        f"{place} belongs to a run with another config ({difference}): nothing was overwritten; "
        "choose another --run-id or --output"
    )
