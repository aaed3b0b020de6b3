"""Drawings: in the page's colours, readable without them, and the same bytes each time."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from job.report import figures
from job.report.figures import Reign

CELLS = [(3, 5, 9), (90, 2, 4), (7, 8, 1)]
BINS = [(0.35, 0.5, 0.3, 0.7, 12), (0.99, 1.0, 0.98, 1.0, 988)]
ROWS = {"recall": [(0.9, 0.8, 0.95), None, (1.0, 0.9, 1.0)], "precision": [None, None, None]}
DAYS = [datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=each) for each in range(4)]
REIGNS = [
    Reign(DAYS[0], DAYS[1], 0.97, 0.96, 0.98, joins=False),
    Reign(DAYS[1], DAYS[2], 0.98, 0.97, 0.99, joins=True),
    Reign(DAYS[2], DAYS[2], 0.95, 0.94, 0.96, joins=False),
]
DRAWINGS = {
    "curves": lambda: figures.curves("a", "Loss", {"training": [3.0, 1.0]}, "falls"),
    "two": lambda: figures.curves("a", "T", {"x": [0.5], "y": [0.6]}, "l", percents=True),
    "intervals": lambda: figures.intervals("a", "of classes", ROWS),
    "reliability": lambda: figures.reliability("a", "sure", BINS, 1 / 15),
    "one bin": lambda: figures.reliability("a", "sure", BINS[1:], 1 / 15),
    "bubbles": lambda: figures.bubbles("a", "many", CELLS, 100),
    "reigns": lambda: figures.reigns("a", "champions", REIGNS, [(DAYS[1], 0.96)]),
    "one reign": lambda: figures.reigns("a", "champions", REIGNS[2:], []),
    "growth": lambda: figures.growth("a", "t", {"x": [(DAYS[0], 9.0)], "y": [(DAYS[0], 3)]}, "l"),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_drawing_has_no_colour_of_its_own_and_is_the_same_each_time(draw):
    svg = draw()
    assert svg == draw()
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;\"'])", svg) == []  # but references
    assert set(re.findall(r"var\(--([a-z]+)\)", svg)) <= set(figures._VARIABLES.values())
    assert not re.search(r"http|<\?xml|<metadata|<!--|\n\s|<image", svg)
    assert 'role="img" aria-label="' in svg
    names = re.findall(r'\bid="([^"]+)"', svg)
    assert len(names) == len(set(names))
    assert all(name.startswith("a-") for name in names)
    assert {each for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg) for each in pair
            if each} <= set(names)  # fmt: skip


def test_text_of_a_drawing_stays_text_and_is_escaped():
    svg = figures.curves("a", "<b>&", {"x": [1.0, 2.0]}, 'say "<hi>"')
    assert "&lt;b&gt;&amp;</text>" in svg
    assert 'aria-label="say &#34;&lt;hi&gt;&#34;"' in svg


def test_a_step_between_champions_is_drawn_on_one_test_set_alone(monkeypatch):
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(
        Axes,
        "plot",
        lambda axes, x, y, *rest, **more: drawn.append(y) or plot(axes, x, y, *rest, **more),
    )
    figures.reigns("a", "champions", REIGNS, [])
    assert [0.97, 0.98] in drawn
    assert [0.98, 0.95] not in drawn


def test_a_long_training_is_thinned_out_and_keeps_its_last_epoch():
    values = list(np.linspace(1, 0, 10_000))
    x, y = figures._thinned(np.arange(1, 10_001), np.array(values))
    assert len(x) <= 400
    assert (x[-1], y[-1]) == (10_000, 0)
    assert len(figures.curves("a", "t", {"x": values}, "l")) < 30_000


def test_settings_are_those_of_a_drawing_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    DRAWINGS["curves"]()
    with pytest.raises(ValueError, match="shape"):
        figures.bubbles("a", "l", [(1, 2)], 30)
    assert dict(mpl.rcParams) == before


def test_where_no_cache_can_be_kept_nothing_is_said(tmp_path):
    """In a pod whose root is read-only; the log is one JSON object a line."""
    program = "from job.report import figures; figures.curves('a', 't', {'x': [1.0, 2.0]}, 'l')"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"MPLCONFIGDIR": "/proc/none", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []
