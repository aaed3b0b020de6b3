"""Train each preset with several seeds; print the accuracies, what they cost, and the commands.

    python scripts/bench/accuracy.py                        all presets, five seeds each
    python scripts/bench/accuracy.py --preset fast --seeds 10
    python scripts/bench/accuracy.py --held-out --preset cnn -- --epochs 6   a line of a sweep

With --held-out the test set has no part in it: each seed trains on five sixths of the training
images and is scored on the others, drawn with that seed. Words after `--` go to `mnist-job train`;
of `--ensemble N` each seed is N later than the one before, so that no two share a member, and the
members have a line of their own.
Whatever the runs published about themselves goes to accuracy.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import children
import machine
from environments import FOLDER
from tasks import NO_PAGE

from job.config import PRESETS

HELD_OUT = 1 / 6
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Run:
    """One training, as its metrics tell it."""

    seed: int
    accuracy: float
    loss: float
    calibration_error: float | None
    """None on held-out images, whose classes the job doesn't publish."""
    seconds: float
    """From process start to published."""
    images: int
    """That it was trained on, those of all epochs."""
    members: tuple[float, ...] = ()
    """Accuracy of each, of an ensemble."""


@dataclass(frozen=True)
class Row:
    """What a preset came to, over all seeds."""

    name: str
    command: str
    runs: tuple[Run, ...]
    teraflop: float
    """10^12 operations of a training; see `flops`."""


def main() -> None:
    """Run the measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", action="append", choices=list(PRESETS), default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--output", type=Path, default=FOLDER / "accuracy.json")
    parser.add_argument("flags", nargs="*", help="for mnist-job train, after --")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds must be 1 or more, not {arguments.seeds}")
    members = members_in(arguments.flags)
    if members > 1 and arguments.held_out:
        parser.error("--held-out: an ensemble is scored on the test set only")
    children.end_by_exception()
    rows: list[Row] = []
    document = begun()
    document["runs"] = []
    for preset in arguments.preset or list(PRESETS):
        flags = ["--preset", preset, *arguments.flags]
        print(f"{' '.join(['mnist-job train', *flags])}\n{HEAD}", flush=True)
        documents = []
        for seed in range(0, arguments.seeds * members, members):
            documents.append(train(flags, seed, held_out=arguments.held_out))
            print(line(run_of(documents[-1])), flush=True)
            document["runs"].append(documents[-1])
            keep(document, arguments.output)  # after each, since all of them take hours
        rows.append(row(preset, flags, documents))
        print(f"{mean_line(rows[-1])}\n", flush=True)
    print("\n".join(table(rows, held_out=arguments.held_out)))


def members_in(flags: Sequence[str]) -> int:
    """Return how many nets each run of `mnist-job train` with `flags` trains."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--ensemble", type=int, default=1)
    return int(parser.parse_known_args(flags)[0].ensemble)


def begun() -> dict[str, Any]:
    """Return what is kept of a measurement that begins: when, and where."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
    }


def keep(document: dict[str, Any], path: Path) -> None:
    """Write what was measured so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    unfinished.replace(path)  # whoever is killed meanwhile finds the one before


def train(
    flags: Sequence[str], seed: int, *, held_out: bool, program: Sequence[str] = ("-P", "-m", "job")
) -> dict[str, Any]:
    """Run the job as its users do, and return the metrics it published.

    Args:
        flags: of `mnist-job train`.
        seed: of the run, and of what is held out.
        held_out: whether to hold out a sixth of the training images.
        program: what Python is to run.

    Raises:
        SystemExit: the job failed, and has said why.
    """
    words = ["--seed", str(seed), "--run-id", "run", "--log", "json", *NO_PAGE]
    if held_out:
        words += ["--validation", str(HELD_OUT), "--validation-seed", str(seed)]
    with tempfile.TemporaryDirectory(prefix="mnist-job-accuracy-") as folder:
        command = [sys.executable, *program, "train", *words, *flags, "--output", folder]
        ended = children.run(command, stdout=subprocess.DEVNULL)
        if ended.returncode:
            sys.exit(f"{' '.join(command)} exited {ended.returncode}")
        return dict(json.loads(Path(folder, "run", "metrics.json").read_text()))


