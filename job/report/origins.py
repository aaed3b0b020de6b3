"""How a run came to be -> rows of a page: config and command, attempts, machines and versions."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from job.config import default_of, flags_of, in_full
from job.report.page import short

PROGRAM = "mnist-job"
SILENT = "running, or killed without a word"
_SHORT_LINE = 60  # signs: a command of no more stands on one line
_KILLED = "killed without a word"  # by SIGKILL, with its machine, or for its memory

Record = Mapping[str, Any]


def config(identity: Record) -> list[dict[str, Any]]:
    """Return each field that decides the weights: flag, value, and the default if it is another."""
    rows = []
    for name, value in in_full(identity).items():
        default = default_of(name)
        other = value is not None and value != default
        rows.append(
            {
                "flag": name.replace("_", "-"),
                "value": _value(value),
                "default": _value(default) if other else "",
                "other": other,
            }
        )
    return rows


def _value(value: Any) -> str:
    return "none" if value is None else str(value).removesuffix(".0")


def command(identity: Record, *, verb: str = "train") -> list[str]:
    """Return what to type for a run of this identity, as lines that a shell joins by backslashes.

    Fields beside the identity, such as `output`, are flags as well.
    """
    flags = flags_of(identity)
    pairs = [shlex.join(flags[at : at + 2]) for at in range(0, len(flags), 2)]
    line = " ".join([PROGRAM, verb, *pairs])
    return [line] if len(line) <= _SHORT_LINE else [f"{PROGRAM} {verb}", *pairs]


def attempts(records: Sequence[Record], ends: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return a row for each attempt; `ends` tells by number how those ended that left a word."""
    return [
        {
            "number": (number := int(record["attempt"])),
            "began": moment(record.get("started", "")),
            "machine": machine(record),
            "versions": versions(record),
            "end": ends.get(number, _KILLED),
        }
        for record in records
    ]


def ending(end: Record) -> str:
    """Return in a line how an attempt ended, by what it left."""
    error = end.get("error")
    return status(end)[1] + (f": {error}" if error else "")


def status(end: Record | None) -> tuple[str, str]:
    """Return how the newest attempt of an unfinished run ended: its kind for `style.css`, words.

    Args:
        end: what it left; None where it left nothing.
    """
    if end is None:
        return "", SILENT
    code = f" (exit code {end.get('code')})"
    kinds = {
        "stopped": ("waiting", f"stopped{code}"),
        "retry": ("waiting", f"to be run again{code}"),
        "halted": ("waiting", "halted: a trial of a study, ended on purpose"),
    }
    return kinds.get(str(end.get("status")), ("bad", f"failed{code}"))


def machine(facts: Record) -> str:
    """Return where something was computed, in a line."""
    devices = facts.get("devices")
    told = [
        facts.get("pod") or facts.get("node"),
        facts.get("processor") or facts.get("platform"),
        f"{facts['cores']} cores" if "cores" in facts else None,
        " + ".join(map(str, devices)) if isinstance(devices, list) else None,
        f"{facts['workers']} workers" if facts.get("workers", 1) != 1 else None,
    ]
    return ", ".join(str(each) for each in told if each)


def versions(facts: Record) -> str:
    """Return what something was computed with, in a line."""
    names = {"job_version": "job", "tensorflow": "TensorFlow", "keras": "Keras", "python": "Python"}
    told = [f"{called} {facts[name]}" for name, called in names.items() if facts.get(name)]
    if commit := facts.get("git_commit"):
        told.insert(1, f"commit {short(commit)}")
    return ", ".join(told)


def moment(text: Any) -> str:
    """Return a time as people read it, in UTC."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def dictionary(value: Any) -> dict[str, Any]:
    """Return an object of a file that may be anybody's; nothing where it is none."""
    return value if isinstance(value, dict) else {}
