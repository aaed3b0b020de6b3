"""The foot of a terminal while a training runs: how far it is, how it does, how long it takes yet.

It is drawn after each chunk of steps, and gone before anything else is printed: no thread of its
own, and nothing to clean up after a SIGKILL but the lines themselves.
"""

import time
from collections import deque
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from job.process.progress import Moment

_RECENT = 16  # chunks, of half a second each, that the speed is taken from


class Display:
    """Two lines at the foot of a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=False)
        self._live: Live | None = None
        self._seen: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._saved = 0
        self._saved_at = 0.0

    def show(self, moment: Moment) -> None:
        """Draw the two lines, or draw them anew."""
        now = time.monotonic()
        if self._seen and moment.step <= self._seen[-1][1]:  # another member of an ensemble
            self._seen.clear()
        self._seen.append((now, moment.step))
        lines = self._lines(moment, now)
        if self._live is None:
            self._live = Live(
                lines,
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
            self._console.show_cursor(True)  # a SIGKILL would leave the terminal without one
        self._live.update(lines, refresh=True)

    def saved(self) -> None:
        """Count a checkpoint."""
        self._saved += 1
        self._saved_at = time.monotonic()

    def hide(self) -> None:
        """Take the lines away; the next `show` brings them back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _lines(self, moment: Moment, now: float) -> Group:
        first = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, 1, None, None):
            first.add_column(ratio=ratio, no_wrap=True)
        first.add_row(
            f"epoch {moment.epoch:>{len(str(moment.epochs))}}/{moment.epochs}",
            ProgressBar(total=moment.steps, completed=moment.step, width=None),
            f"step {moment.step:,} of {moment.steps:,}",
            self._time_left(moment),
        )
        told = [f"loss {moment.loss:.4f}", f"accuracy {moment.accuracy:.4f}", self._speed(moment)]
        if self._saved:
            several = "s" if self._saved > 1 else ""
            told.append(
                f"{self._saved} checkpoint{several}, the last {now - self._saved_at:.0f} s ago"
            )
        return Group(
            first, Text("   ".join(filter(None, told)), style="dim", no_wrap=True, overflow="crop")
        )

    def _seconds_per_step(self) -> float | None:
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (ended - began) / (last - first) if last > first else None

    def _speed(self, moment: Moment) -> str:
        seconds = self._seconds_per_step()
        return f"{moment.batch_size / seconds:,.0f} images/s" if seconds else ""

    def _time_left(self, moment: Moment) -> str:
        seconds = self._seconds_per_step()
        if seconds is None:
            return "-:-- left"
        minutes, rest = divmod(round(seconds * (moment.steps - moment.step)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"
