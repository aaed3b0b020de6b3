"""Numbers -> drawings: SVG that lies inside a page and follows its colours, light or dark.

matplotlib draws by its object interface, without pyplot and its global state. It knows no variables
of CSS, so it draws in colours that stand for them, and `_inlined` puts the variables in their
places. Identifiers are a drawing's own, since several lie in one page.
"""

import io
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Moment = tuple[datetime, float]
Numbers = npt.NDArray[np.float64]

# Stand for the variables of `style.css`, where each has a value for light and one for dark.
INK, DIM, LINE = "#010101", "#020202", "#030303"
BLUE, ORANGE, GREEN = "#040404", "#050505", "#060606"
_VARIABLES = {
    INK: "ink",
    DIM: "dim",
    LINE: "line",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
}
_MOST_POINTS = 400  # of a line: more can't be seen, and each costs bytes
_POINTS_AN_INCH = 72
_STEPS = (1, 2, 2.5, 5, 10)  # between the lines of an axis, times a power of ten
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: to be read out, found and copied
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": DIM,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": DIM,
    "ytick.labelcolor": DIM,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "legend.labelcolor": INK,
    "path.simplify": False,  # points were thinned out here
}


class Drawing:
    """One drawing in the making: axes to draw in, then its SVG.

    Use it as a context, since matplotlib keeps its settings for all of a process.
    """

    def __init__(self, name: str, label: str, width: int, height: int) -> None:
        """Begin a drawing.

        Args:
            name: of letters and hyphens, which no other drawing of the page has.
            label: what is read out in place of it.
            width: pixels that it has on a wide screen.
            height: the same.
        """
        self.name, self.label, self.size = name, label, (width, height)

    def __enter__(self) -> Self:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it may keep its caches
        import matplotlib as mpl  # noqa: PLC0415
        from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415

        settings: Any = {**_SETTINGS, "svg.hashsalt": self.name}
        self._settings = mpl.rc_context(settings)
        self._settings.__enter__()
        inches = [each / _POINTS_AN_INCH for each in self.size]
        self.figure = Figure(figsize=(inches[0], inches[1]))
        FigureCanvasSVG(self.figure)
        return self

    def __exit__(self, *_: object) -> None:
        self._settings.__exit__(None, None, None)

    def axes(self, left: int, bottom: int, right: int, top: int) -> "Axes":
        """Return new axes, so many pixels away from each edge of the drawing."""
        width, height = self.size
        return self.figure.add_axes(
            (
                left / width,
                bottom / height,
                (width - left - right) / width,
                (height - bottom - top) / height,
            )
        )

    def svg(self) -> str:
        """Return the drawing as an element of HTML."""
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(file, format="svg", metadata=nothing)
        return _inlined(file.getvalue(), self)


def _inlined(document: str, drawing: Drawing) -> str:
    """Return an SVG file as an element of a page."""
    from markupsafe import Markup, escape  # noqa: PLC0415  Jinja's own

    inside = document[document.index("<svg") : document.index("</svg>")].partition(">")[2]
    inside = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|\n\s*", _breaks, inside, flags=re.DOTALL)
    inside = re.sub(r'\bid="', f'id="{drawing.name}-', inside)
    inside = re.sub(r'(?:xlink:)?href="#', f'href="#{drawing.name}-', inside)
    inside = inside.replace("url(#", f"url(#{drawing.name}-")
    inside = re.sub("#[0-9a-f]{6}", lambda found: f"var(--{_VARIABLES[found.group()]})", inside)
    width, height = drawing.size
    return Markup(  # noqa: S704  matplotlib has escaped all text, and the rest is ours
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(drawing.label)}">{inside}</svg>'
    )


def _breaks(found: re.Match[str]) -> str:
    return "\n" if found.group().startswith("\n") else ""


def curves(
    name: str,
    title: str,
    lines: Mapping[str, Sequence[float]],
    label: str,
    *,
    percents: bool = False,
    from_zero: bool = False,
) -> str:
    """Return lines over epochs, the first one full, the second one broken.

    Args:
        name: of the drawing.
        title: above it.
        lines: values after each epoch, by what they are of.
        label: what is read out in place of it.
        percents: whether the values are shares.
        from_zero: whether the axis begins at 0.
    """
    with Drawing(name, label, 360, 240) as drawing:
        from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: PLC0415

        axes = drawing.axes(52, 36, 14, 30)
        axes.set_title(title, pad=10)
        styles = itertools.cycle([(BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, ":", "^")])
        for (of, values), (colour, dash, marker) in zip(lines.items(), styles, strict=False):
            x, y = _thinned(np.arange(1, len(values) + 1), np.asarray(values, np.float64))
            few = len(x) <= 30
            axes.plot(x, y, dash, color=colour, marker=marker if few else "", label=of)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        if percents:
            axes.yaxis.set_major_formatter(FuncFormatter(_in_percent))
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("epoch", labelpad=2)
        axes.tick_params(length=0, pad=5)
        if len(lines) > 1:
            axes.legend(loc="best", handlelength=2.4)
        return drawing.svg()


