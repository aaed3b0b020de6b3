"""What the samples say: every figure that was asked for, and the table on the terminal."""

import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import verdicts
from contestants import (
    BATCHES,
    EPOCHS,
    JAX,
    JAX_UNROLLED,
    JOB,
    KERAS,
    PRODUCTS,
    PRODUCTS_TORCH,
)
from probes import CheckpointCost, Growth, Start
from verdicts import Figure, Sample

STAGES = ("load", "import", "compile", "train", "evaluate", "publish")
Rows = dict[str, list[float | None]]


@dataclass(frozen=True)
class Measured:
    """All that a comparison has seen."""

    samples: list[Sample]
    job_metrics: list[dict[str, Any]]
    """What the job published, of each of its samples."""
    starts: list[Start]
    checkpoints: list[CheckpointCost]
    growths: list[Growth]

    def document(self) -> dict[str, Any]:
        """Return everything, medians and figures too, in types that JSON has."""
        figures = [asdict(figure) | {"reached": figure.reached} for figure in judge(self)]
        medians = {
            "wall_seconds": _medians(self.samples, verdicts.wall),
            "images_per_second": _medians(self.samples, verdicts.speed),
        }
        return {"figures": figures, "medians": medians, **asdict(self)}


def judge(seen: Measured) -> list[Figure]:
    """Return every figure that was asked for, with its bound."""
    return [*_against_others(seen.samples), *_by_itself(seen)]


def _against_others(samples: list[Sample]) -> list[Figure]:
    wall, speed, chosen = verdicts.wall, verdicts.speed, verdicts.chosen
    ours = {batch: chosen(samples, JOB, batch) for batch in BATCHES}
    keras = chosen(samples, KERAS, 32)
    name = f"whole job, {EPOCHS} epochs, vs Keras fit, batch 32"
    figures = [verdicts.ratio(name, ours[32], keras, wall, 1 / 7, at_most=True)]
    # Of JAX whoever is the better at what is compared; nobody --without jax.
    rivals = {b: [chosen(samples, name, b) for name in (JAX, JAX_UNROLLED)] for b in BATCHES}
    met = [batch for batch in BATCHES if any(rivals[batch])]
    for batch in met:
        best = verdicts.best(rivals[batch], wall, least=True)
        name = f"whole job vs JAX, batch {batch}"
        figures.append(verdicts.ratio(name, ours[batch], best, wall, 1.3, at_most=True))
    for batch in met:
        best = verdicts.best(rivals[batch], speed, least=False)
        name = f"steady images/s vs JAX, batch {batch}"
        figures.append(verdicts.ratio(name, ours[batch], best, speed, 1.0, at_most=False))
    for library, owner in ((PRODUCTS, "NumPy"), (PRODUCTS_TORCH, "PyTorch")):
        if alone := chosen(samples, library, 128):
            name = f"share of {owner}'s matrix products, batch 128"
            figures.append(verdicts.ratio(name, ours[128], alone, speed, 0.7, at_most=False))
    return figures


def _by_itself(seen: Measured) -> list[Figure]:
    compiling = [start.first_step_seconds - 0.8 * start.import_seconds for start in seen.starts]
    shares = [100 * cost.share for cost in seen.checkpoints]
    bare = statistics.median(start.import_memory_mib for start in seen.starts)
    peaks = [m["resources"]["peak_memory_mib"] - bare for m in seen.job_metrics]
    walls = [growth.wall_seconds[1] / growth.wall_seconds[0] for growth in seen.growths]
    trains = [growth.train_seconds[1] / growth.train_seconds[0] for growth in seen.growths]
    span = verdicts.span
    return [
        span("start to first step, less 0.8 import TensorFlow", compiling, 1.5, unit=" s"),
        span("checkpoints every 30 s, share of the time", shares, 2, unit=" %"),
        span("peak memory above import TensorFlow", peaks, 250, unit=" MiB"),
        span("10 times the data, whole job", walls, 10),
        span("10 times the data, training", trains, 10),
    ]


def table(document: dict[str, Any], seen: Measured) -> list[str]:
    """Return the lines for the terminal; `document` tells date, machine and versions."""
    told, packages, samples = document["machine"], document["versions"], seen.samples
    trained = [sample for sample in samples if sample.accuracy is not None]
    last = seen.growths[-1]
    return [
        f"{document['date']}   {told['cpu']}, {told['cores']} cores, load {told['load']:.2f}",
        "   ".join(f"{name} {version}" for name, version in packages.items()),
        "",
        *verdicts.matrix("seconds, start to end", BATCHES, _medians(trained, verdicts.wall)),
        "",
        *verdicts.matrix("images/s, steady", BATCHES, _medians(samples, verdicts.speed)),
        "",
        *verdicts.matrix("accuracy, %", BATCHES, _medians(trained, _percent)),
        "",
        *verdicts.matrix(f"seconds of {JOB}", BATCHES, stages(seen)),
        "",
        *verdicts.verdict_lines(judge(seen)),
        "",
        f"peak memory {_sizes(last, 0)}, {_sizes(last, 1)}",
    ]


def _sizes(growth: Growth, place: int) -> str:
    peak, size = growth.peak_memory_mib[place], growth.data_mib[place]
    return f"{peak:,.0f} MiB with {size:,.0f} MiB of data"


def stages(seen: Measured) -> Rows:
    """Return what the job's seconds consist of: medians by stage, one for each batch size."""
    by_batch = defaultdict(list)
    for document in seen.job_metrics:
        by_batch[document["config"]["batch_size"]].append(document["timing"])
    rows: Rows = {
        stage: [statistics.median(t[f"{stage}_seconds"] for t in by_batch[b]) for b in BATCHES]
        for stage in STAGES
    }
    walls = [verdicts.median(seen.samples, JOB, batch, verdicts.wall) or 0 for batch in BATCHES]
    known = [sum(rows[stage][place] or 0 for stage in STAGES) for place in range(len(BATCHES))]
    rest = [wall - seconds for wall, seconds in zip(walls, known, strict=True)]
    return rows | {"interpreter, flags, building, exit": [float(seconds) for seconds in rest]}


def _medians(samples: list[Sample], of: verdicts.Measure) -> Rows:
    """Return the medians of every contestant, one for each batch size."""
    names = dict.fromkeys(sample.contestant for sample in samples)
    return {name: [verdicts.median(samples, name, b, of) for b in BATCHES] for name in names}


def _percent(sample: Sample) -> float:
    return 100 * (sample.accuracy or 0)
