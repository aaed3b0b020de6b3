"""Take a worker from its collectives in every way there is, and see that nobody waits for ever.

    python scripts/chaos/workers.py --times 10

Two and three workers train on this machine. One of them, drawn at random, is killed, frozen with
SIGSTOP or never started. All others must exit 75 within 60 seconds, a frozen one too, by its
watcher's hand. Then all are started again, and the run must end with the bytes of one that nobody
touched. A killed worker is killed with its watcher, as a node that goes takes a whole pod.
"""

import argparse
import collections
import contextlib
import hashlib
import itertools
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tally import Tally

from job.config import EMBEDDED, DataSource
from job.data import source

HARMS = ("killed", "frozen", "missing")
FLAGS = ("--checkpoint-seconds", "0", "--log", "json")
WITHIN_SECONDS = 60
MEET_AGAIN_SECONDS = "300"  # for trainings that are to succeed, on a machine that is busy
TEMPORARY = 75
PORTS = itertools.cycle(range(10_000 + os.getpid() % 1_000 * 20, 32_000, 2))
PORTS_LOCK = threading.Lock()


@dataclass
class Report(Tally):
    """What was seen of one way of harm in one size of collectives."""

    times: int = 0
    codes: collections.Counter[int] = field(default_factory=collections.Counter)
    slowest_seconds: float = 0.0
    differing: int = 0
    resumed: int = 0
    problems: list[str] = field(default_factory=list)


