"""A run without its mathematics: the real command with the real storage, and no TensorFlow.

What computes is replaced by constants, from the model to the scores; what reads and writes is the
job's own code, called by the job's own `run.train_run`. So the requests are those of a real run,
which `test_rehearsal.py` checks against one.
"""

import contextlib
import hashlib
import importlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from job import cli
from job.errors import StoppedError
from job.process import runtime
from job.storage import Place
from job.storage.objects import Objects
from job.training import checkpoint

STOP_STEP, LAST_STEP = 30, 70
WEIGHTS = b"weights " * 5_000
ARCHIVE = b"archive " * 5_000


@dataclass(frozen=True)
class Ended:
    """A command that has run."""

    code: int
    events: list[dict[str, Any]]
    error: str


def _state(start: checkpoint.State, step: int) -> checkpoint.State:
    return replace(start, step=step, arrays={"w": np.full(5_000, step, np.float32)})


def _modules(stop: bool) -> dict[str, ModuleType]:
    def train(*arguments: Any) -> Any:
        checkpoints, start = arguments[4], arguments[5]
        if stop:
            checkpoints.save(_state(start, STOP_STEP))
            raise StoppedError("stopped in rehearsal")
        checkpoints.save(_state(start, LAST_STEP))
        return SimpleNamespace(
            epochs=1,
            steps=LAST_STEP,
            resumed_step=start.step,
            history=(),
            compile_seconds=0.0,
            train_seconds=0.0,
            attempt_train_seconds=0.0,
            images_per_second=0.0,
            halted=False,
        )

    net = SimpleNamespace(count_params=lambda: 1)
    devices = SimpleNamespace(strategy="none", replicas=1, devices=("none",), on_gpu=False)
    collectives = SimpleNamespace(
        is_chief=True, check_alike=lambda *_: None, wait=lambda: None, total=list
    )
    chosen = SimpleNamespace(scope=contextlib.nullcontext)
    content: dict[str, dict[str, Any]] = {
        "training.train": {"train": train},
        "results.evaluation": {"predict_logits": lambda _, images, __: np.zeros((len(images), 10))},
        "training.model": {
            "build": lambda *_, **__: net,
            "in_float32": lambda found: found,
            "with_probabilities": lambda found: found,
        },
        "training.strategy": {"choose": lambda *_, **__: chosen, "describe": lambda _: devices},
        "workers.collectives": {"Collectives": lambda *_: collectives},
        "results.weights": {"to_hdf5": lambda _: WEIGHTS, "to_keras_archive": lambda _: ARCHIVE},
    }
    modules = {}
    for name, members in content.items():
        modules[name] = ModuleType(f"job.{name}")
        vars(modules[name]).update(members)
    return modules


@contextlib.contextmanager
def _without_tensorflow(*, stop: bool) -> Iterator[None]:
    modules = {f"job.{name}": module for name, module in _modules(stop).items()}
    real = {name: sys.modules.get(name) for name in modules}
    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            wing, _, room = name.rpartition(".")
            front = importlib.import_module(wing)
            stack.enter_context(mock.patch.object(front, room, module, create=True))
        for name in ("prepare_tensorflow", "import_tensorflow"):
            stack.enter_context(mock.patch.object(runtime, name))
        # Not mock.patch.dict, which would forget all that is imported meanwhile.
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name, module in real.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module


def train(*flags: str, stop: bool = False) -> Ended:
    """Run `mnist-job train` with `flags`; `stop` ends it as SIGTERM would, after a checkpoint."""
    out, err = io.StringIO(), io.StringIO()
    with (
        _without_tensorflow(stop=stop),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = cli.main(["train", "--log", "json", *flags])
    return Ended(code, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue())


def _bytes(storage: Objects, place: Place) -> bytes:
    return storage.read(place, 10**7)


def look(storage: Objects, run: Place) -> list[str]:
    """Return what is wrong in the folder of a run, seen without any fault in between."""
    wrong = []
    names = storage.names(run / "attempts")
    pages = {name for name in names if name.endswith(".html")}
    names = [name for name in names if name not in pages]
    ends = {name for name in names if name.endswith("-end.json")}
    attempts = [name for name in names if name not in ends]
    if attempts != [f"{number:04}.json" for number in range(1, len(attempts) + 1)]:
        wrong.append(f"attempts {attempts}")
    if not pages <= {name.replace(".json", ".html") for name in attempts}:
        wrong.append(f"pages {pages} of the attempts {attempts}")
    if not ends <= {name.replace(".json", "-end.json") for name in attempts}:
        wrong.append(f"ends {ends} of the attempts {attempts}")
    for name in names:
        json.loads(_bytes(storage, run / f"attempts/{name}"))
    for name in storage.names(run / "checkpoints"):
        content = _bytes(storage, run / f"checkpoints/{name}")
        if hashlib.sha256(content).hexdigest() not in name:
            wrong.append(f"{name} is torn")
    published = {"model_weights.h5": WEIGHTS, "model.keras": ARCHIVE}
    for name, content in published.items():
        if storage.exists(run / f"{name}") and _bytes(storage, run / f"{name}") != content:
            wrong.append(f"{name} has other bytes")
    if storage.exists(run / "metrics.json"):
        metrics = json.loads(_bytes(storage, run / "metrics.json"))
        for artifact in metrics["artifacts"]:
            if not storage.exists(run / f"{artifact['path']}"):
                wrong.append(f"{artifact['path']} is missing and metrics.json names it")
                continue
            content = _bytes(storage, run / f"{artifact['path']}")
            if hashlib.sha256(content).hexdigest() != artifact["sha256"]:
                wrong.append(f"{artifact['path']} is not what metrics.json says")
    return wrong


def steps_saved(storage: Objects, run: Place) -> list[int]:
    """Return the steps of the checkpoints of a run."""
    return [int(name.partition("-")[0]) for name in storage.names(run / "checkpoints")]
