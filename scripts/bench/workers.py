"""When does a second worker pay? One core, two cores, and two workers of one core each, compared.

    python scripts/bench/workers.py              three rounds, what README.md beside shows
    python scripts/bench/workers.py --quick      one round
    python scripts/bench/workers.py --gbit 1 --hop-microseconds 200    the plan for another link

Every sample is a training by `mnist-job train`, pinned to its cores, without augmentation. Steps
are those of the epochs after the first. Of the exchanges the job tells itself what they take where
nobody is late. From both comes a plan for up to 64 workers of one core each, as a ring has it:
2 (n - 1) hops an exchange, and 2 (n - 1) / n of the numbers through each link (Patarasuk and Yuan,
2009).
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import children
import machine
from environments import FOLDER, clean_environment, own_python
from tasks import EXCERPT, MNIST, NO_PAGE, write_excerpt

PINNED = """
import os, sys
os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})
os.execv(sys.argv[2], sys.argv[2:])
"""
PLACEMENTS = {
    "1 worker, 1 core": ("0",),
    "1 worker, 2 cores": ("0,1",),
    "2 workers, 1 core each": ("0", "1"),
}
ONE_CORE, TWO_CORES, TWO_WORKERS = PLACEMENTS


@dataclass(frozen=True)
class Work:
    """A net that is trained, and what a step of it exchanges."""

    name: str
    flags: tuple[str, ...]
    batches: tuple[int, ...]
    exchanges: int
    """Of a step: one of the gradients, and two for each normalisation."""
    numbers: int
    """That they carry together."""


WORKS = (
    Work("mlp", ("--data", str(MNIST), "--epochs", "3"), (32, 128, 512, 2048), 1, 109_388),
    Work(
        "cnn-wide",
        ("--preset", "best", "--augment", "none", "--data", str(EXCERPT), "--epochs", "3"),
        (128, 512, 2048),
        9,
        237_836 + 4 * (48 + 96 + 96 + 128),
    ),
)


@dataclass(frozen=True)
class Sample:
    """What one training came to."""

    work: str
    batch: int
    placement: str
    exchange: str
    images_per_second: float
    exchange_seconds: float | None
    """Of a step, by the chief; None for one worker."""


def main() -> None:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--gbit", type=float, default=10, help="of the plan's links, per second")
    parser.add_argument("--hop-microseconds", type=float, help="of the plan; measured if not given")
    parser.add_argument("--output", type=Path, default=FOLDER / "workers.json")
    arguments = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("workers: two cores are needed, this machine has one")
    children.end_by_exception()
    FOLDER.mkdir(exist_ok=True)
    write_excerpt()
    facts = machine.facts()
    print(f"{facts['cpu']}, {facts['cores']} cores, load {facts['load']:.2f}", flush=True)
    samples: list[Sample] = []
    for _ in range(1 if arguments.quick else arguments.rounds):
        for work in WORKS:
            for batch in work.batches:
                samples += round_of(work, batch)
    arguments.output.write_text(
        json.dumps({"machine": facts, "samples": [asdict(each) for each in samples]}, indent=1)
    )
    print("\n".join([*table(samples), "", *plan(samples, arguments)]))
    print(f"\nevery sample: {arguments.output}")


def round_of(work: Work, batch: int) -> Iterator[Sample]:
    """Train once in each way."""
    for placement in PLACEMENTS:
        yield sample(work, batch, placement, "float32")
    yield sample(work, batch, TWO_WORKERS, "bfloat16")


def sample(work: Work, batch: int, placement: str, exchange: str) -> Sample:
    """Train once, and return what was seen."""
    cores = PLACEMENTS[placement]
    with tempfile.TemporaryDirectory() as folder:
        flags = [*work.flags, "--batch-size", str(batch), "--exchange", exchange, "--log", "json"]
        command = [str(own_python().parent / "mnist-job"), "train", *flags]
        command += ["--output", folder, "--run-id", "r", *NO_PAGE]
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", PINNED, each, *command],
                env=clean_environment() | _place(index, cores),
                stdout=(Path(folder) / f"log-{index}").open("w"),
                preexec_fn=children.dying_with_this_process(),  # noqa: PLW1509  one thread
            )
            for index, each in enumerate(cores)
        ]
        try:
            codes = [worker.wait() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        if any(codes):
            sys.exit(f"workers: {work.name}, {batch}, {placement}: exit codes {codes}")
        log = [json.loads(line) for line in (Path(folder) / "log-0").read_text().splitlines()]
    speeds = [line["images_per_second"] for line in log if line["event"] == "epoch"][1:]
    timed = [line["seconds"] for line in log if line["event"] == "exchange_timed"]
    seen = statistics.median(speeds), timed[0] if timed else None
    print(f"{work.name:9} {batch:5} {placement:23} {exchange:9} {seen[0]:9,.0f} /s", flush=True)
    return Sample(work.name, batch, placement, exchange, *seen)


def _place(index: int, cores: tuple[str, ...]) -> dict[str, str]:
    """Return the variables by which a worker knows its place; none for one alone."""
    threads = {"TF_NUM_INTRAOP_THREADS": str(len(cores[index].split(",")))}
    if len(cores) == 1:
        return threads
    cluster = {"worker": [f"127.0.0.1:{port}" for port in _ports(len(cores))]}
    task = {"type": "worker", "index": index}
    return threads | {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def _ports(count: int) -> list[int]:
    """Return ports, the same for each worker, that are free with the one after each."""
    ports: list[int] = []
    first = 20_000 + os.getpid() % 10_000
    while len(ports) < count:
        first += 2
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", first))
                other.bind(("127.0.0.1", first + 1))
            except OSError:
                continue
        ports.append(first)
    return ports


def table(samples: list[Sample]) -> list[str]:
    """Return the lines that say what each way came to, by net and batch: medians."""
    lines = [
        "                               images/s             step of 2 workers  2 workers",
        "net       batch   1 core  2 cores  2 workers  bfloat16      ms  exchange  vs 1 core",
    ]
    for work in WORKS:
        for batch in work.batches:
            one, two, workers, rounded, exchange = figures(samples, work, batch)
            step = batch / workers
            lines.append(
                f"{work.name:9} {batch:5} {one:8,.0f} {two:8,.0f} {workers:10,.0f} {rounded:9,.0f} "
                f"{1000 * step:7.1f} {exchange / step:9.0%} {workers / one:10.2f}"
            )
    return lines


def figures(samples: list[Sample], work: Work, batch: int) -> list[float]:
    """Return medians: images/s on one core, two, two workers, these in bfloat16; exchange."""

    def median(placement: str, exchange: str, number: Callable[[Sample], float | None]) -> float:
        return statistics.median(
            number(each) or 0.0
            for each in samples
            if (each.work, each.batch) == (work.name, batch)
            and (each.placement, each.exchange) == (placement, exchange)
        )

    def speed(each: Sample) -> float:
        return each.images_per_second

    return [
        *(median(placement, "float32", speed) for placement in PLACEMENTS),
        median(TWO_WORKERS, "bfloat16", speed),
        median(TWO_WORKERS, "float32", lambda each: each.exchange_seconds),
    ]


def plan(samples: list[Sample], link: argparse.Namespace) -> list[str]:
    """Return the lines that say what n workers would come to, on paper."""
    hop = 1e-6 * link.hop_microseconds if link.hop_microseconds else measured_hop(samples)
    counts = [2**power for power in range(7)]
    lines = [
        f"plan for links of {link.gbit:g} Gbit/s and {1e6 * hop:.0f} us a hop: images/s of n",
        "workers of one core",
        f"net       batch {''.join(f'{count:>9}' for count in counts)}",
    ]
    for work in WORKS:
        for batch in work.batches:
            image = 1 / figures(samples, work, batch)[0]
            speeds = []
            for count in counts:
                if count > batch:
                    break
                through = 2 * (count - 1) / count * 4 * work.numbers / (link.gbit * 1e9 / 8)
                exchange = work.exchanges * 2 * (count - 1) * hop + through
                speeds.append(batch / (batch * image / count + exchange))
            best = counts[speeds.index(max(speeds))]
            told = "".join(f"{speed:9,.0f}" for speed in speeds)
            lines.append(f"{work.name:9} {batch:5} {told}   most with {best}")
    return lines


def measured_hop(samples: list[Sample]) -> float:
    """Return seconds of a hop on this machine: of two workers' many small exchanges, a half."""
    work = WORKS[-1]
    smallest = min(figures(samples, work, batch)[-1] for batch in work.batches)
    return smallest / work.exchanges / 2


if __name__ == "__main__":
    main()
