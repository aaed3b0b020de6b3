"""What the samples say: every figure that was asked for, and the table on the terminal."""

import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import verdicts
from contestants import (
    JAX,
    JAX_CONVOLUTIONS,
    JAX_MATRICES,
    JAX_UNROLLED,
    JOB,
    KERAS,
    KERAS_FAST,
    KERAS_ONEDNN,
    PRODUCTS,
    PRODUCTS_TORCH,
    TORCH_CNN,
    TORCH_COMPILED,
)
from probes import CheckpointCost, Growth, Start
from tasks import BATCHES, EPOCHS, GOALS, PARTS, REFERENCE, STEADY
from verdicts import Figure, Sample

STAGES = ("load", "import", "compile", "train", "evaluate", "publish")
Rows = dict[str, list[float | None]]


@dataclass(frozen=True)
class Measured:
    """All that a comparison has seen."""

    samples: list[Sample]
    job_metrics: list[dict[str, Any]]
    """What the job published, of each of its samples, with the name of the `task`."""
    starts: list[Start]
    checkpoints: list[CheckpointCost]
    growths: list[Growth]

    def document(self) -> dict[str, Any]:
        """Return everything, medians and figures too, in types that JSON has."""
        figures = [asdict(figure) | {"reached": figure.reached} for figure in judge(self)]
        medians = {
            part: {
                "tasks": names_of(part),
                "wall_seconds": _medians(self.samples, part, verdicts.wall),
                "images_per_second": _medians(self.samples, part, verdicts.speed),
            }
            for part in self.parts
        }
        return {"figures": figures, "medians": medians, **asdict(self)}

    @property
    def parts(self) -> list[str]:
        """The parts that were measured."""
        measured = {sample.task for sample in self.samples}
        return [part for part in PARTS if measured.intersection(names_of(part))]


def names_of(part: str) -> list[str]:
    """Return the names of the tasks of a part, which head the columns of its tables."""
    return [task.name for task in PARTS[part]]


def judge(seen: Measured) -> list[Figure]:
    """Return every figure that was asked for, with its bound."""
    of_part = {
        "mlp": lambda: [*_against_others(seen.samples), *_by_itself(seen)],
        "cnn": lambda: [*_steps(seen.samples), *_goals(seen.samples)],
    }
    return [figure for part in seen.parts for figure in of_part[part]()]


def _against_others(samples: list[Sample]) -> list[Figure]:
    wall, speed = verdicts.wall, verdicts.speed

    def of(name: str, batch: int) -> list[Sample]:
        return verdicts.chosen(samples, name, REFERENCE[batch].name)

    ours = {batch: of(JOB, batch) for batch in BATCHES}
    name = f"whole job, {EPOCHS} epochs, vs Keras fit, batch 32"
    figures = [verdicts.ratio(name, ours[32], of(KERAS, 32), wall, 1 / 7, at_most=True)]
    # Of JAX whoever is the better at what is compared; nobody --without jax.
    rivals = {b: [of(name, b) for name in (JAX, JAX_UNROLLED)] for b in BATCHES}
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
        if alone := of(library, 128):
            name = f"share of {owner}'s matrix products, batch 128"
            figures.append(verdicts.ratio(name, ours[128], alone, speed, 0.7, at_most=False))
    return figures


def _steps(samples: list[Sample]) -> list[Figure]:
    """Judge the steady steps against the best of all others, round by round."""
    speed, figures = verdicts.speed, []
    rivals = (KERAS_FAST, KERAS_ONEDNN, TORCH_CNN, TORCH_COMPILED, JAX_CONVOLUTIONS, JAX_MATRICES)
    for task in STEADY:
        ours = verdicts.chosen(samples, JOB, task.name)
        best = verdicts.best(
            [verdicts.chosen(samples, rival, task.name) for rival in rivals], speed, least=False
        )
        name = f"{task.name}, steady images/s vs best (goal 1.3)"
        figures.append(verdicts.ratio(name, ours, best, speed, 1.0, at_most=False))
    return figures


