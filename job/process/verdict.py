"""How a process ended, in one small JSON object for whoever started it.

Kubernetes keeps what a container leaves in its termination log and shows it in the pod's status, so
that the end of a run can be read without its logs.

    {"status": "complete", "code": 0, "run": "/runs/mlp-1", "accuracy": 0.98, ...}
    {"status": "failed", "code": 64, "error": "--epochs must be ...", "seconds": 0.4}

Status is `complete`, `stopped` (the same command goes on), `retry` (it may succeed later) or
`failed`.
"""

import contextlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from job.errors import JobError, StoppedError, TemporaryError, UsageError
from job.process import runtime
from job.process.preemption import EXIT_INTERRUPTED

OPTION = "--termination-log"
FAILURE = "--failure-file"
MAX_REASON = 1024  # characters: SageMaker shows no more
KUBERNETES_LOG = "/dev/termination-log"  # where a container's log lies unless its pod says other
MAX_BYTES = 4096  # Kubernetes keeps no more
_FAILURE_LINE = re.compile(rb"exit [0-9]{1,3}: ")  # what the reason of a failure begins with
_STOPPED = (StoppedError.exit_code, EXIT_INTERRUPTED)


def path(
    words: Sequence[str], environment: Mapping[str, str], default: str = KUBERNETES_LOG
) -> str | None:
    """Return the path that a verdict goes to, or None for nowhere.

    The command line is read here without its parser: a verdict is also due when the parser refuses
    what it was given.

    Args:
        words: arguments of the program.
        environment: variables of the process; an empty one counts as unset.
        default: taken if nothing is named and it is there to be written.
    """
    if named := given(words, environment, OPTION):
        return named
    return default if os.access(default, os.W_OK) and Path(default).is_file() else None


def given(words: Sequence[str], environment: Mapping[str, str], option: str) -> str | None:
    """Return the value of a flag such as `--log`, from the command line, else its variable."""
    named = None
    for index, word in enumerate(words):
        if word == option:
            named = next(iter(words[index + 1 :]), None)
        elif word.startswith(f"{option}="):
            named = word.partition("=")[2]
    variable = "MNIST_JOB_" + option.removeprefix("--").upper().replace("-", "_")
    return named or environment.get(variable) or None


def check(path: str | None, option: str = OPTION) -> None:
    """Find out at the door whether a verdict could be written to `path`, the value of `option`.

    Raises:
        UsageError: it could not.
    """
    if path is None:
        return
    target = Path(path)
    try:
        written = target if target.exists() else target.parent
        writable = not target.is_dir() and written.exists() and os.access(written, os.W_OK)
    except OSError:  # in a folder that may not be searched
        writable = False
    if not writable:
        raise UsageError(
            f"{option} {path!r} cannot be written: name a file in a folder that is there and "
            "writable"
        )


def success(run_uri: str, document: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the verdict on a run with the metrics `document`, None where only the chief has it."""
    names = ("accuracy", "accuracy_interval_95", "examples")
    scores = {} if document is None else {name: document["test"][name] for name in names}
    return {"status": "complete", "code": 0, "run": run_uri, **scores, **_spent()}


def came_to(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the verdict on a night or a study that came to something, of which `told` tells."""
    return {"status": "complete", "code": 0, **told, **_spent()}


def failure(message: str, code: int) -> dict[str, Any]:
    """Return the verdict on a process that ends with the exit code `code` and this error line."""
    status = "retry" if code == TemporaryError.exit_code else "failed"
    status = "stopped" if code in _STOPPED else status
    return {"status": status, "code": code, "error": message, **_spent()}


def of_error(error: BaseException) -> dict[str, Any]:
    """Return the verdict on a process that ends with `error`."""
    if isinstance(error, JobError):
        return failure(str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return failure("interrupted", EXIT_INTERRUPTED)
    return failure(repr(error), JobError.exit_code)


def write(path: str | None, verdict: dict[str, Any]) -> str | None:
    """Write `verdict` to the file `path`, in at most 4 KB; return why that failed, if it did.

    A process that is about to end has nobody to raise to, and its exit code says more than this.
    """
    return None if path is None else _written(OPTION, path, to_json(verdict))


def write_failure(path: str | None, verdict: dict[str, Any]) -> str | None:
    """Write why it failed to the file `path`, if it did; return why that failed, if it did.

    One line of at most 1,024 characters, the exit code first. A run that was stopped, and will go
    on, has not failed. One that is complete takes away what a try before it left there.
    """
    if path is not None and verdict["status"] == "complete":
        _remove_failure(Path(path))
    if path is None or verdict["status"] not in {"failed", "retry"}:
        return None
    line = f"exit {verdict['code']}: {verdict['error']}"
    line = line if len(line) <= MAX_REASON else f"{line[: MAX_REASON - 3]}..."
    return _written(FAILURE, path, line.encode(errors="backslashreplace"))


def _remove_failure(path: Path) -> None:
    """Remove a file that `write_failure` wrote; nothing else, be it a device or somebody's file."""
    with contextlib.suppress(OSError, ValueError):  # the run is complete all the same
        if stat.S_ISREG(path.lstat().st_mode):
            with path.open("rb") as file:
                ours = _FAILURE_LINE.match(file.read(16))
            if ours:
                path.unlink()


def _written(option: str, path: str, content: bytes) -> str | None:
    """Write a file; return why that failed, if it did."""
    try:
        Path(path).write_bytes(content)
    except (OSError, ValueError) as error:
        return f"{option} {path} could not be written: {error}"
    return None


def to_json(verdict: dict[str, Any]) -> bytes:
    """Return `verdict` as one line of JSON; texts too long for 4 KB lose their ends."""
    limit = MAX_BYTES
    while len(line := json.dumps(verdict, allow_nan=False).encode() + b"\n") > MAX_BYTES and limit:
        limit //= 2
        verdict = {
            name: f"{value[:limit]}..." if isinstance(value, str) and len(value) > limit else value
            for name, value in verdict.items()
        }
    return line


def _spent() -> dict[str, float]:
    """Return the seconds since the process started."""
    return {"seconds": round(runtime.usage().wall_seconds, 3)}
