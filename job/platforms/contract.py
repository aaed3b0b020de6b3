"""What a platform is described by: its sign, and which variable or file stands for which flag."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.errors import ClusterError
from job.workers.cluster import Workers

PEER_TIMEOUT_SECONDS = "600"  # machines of one job come up minutes apart
NIGHT = {"run-id": "night"}  # what names the work of a night
_MOST_BYTES = 16 * 1024 * 1024  # of a file of the platform's


def is_folder(path: Path) -> bool:
    """Tell whether a folder is there; one in a folder that may not be searched counts as not."""
    try:
        return path.is_dir()
    except OSError:  # Python 3.11 raises what is no answer, such as "permission denied"
        return False


@dataclass(frozen=True)
class Surroundings:
    """Where a command was started, and what is known of it before its flags are parsed."""

    environment: Mapping[str, str]
    flags: frozenset[str] = frozenset()
    """Names of the command's flags, such as `run-id`."""
    given: frozenset[str] = frozenset()
    """Those that the command line or a variable of their own gives: they win."""
    root: Path = Path("/")
    """Folder that the platform's paths lie below."""

    def variable(self, name: str) -> str | None:
        """Return a variable; None where it is unset or empty."""
        return self.environment.get(name) or None

    def path(self, absolute: str) -> Path:
        """Return where a path of the platform's lies."""
        return self.root / absolute.lstrip("/")

    def has_folder(self, absolute: str) -> bool:
        """Tell whether a folder of the platform's is there, as far as this user may see."""
        return is_folder(self.path(absolute))

    def document(self, absolute: str) -> dict[str, Any]:
        """Return the JSON object in a file of the platform's; {} where there is no such file.

        Raises:
            ClusterError: it can't be read, or holds anything else.
        """
        path = self.path(absolute)
        try:
            with path.open("rb") as file:
                document = json.loads(file.read(_MOST_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ClusterError(
                f"{path} can't be understood ({reason[:80]}): it must hold a JSON object, as the "
                "platform writes it; --platform none leaves it alone"
            ) from error
        if not isinstance(document, dict):
            raise ClusterError(
                f"{path} holds JSON, but no object: the platform writes one; --platform none "
                "leaves it alone"
            )
        return document


Value = str | list[str]
"""Of a flag, as a command line would give it; a list where the flag may be repeated."""


@dataclass(frozen=True)
class Default:
    """What a flag is where nobody gives it."""

    value: Value
    source: str
    """The variable or the file that it is from."""


@dataclass(frozen=True)
class Row:
    """A flag, and what stands for it on a platform."""

    flag: str
    source: str
    """The variable or the path that is told as the value's source."""
    read: Callable[[Surroundings], str | None]
    """Returns the value, None where the platform has none; may raise a JobError."""


def variable(flag: str, name: str) -> Row:
    """Return the row of a variable that stands for a flag as it is."""
    return Row(flag, name, lambda here: here.variable(name))


def writes_events() -> bool:
    """Tell whether what writes event files is installed: no platform asks for what can't be."""
    return importlib.util.find_spec("tensorboardX") is not None


def _no_more(_: Surroundings) -> dict[str, Default]:
    return {}


@dataclass(frozen=True)
class Platform:
    """One platform's contract."""

    name: str
    """As `--platform` has it."""
    sign: Callable[[Surroundings], str | None]
    """Returns what tells that we are on it, in a few words; None where nothing does."""
    wanted: str
    """What would tell it, in the same words."""
    rows: tuple[Row, ...]
    more: Callable[[Surroundings], dict[str, Default]] = _no_more
    """Returns values of flags that a file gives by their own names; they win over `rows`."""
    workers: Callable[[Surroundings], Workers | None] = lambda _: None
    """Returns who trains together, where a file tells it and no variable does."""
    pools: bool = False
    """Whether CLUSTER_SPEC is its own, and tells who trains together."""
    ignored: Callable[[Surroundings], list[str]] = lambda _: []
    """Returns names of what is there and means nothing to this job, worth a word."""
    failure_file: str | None = None
    """Where it looks for the reason of a failure."""


@dataclass(frozen=True)
class Found:
    """The platform that we are on, and what it gives."""

    name: str
    because: str
    """What told it."""
    defaults: dict[str, Default]
    """By the flag's name; of flags that nobody gave."""
    workers: Workers | None = None
    pools: bool = False
    """Whether CLUSTER_SPEC is its own."""
    ignored: list[str] = field(default_factory=list)
