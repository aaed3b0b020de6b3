"""Templates and what they tell -> the bytes of one HTML file that needs nothing beside it.

Whatever goes into a page may be anybody's: Jinja escapes it, and `_plain` folds it into one line of
printable signs first. No script runs, and nothing is fetched: the policy in `base.html` forbids
both. The same contents are the same bytes.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from job import __version__, storage
from job.errors import ConflictError, JobError, MissingInputError, StoppedError, in_one_line
from job.process.progress import Progress
from job.storage import Place

if TYPE_CHECKING:
    import jinja2

MAX_BYTES = 2 * storage.MEBIBYTE
GENERATOR = b'<meta name="generator" content="mnist-job report">'
"""In every page: by this one of ours is known, and may be replaced."""
_HEAD_BYTES = 1024  # of a page, in which that stands
_LONGEST_TEXT = 2000  # characters of anything that isn't ours
# What odd contents of a file end in, wherever they are first looked at.
_ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
Found = TypeVar("Found")


class Parts:
    """Takes the parts of a page, and notes which can't be had and why: the page is made without."""

    def __init__(self) -> None:
        self.missing: list[tuple[str, str]] = []

    def of(self, part: str, take: Callable[[], Found]) -> Found | None:
        """Return what `take` gives; None where it can't, which is noted of `part`."""
        try:
            return take()
        except StoppedError:
            raise
        except JobError as error:
            self.missing.append((part, str(error)))
        except _ODD as error:  # files of other versions, or anybody's
            self.missing.append((part, f"what was written of it can't be understood ({error!r})"))
        return None


def render(template: str, **contents: Any) -> bytes:
    """Return the page that `template`, a file beside this one, makes of `contents`."""
    return _environment().get_template(template).render(contents, version=__version__).encode()


@functools.cache
def _environment() -> "jinja2.Environment":
    import jinja2  # noqa: PLC0415  a twentieth of a second for those who draw

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("job.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "percent": percent, "short": short}
    return environment


def place_it(page: bytes, own: Place | None, to: Place | None, name: str) -> str:
    """Write a page that a person asked for, and return in a line where it is.

    Args:
        page: what to write.
        own: where it belongs, beside what it shows; None where that has no page yet, as a run that
            may go on. What lies there already stays.
        to: where the person wants it; None to choose: its own place if nothing is there, or else
            the current folder.
        name: of the file there.

    Raises:
        ConflictError: something else lies there, that is no page of ours.
        OutputError: it can't be written.
    """
    if to is None and own is not None:
        with contextlib.suppress(ConflictError):  # of another version, or made when more was known
            storage.create(own, page)
            return f"written to {own}"
    place = to or storage.parse(f"./{name}.html")
    replaced = save(place, page)
    return f"written to {place}" + (", in place of an older page" if replaced else "")


def save(place: Place, page: bytes) -> bool:
    """Write `page` to `place`, where an older page of ours makes room; return whether one did.

    Not for what a run or a night leaves: that is created once.

    Raises:
        ConflictError: something else lies there.
        OutputError: it can't be written.
    """
    try:
        storage.create(place, page)
    except ConflictError:
        if not _is_ours(place):
            raise
        storage.remove(place)
        storage.create(place, page)
        return True
    return False


@contextlib.contextmanager
def only_a_warning(place: Place, progress: Progress) -> Iterator[None]:
    """Say in one warning what keeps a page from being written to `place`, and go on."""
    try:
        yield
    except (StoppedError, KeyboardInterrupt):
        reason = "stopped meanwhile"  # nothing is lost, so the run ends as it would have
    except TimeoutError:
        reason = "no answer in time"
    except Exception as error:  # noqa: BLE001  a run counts more than its page
        reason = str(error) or repr(error)
    else:
        return
    progress.event("report_not_written", page=str(place), reason=reason)


def _is_ours(place: Place) -> bool:
    try:
        return GENERATOR in storage.read(place, 8 * MAX_BYTES)[:_HEAD_BYTES]
    except MissingInputError:
        return False


def _plain(value: Any) -> Any:
    """Return a text in one printable line, and not too long; markup and numbers as they are."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        line = in_one_line(value)
        return line if len(line) <= _LONGEST_TEXT else f"{line[:_LONGEST_TEXT]}…"
    return value


def count(number: Any) -> str:
    """Return a whole number with its thousands apart: `60,000`."""
    return f"{int(number):,}"


def percent(share: Any, digits: int = 2) -> str:
    """Return a share as a percentage, and one that is nearly all or nothing as such: `> 99.9 %`."""
    value, least = 100 * float(share), 10**-digits
    if not math.isfinite(value):
        raise ValueError(f"{value} is no share")
    if 100 - least / 2 <= value < 100:
        return f"> {100 - least:.{digits}f} %"
    if 0 < value < least / 2:
        return f"< {least:.{digits}f} %"
    return f"{value:.{digits}f} %"


def digits_of(examples: int) -> int:
    """Return how many digits of a percentage of `examples` say something: two from 2,000 on."""
    return 2 if examples >= 2_000 else 1


def seconds(number: Any) -> str:
    """Return a time as people say it: `0.24 s`, `6.7 s`, `4 min 12 s`, `2 h 5 min`."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{value} is no time")
    if value < 9.95:
        return f"{value:.2g} s" if value < 0.995 else f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def short(digest: Any, signs: int = 12) -> str:
    """Return the beginning of a digest."""
    return str(digest)[:signs]


def size(number: Any) -> str:
    """Return a number of bytes as people say it: `434 KiB`."""
    value, units = float(number), ["bytes", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    digits = 0 if value >= 10 or units[0] == "bytes" else 1
    return f"{value:.{digits}f} {units[0]}"
