"""The runs below an output as a table for people: in colour on a terminal, else plain lines.

Ids and reasons may be anybody's: what can't be printed is shown as Python would write it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from job.catalog.listing import Run, Status
from job.errors import in_one_line

if TYPE_CHECKING:
    from rich.console import Console, Group

_HEAD = ("run", "status", "model, preset", "accuracy", "95 % interval", "time (UTC)", "seconds")
_RIGHT = ("accuracy", "seconds")
_SPARED = ("95 % interval", "model, preset", "seconds", "time (UTC)")  # first by a narrow terminal
_GAP = 2  # signs between two columns
_LONGEST = 160  # signs of a reason: the run's records have the rest
_STYLES: dict[Status, str] = {
    "complete": "green",
    "running?": "cyan",
    "silent": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "unknown": "magenta",
    "half removed": "dim",
}
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def plain(runs: Sequence[Run], now: datetime, silent_after_seconds: float) -> str:
    """Return a line for each run, and what the words mean that need it."""
    rows = [[*_HEAD, "why"], *([*_cells(run), _why(run, now)] for run in runs)]
    widths = [*_widths(rows), 0]
    lines = [
        (" " * _GAP)
        .join(
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for name, cell, width in zip([*_HEAD, "why"], row, widths, strict=True)
        )
        .rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", *_notes(runs, silent_after_seconds)]).rstrip()


def for_terminal(runs: Sequence[Run], now: datetime, silent_after_seconds: float) -> str:
    """Return the same as text for the terminal that standard output is."""
    from rich.console import Console  # noqa: PLC0415  Rich is for those who look at a terminal

    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(coloured(runs, now, silent_after_seconds, console))
    return captured.get().rstrip("\n")


def coloured(
    runs: Sequence[Run], now: datetime, silent_after_seconds: float, console: "Console"
) -> "Group":
    """Return the same in colours for a terminal: reasons come below the table."""
    from rich import box  # noqa: PLC0415
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    rows = [_cells(run) for run in runs]
    shown = _fitting(_widths([_HEAD, *rows]), console.width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in shown:
        table.add_column(
            name,
            justify="right" if name in _RIGHT else "left",
            no_wrap=name != "run",
            overflow="fold",
        )
    for run, row in zip(runs, rows, strict=True):
        cells = {name: Text(cell) for name, cell in zip(_HEAD, row, strict=True)}
        cells["run"].stylize("bold" if run.champion else "")
        cells["status"].stylize(_STYLES[run.status])
        table.add_row(*(cells[name] for name in shown))
    told = [
        Text.assemble((_name(run), "bold"), "  ", (run.status, _STYLES[run.status]), f"  {why}")
        for run in runs
        if (why := _why(run, now))
    ]
    notes = [Text(note, style="dim") for note in _notes(runs, silent_after_seconds)]
    return Group(table, *([Text()] if told else []), *told, *([Text()] if notes else []), *notes)


def fitting(
    runs: Sequence[Run], now: datetime, silent_after_seconds: float, console: "Console"
) -> "Group":
    """Return as many of the first runs as a terminal of the height of `console` has room for."""
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    count = min(len(runs), console.height)
    while True:
        left = len(runs) - count
        more = Text(f"and {left:,} more", style="dim") if left else Text()
        drawn = Group(coloured(runs[:count], now, silent_after_seconds, console), more)
        over = len(console.render_lines(drawn)) - (console.height - 1)
        if over <= 0 or count <= 1:
            return drawn
        count -= min(count - 1, max(1, over // 3))  # a run may take three lines


def _cells(run: Run) -> list[str]:
    """Return what stands in the columns of `_HEAD`."""
    interval = run.accuracy_interval_95
    return [
        _name(run),
        run.status,
        _made(run),
        "-" if run.accuracy is None else f"{run.accuracy:.2%}",
        "-" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}",
        "-" if run.time is None else f"{run.time:%Y-%m-%d %H:%M}",
        "-" if run.seconds is None else f"{run.seconds:,.1f}",
    ]


def _name(run: Run) -> str:
    return in_one_line(run.run) + (" *" if run.champion else "")


def _made(run: Run) -> str:
    if run.model is None:
        return "-"
    members = f" x {run.members}" if run.members > 1 else ""
    return f"{_short(run.model, 20)}{members}, {run.preset or 'own'}"


def _why(run: Run, now: datetime) -> str:
    """Return what else is to be said of a run, in one line."""
    if run.status in {"running?", "silent"}:
        sign = "none" if run.time is None else f"{age((now - run.time).total_seconds())} ago"
        return f"last sign of life: {sign}"
    code = "" if run.code is None else f" (exit {run.code})"
    return f"{_short(run.why, _LONGEST)}{code}".strip()


def age(seconds: float) -> str:
    """Return how long `seconds` are, in the unit that suits: `40 s`, `12 min`, `3 h`, `9 days`."""
    seconds = max(0.0, seconds)  # another machine's clock may be ahead
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} h"
    return f"{seconds / _DAY:,.0f} days"


def _notes(runs: Sequence[Run], silent_after_seconds: float) -> list[str]:
    """Return what the marks and words in a table of `runs` mean."""
    statuses, notes = {run.status for run in runs}, []
    if any(run.champion for run in runs):
        notes.append("* champion")
    if statuses & {"running?", "silent"}:
        limit = age(silent_after_seconds)
        notes.append(
            "running? and silent: no end is recorded. With a start or a checkpoint in the last "
            f"{limit} a run counts as running, which nobody can be sure of; else it is silent: "
            "killed, most likely, and the same command goes on with it."
        )
    return notes


def _short(text: str, most: int) -> str:
    line = in_one_line(text)
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]


def _fitting(widths: Sequence[int], width: int) -> list[str]:
    """Return the columns of `_HEAD` that fit into `width` signs, in their order."""
    needed = dict(zip(_HEAD, widths, strict=True))
    for name in _SPARED:
        if sum(needed.values()) + _GAP * (len(needed) - 1) <= width:
            break
        del needed[name]
    return list(needed)