def _in_percent(share: float, _: int | None) -> str:
    return f"{100 * share:.6g} %"


def _thinned(x: npt.NDArray[Any], y: Numbers) -> tuple[npt.NDArray[Any], Numbers]:
    """Return at most so many points as can be seen, the last one among them."""
    step = -(-len(x) // _MOST_POINTS)
    kept = np.arange(len(x) - 1, -1, -step)[::-1] if len(x) else np.arange(0)
    return x[kept], y[kept]


def intervals(
    name: str, label: str, rows: Mapping[str, Sequence[tuple[float, float, float] | None]]
) -> str:
    """Return shares with their intervals, side by side for each class.

    Args:
        name: of the drawing.
        label: what is read out in place of it.
        rows: by what they are of (at most two), the share of each class and the ends of its
            interval; None where there are no examples.
    """
    classes = max(map(len, rows.values()))
    with Drawing(name, label, 360, 76 + 24 * classes) as drawing:
        from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: PLC0415

        axes = drawing.axes(40, 40, 14, 32)
        styles = [(BLUE, "o", -0.15), (ORANGE, "s", 0.15)]
        for (of, shares), (colour, marker, aside) in zip(rows.items(), styles, strict=False):
            known = [(at, each) for at, each in enumerate(shares) if each is not None]
            places = np.array([at for at, _ in known]) + aside
            middle, low, high = np.array([each for _, each in known]).T.reshape(3, -1)
            axes.errorbar(
                middle,
                places,
                xerr=np.maximum(0, [middle - low, high - middle]),
                fmt=marker,
                color=colour,
                ecolor=colour,
                elinewidth=1.6,
                label=of,
            )
        axes.set_yticks(range(classes), [str(each) for each in range(classes)])
        axes.set_ylim(classes - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(_in_percent))
        axes.set_ylabel("class", labelpad=2)
        axes.tick_params(length=0, pad=5)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
        return drawing.svg()


def reliability(
    name: str,
    label: str,
    bins: Sequence[tuple[float, float, float, float, int]],
    width: float,
) -> str:
    """Return how often the model was right by how sure it was, over how many images.

    Args:
        name: of the drawing.
        label: what is read out in place of it.
        bins: of each bin that has images, the mean confidence, the accuracy, the two ends of its
            interval, and the number of images.
        width: of a bin.
    """
    with Drawing(name, label, 360, 380) as drawing:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415

        axes = drawing.axes(52, 130, 14, 14)
        axes.plot([0, 1], [0, 1], "--", color=DIM, linewidth=1.2)
        axes.annotate(
            "as sure as right",
            (0.74, 0.74),
            (4, -4),
            textcoords="offset points",
            color=DIM,
            fontsize=10,
            rotation=45,
            rotation_mode="anchor",
            transform_rotates_text=True,
            ha="center",
            va="top",
        )
        confidence, accuracy, low, high, images = np.array(bins, np.float64).T
        axes.errorbar(
            confidence,
            accuracy,
            yerr=np.maximum(0, [accuracy - low, high - accuracy]),
            fmt="o",
            color=BLUE,
            ecolor=BLUE,
            elinewidth=1.6,
        )
        percents = FuncFormatter(_in_percent)
        below = drawing.axes(52, 44, 14, 272)
        starts = np.floor(np.minimum(confidence, 1 - 1e-9) / width) * width
        below.bar(starts + width / 2, images, width * 0.86, color=BLUE, log=True)
        below.set_ylim(0.5, max(2, images.max() * 2))
        below.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
        below.yaxis.set_major_locator(LogLocator(numticks=4))
        below.yaxis.set_minor_locator(NullLocator())
        for each in (axes, below):
            each.set_xlim(0, 1)
            each.xaxis.set_major_formatter(percents)
            each.tick_params(length=0, pad=5)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(percents)
        axes.xaxis.set_tick_params(labelbottom=False)
        below.set_xlabel("confidence", labelpad=2)
        below.set_ylabel("images", labelpad=2)
        axes.set_ylabel("right", labelpad=2)
        return drawing.svg()


def bubbles(name: str, label: str, cells: Sequence[tuple[int, int, int]], classes: int) -> str:
    """Return the mistakes among many classes as squares, larger where there are more.

    Args:
        name: of the drawing.
        label: what is read out in place of it.
        cells: true class, predicted class and how often.
        classes: how many there are.
    """
    with Drawing(name, label, 560, 560) as drawing:
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

        axes = drawing.axes(52, 44, 14, 14)
        true, predicted, images = np.array(cells, np.float64).T.reshape(3, -1)
        widest = min(14.0, 480 / classes * 1.6)  # points
        areas = (widest**2) * images / max(1.0, images.max(initial=1.0))
        axes.plot([-0.5, classes - 0.5], [-0.5, classes - 0.5], color=LINE, linewidth=1)
        axes.scatter(
            predicted, true, np.maximum(areas, 3.0), color=ORANGE, marker="s", linewidths=0
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, steps=_STEPS, integer=True))
        axes.set_xlim(-0.5, classes - 0.5)
        axes.set_ylim(classes - 0.5, -0.5)
        axes.set_xlabel("predicted", labelpad=2)
        axes.set_ylabel("true", labelpad=2)
        axes.tick_params(length=0, pad=5)
        return drawing.svg()


