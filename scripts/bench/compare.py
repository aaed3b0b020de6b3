"""Compare this job with what others write for the same task, side by side on this machine.

    python scripts/bench/compare.py              all rounds, what README.md beside shows
    python scripts/bench/compare.py --quick      one round
    python scripts/bench/compare.py --only mlp   the small dense net, or cnn: the convolutional ones

Every sample is a whole process with nothing kept from the one before but the page cache. In each
round every contestant runs once at every task, and who begins changes with the round; those far
behind sit out every other one. A table goes to the terminal, every sample to bench.json.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import children
import contestants as who
import machine
import probes
import summary
import tasks
from contestants import Contestant
from environments import FOLDER, BenchError
from summary import Measured

ROUNDS = {"mlp": 5, "cnn": 3}


def main() -> None:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, help="5 of the mlp and 3 of the cnn, if not given")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--only", choices=list(tasks.PARTS))
    parser.add_argument("--without", action="append", choices=["jax", "torch"], default=[])
    parser.add_argument("--output", type=Path, default=FOLDER / "bench.json")
    arguments = parser.parse_args()
    given = 1 if arguments.quick else arguments.rounds
    if given is not None and given < 1:
        parser.error(f"--rounds must be 1 or more, not {given}")
    parts = [arguments.only] if arguments.only else list(tasks.PARTS)
    rounds = {part: ROUNDS[part] if given is None else given for part in parts}
    children.end_by_exception()
    try:
        document, lines = compare(rounds, arguments.without)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(lines))
    print(f"\nevery sample: {arguments.output}")


def compare(rounds: dict[str, int], without: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Measure, and return what goes into bench.json and onto the terminal.

    Args:
        rounds: of each part that is to be measured.
        without: `jax` or `torch`, to leave them out.

    Raises:
        BenchError: an environment can't be made, or a contestant failed.
    """
    everyone = {part: who.contestants(part, without) for part in rounds}
    all_of_them = [contestant for names in everyone.values() for contestant in names]
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "versions": machine.versions_of(all_of_them),
        "epochs": tasks.EPOCHS,
        "rounds": rounds,
    }
    seen = Measured([], [], [], [], [])
    with tempfile.TemporaryDirectory(prefix="mnist-job-bench-") as folder:
        scratch = Path(folder)
        _say("warming up")
        if "cnn" in rounds:
            tasks.write_excerpt()
        for python in {contestant.python for contestant in all_of_them}:
            who.run([str(python), "-c", _IMPORTS])
        for contestant in all_of_them:
            if contestant.name == who.TORCH_COMPILED:
                who.run([str(contestant.python), "-c", _HEADERS])
        for part, count in rounds.items():
            for number in range(count):
                label = f"{part}, round {number + 1} of {count}"
                _round(everyone[part], part, number, label, seen, scratch)
    _say("")
    document |= {"load_average_at_end": os.getloadavg()[0], **seen.document()}
    return document, summary.table(document, seen)


def _round(
    everyone: list[Contestant], part: str, number: int, label: str, seen: Measured, scratch: Path
) -> None:
    """Let everyone run once, and add what was measured to `seen`."""
    for contestant, task in who.order(everyone, part, number):
        _say(f"{label}: {contestant.name}, {task.name}")
        sample, metrics = who.sample(contestant, task, number, scratch)
        seen.samples.append(sample)
        who.check_net(seen.samples)
        if metrics is not None:
            seen.job_metrics.append({"task": task.name} | metrics)
    if part != "mlp":
        return
    _say(f"{label}: start, checkpoints, ten times the data")
    seen.starts.append(probes.start(scratch))
    if number % 2 == 0:  # they are long, and their bounds far
        seen.checkpoints.append(probes.checkpoints(scratch))
        seen.growths.append(probes.growth(scratch))


def _say(text: str) -> None:
    """Show on a terminal what is going on, in one line that the next one overwrites."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


_IMPORTS = """
import importlib
for name in ("tensorflow", "torch", "jax", "optax"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        pass
"""
# PyTorch compiles its own headers once for a machine, and keeps them: no process has to pay that.
_HEADERS = """
import torch
torch.compile(lambda numbers: numbers.relu() + 1)(torch.ones(64))
"""

if __name__ == "__main__":
    main()
