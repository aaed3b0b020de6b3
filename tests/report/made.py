"""Runs that were made in an instant, for pages to show."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np

from job.config import RunConfig
from job.data import source
from job.results import metrics
from job.results.predictions import Predictions
from job.results.publishing import RunFolder, to_json
from job.results.scores import score
from job.storage import parse

FACTS = {
    "started": "2026-11-26T10:00:00.000+00:00", "job_version": "0.1.0", "git_commit": None,
    "python": "3.11.7", "tensorflow": "2.21.0", "keras": "3.15.1", "platform": "Linux-6.1-x86_64",
    "processor": "A Processor", "cores": 2, "strategy": "auto", "workers": 1, "job": None,
    "pod": None, "node": None, "image": None,
}  # fmt: skip


def facts_of(attempt: int) -> dict[str, Any]:
    """Return what an attempt tells of itself: no two begin at the same time."""
    return FACTS | {"started": f"2026-11-26T10:{attempt:02}:00.000+00:00"}


def write_data(path: Path, shape: tuple[int, ...] = (8, 8), classes: int = 4) -> Path:
    """Write a data set with ten training and fifteen test images of each class."""
    draw = np.random.default_rng(3)
    arrays = {}
    for part, each in (("train", 10), ("test", 15)):
        labels = np.tile(np.arange(classes), each).astype(np.int32)
        images = draw.integers(0, 80, (len(labels), *shape), dtype=np.uint8)
        images[np.arange(len(labels)), labels % shape[0]] += 120
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
    np.savez(path, **arrays)
    return path


def epochs(count: int, *, held_out: bool = False) -> tuple[dict[str, Any], ...]:
    """Return the history of so many epochs."""
    told = []
    for number in range(1, count + 1):
        epoch = {
            "epoch": number, "loss": 1 / number, "accuracy": 1 - 0.5 / number,
            "learning_rate": 0.003 / number, "seconds": 0.5, "images_per_second": 9_000.0,
        }  # fmt: skip
        if held_out:
            epoch |= {"validation_loss": 2 / number, "validation_accuracy": 1 - 0.6 / number}
        told.append(epoch)
    return tuple(told)


def make_run(
    output: str | Path,
    data: Path,
    run_id: str = "r",
    *,
    history: tuple[dict[str, Any], ...] | None = None,
    members: int = 0,
    attempts: int = 1,
    **fields: Any,
) -> RunFolder:
    """Publish a run below `output` that nobody trained, by the job's own code."""
    config = RunConfig(output=str(output), run_id=run_id, data=str(data), **fields)
    dataset = source.load(config.source)
    folder = RunFolder(config.place)
    for number in range(1, attempts + 1):
        folder.claim(config, dataset.fingerprint, facts_of(number))
        if number < attempts:
            end = {"status": "stopped", "code": 143, "error": "stopped by SIGTERM"}
            (Path(str(folder.place)) / f"attempts/{number:04}-end.json").write_bytes(to_json(end))
    draw = np.random.default_rng(7)
    logits = draw.normal(0, 1, (len(dataset.y_test), dataset.classes))
    logits[np.arange(len(logits)), dataset.y_test] += 1.5
    predictions = Predictions(logits.astype(np.float32), dataset.y_test)
    pixels = int(np.prod(dataset.image_shape))
    files = {
        folder.weights: weights_file(draw.normal(0, 1, (pixels, 6)).astype(np.float32)),
        folder.archive: b"archive",
        folder.predictions: predictions.to_bytes(),
    }
    artifacts = folder.publish(files)
    maker = {"strategy": "cpu", "replicas": 1, "devices": ["CPU"], "threads": [2]}
    told = [{"run": f"{run_id}-{n}", "seed": n, "weights_sha256": "0" * 64, "accuracy": 0.9}
            for n in range(members)]  # fmt: skip
    document = metrics.document(
        config=config,
        dataset=dataset,
        attempts=[{"attempt": n, **facts_of(n)} for n in range(1, attempts + 1)],
        environment=FACTS | maker,
        parameters=1234,
        trained=SimpleNamespace(
            epochs=config.epochs, steps=99, resumed_step=0, compile_seconds=1.0, train_seconds=2.0,
            attempt_train_seconds=2.0, images_per_second=9_000.0,
            history=() if members else epochs(config.epochs) if history is None else history,
        ),
        scores=score(predictions.logits.astype(np.float64), dataset.y_test),
        artifacts=artifacts,
        seconds=metrics.Seconds(1.5, 0.1, 0.2, 0.05),
        members=tuple(told),
    )  # fmt: skip
    folder.complete(config, document)
    return folder


def weights_file(kernel: np.ndarray) -> bytes:
    """Return a file of weights with one dense layer, as Keras writes it."""
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        layer = root.create_group("model_weights").create_group("dense")
        root["model_weights"].attrs["layer_names"] = [b"dense"]
        layer.attrs["weight_names"] = [b"kernel"]
        layer["kernel"] = kernel
    return file.getvalue()


def place(path: Path) -> RunFolder:
    """Return the folder of a run that lies at `path`."""
    return RunFolder(parse(str(path)))