def main() -> int:
    """Run what the command line asks for; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="of each way of harm")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--harms", nargs="+", choices=HARMS, default=HARMS)
    parser.add_argument("--peer-timeout", default="45", help="passed on where a worker is missing")
    parser.add_argument("--flags", default="--epochs 30 --augment shift", help="of train")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory(prefix="mnist-job-chaos-") as name:
        folder = Path(name)
        small_data(folder / "small.npz")
        for count in arguments.workers:
            unbroken = folder / f"unbroken-{count}"
            codes = [
                worker.wait() for worker in start(unbroken, count, shlex.split(arguments.flags))
            ]
            if any(codes):
                print(f"{count} workers do not even work untouched: exit codes {codes}")
                return 1
            for harm in arguments.harms:
                report, began = Report(), time.monotonic()

                def one(
                    index: int,
                    count: int = count,
                    harm: str = harm,
                    expected: str = outcome(unbroken),
                ) -> Report:
                    draw = random.Random(f"{arguments.seed} {count} {harm} {index}")
                    run = folder / f"{harm}-{count}-{index}"
                    return torment(run, count, harm, arguments, draw, expected)

                with ThreadPoolExecutor(arguments.parallel) as pool:
                    for seen in pool.map(one, range(arguments.times)):
                        report.add(seen)
                bad += tell(count, harm, report, time.monotonic() - began)
    return 1 if bad else 0


def tell(count: int, harm: str, report: Report, seconds: float) -> int:
    """Print the figures of one way of harm, and count what was wrong."""
    print(
        f"\n{count} workers, one {harm}: {report.times} times in {seconds:.0f} s\n"
        f"  exit codes of those left           {dict(sorted(report.codes.items()))}\n"
        f"  slowest exit                       {report.slowest_seconds:.1f} s\n"
        f"  went on and equal the unbroken run {report.times - report.differing} of "
        f"{report.times} ({report.resumed} from a checkpoint)\n"
        f"  problems                           {report.problems or 'none'}",
        flush=True,
    )
    late = report.slowest_seconds > WITHIN_SECONDS
    return (
        report.differing
        + len(report.problems)
        + late
        + sum(number for code, number in report.codes.items() if code != TEMPORARY)
    )


def torment(
    run: Path,
    count: int,
    harm: str,
    arguments: argparse.Namespace,
    draw: random.Random,
    expected: str,
) -> Report:
    """Begin `run`, harm one of its workers, and begin it again."""
    report = Report(times=1)
    victim = draw.randrange(count)
    missing = victim if harm == "missing" else None
    waits = arguments.peer_timeout if harm == "missing" else MEET_AGAIN_SECONDS
    workers = start(run, count, shlex.split(arguments.flags), waits, missing)
    if harm != "missing" and not wait_for_step(run, workers):
        report.problems.append(f"{run.name}: never began to train")
    else:
        if harm != "missing":
            time.sleep(draw.uniform(0, 1.5))
        began = time.monotonic()
        if harm == "killed":
            os.killpg(workers[victim].pid, signal.SIGKILL)
        elif harm == "frozen":
            for process in children(workers[victim].pid):
                os.kill(process, signal.SIGSTOP)
        left = [w for i, w in enumerate(workers) if i != victim or harm != "killed"]
        for worker in left:
            try:
                report.codes[worker.wait(2 * WITHIN_SECONDS)] += 1
            except subprocess.TimeoutExpired:
                report.problems.append(f"{run.name}: still there after {2 * WITHIN_SECONDS} s")
        report.slowest_seconds = max(report.slowest_seconds, time.monotonic() - began)
    for worker in workers:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
    again = [worker.wait() for worker in start(run, count, shlex.split(arguments.flags))]
    if any(again):
        report.problems.append(f"{run.name}: exit codes {again} when begun again")
        report.differing += 1
        return report
    report.differing += outcome(run) != expected
    metrics = json.loads((run / "r" / "metrics.json").read_text())
    report.resumed += metrics["train"]["resumed_step"] > 0
    return report


def start(
    output: Path,
    count: int,
    flags: list[str],
    peer_timeout: str = MEET_AGAIN_SECONDS,
    missing: int | None = None,
) -> list[subprocess.Popen[bytes]]:
    """Start the workers of a run, but for the one that is missing; each leads a process group."""
    with PORTS_LOCK:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
    place = ("--data", str(output.parent / "small.npz"), "--output", str(output), "--run-id", "r")
    words = (*FLAGS, *flags, *place, "--peer-timeout", peer_timeout)
    workers = []
    for index in range(count):
        if index == missing:
            continue
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        with (output.parent / f"{output.name}-{index}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "job", "train", *words],
                env=os.environ | {"TF_CONFIG": config},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        workers.append(worker)
    return workers


def free_port() -> int:
    """Return a port that is free, with the one after it, and not given away just before."""
    for port in PORTS:
        with contextlib.suppress(OSError):
            for number in (port, port + 1):
                socket.create_server(("127.0.0.1", number)).close()
            return port
    raise AssertionError


def wait_for_step(run: Path, workers: list[subprocess.Popen[bytes]]) -> bool:
    """Wait until the first checkpoint of `run`, and tell whether it came."""
    deadline = time.monotonic() + float(MEET_AGAIN_SECONDS)
    while time.monotonic() < deadline and all(worker.poll() is None for worker in workers):
        if list((run / "r" / "checkpoints").glob("*.safetensors")):
            return True
        time.sleep(0.05)
    return False


def children(process_id: int) -> list[int]:
    """Return the process ids of a process's children."""
    path = Path(f"/proc/{process_id}/task/{process_id}/children")
    return [int(child) for child in path.read_text().split()]


def outcome(output: Path) -> str:
    """Return a digest of what the run published."""
    files = [(output / "r" / name).read_bytes() for name in ("model_weights.h5", "model.keras")]
    return hashlib.sha256(b"".join(files)).hexdigest()


def small_data(path: Path) -> None:
    """Write a small part of MNIST, so that a training takes seconds."""
    mnist = source.load(DataSource(EMBEDDED))
    parts = {
        "x_train": mnist.x_train[:4000],
        "y_train": mnist.y_train[:4000],
        "x_test": mnist.x_test[:500],
        "y_test": mnist.y_test[:500],
    }
    np.savez(path, **parts)


if __name__ == "__main__":
    sys.exit(main())
