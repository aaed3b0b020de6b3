"""Change one thing of a preset at a time, and print what that costs on held-out images.

    python scripts/bench/ablation.py                          fast, five seeds: an hour
    python scripts/bench/ablation.py --preset cnn --only norm the rows whose name has that in it
    python scripts/bench/ablation.py --preset best -- --epochs 5

Row and preset are compared seed by seed: of one seed both hold out the same images, begin with the
same weights and take the images in the same order. The test set has no part in it. What flags can't
change is changed in the running program (variants.py). Words after `--` go to `mnist-job train`.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accuracy
import children
from accuracy import Run
from environments import FOLDER

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
    print(f"mnist-job train {' '.join(base_flags)}, % of held-out images\n{HEAD}", flush=True)
    base = measured(Row("as it is"), base_flags, arguments.seeds)
    print(line("as it is", base, None), flush=True)
    told = {"as it is": [run.accuracy for run in base]}
    document = accuracy.begun() | {"flags": base_flags, "accuracy": told}
    for row in chosen:
        runs = measured(row, base_flags, arguments.seeds)
        print(line(row.name, runs, base), flush=True)
        told[row.name] = [run.accuracy for run in runs]
        accuracy.keep(document, arguments.output)


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


def measured(row: Row, flags: Sequence[str], seeds: int) -> list[Run]:
    """Return a run of each seed, of `row` and what else `flags` say."""
    program = ["-P", "-m", "job"]
    if row.variant is not None:
        program = [str(HERE / "variants.py"), row.variant]
    words = [*flags, *row.flags]
    return [
        accuracy.run_of(accuracy.train(words, seed, held_out=True, program=program))
        for seed in range(seeds)
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
