"""A study as one HTML file that needs nothing beside it: accuracy over trials, and what made it.

Two drawings and a table of all trials, the halted and the failed ones too. The second drawing has
parallel coordinates (Inselberg, 1985): an axis for each dimension, the accuracy on the last one,
and a line for each trial.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from job.tuning.study import Study

_WIDTH, _HEIGHT, _LEFT, _TOP = 960, 300, 70, 30
_COLOURS = {"complete": "#1f6feb", "halted": "#9a9a9a", "failed": "#d1242f"}
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #555 }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: right }
td:last-child, th:last-child { text-align: left } tr { border-bottom: 1px solid #ddd }
"""


def draw(study: Study, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the HTML of a study and what its trials came to, by their number."""
    ranked = study.ranked(dict(result) for result in results)
    counts = {state: sum(each["state"] == state for each in results) for state in _COLOURS}
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    legend = " ".join(
        f'<b style="color:{colour}">{state}</b>' for state, colour in _COLOURS.items()
    )
    title = f"Study {study.name}"
    intro = (
        f"{len(results)} trials: {told}. Accuracy is that of held-out images, {legend}; the test "
        "set was not looked at. The best of many trials is partly the luckiest: <code>mnist-job "
        "tune --best</code> runs the top few again."
    )
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
            f"<style>{_STYLE}</style>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{intro}</p>",
            "<h2>Accuracy over trials</h2>",
            _over_trials(results),
            "<h2>Parallel coordinates</h2>",
            _coordinates(study, results),
            "<h2>Trials</h2>",
            _table(study, results, [each["trial"] for each in ranked]),
            "</html>",
            "",
        ]
    )


def _over_trials(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a dot for each trial, a cross for a failed one, and a line of the best so far."""
    low, high = _ends(results)
    last = max((each["trial"] for each in results), default=0) or 1
    parts, best, steps = [_scale(low, high)], low, []
    for each in results:
        x = _LEFT + (_WIDTH - 2 * _LEFT) * each["trial"] / last
        accuracy = _accuracy(each)
        if accuracy is None:
            parts.append(_titled(each, f'<text x="{x:.1f}" y="{_y(0)}" fill="#d1242f">x</text>'))
            continue
        y = _y(_share(accuracy, low, high))
        colour = _COLOURS[each["state"]]
        parts.append(_titled(each, f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'))
        if each["state"] == "complete" and accuracy >= best:
            best = accuracy
            steps += [f"H{x:.1f}", f"V{y:.1f}"]
    if steps:
        first = steps[0].replace("H", "M") + f" {steps[1][1:]}"
        path = " ".join([first, *steps[2:], f"H{_WIDTH - _LEFT}"])
        parts.append(f'<path d="{path}" fill="none" stroke="#1f6feb" stroke-dasharray="4"/>')
    return _svg(parts)


def _coordinates(study: Study, results: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each trial over an axis for each dimension and one for the accuracy."""
    low, high = _ends(results)
    axes = study.space.dimensions
    xs = [_LEFT + (_WIDTH - 2 * _LEFT) * place / len(axes) for place in range(len(axes) + 1)]
    parts = []
    for x, axis in zip(xs, axes, strict=False):
        ticks = axis.values if len(axis.values) < 9 else (axis.values[0], axis.values[-1])
        parts += [
            _axis(x, axis.name.replace("_", "-")),
            *(
                f'<text x="{x + 4:.1f}" y="{_y(axis.share(v)):.1f}">{escape(str(v))}</text>'
                for v in ticks
            ),
        ]
    parts += [_axis(xs[-1], "accuracy"), _scale(low, high, xs[-1] + 4)]
    for each in results:
        values, accuracy = each["values"], _accuracy(each)
        ys = [_y(axis.share(values[axis.name])) for axis in axes]
        end = _y(0 if accuracy is None else _share(accuracy, low, high))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, [*ys, end], strict=True))
        weight = 1 if accuracy is None else 0.3 + 2.2 * _share(accuracy, low, high)
        line = (
            f'<polyline points="{points}" fill="none" stroke="{_COLOURS[each["state"]]}" '
            f'stroke-width="{weight:.2f}" opacity=".7"/>'
        )
        parts.append(_titled(each, line))
    return _svg(parts)


def _table(study: Study, results: Sequence[Mapping[str, Any]], ranked: Sequence[int]) -> str:
    heads = ["rank", "trial", *study.space.names, "epochs", "loss", "accuracy", "seconds", "state"]
    rows = [f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>"]
    places = {trial: rank for rank, trial in enumerate(ranked, 1)}
    for each in sorted(
        results, key=lambda one: (places.get(one["trial"], len(results) + 1), one["trial"])
    ):
        loss, accuracy = each["validation_loss"], _accuracy(each)
        cells = [
            places.get(each["trial"], ""),
            each["trial"],
            *(each["values"][name] for name in study.space.names),
            each["epochs"],
            "" if loss is None else f"{loss:.4f}",
            "" if accuracy is None else f"{accuracy:.4f}",
            f"{each['seconds']:.1f}",
            each["state"] + (f": {each['why']}" if each["why"] else ""),
        ]
        rows.append(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _accuracy(result: Mapping[str, Any]) -> float | None:
    """Return the accuracy to draw: a trial that failed has none, whatever it had before."""
    accuracy = result["validation_accuracy"]
    return None if result["state"] == "failed" or accuracy is None else float(accuracy)


def _ends(results: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    found = [accuracy for each in results if (accuracy := _accuracy(each)) is not None]
    return (min(found), max(found)) if found else (0.0, 1.0)


def _share(value: float, low: float, high: float) -> float:
    return 0.5 if high == low else (value - low) / (high - low)


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - 2 * _TOP) * (1 - share)


def _axis(x: float, name: str) -> str:
    line = f'<path d="M{x:.1f} {_y(1)}V{_y(0)}" stroke="#bbb"/>'
    return f'{line}<text x="{x:.1f}" y="{_TOP - 12}" text-anchor="middle">{escape(name)}</text>'


def _scale(low: float, high: float, x: float = 8) -> str:
    """Return the accuracies at both ends of an axis."""
    return "".join(
        f'<text x="{x:.1f}" y="{_y(share):.1f}">{value:.4f}</text>'
        for share, value in ((0, low), (1, high))
    )


def _titled(result: Mapping[str, Any], mark: str) -> str:
    """Return `mark` with what a pointer shows on it."""
    values = ", ".join(f"{name} {value}" for name, value in result["values"].items())
    told = f"trial {result['trial']}, {result['state']}, {result['validation_accuracy']}: {values}"
    return f"<g><title>{escape(told)}</title>{mark}</g>"


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
