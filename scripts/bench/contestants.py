"""Who is compared: each a process that trains the same net on the same images and saves it."""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import children
from environments import PEERS, BenchError, clean_environment, own_python, peer_python
from tasks import GOALS, NO_PAGE, PARTS, REFERENCE, STEADY, Task
from verdicts import Sample

from job.config import RunConfig

JOB = "mnist-job"
KERAS = "Keras fit, as first written"
KERAS_FAST = "Keras fit, many steps a call, XLA"
KERAS_ONEDNN = "Keras fit, many steps a call, oneDNN"
TORCH = "PyTorch loop, fused Adam"
JAX = "JAX, jit and scan"
JAX_UNROLLED = "JAX, the scan unrolled by 4"
PRODUCTS = "matrix products alone, NumPy"
PRODUCTS_TORCH = "matrix products alone, PyTorch"

TORCH_CNN = "PyTorch, channels-last"
TORCH_COMPILED = "PyTorch, channels-last, torch.compile"
JAX_CONVOLUTIONS = "JAX, lax.conv, a jit a step"
JAX_MATRICES = "JAX, scan, products of matrices as ours"


@dataclass(frozen=True)
class Contestant:
    """A way to train, and how to start it."""

    name: str
    python: Path
    script: str = ""
    """In the folder of peers; the job has none."""
    words: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()
    slow: bool = False
    """Far behind, so every other round is enough to say how far."""
    trains: bool = True
    library: str = ""
    """That `machine` tells the version of; the job's own go without saying."""

    def command(self, task: Task, folder: Path) -> list[str]:
        """Return the words that start it on `task`, to leave its files in `folder`."""
        if not self.script:
            program = str(self.python.parent / "mnist-job")
            place = ["--output", str(folder), "--run-id", "bench", "--log", "json"]
            return [program, "train", *place, *NO_PAGE, *task.flags]
        return [str(self.python), str(PEERS / self.script), *task.words, str(folder), *self.words]

    def takes_part(self, task: Task, number: int) -> bool:
        """Tell whether it does `task` in round `number`."""
        return task in self.tasks and not (number % 2 and (self.slow or task.every_other_round))


def contestants(part: str, without: Sequence[str]) -> list[Contestant]:
    """Return all who take part in `part`, their environments made.

    Args:
        part: `mlp` or `cnn`.
        without: `jax` or `torch`, to leave them out.

    Raises:
        BenchError: an environment can't be made.
    """
    peers = {name: peer_python(name) for name in ("torch", "jax") if name not in without}
    found = [Contestant(JOB, own_python(), tasks=PARTS[part])]
    return found + (_dense if part == "mlp" else _convolutional)(peers)


def _dense(peers: dict[str, Path]) -> list[Contestant]:
    own, every = own_python(), PARTS["mlp"]
    found = [
        Contestant(KERAS, own, "keras_fit.py", tasks=(REFERENCE[32],), slow=True),
        Contestant(KERAS_FAST, own, "keras_fit.py", ("fast",), every, slow=True),
        Contestant(PRODUCTS, own, "gemm_bound.py", ("numpy",), every, trains=False),
    ]
    if torch := peers.get("torch"):
        found += [
            Contestant(TORCH, torch, "torch_loop.py", (), every, slow=True, library="torch"),
            Contestant(PRODUCTS_TORCH, torch, "gemm_bound.py", ("torch",), every, trains=False),
        ]
    if jax := peers.get("jax"):
        found += [
            Contestant(JAX, jax, "jax_scan.py", (), every, library="jax"),
            Contestant(JAX_UNROLLED, jax, "jax_scan.py", ("4",), every),
        ]
    return found


