"""What was counted over many runs."""

from dataclasses import dataclass, fields
from typing import Self


@dataclass
class Tally:
    """Figures that can be added up: all of them, so that none is forgotten when one is new."""

    def add(self, other: Self) -> None:
        """Take in the figures of another: a slowest is the larger, all else is the sum."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            slowest = field.name.startswith("slowest")
            setattr(self, field.name, max(mine, theirs) if slowest else mine + theirs)
