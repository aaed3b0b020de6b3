"""Kill trainings at random moments, for real, and see that nothing is ever lost or torn.

    python scripts/chaos/kill.py --kills 100 --terms 200 [--flags="--preset cnn --epochs 2"]
    python scripts/chaos/kill.py --kills 10 --terms 10 --flags "--ensemble 3 --epochs 2"

A training of the job's own defaults, but of six epochs and with a checkpoint after every chunk, or
one with other flags, is killed by SIGKILL at a random moment of its life, and begun again until it
is complete; its weights must then be those of a training that nobody touched, byte for byte. The
same with SIGTERM, where the job must also be gone within 20 seconds and never say 0 unless it is
complete.
"""

import argparse
import collections
import hashlib
import json
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tally import Tally

FLAGS = ("--checkpoint-seconds", "0", "--log", "json")
WITHIN_SECONDS = 20
FILES = ("model_weights.h5", "model.keras")
GIVE_UP_AFTER = 50  # attempts at one run


@dataclass
class Report(Tally):
    """What was seen so far."""

    runs: int = 0
    signals: int = 0
    codes: collections.Counter[int] = field(default_factory=collections.Counter)
    resumed: int = 0
    differing: int = 0
    torn: int = 0
    unfinished_zero: int = 0
    slowest_exit_seconds: float = 0.0
    other_ends: list[str] = field(default_factory=list)


def main() -> int:
    """Run what the command line asks for; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="runs to kill with SIGKILL")
    parser.add_argument("--terms", type=int, default=200, help="SIGTERMs to send")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flags", default="--epochs 6 --augment shift", help="of train")
    arguments = parser.parse_args()
    flags = shlex.split(arguments.flags)
    with tempfile.TemporaryDirectory(prefix="mnist-job-chaos-") as folder:
        began = time.monotonic()
        names = [f"unbroken-{index}" for index in range(arguments.parallel)]
        for process in [start(Path(folder), name, flags) for name in names]:
            process.wait()
        life = time.monotonic() - began
        expected, *others = (outcome(Path(folder, name)) for name in names)
        if any(other != expected for other in others):
            print("unbroken runs differ from each other: there is nothing to compare to")
            return 1
        print(f"unbroken: {life:.1f} s, weights {expected['model_weights.h5'][:12]}", flush=True)
        bad = 0
        for number, wanted in (
            (signal.SIGKILL, arguments.kills),
            (signal.SIGTERM, arguments.terms),
        ):
            bad += campaign(Path(folder), number, wanted, life, expected, arguments)
    return 1 if bad else 0


def campaign(
    folder: Path,
    number: signal.Signals,
    wanted: int,
    life: float,
    expected: dict[str, str],
    arguments: argparse.Namespace,
) -> int:
    """Send `wanted` signals or kill that many runs, print the figures, and count what was wrong."""
    report, began = Report(), time.monotonic()

    def one(index: int) -> Report:
        draw = random.Random(f"{arguments.seed} {number} {index}")
        return torment(
            folder / f"{number.name}-{index}",
            shlex.split(arguments.flags),
            number,
            draw,
            life,
            expected,
        )

    with ThreadPoolExecutor(arguments.parallel) as pool:
        while (left := wanted - (report.runs if number == signal.SIGKILL else report.signals)) > 0:
            more = left if number == signal.SIGKILL else -(-left // 2)  # a run takes one or more
            for seen in pool.map(one, range(report.runs, report.runs + more)):
                report.add(seen)
    print(
        f"\n{number.name}: {report.signals} sent to {report.runs} runs in "
        f"{time.monotonic() - began:.0f} s\n"
        f"  exit codes of the attempts         {dict(sorted(report.codes.items()))}\n"
        f"  completions that had resumed       {report.resumed} of {report.runs}\n"
        f"  runs with other bytes than unbroken {report.differing}\n"
        f"  torn or unnamed files              {report.torn}\n"
        f"  exit 0 without a complete run      {report.unfinished_zero}\n"
        f"  slowest exit after the signal      {report.slowest_exit_seconds:.1f} s\n"
        f"  other ends                         {report.other_ends or 'none'}",
        flush=True,
    )
    late = number == signal.SIGTERM and report.slowest_exit_seconds > WITHIN_SECONDS
    return report.differing + report.torn + report.unfinished_zero + len(report.other_ends) + late


def torment(
    run: Path,
    flags: list[str],
    number: signal.Signals,
    draw: random.Random,
    life: float,
    expected: dict[str, str],
) -> Report:
    """Begin `run` again and again, with a signal at a random moment, until it is complete."""
    report = Report(runs=1)
    for attempt in range(GIVE_UP_AFTER):
        process = start(run.parent, run.name, flags)
        # The first attempt is hit for certain, later ones leave room for the run to end.
        moment = draw.uniform(0, life if attempt == 0 else 3 * life)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            sent = time.monotonic()
            process.send_signal(number)
            report.signals += 1
            process.wait()
            report.slowest_exit_seconds = max(report.slowest_exit_seconds, time.monotonic() - sent)
        code = process.returncode
        report.codes[code] += 1
        complete = (run / "metrics.json").exists()
        report.torn += sum(not only_whole_files(each) for each in folders(run))
        if code == 0:
            report.unfinished_zero += not complete
            break
        # Before Python has come up far enough to take it, SIGTERM ends the process by itself.
        if code not in (-number, 143):
            errors = process.stderr.read() if process.stderr else ""
            report.other_ends.append(f"{run.name}: {code} {errors.strip()[-200:]}")
            break
    else:
        report.other_ends.append(f"{run.name}: not complete after {GIVE_UP_AFTER} attempts")
    if (run / "metrics.json").exists():
        report.differing += outcome(run) != expected
        said = [json.loads((each / "metrics.json").read_text()) for each in folders(run)]
        report.resumed += any(metrics["train"]["resumed_step"] for metrics in said)
    return report


def start(output: Path, run_id: str, flags: list[str]) -> subprocess.Popen[str]:
    """Start the job as a process of its own."""
    place = ("--output", str(output), "--run-id", run_id)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "job", "train", *FLAGS, *flags, *place],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def folders(run: Path) -> list[Path]:
    """Return the folder of the run, and of an ensemble those of the members begun so far."""
    return [run, *run.parent.glob(f"{run.name}-*")]


def outcome(run: Path) -> dict[str, str]:
    """Return the digests of what the run published."""
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in FILES}


def only_whole_files(run: Path) -> bool:
    """Tell whether every file under a final name is whole: its digest is where it should be."""
    for path in (run / "checkpoints").glob("*.safetensors"):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue  # removed meanwhile, as old ones are
        if hashlib.sha256(content).hexdigest() not in path.name:
            return False
    for path in (run / "attempts").glob("*.json"):
        json.loads(path.read_text())
    metrics = run / "metrics.json"
    if metrics.exists():
        for artifact in json.loads(metrics.read_text())["artifacts"]:
            content = (run / artifact["path"]).read_bytes()
            if hashlib.sha256(content).hexdigest() != artifact["sha256"]:
                return False
    return True


if __name__ == "__main__":
    sys.exit(main())
