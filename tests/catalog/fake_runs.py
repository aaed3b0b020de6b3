"""Runs that were never trained: their records alone, as a training would have left them."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from job import storage
from job.config import RunConfig
from job.nightly import champions
from job.nightly.champions import Log, Model
from job.results.predictions import Predictions
from job.results.publishing import RunFolder
from job.results.scores import score
from job.storage import Place

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
TEST_SET = "7" * 64


def labels(examples: int = 200) -> np.ndarray:
    return (np.arange(examples) % 10).astype(np.int32)


def predictions(wrong: Any = (), examples: int = 200) -> Predictions:
    """Return predictions that are wrong for some images, and sure of each by its index."""
    true = labels(examples)
    said = true.copy()
    said[list(wrong)] = (true[list(wrong)] + 1) % 10
    logits = np.zeros((examples, 10), np.float32)
    logits[np.arange(examples), said] = 1 + np.arange(examples) / examples
    return Predictions(logits, true)


def metrics(run: str, said: Predictions | None = None, **config: Any) -> dict[str, Any]:
    """Return what a run's metrics.json says; `config` are fields of its config."""
    said = said or predictions(range(5))
    of_run = RunConfig(run_id="x", **config)
    began = NOW - timedelta(hours=1)
    environment = {"processor": "a chip", "cores": 2, "threads": [2], "pod": f"pod of {run}"}
    return {
        "schema_version": 1,
        "run_id": run,
        "status": "complete",
        "started": began.isoformat(timespec="milliseconds"),
        "attempts": 1,
        "config_sha256": of_run.digest,
        "config": of_run.identity,
        "model": {"name": of_run.model, "parameters": 109_386},
        "data": {
            "uri": "mnist",
            "fingerprint": "6" * 64,
            "train_examples": 60_000,
            "test_examples": len(said.labels),
            "image_shape": [28, 28],
            "classes": 10,
            "test_fingerprint": TEST_SET,
        },
        "test": vars(score(said.logits.astype(np.float64), said.labels))
        | {"per_class": [], "confusion": []},
        "timing": {"total_seconds": 60.0, "train_seconds": 50.0, "images_per_second": 10_000.0},
        "environment": environment,
        "artifacts": [],
    }


def complete(output: Place, run: str, said: Predictions | None = None, **more: Any) -> Place:
    """Publish a complete run with its predictions; `more` are fields of its config."""
    said = said or predictions(range(5))
    document = metrics(run, said, **more)
    folder = RunFolder(output / run)
    files = {folder.predictions: said.to_bytes(), folder.weights: f"weights of {run}".encode()}
    document["artifacts"] = [vars(artifact) for artifact in folder.publish(files)]
    attempt(output, run, began=NOW - timedelta(hours=1), **more)
    storage.create(folder.metrics, json.dumps(document).encode())
    return folder.place


def many(output: Place, count: int) -> None:
    """Publish so many complete runs, of which nothing but metrics.json is there."""
    document = metrics("x", predictions(range(5)))

    def publish(number: int) -> None:
        run = f"run-{number:04}"
        content = json.dumps(document | {"run_id": run, "padding": "x" * 8_000}).encode()
        place = RunFolder(output / run).metrics
        if place.kind == "file":  # no need to flush a thousand times
            place.path.parent.mkdir(parents=True)
            place.path.write_bytes(content)
        else:
            storage.create(place, content)

    publish(0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(publish, range(1, count)))


def attempt(
    output: Place,
    run: str,
    number: int = 1,
    *,
    began: datetime = NOW,
    end: dict[str, Any] | None = None,
    **config: Any,
) -> None:
    """Write the record of an attempt, and how it ended, where it left word."""
    folder, of_run = RunFolder(output / run), RunConfig(run_id="x", **config)
    record = {
        "attempt": number,
        "config_sha256": of_run.digest,
        "config": of_run.identity,
        "started": began.isoformat(timespec="milliseconds"),
    }
    storage.create(folder.attempt(number), json.dumps(record).encode())
    if end is not None:
        storage.create(folder.attempt_end(number), json.dumps(end).encode())


def checkpoint(output: Place, run: str, step: int = 100, content: bytes = b"state") -> str:
    """Save something by the name that a checkpoint of such content has, and return that."""
    name = f"{step:010}-{hashlib.sha256(content).hexdigest()}.safetensors"
    storage.create(RunFolder(output / run).checkpoints / name, content)
    return name


def champion(output: Place, run: str, number: int = 1, correct: int = 195) -> None:
    """Make the run champion; the log below `output` has `number` - 1 entries."""
    model = Model(run, "mlp", "a" * 64, "b" * 64, TEST_SET, correct, 200)
    log = Log(output)
    log.append(champions.promotion(log.newest(), model, None, why="because"))
    assert log.newest().number == number
