"""The log of champions as a table for people."""

from collections.abc import Sequence
from datetime import UTC, datetime

from job.errors import in_one_line
from job.nightly.champions import Entry


def table(entries: Sequence[Entry]) -> str:
    """Return the champion in force, and below it all entries, the newest first.

    Args:
        entries: the log, the oldest first; at least one.
    """
    newest = entries[-1]
    days = newest.age_seconds(datetime.now(UTC)) / 86_400
    champion, anchor = newest.champion, newest.anchor
    lines = [
        (
            f"champion   {champion.run}, {champion.accuracy:.2%} of {champion.test_examples:,} "
            f"test images, for {days:.1f} days"
        ),
        f"anchor     {anchor.run}, {anchor.accuracy:.2%}",
        *([f"held       {in_one_line(newest.held)}"] if newest.held else []),
        *(f"barred     {bar.run}: {in_one_line(bar.why)}" for bar in newest.barred),
        "",
    ]
    width = max(len("run"), *(len(entry.champion.run) for entry in entries))
    lines.append(
        f"{'entry':>6}  {'time (UTC)':16}  {'act':8}  {'run':{width}}  {'accuracy':>8}  why"
    )
    for entry in reversed(entries):
        time = entry.time[:16].replace("T", " ")
        lines.append(
            f"{entry.number:>6}  {time:16}  {entry.act:8}  {entry.champion.run:{width}}  "
            f"{entry.champion.accuracy:>8.2%}  {in_one_line(entry.why)}"
        )
    return "\n".join(lines)
