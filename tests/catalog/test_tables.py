"""The table of runs: plain lines, or in colours and no wider than the terminal."""

import io
import re
from datetime import timedelta

import pytest
from fake_runs import NOW
from rich.console import Console

from job.catalog import tables
from job.catalog.listing import Run
from job.storage import parse

MINUTE = timedelta(minutes=1)


def run(name, status="complete", **facts) -> Run:
    whole = {
        "model": "mlp",
        "preset": "reference",
        "correct": 9862,
        "examples": 10_000,
        "seconds": 7.64,
        "time": NOW,
    }
    return Run(run=name, place=parse("x"), status=status, **(whole | facts))


RUNS = [
    run("first", champion=True),
    run("ten", model="cnn-wide", preset="best", members=10, correct=9975, seconds=6400.0),
    run("own", preset=None),
    run("going", "running?", correct=None, seconds=None, time=NOW - 2 * MINUTE),
    run("gone", "silent", correct=None, seconds=None, time=NOW - 90 * MINUTE),
    run("bad", "failed", correct=None, why="--epochs must be more", code=64, preset="cnn"),
    run("what", "unknown", correct=None, model=None, time=None, seconds=None, why="not JSON"),
]


def drawn(runs, width, height=50, draw=tables.coloured):
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, color_system=None)
    console.print(draw(runs, NOW, 600.0, console))
    return file.getvalue()


def test_plain_lines_say_all_of_a_run_in_one():
    text = tables.plain(RUNS, NOW, 600.0)
    table, notes = text.split("\n\n")
    accuracy, noon, none = ["98.62%", "98.37 to 98.83"], "2026-11-26 12:00", ["-", "-"]
    assert [re.split(r"  +", line) for line in table.splitlines()] == [
        [*tables._HEAD, "why"],
        ["first *", "complete", "mlp, reference", *accuracy, noon, "7.6"],
        ["ten", "complete", "cnn-wide x 10, best", "99.75%", "99.63 to 99.83", noon, "6,400.0"],
        ["own", "complete", "mlp, own", *accuracy, noon, "7.6"],
        ["going", "running?", "mlp, reference", *none, "2026-11-26 11:58", "-",
         "last sign of life: 2 min ago"],
        ["gone", "silent", "mlp, reference", *none, "2026-11-26 10:30", "-",
         "last sign of life: 90 min ago"],
        ["bad", "failed", "mlp, cnn", *none, noon, "7.6", "--epochs must be more (exit 64)"],
        ["what", "unknown", "-", *none, "-", "-", "not JSON"],
    ]  # fmt: skip
    assert len({line.index("  2026") for line in table.splitlines()[1:-1]}) == 1
    assert notes.startswith("* champion\nrunning? and silent: no end is recorded.")
    assert "in the last 10 min" in notes


def test_only_what_needs_it_is_explained():
    assert tables.plain([run("a")], NOW, 600.0).count("\n") == 1


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_terminal_is_never_too_narrow(width):
    text = drawn(RUNS, width)
    assert max(map(len, text.splitlines())) <= width
    for name in ("first *", "98.62%", "running?", "bad  failed  --epochs must be more"):
        assert name in text
    assert ("2026-11-26 10:30" in text) == (width >= 60)
    assert ("99.63 to 99.83" in text) == (width >= 100)


@pytest.mark.parametrize("height", [5, 12, 30])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_what_is_watched_fits_into_the_terminal(count, height):
    runs = [*RUNS, *(run(f"run-{number}") for number in range(count))][:count]
    text = drawn(runs, 80, height, tables.fitting)
    if height > 5 or not count:
        assert len(text.splitlines()) < height
    if count == 1000:
        assert re.search(r"and \d+ more", " ".join(text.split()))
        if height > 12:
            assert len(text.splitlines()) >= height - 3  # all the room is used


HOSTILE = "a\x1b[31m\r\nb\u202e[red]c[/red]\x07"


def test_what_a_terminal_would_obey_is_shown_as_text():
    runs = [run(HOSTILE), run("b", "failed", why=f"why {HOSTILE}", model=HOSTILE, preset=None)]
    for text in (tables.plain(runs, NOW, 600.0), drawn(runs, 200)):
        assert "\\x1b[31m b\\u202e[red]c[/red]\\x07" in text
        assert "\r" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "\x1b[31m" not in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0 s"),
        (40, "40 s"),
        (119, "119 s"),
        (600, "10 min"),
        (7300, "2 h"),
        (86400 * 9, "9 days"),
    ],
)
def test_ages_have_the_unit_that_suits(seconds, said):
    assert tables.age(seconds) == said
