"""What tests of studies share: a study, and a training that takes no time."""

import hashlib
import json
import random
import sys
from types import SimpleNamespace

import pytest

from job import storage
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.results import publishing
from job.tuning import trial
from job.tuning.space import Space
from job.tuning.study import Study
from job.workers.cluster import Cluster

FIXED = {
    "data": "mnist", "base": None, "model": "mlp", "epochs": 9, "batch_size": 32,
    "learning_rate": 0.003, "schedule": "linear", "seed": 0, "weight_decay": 0.1,
    "label_smoothing": 0.02, "augment": "none", "augment_strength": None, "dropout": 0.0,
    "validation": 1 / 6, "validation_seed": 0, "early_stopping": None,
    "precision": "float32",
}  # fmt: skip
RULES = ("objective", "reduction", "first_rung", "name")


def make_study(output, *texts, **changes) -> Study:
    rules = {"name": "s"} | {name: changes.pop(name) for name in RULES if name in changes}
    space = Space.parse(texts or ("learning-rate=0.001..0.1:log", "dropout=0..0.5"))
    return Study(output=str(output), space=space, fixed={**FIXED, **changes}, **rules)


def run(study: Study, number: int, **more) -> dict:
    """Run a trial in this process."""
    return trial.run_trial(study, number, Cluster(), Preemption(), Progress("json"), **more)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list:
    """Let trials train in no time, saving each epoch and going on from there; return who did."""
    began = []

    def train_run(config, cluster, preemption, progress, *, dataset, after_epoch):
        del cluster, preemption, progress, dataset
        began.append(config)
        saved = len(storage.names(config.place))
        history = [scored(config, epoch) for epoch in range(1, saved + 1)]
        goes_on = not history or after_epoch(tuple(history), 7)
        while goes_on:
            history.append(scored(config, len(history) + 1))
            goes_on = after_epoch(tuple(history), 7)
            epoch = history[-1]["epoch"]
            storage.create(config.place / f"{epoch:02}", publishing.to_json(history[-1]))

    monkeypatch.setattr(trial, "train_run", train_run)
    # What takes time and is not asked about: data, git, TensorFlow, which only the points need.
    dataset = SimpleNamespace(fingerprint="d" * 64)
    monkeypatch.setattr(trial.source, "load", lambda *_: dataset)
    monkeypatch.setattr(trial.provenance, "code_version", lambda: {"git_commit": "c"})
    monkeypatch.setattr(trial.runtime, "import_tensorflow", lambda: None)
    for room, offers in (
        ("job.tuning.sampling", {"point": _point}),
        ("job.training.train", {"stopped_early": lambda *_: False}),
    ):
        monkeypatch.setitem(sys.modules, room, SimpleNamespace(**offers))
    monkeypatch.setattr("job.tuning.sampling", sys.modules["job.tuning.sampling"], raising=False)
    return began


def _point(seed: int, number: int, dimensions: int) -> tuple[float, ...]:
    """Return a point that is a function of these alone, as those of `sampling` are."""
    draw = random.Random(f"{seed} {number}")
    return tuple(draw.random() for _ in range(dimensions))


def scored(config, epoch: int) -> dict:
    """Return what an epoch of the stand-in comes to: a function of its config alone."""
    told = json.dumps([config.identity, epoch], sort_keys=True).encode()
    luck = int.from_bytes(hashlib.sha256(told).digest()[:4], "big") / 2**32
    quality = 0.9 - abs(config.learning_rate - 0.01) - config.dropout / 10
    accuracy = round(quality * epoch / (epoch + 0.1) + luck / 100, 3)
    return {
        "epoch": epoch,
        "validation_loss": 1 - accuracy,
        "validation_accuracy": accuracy,
        "seconds": 1.0,
    }
