"""Samples to medians, ratios and verdicts, and these to a table: no measuring here."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One process of one contestant, seen from outside."""

    contestant: str
    task: str
    round: int
    wall_seconds: float
    """From its start to its end."""
    cpu_seconds: float
    images_per_second: float
    """Median over its epochs, by its own clock."""
    accuracy: float | None
    """On the 10,000 test images; None if it doesn't train."""
    parameters: int | None = None
    """Numbers that it learned, where it tells."""


@dataclass(frozen=True)
class Figure:
    """A figure with the bound that it was asked to keep."""

    name: str
    value: float
    """From the medians over all rounds."""
    low: float
    """The least that any single round gives."""
    high: float
    """The most that any single round gives."""
    bound: float
    at_most: bool
    """Whether the bound is an upper one."""
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether the value, rounded to nothing, keeps the bound."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


Measure = Callable[[Sample], float]


def wall(sample: Sample) -> float:
    """Return the seconds of the whole process."""
    return sample.wall_seconds


def speed(sample: Sample) -> float:
    """Return the images a second in steady state."""
    return sample.images_per_second


def errors(sample: Sample) -> float:
    """Return how many of the 10,000 test images it got wrong."""
    return round(10_000 * (1 - (sample.accuracy or 0)))


def chosen(samples: Iterable[Sample], contestant: str, task: str) -> list[Sample]:
    """Return the samples of one contestant at one task, by round."""
    found = [s for s in samples if (s.contestant, s.task) == (contestant, task)]
    return sorted(found, key=lambda sample: sample.round)


def median(samples: Iterable[Sample], contestant: str, task: str, of: Measure) -> float | None:
    """Return the median over the rounds, or None if the contestant took no part."""
    values = [of(sample) for sample in chosen(samples, contestant, task)]
    return statistics.median(values) if values else None


def best(contestants: Sequence[Sequence[Sample]], of: Measure, *, least: bool) -> list[Sample]:
    """Return of each round the sample of whoever did best, by the least or the greatest `of`."""
    by_round: dict[int, list[Sample]] = {}
    for sample in (sample for samples in contestants for sample in samples):
        by_round.setdefault(sample.round, []).append(sample)
    pick = min if least else max
    return [pick(by_round[number], key=of) for number in sorted(by_round)]


def ratio(
    name: str,
    ours: Sequence[Sample],
    theirs: Sequence[Sample],
    of: Measure,
    bound: float,
    *,
    at_most: bool,
) -> Figure:
    """Return ours : theirs, as a ratio of medians, with the span of the ratios in single rounds.

    Raises:
        ValueError: the two have no round in common.
    """
    by_round = {sample.round: of(sample) for sample in theirs}
    pairs = [(of(mine), by_round[mine.round]) for mine in ours if mine.round in by_round]
    if not pairs:
        raise ValueError(f"{name}: no round in common")
    singles = [mine / other for mine, other in pairs]
    # Of the rounds they share, so that both sides have seen the same weather.
    value = statistics.median(mine for mine, _ in pairs) / statistics.median(o for _, o in pairs)
    return Figure(name, value, min(singles), max(singles), bound, at_most)


def span(
    name: str, values: Sequence[float], bound: float, *, at_most: bool = True, unit: str = ""
) -> Figure:
    """Return the median of `values`, one a round, with their span."""
    return Figure(name, statistics.median(values), min(values), max(values), bound, at_most, unit)


def matrix(title: str, tasks: Sequence[str], rows: dict[str, list[float | None]]) -> list[str]:
    """Return a table of one line a contestant and one column a task.

    Numbers of 1,000 and more are shown whole, smaller ones with two decimals; None is a dash.
    """
    width = min(14, 54 // len(tasks))
    lines = [f"{title:<46}" + "".join(f"{task:>{width}}" for task in tasks)]
    for name, values in rows.items():
        cells = ("-" if v is None else f"{v:,.0f}" if v >= 1000 else f"{v:,.2f}" for v in values)
        lines.append(f"  {name:<44}" + "".join(f"{cell:>{width}}" for cell in cells))
    return lines


def verdict_lines(figures: Sequence[Figure]) -> list[str]:
    """Return a table of what was asked for and what is."""
    lines = [f"{'asked for':<48}{'bound':>11}{'here':>10}{'single rounds':>20}"]
    for figure in figures:
        sign = "<=" if figure.at_most else ">="
        bound = f"{sign} {_number(figure.bound)}{figure.unit}"
        here = f"{_number(figure.value)}{figure.unit}"
        singles = f"{_number(figure.low)} to {_number(figure.high)}"
        verdict = "reached" if figure.reached else "MISSED"
        lines.append(f"  {figure.name:<46}{bound:>11}{here:>10}{singles:>20}  {verdict}")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