def _convolutional(peers: dict[str, Path]) -> list[Contestant]:
    own, name = own_python(), "keras_cnn.py"
    found = [
        Contestant(KERAS_FAST, own, name, ("xla",), STEADY, slow=True),
        Contestant(KERAS_ONEDNN, own, name, (), STEADY),
    ]
    if torch := peers.get("torch"):
        every, name = (*STEADY, *GOALS), "torch_cnn.py"
        found.append(Contestant(TORCH_CNN, torch, name, (), every, library="torch"))
        if shutil.which(COMPILER):
            found.append(Contestant(TORCH_COMPILED, torch, name, ("compile",), every))
        else:
            print(f"bench: no {COMPILER}, so no {TORCH_COMPILED}", file=sys.stderr, flush=True)
    if jax := peers.get("jax"):
        name = "jax_cnn.py"
        found += [
            Contestant(JAX_CONVOLUTIONS, jax, name, ("conv",), STEADY, library="jax"),
            Contestant(JAX_MATRICES, jax, name, ("matrices",), STEADY),
        ]
    return found


COMPILER = os.environ.get("CXX", "g++")  # which torch.compile asks for loops


def sample(contestant: Contestant, task: Task, number: int, scratch: Path) -> tuple[Sample, Any]:
    """Run one process to its end; return what was seen of it, and the job's own metrics.

    Raises:
        BenchError: it failed, or was no good at its task.
    """
    folder = scratch / "output"
    folder.mkdir()
    try:
        ended = run(contestant.command(task, folder))
        if contestant.script:
            metrics = None
            told = json.loads(ended.out.splitlines()[-1])
        else:
            metrics = json.loads((folder / "bench" / "metrics.json").read_text())
            check_recipe(task, metrics["config"])
            told = metrics["timing"] | {
                "accuracy": metrics["test"]["accuracy"],
                "parameters": metrics["model"]["parameters"],
            }
    finally:
        shutil.rmtree(folder)
    accuracy = told.get("accuracy")
    if contestant.trains and not (accuracy and accuracy > 0.95):
        raise BenchError(f"{contestant.name}, {task.name}: accuracy {accuracy} is no training")
    seen = Sample(
        contestant=contestant.name,
        task=task.name,
        round=number,
        wall_seconds=ended.wall_seconds,
        cpu_seconds=ended.cpu_seconds,
        images_per_second=told["images_per_second"],
        accuracy=accuracy,
        parameters=told.get("parameters"),
    )
    return seen, metrics


def check_recipe(task: Task, config: dict[str, Any]) -> None:
    """See that the job did what its peers are asked for.

    Raises:
        BenchError: it did something else.
    """
    recipe = task.recipe or {}
    # What a config leaves out of its identity is as all runs had it before there was a choice.
    did = {name: config.get(name, getattr(RunConfig, name)) for name in recipe}
    if differing := [name for name in recipe if did[name] != recipe[name]]:
        told = ", ".join(f"{name} {did[name]!r}, not {recipe[name]!r}" for name in differing)
        raise BenchError(f"{JOB}, {task.name}: it had {told}")


def check_net(samples: Sequence[Sample]) -> None:
    """See that all who did a task had as many parameters: as good as the same net.

    Raises:
        BenchError: some had not.
    """
    first_of: dict[str, Sample] = {}
    for sample in (sample for sample in samples if sample.parameters is not None):
        first = first_of.setdefault(sample.task, sample)
        if sample.parameters != first.parameters:
            raise BenchError(
                f"{sample.task}: {sample.contestant} learned {sample.parameters:,} numbers, but "
                f"{first.contestant} {first.parameters:,}: it is not the same net"
            )


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


def order(everyone: Sequence[Contestant], part: str, number: int) -> list[tuple[Contestant, Task]]:
    """Return who runs in a round, one after the other, at which task.

    Task by task, so that what is compared runs within a minute or two; who begins changes with
    each round.
    """
    turn = number % len(everyone)
    rotated = [*everyone[turn:], *everyone[:turn]]
    return [
        (contestant, task)
        for task in PARTS[part]
        for contestant in rotated
        if contestant.takes_part(task, number)
    ]
