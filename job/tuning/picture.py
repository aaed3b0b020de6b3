"""A study as one HTML file that needs nothing beside it: accuracy over trials, and what made it.

Two drawings and a table of all trials, the halted and the failed ones too; the finals, once they
have been run. The second drawing has parallel coordinates (Inselberg, 1985): an axis for each
dimension, the accuracy on the last one, and a line for each trial. Accuracies lie where the
logarithms of their errors do: 0.99 is as far from 0.98 as 0.995 from 0.99.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import mean, stdev
from typing import Any

from job.tuning import finals
from job.tuning.space import Dimension, flag
from job.tuning.study import Study

_WIDTH, _HEIGHT, _LEFT, _TOP = 960, 300, 70, 30
_APART = 18.0  # between two labels of an axis, at least
_LEAST_ERROR = 1e-4  # an accuracy of 1 has a place, too
_TICKS = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
_STATES = ("complete", "halted", "failed")
_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1f2328; --dim: #59636e; --line: #d1d9e0;
  --complete: #0969da; --halted: #8c959f; --failed: #cf222e }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #f0f6fc; --dim: #9198a1;
  --line: #3d444d; --complete: #4493f8; --halted: #7d8590; --failed: #f85149 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 68em; padding: 0 1em;
  background: var(--back); color: var(--text) }
svg { width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: var(--dim); dominant-baseline: middle;
  paint-order: stroke; stroke: var(--back); stroke-width: 4px }
path, polyline { fill: none; stroke: var(--line) }
.complete { color: var(--complete) }
.halted { color: var(--halted) } .failed { color: var(--failed) }
svg .complete, svg .halted, svg .failed { stroke: currentColor }
circle { fill: currentColor } .soFar { stroke: var(--complete); stroke-dasharray: 4 }
.table { overflow-x: auto } table { border-collapse: collapse; font-size: 13px }
td, th { padding: .3em .7em; text-align: right; border-bottom: 1px solid var(--line) }
td:last-child, th:last-child { text-align: left; min-width: 14em }
code { white-space: pre-wrap; overflow-wrap: anywhere }
"""


