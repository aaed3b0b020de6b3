"""Who is compared: each a process that trains the same net on the same images and saves it."""

import json
import os
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import children
from environments import PEERS, BenchError, clean_environment, own_python, peer_python
from verdicts import Sample

from job.config import EMBEDDED

EPOCHS = 10
BATCHES = (32, 128, 512)
MNIST = EMBEDDED.path

JOB = "mnist-job"
KERAS = "Keras fit, as first written"
KERAS_FAST = "Keras fit, many steps a call, XLA"
TORCH = "PyTorch loop, fused Adam"
JAX = "JAX, jit and scan"
JAX_UNROLLED = "JAX, the scan unrolled by 4"
PRODUCTS = "matrix products alone, NumPy"
PRODUCTS_TORCH = "matrix products alone, PyTorch"


@dataclass(frozen=True)
class Contestant:
    """A way to train, and how to start it."""

    name: str
    python: Path
    script: str = ""
    """In the folder of peers; the job has none."""
    words: tuple[str, ...] = ()
    batches: tuple[int, ...] = BATCHES
    slow: bool = False
    """Far behind, so every other round is enough to say how far."""
    trains: bool = True

    def command(self, batch: int, epochs: int, folder: Path) -> list[str]:
        """Return the words that start it, to leave its files in `folder`."""
        if not self.script:
            program = str(self.python.parent / "mnist-job")
            flags = ["--batch-size", str(batch), "--epochs", str(epochs), "--log", "json"]
            return [program, "train", "--output", str(folder), "--run-id", "bench", *flags]
        words = [str(batch)]
        if self.trains:
            words += [str(epochs), str(MNIST), str(folder)]
        return [str(self.python), str(PEERS / self.script), *words, *self.words]


def contestants(without: Sequence[str]) -> list[Contestant]:
    """Return all who take part, their environments made.

    Args:
        without: `jax` or `torch`, to leave them out.

    Raises:
        BenchError: an environment can't be made.
    """
    own = own_python()
    found = [
        Contestant(JOB, own),
        Contestant(KERAS, own, "keras_fit.py", batches=(32,), slow=True),
        Contestant(KERAS_FAST, own, "keras_fit.py", ("fast",), slow=True),
        Contestant(PRODUCTS, own, "gemm_bound.py", ("numpy",), trains=False),
    ]
    if "torch" not in without:
        torch = peer_python("torch")
        found.append(Contestant(TORCH, torch, "torch_loop.py", slow=True))
        found.append(Contestant(PRODUCTS_TORCH, torch, "gemm_bound.py", ("torch",), trains=False))
    if "jax" not in without:
        jax = peer_python("jax")
        found.append(Contestant(JAX, jax, "jax_scan.py"))
        found.append(Contestant(JAX_UNROLLED, jax, "jax_scan.py", ("4",)))
    return found


def sample(contestant: Contestant, batch: int, number: int, scratch: Path) -> tuple[Sample, Any]:
    """Run one process to its end; return what was seen of it, and the job's own metrics.

    Raises:
        BenchError: it failed, or was no good at its task.
    """
    folder = scratch / "output"
    folder.mkdir()
    try:
        ended = run(contestant.command(batch, EPOCHS, folder))
        if contestant.script:
            metrics = None
            told = json.loads(ended.out.splitlines()[-1])
        else:
            metrics = json.loads((folder / "bench" / "metrics.json").read_text())
            told = metrics["timing"] | {"accuracy": metrics["test"]["accuracy"]}
    finally:
        shutil.rmtree(folder)
    accuracy = told.get("accuracy")
    if contestant.trains and not (accuracy and accuracy > 0.95):
        raise BenchError(f"{contestant.name}, batch {batch}: accuracy {accuracy} is no training")
    seen = Sample(
        contestant=contestant.name,
        batch=batch,
        round=number,
        wall_seconds=ended.wall_seconds,
        cpu_seconds=ended.cpu_seconds,
        images_per_second=told["images_per_second"],
        accuracy=accuracy,
    )
    return seen, metrics


@dataclass(frozen=True)
class Ended:
    """A process that has run, seen from outside."""

    started: float
    """Seconds since 1970."""
    wall_seconds: float
    cpu_seconds: float
    out: str


def run(command: Sequence[str]) -> Ended:
    """Run `command` in the clean environment and wait for it.

    Raises:
        BenchError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, began = time.time(), time.perf_counter()
    ended = children.run(command, env=clean_environment(), cwd=os.sep, capture_output=True)
    wall_seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise BenchError(f"{' '.join(command)} exited {ended.returncode}: {ended.stderr[-500:]}")
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ended(started, wall_seconds, cpu_seconds, ended.stdout)


def order(everyone: Sequence[Contestant], number: int) -> list[tuple[Contestant, int]]:
    """Return who runs in a round, one after the other, with which batch size.

    Batch by batch, so that what is compared runs within a minute or two; who begins changes with
    each round.
    """
    turn = number % len(everyone)
    rotated = [*everyone[turn:], *everyone[:turn]]
    return [
        (contestant, batch)
        for batch in BATCHES
        for contestant in rotated
        if batch in contestant.batches and not (contestant.slow and number % 2)
    ]
