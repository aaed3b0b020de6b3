"""Train with several seeds and print each run's accuracy, their mean and their spread.

    python scripts/bench/seeds.py                                    what README.md beside shows
    python scripts/bench/seeds.py --held-out -- --batch-size 128     one line of a tuning sweep

With --held-out the test set has no part in it: each seed trains on 50,000 of the training images
and is scored on the other 10,000, drawn with that seed. Words after `--` go to `mnist-job train`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import children
import numpy as np

from job.config import EMBEDDED

HELD_OUT = 10_000


def main() -> None:
    """Run the measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("flags", nargs="*", help="for mnist-job train, after --")
    arguments = parser.parse_args()
    children.end_by_exception()
    accuracies = []
    print("seed  accuracy    loss  calibration error  seconds", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            data = held_out(Path(folder), seed) if arguments.held_out else str(EMBEDDED)
            metrics = train(folder, seed, data, arguments.flags)
            test = metrics["test"]
            accuracies.append(test["accuracy"])
            print(
                f"{seed:>4}  {test['accuracy']:.4f}    {test['loss']:.4f}"
                f"             {test['expected_calibration_error']:.4f}"
                f"  {metrics['timing']['total_seconds']:>7.1f}",
                flush=True,
            )
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    print(f"mean  {statistics.mean(accuracies):.4f}    standard deviation {spread:.4f}")


def held_out(folder: Path, seed: int) -> str:
    """Write a data set made of the training images alone, and return where it lies."""
    path = folder / f"held-out-{seed}.npz"
    with np.load(EMBEDDED.path) as mnist:
        images, labels = mnist["x_train"], mnist["y_train"]
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[:HELD_OUT], order[HELD_OUT:]
    np.savez(
        path,
        x_train=images[train],
        y_train=labels[train],
        x_test=images[test],
        y_test=labels[test],
    )
    return str(path)


def train(folder: str, seed: int, data: str, flags: list[str]) -> dict[str, dict[str, float]]:
    """Run the job as its users do, and return the metrics it published."""
    place = ["--data", data, "--output", folder, "--run-id", f"seed-{seed}", "--seed", str(seed)]
    command = [sys.executable, "-P", "-m", "job", "train", *place, *flags]
    children.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics = Path(folder, f"seed-{seed}", "metrics.json").read_text()
    return dict(json.loads(metrics))


if __name__ == "__main__":
    main()
