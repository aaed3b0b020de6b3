"""What a study varies: names of flags, each with a range or a list, and a point -> their values."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from job.errors import UsageError

Value = float | int | str

WHOLE = ("epochs", "batch_size")
REAL = ("learning_rate", "weight_decay", "label_smoothing", "augment_strength", "dropout")
NAMED = ("model", "schedule", "augment", "precision")
DIGITS = 4  # of a real value: enough to tune, and a command that a person can read
_RANGE = re.compile(r"(.+?)\.\.(.+?)(:log)?")
_SHAPES = "NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C"


@dataclass(frozen=True)
class Dimension:
    """One thing that is varied: over a range, evenly or in its logarithm, or over some values."""

    name: str
    """Of a field of `RunConfig`."""
    values: tuple[Value, ...]
    """All of them, or the lowest and the highest of a range."""
    is_range: bool = False
    in_log: bool = False

    def at(self, share: float) -> Value:
        """Return the value at `share`, from 0 to below 1, of the way."""
        if not self.is_range:
            return self.values[int(share * len(self.values))]
        low, high = (float(value) for value in self.values)
        whole = self.name in WHOLE
        end = high + whole  # each whole number has a piece as wide as every other's
        if self.in_log:
            value = math.exp(math.log(low) + share * (math.log(end) - math.log(low)))
        else:
            value = low + share * (end - low)
        if whole:
            return min(int(high), max(int(low), math.floor(value)))
        # Rounded, so that a last bit which another machine's logarithm has otherwise is no matter.
        return min(high, max(low, float(f"{value:.{DIGITS}g}")))

    def share(self, value: Value) -> float:
        """Return how far along the axis of a picture `value` lies, from 0 to 1."""
        if not self.is_range:
            return (self.values.index(value) + 0.5) / len(self.values)
        low, high, here = (float(each) for each in (*self.values, value))
        if self.in_log:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return (here - low) / (high - low)

    def __str__(self) -> str:
        """Return the text that it is parsed from."""
        values = [repr(value) if isinstance(value, float) else str(value) for value in self.values]
        text = "..".join(values) if self.is_range else ",".join(values)
        return f"{flag(self.name)}={text}{':log' if self.in_log else ''}"


@dataclass(frozen=True)
class Space:
    """All that a study varies."""

    dimensions: tuple[Dimension, ...]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Space":
        """Return the space that `texts`, values of `--vary`, declare.

        Raises:
            UsageError: one can't be understood, or two are of the same name.
        """
        dimensions = tuple(map(_dimension, texts))
        names = [dimension.name for dimension in dimensions]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"--vary {flag(name)} is given twice: give it once")
        return cls(dimensions)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are varied."""
        return tuple(dimension.name for dimension in self.dimensions)

    @property
    def texts(self) -> list[str]:
        """What it is parsed from."""
        return list(map(str, self.dimensions))

    def at(self, point: Sequence[float]) -> dict[str, Value]:
        """Return the values at `point`, a share from 0 to below 1 for each dimension, by name."""
        pairs = zip(self.dimensions, point, strict=True)
        return {dimension.name: dimension.at(share) for dimension, share in pairs}


def flag(name: str) -> str:
    """Return what a field of `RunConfig` is called on the command line."""
    return name.replace("_", "-")


def lines(text: str) -> list[str]:
    """Return the values of `--vary` in a file: one a line, `#` begins a comment."""
    bare = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in bare if line]


def _dimension(text: str) -> Dimension:
    before, equals, wanted = text.strip().removeprefix("--").partition("=")
    name = before.strip().replace("-", "_")
    known = (*WHOLE, *REAL, *NAMED)
    if not equals or not wanted.strip():
        raise UsageError(f"--vary must be {_SHAPES}, not {text[:80]!r}")
    if name not in known:
        can = ", ".join(map(flag, known))
        raise UsageError(f"--vary can be of {can}, not of {before.strip()[:40]!r}")
    found = _RANGE.fullmatch(wanted.strip())
    if found is None:
        values = tuple(_value(name, each, text) for each in wanted.split(","))
        if len(set(values)) < len(values):
            raise UsageError(f"--vary {text[:80]!r} names a value twice: once is enough")
        return Dimension(name, values)
    if name in NAMED:
        raise UsageError(f"--vary {text[:80]!r}: {name} has no range, give {flag(name)}=A,B,C")
    low, high = (_value(name, found[number], text) for number in (1, 2))
    assert not isinstance(low, str) and not isinstance(high, str)  # noqa: PT018  only names are
    if not low < high:
        raise UsageError(f"--vary {text[:80]!r} must have its lower end first")
    if found[3] and low <= 0:
        raise UsageError(f"--vary {text[:80]!r}: a logarithm needs a range above 0")
    return Dimension(name, (low, high), is_range=True, in_log=bool(found[3]))


def _value(name: str, text: str, whole: str) -> Value:
    if name in NAMED:
        return text.strip()  # what it may be, the config knows
    try:
        number = int(text) if name in WHOLE else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        kind = "whole numbers" if name in WHOLE else "numbers"
        raise UsageError(f"--vary {whole[:80]!r} must have {kind}, not {text.strip()[:40]!r}")
    return number