def _goals(samples: list[Sample]) -> list[Figure]:
    """Judge the time from process start to an accuracy, and whether it was reached."""
    figures = []
    for task in GOALS:
        ours = verdicts.chosen(samples, JOB, task.name)
        rivals = [verdicts.chosen(samples, n, task.name) for n in (TORCH_CNN, TORCH_COMPILED)]
        if any(rivals):
            best = verdicts.best(rivals, verdicts.wall, least=True)
            name = f"{task.name}, seconds vs PyTorch"
            figures.append(verdicts.ratio(name, ours, best, verdicts.wall, 0.7, at_most=True))
        wrong = [verdicts.errors(sample) for sample in ours]
        assert task.errors_allowed is not None
        name = f"{task.name}, test images wrong, of 10,000"
        figures.append(verdicts.span(name, wrong, task.errors_allowed))
    return figures


def _by_itself(seen: Measured) -> list[Figure]:
    compiling = [start.first_step_seconds - 0.8 * start.import_seconds for start in seen.starts]
    shares = [100 * cost.share for cost in seen.checkpoints]
    bare = statistics.median(start.import_memory_mib for start in seen.starts)
    peaks = [
        metrics["resources"]["peak_memory_mib"] - bare
        for metrics in seen.job_metrics
        if metrics["task"] in names_of("mlp")
    ]
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
    told, packages = document["machine"], document["versions"]
    lines = [
        f"{document['date']}   {told['cpu']}, {told['cores']} cores, load {told['load']:.2f}",
        "   ".join(f"{name} {version}" for name, version in packages.items()),
        "",
    ]
    for part in seen.parts:
        lines += _tables(part, seen)
    lines += verdicts.verdict_lines(judge(seen))
    if seen.growths:
        last = seen.growths[-1]
        lines += ["", f"peak memory {_sizes(last, 0)}, {_sizes(last, 1)}"]
    return lines


def _tables(part: str, seen: Measured) -> list[str]:
    names, samples = names_of(part), seen.samples
    trained = [sample for sample in samples if sample.accuracy is not None]
    return [
        *verdicts.matrix("seconds, start to end", names, _medians(trained, part, verdicts.wall)),
        "",
        *verdicts.matrix("images/s, steady", names, _medians(samples, part, verdicts.speed)),
        "",
        *verdicts.matrix("accuracy, %", names, _medians(trained, part, _percent)),
        "",
        *verdicts.matrix(f"seconds of {JOB}", names, stages(seen, part)),
        "",
    ]


def _sizes(growth: Growth, place: int) -> str:
    peak, size = growth.peak_memory_mib[place], growth.data_mib[place]
    return f"{peak:,.0f} MiB with {size:,.0f} MiB of data"


def stages(seen: Measured, part: str) -> Rows:
    """Return what the job's seconds consist of: medians by stage, one for each task of a part."""
    by_task = defaultdict(list)
    for document in seen.job_metrics:
        by_task[document["task"]].append(document["timing"])
    names = names_of(part)
    rows: Rows = {
        stage: [statistics.median(t[f"{stage}_seconds"] for t in by_task[n]) for n in names]
        for stage in STAGES
    }
    walls = [verdicts.median(seen.samples, JOB, name, verdicts.wall) or 0 for name in names]
    known = [sum(rows[stage][place] or 0 for stage in STAGES) for place in range(len(names))]
    rest = [wall - seconds for wall, seconds in zip(walls, known, strict=True)]
    return rows | {"interpreter, flags, building, exit": [float(seconds) for seconds in rest]}


def _medians(samples: list[Sample], part: str, of: verdicts.Measure) -> Rows:
    """Return the medians of every contestant in a part, one for each task."""
    tasks = names_of(part)
    names = dict.fromkeys(sample.contestant for sample in samples if sample.task in tasks)
    return {name: [verdicts.median(samples, name, task, of) for task in tasks] for name in names}


def _percent(sample: Sample) -> float:
    return 100 * (sample.accuracy or 0)