@dataclass(frozen=True)
class Reign:
    """A champion, from when to when, with the share of its test set that it has right."""

    began: datetime
    ended: datetime
    share: float
    low: float
    """End of its 95 % interval, as `high` is."""
    high: float
    joins: bool
    """Whether the one before was judged on the same test set: then the step between them counts."""


def reigns(name: str, label: str, champions: Sequence[Reign], others: Sequence[Moment]) -> str:
    """Return the accuracy of champions over time, and that of challengers that became none.

    Args:
        name: of the drawing.
        label: what is read out in place of it.
        champions: the first one first.
        others: when each was judged, in UTC, and the share that it had right.
    """
    with Drawing(name, label, 500, 260) as drawing:
        from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: PLC0415

        axes = drawing.axes(60, 40, 14, 34)
        for at, each in enumerate(champions):
            named: dict[str, Any] = {} if at else {"label": "champion, 95 % interval"}
            ends: Any = [each.began, each.ended]
            axes.fill_between(ends, each.low, each.high, color=BLUE, alpha=0.16, linewidth=0)
            axes.plot(ends, [each.share] * 2, color=BLUE, **named)
            if each.joins:
                before: Any = [each.began] * 2
                axes.plot(before, [champions[at - 1].share, each.share], color=BLUE)
            elif at:
                axes.axvline(ends[0], color=DIM, linestyle=":", linewidth=1.2)
        starts: Any = [each.began for each in champions]
        axes.plot(starts, [each.share for each in champions], "o", color=BLUE)
        if others:
            times: Any = [time for time, _ in others]
            shares = [share for _, share in others]
            axes.plot(times, shares, "x", color=ORANGE, label="challenger, not promoted")
        _over_time(axes)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(_in_percent))
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=2, borderpad=0)
        return drawing.svg()


def growth(name: str, title: str, lines: Mapping[str, Sequence[Moment]], label: str) -> str:
    """Return how many there were over time, the first line full, the second one broken.

    Args:
        name: of the drawing.
        title: above it.
        lines: when each number began to hold, in UTC, by what is counted.
        label: what is read out in place of it.
    """
    with Drawing(name, label, 360, 240) as drawing:
        from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: PLC0415

        axes = drawing.axes(64, 40, 14, 30)
        axes.set_title(title, pad=10)
        styles = itertools.cycle([(BLUE, "-", "o"), (ORANGE, "--", "s")])
        for (of, moments), (colour, dash, marker) in zip(lines.items(), styles, strict=False):
            times: Any = [time for time, _ in moments]
            axes.step(
                times,
                [number for _, number in moments],
                dash,
                where="post",
                color=colour,
                marker=marker if len(moments) <= 30 else "",
                label=of,
            )
        _over_time(axes)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
        axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(loc="best", handlelength=2.4)
        return drawing.svg()


def _over_time(axes: "Axes") -> None:
    """Let the axis below be time, in UTC, with as few signs as tell it."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter  # noqa: PLC0415

    locator = AutoDateLocator(minticks=2, maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.xaxis.get_offset_text().set_color(DIM)
    axes.tick_params(length=0, pad=5)