def run_of(metrics: dict[str, Any]) -> Run:
    """Return what the metrics say, of the held-out images where there are any."""
    test = metrics["test"]
    last = metrics["train"]["history"][-1] if metrics["train"]["history"] else {}
    held_out = "validation_accuracy" in last
    return Run(
        seed=metrics["config"]["seed"],
        accuracy=last["validation_accuracy"] if held_out else test["accuracy"],
        loss=last["validation_loss"] if held_out else test["loss"],
        calibration_error=None if held_out else test["expected_calibration_error"],
        seconds=metrics["timing"]["total_seconds"],
        images=metrics["train"]["steps"] * metrics["config"]["batch_size"],
        members=tuple(member["accuracy"] for member in metrics.get("members", ())),
    )


def row(name: str, flags: Sequence[str], documents: Sequence[dict[str, Any]]) -> Row:
    """Return what the runs came to, all of the same flags but for their seed."""
    runs = tuple(run_of(document) for document in documents)
    model, data = documents[0]["model"]["name"], documents[0]["data"]
    words = [model, str(data["classes"]), *map(str, data["image_shape"])]
    counted = children.run(
        [sys.executable, str(HERE / "flops.py"), *words], check=True, capture_output=True
    )
    an_image = json.loads(counted.stdout)["training"]
    seeds = f"0..{runs[-1].seed}" if len(runs) > 1 else "0"
    if len(runs) > 1 and runs[0].members:
        seeds = ",".join(str(run.seed) for run in runs)
    command = " ".join(["mnist-job train", *flags, "--seed", seeds])
    teraflop = an_image * statistics.mean(run.images for run in runs) / 1e12
    return Row(name, command, runs, teraflop)


HEAD = "seed  accuracy    loss  calibration error  seconds"


def line(run: Run) -> str:
    """Return the line of one run."""
    error = "-" if run.calibration_error is None else f"{run.calibration_error:.4f}"
    return f"{run.seed:>4}  {run.accuracy:.4f}  {run.loss:>8.4f}  {error:>17}  {run.seconds:>7.1f}"


def mean_line(row: Row) -> str:
    """Return the line below those of a preset's runs."""
    accuracies = [run.accuracy for run in row.runs]
    return f"mean  {statistics.mean(accuracies):.5f}   standard deviation {spread(accuracies):.5f}"


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of `values`, which a single one has none of: not a number."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def table(rows: Sequence[Row], *, held_out: bool) -> list[str]:
    """Return one line for each preset: per cent, and medians of the seconds."""
    scored = "held out" if held_out else "test"
    head = f"{f'preset, % of {scored}':<22}{'mean':>8}{'sd':>7}{'least':>8}{'most':>8}{'n':>4}"
    lines = [f"{head}{'TFLOP':>8}{'seconds':>9}  command"]
    for each in rows:
        seconds = f"{statistics.median(run.seconds for run in each.runs):.1f}"
        ends = f"{each.teraflop:>8.3g}{seconds:>9}  {each.command}"
        lines.append(figures(each.name, [run.accuracy for run in each.runs]) + ends)
        members = [accuracy for run in each.runs for accuracy in run.members]
        if members:
            a_member = each.teraflop * len(each.runs) / len(members)
            lines.append(f"{figures('  each member', members)}{a_member:>8.3g}")
    return lines


def figures(name: str, accuracies: Sequence[float]) -> str:
    """Return the columns of the table that tell of accuracies, which are shares of 1."""
    percents = [100 * accuracy for accuracy in accuracies]
    return (
        f"{name:<22}{statistics.mean(percents):>8.3f}{spread(percents):>7.3f}"
        f"{min(percents):>8.2f}{max(percents):>8.2f}{len(percents):>4}"
    )


if __name__ == "__main__":
    main()