def draw(study: Study, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the HTML of a study and what its trials came to, by their number."""
    told = ", ".join(
        f'{sum(each["state"] == state for each in results)} <b class="{state}">{state}</b>'
        for state in _STATES
    )
    title = escape(f"Study {study.name}")
    intro = (
        f"{len(results)} trials: {told}. Accuracy is that of held-out images after a trial's last "
        "epoch; the test set was not looked at. The best of many trials is partly the luckiest: "
        "<code>mnist-job tune --best</code> runs the top few again."
    )
    ranked = [each["trial"] for each in study.ranked(dict(result) for result in results)]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width">',
            f"<style>{_STYLE}</style>",
            f"<h1>{title}</h1>",
            f"<p>{intro}</p>",
            "<h2>Accuracy over trials</h2>",
            _over_trials(results),
            "<h2>Parallel coordinates</h2>",
            _coordinates(study, results),
            *_finals(study),
            "<h2>Trials</h2>",
            _trials(study, results, ranked),
            "</html>",
            "",
        ]
    )


def _over_trials(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a dot for each trial, a cross for a failed one, and a line of the best so far."""
    scale = _Scale(results)
    last = max(each["trial"] for each in results) or 1
    marks, steps, best = list[str](), list[str](), -math.inf
    for each in results:
        x = _LEFT + (_WIDTH - 2 * _LEFT) * each["trial"] / last
        y, accuracy = scale.y(each), _accuracy(each)
        if accuracy is None:
            mark = f'<path class="failed" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8"/>'
        else:
            mark = f'<circle class="{each["state"]}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        marks.append(_titled(each, mark))
        if each["state"] == "complete" and accuracy is not None and accuracy > best:
            best = accuracy
            steps += [f"H{x:.1f}", f"V{y:.1f}"] if steps else [f"M{x:.1f} {y:.1f}"]
    parts = [*scale.labels(8, _LEFT - 12, _WIDTH - _LEFT + 12)]
    parts += [
        f'<text x="{_LEFT + (_WIDTH - 2 * _LEFT) * trial / last:.1f}" y="{_HEIGHT - 8}" '
        f'text-anchor="middle">{"trial " if trial == 0 else ""}{trial}</text>'
        for trial in range(0, last + 1, max(1, math.ceil(last / 16)))
    ]
    if steps:
        parts.append(f'<path class="soFar" d="{"".join(steps)}H{_WIDTH - _LEFT}"/>')
    return _svg("Accuracy over trials", [*parts, *marks])


def _coordinates(study: Study, results: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each trial over an axis for each dimension and one for the accuracy."""
    scale, axes = _Scale(results), study.space.dimensions
    xs = [_LEFT + (_WIDTH - 2 * _LEFT) * place / len(axes) for place in range(len(axes) + 1)]
    lines = []
    # The best ones last: over the others.
    for each in sorted(results, key=lambda one: _accuracy(one) or 0.0):
        ys = [_y(axis.share(each["values"][axis.name])) for axis in axes]
        points = zip(xs, [*ys, scale.y(each)], strict=True)
        weight = 0.8 + 2 * scale.share(each)
        line = (
            f'<polyline class="{each["state"]}" stroke-width="{weight:.2f}" opacity=".8" '
            f'points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        )
        lines.append(_titled(each, line))
    names = [*map(flag, study.space.names), "accuracy"]
    labels = [label for x, axis in zip(xs, axes, strict=False) for label in _values(x + 6, axis)]
    labels += scale.labels(xs[-1] + 6)
    heads = [
        f'<path d="M{x:.1f} {_y(1)}V{_y(0)}"/>'
        f'<text x="{x:.1f}" y="{_TOP - 18}" text-anchor="middle">{escape(name)}</text>'
        for x, name in zip(xs, names, strict=True)
    ]
    return _svg("Parallel coordinates", [*heads, *lines, *labels])


def _values(x: float, axis: Dimension) -> list[str]:
    """Return the values on an axis of parallel coordinates, or as many of them as have room."""
    values = {_y(axis.share(value)): f"{value}" for value in axis.values}
    return [f'<text x="{x:.1f}" y="{y:.1f}">{escape(values[y])}</text>' for y in _with_room(values)]


class _Scale:
    """Where the accuracies of some trials lie, from the lowest to the highest."""

    def __init__(self, results: Iterable[Mapping[str, Any]]) -> None:
        found = [accuracy for each in results if (accuracy := _accuracy(each)) is not None]
        self._low, self._high = (min(found), max(found)) if found else (0.0, 1.0)

    def share(self, result: Mapping[str, Any]) -> float:
        """Return how far up a trial lies, from 0 to 1; a failed one at the bottom."""
        accuracy = _accuracy(result)
        return 0.0 if accuracy is None else self._share(accuracy)

    def y(self, result: Mapping[str, Any]) -> float:
        return _y(self.share(result))

    def labels(self, x: float, start: float = 0, end: float = 0) -> list[str]:
        """Return the lowest and the highest, and round ones between, as text and lines."""
        told = [self._high, self._low, *(t for t in _TICKS if self._low < t < self._high)]
        texts = {_y(self._share(value)): f"{value:.4f}" for value in told}
        return [
            f'<text x="{x:.1f}" y="{y:.1f}">{texts[y]}</text>'
            + (f'<path d="M{start} {y:.1f}H{end}"/>' if end else "")
            for y in _with_room(texts)
        ]

    def _share(self, accuracy: float) -> float:
        low, high, here = (
            -math.log(max(1 - each, _LEAST_ERROR)) for each in (self._low, self._high, accuracy)
        )
        return 0.5 if high == low else (here - low) / (high - low)


def _with_room(places: Iterable[float]) -> list[float]:
    """Return those places that no earlier one is too near to."""
    kept: list[float] = []
    for place in places:
        if all(abs(place - other) >= _APART for other in kept):
            kept.append(place)
    return kept


def _finals(study: Study) -> list[str]:
    """Return the part about the best trials with fresh seeds, once all of these have been run."""
    if not finals.are_over(study):
        return []
    compared, failed = finals.finalists(study), finals.failures(study)
    rows = [
        [
            each.trial,
            f"{each.trial_accuracy:.4f}",
            f"{mean(each.accuracies):.4f}",
            f"{stdev(each.accuracies):.4f}",
            f"{each.p:.3f}",
            f"{each.seconds:.1f}",
            f"{each.parameters:,}",
            "worse" if each.is_apart else "can't be told apart" if number else "the first",
        ]
        for number, each in enumerate(compared)
    ]
    rows += [
        [each["trial"], *[""] * 6, f"failed with fresh seed {each['fresh_seed']}: {each['why']}"]
        for each in failed
    ]
    heads = ["trial", "was", "is now", "spread", "p", "seconds", "parameters", ""]
    parts = [f"<h2>Finals: the best trials with {finals.SEEDS} fresh seeds</h2>"]
    parts.append(_table(heads, rows))
    if compared:
        chosen = finals.cheapest(compared)
        parts.append(
            f"<p>The cheapest of those that can't be told apart is trial {chosen.trial}:</p>"
            f"<p><code>{escape(finals.command(study, chosen))}</code></p>"
        )
    return parts


def _trials(study: Study, results: Sequence[Mapping[str, Any]], ranked: Sequence[int]) -> str:
    names = study.space.names
    heads = ["rank", "trial", *map(flag, names), "epochs", "loss", "accuracy", "seconds", "state"]
    places = {trial: rank for rank, trial in enumerate(ranked, 1)}
    rows = []
    for each in sorted(
        results, key=lambda one: (places.get(one["trial"], len(results) + 1), one["trial"])
    ):
        loss, accuracy = each["validation_loss"], _accuracy(each)
        rows.append(
            [
                places.get(each["trial"], ""),
                each["trial"],
                *(each["values"][name] for name in names),
                each["epochs"],
                "" if loss is None else f"{loss:.4f}",
                "" if accuracy is None else f"{accuracy:.4f}",
                f"{each['seconds']:.1f}",
                each["state"] + (f": {each['why']}" if each["why"] else ""),
            ]
        )
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def row(tag: str, cells: Sequence[Any]) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return f'<div class="table"><table>{row("th", heads)}{body}</table></div>'


def _accuracy(result: Mapping[str, Any]) -> float | None:
    """Return the accuracy to draw: a trial that failed has none, whatever it had before."""
    accuracy = result["validation_accuracy"]
    return None if result["state"] == "failed" or accuracy is None else float(accuracy)


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - 2 * _TOP) * (1 - share)


def _titled(result: Mapping[str, Any], mark: str) -> str:
    """Return `mark` with what a pointer shows on it."""
    values = ", ".join(f"{flag(name)} {value}" for name, value in result["values"].items())
    told = f"trial {result['trial']}, {result['state']}, {result['validation_accuracy']}: {values}"
    return f"<g><title>{escape(told)}</title>{mark}</g>"


def _svg(name: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">'
        f"{''.join(parts)}</svg>"
    )
