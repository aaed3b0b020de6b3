"""Change one thing of a preset at a time, and print what that costs on held-out images.

    python scripts/bench/ablation.py                          fast, five seeds: an hour
    python scripts/bench/ablation.py --preset cnn --only norm the rows whose name has that in it
    python scripts/bench/ablation.py --preset best -- --epochs 5

Row and preset are compared seed by seed: of one seed both hold out the same images, begin with the
same weights and take the images in the same order. The test set has no part in it. What flags can't
change is changed in the running program (variants.py). Words after `--` go to `mnist-job train`.

Every training is kept in ablation.json as soon as it has ended. One that was ended goes on there;
to measure the same again, remove it.
"""

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import accuracy
import children
import machine
from accuracy import Run
from environments import FOLDER, REPOSITORY

from job.config import PRESETS, STRENGTH, RunConfig

HERE = Path(__file__).parent
# Student's t that differences of nothing pass in a twentieth of all cases, by degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Row:
    """A preset with one thing changed."""

    name: str
    flags: tuple[str, ...] = ()
    variant: str | None = None
    """Of `variants`; None where flags say it all."""


def main() -> None:
    """Run the measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="fast")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--output", type=Path, default=FOLDER / "ablation.json")
    parser.add_argument("flags", nargs="*", help="for mnist-job train, after --")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds must be 2 or more, to tell a spread, not {arguments.seeds}")
    chosen = [row for row in rows(arguments.preset) if arguments.only in row.name]
    if not chosen:
        names = "; ".join(row.name for row in rows(arguments.preset))
        parser.error(f"--only {arguments.only!r} is in no row's name: {names}")
    children.end_by_exception()
    base_flags = ["--preset", arguments.preset, *arguments.flags]
    kept = Kept(arguments.output, base_flags)
    print(f"mnist-job train {' '.join(base_flags)}, % of held-out images\n{HEAD}", flush=True)
    base = kept.runs(Row("as it is"), arguments.seeds)
    print(line("as it is", base, None), flush=True)
    for row in chosen:
        print(line(row.name, kept.runs(row, arguments.seeds), base), flush=True)


class Kept:
    """The trainings of one preset, in a file that has each as soon as it has ended."""

    def __init__(self, path: Path, flags: Sequence[str]) -> None:
        """Go on with what `path` has, if that is of the same flags, program and machine."""
        self._path, self._flags = path, list(flags)
        of = {"flags": self._flags, "program": program_digest(), "cpu": machine.facts()["cpu"]}
        self._document = accuracy.begun() | of | {"runs": {}}
        if not path.is_file():
            return
        found = json.loads(path.read_text())
        if all(found.get(name) == value for name, value in of.items()):
            self._document = found
            count = sum(map(len, found["runs"].values()))
            print(f"ablation: {count} trainings are in {path} already", file=sys.stderr, flush=True)

    def runs(self, row: Row, seeds: int) -> list[Run]:
        """Return a run of each seed of `row`, trained where there is none."""
        name = " ".join([row.variant or "", *row.flags]).strip() or "as it is"
        runs = self._document["runs"].setdefault(name, [])
        program = ["-P", "-m", "job"]
        if row.variant is not None:
            program = [str(HERE / "variants.py"), row.variant]
        words = [*self._flags, *row.flags]
        for seed in range(len(runs), seeds):
            metrics = accuracy.train(words, seed, held_out=True, program=program)
            runs.append(asdict(accuracy.run_of(metrics)))
            accuracy.keep(self._document, self._path)
        return [Run(**run) for run in runs[:seeds]]


def program_digest() -> str:
    """Return a digest of the job's code and of what changes it: of another one nothing is kept."""
    digest = hashlib.sha256((HERE / "variants.py").read_bytes())
    for path in sorted((REPOSITORY / "job").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def rows(preset: Any) -> list[Row]:
    """Return what is changed of `preset`, but for what it has already."""
    base = RunConfig(run_id="base", **PRESETS[preset])
    rate, decay = base.learning_rate, base.weight_decay
    found = [
        *_values(base, "label_smoothing", (0.0, 0.05, 0.1, 0.2)),
        *_augmentations(base),
        *_values(base, "dropout", (0.0, 0.2, 0.4)),
        *_values(base, "weight_decay", (0.0, 0.02, 0.05, 0.1)),
        *_values(base, "learning_rate", (rate / 2, rate * 2)),
        *_values(base, "schedule", ("linear", "cosine", "constant")),
        *_values(base, "batch_size", (64, 128, 256)),
    ]
    if base.model != "mlp":
        found += [
            Row("no norm", variant="no-norm"),
            Row("norm before the pool", variant="norm-before-pool"),
        ]
    found += [
        Row("mean of weights, 0.99", variant="ema-0.99"),
        Row("mean of weights, 0.998", variant="ema-0.998"),
        Row("mean over five shifts", variant="shifts"),
        Row("Adam, second moment 0.99", variant="beta2-0.99"),
    ]
    for variant, name, factors in (
        ("nesterov", "SGD, Nesterov", (3, 10, 30)),
        ("lion", "Lion", (0.1, 0.3)),
    ):
        # A step shrinks a kernel by rate x decay, which stays what it was.
        found += [
            Row(
                f"{name}, rate {rate * factor:g}",
                (
                    *("--learning-rate", str(rate * factor)),
                    *("--weight-decay", str(decay / factor)),
                ),
                variant,
            )
            for factor in factors
        ]
    return found


def _values(base: RunConfig, field: str, values: Sequence[float | str]) -> list[Row]:
    name = field.replace("_", " ")
    return [
        Row(f"{name} {value}", (f"--{field.replace('_', '-')}", str(value)))
        for value in values
        if value != getattr(base, field)
    ]


def _augmentations(base: RunConfig) -> list[Row]:
    found = [
        Row(f"augmentation {name}", ("--augment", name))
        for name in ("none", "shift")
        if name != base.augment
    ]
    strength = STRENGTH if base.augment_strength is None else base.augment_strength
    factors = (1.0,) if base.augment_strength is None else (0.5, 1.5)
    return found + [
        Row(
            f"augmentation affine {strength * factor:.2g}",
            ("--augment", "affine", "--augment-strength", f"{strength * factor:.2g}"),
        )
        for factor in factors
    ]


HEAD = f"{'':<32}{'mean':>9}{'sd':>7}{'difference':>12}{'+-':>7}{'':<13}{'seconds':>9}"


def line(name: str, runs: Sequence[Run], base: Sequence[Run] | None) -> str:
    """Return the line of a row: per cent, and what it differs by from `base`, seed by seed."""
    percents = [100 * run.accuracy for run in runs]
    seconds = statistics.median(run.seconds for run in runs)
    told = " " * 32
    if base is not None:
        mean, half = difference(percents, [100 * run.accuracy for run in base])
        verdict = "told apart" if abs(mean) > half else ""
        told = f"{mean:>+12.3f}{half:>7.3f}  {verdict:<11}"
    mean, deviation = statistics.mean(percents), statistics.stdev(percents)
    return f"{name:<32}{mean:>9.3f}{deviation:>7.3f}{told}{seconds:>9.1f}"


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the mean of ours - theirs, pair by pair, and half of its 95 % confidence interval.

    By Student's t for pairs (Gosset, 1908). Of twenty rows that change nothing one is told apart.
    """
    each = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    t = _T[min(len(each) - 1, len(_T)) - 1]
    return statistics.mean(each), t * statistics.stdev(each) / math.sqrt(len(each))


if __name__ == "__main__":
    main()
