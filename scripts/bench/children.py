"""Processes that end with the bench, however it ends."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_by_exception() -> None:
    """Let the signals that end a process end this one by SystemExit, as Ctrl-C does in Python.

    So its child is killed and its temporary files are removed. A signal that is ignored, as under
    nohup, stays so.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)  # as shells have it


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `command` as `subprocess.run` does; on Linux it dies with this process, even by SIGKILL.

    Elsewhere it is killed by whatever raises an exception here, but outlives a SIGKILL.
    """
    return subprocess.run(  # noqa: PLW1510  # the caller says whether to check
        command,
        text=True,
        preexec_fn=dying_with_this_process(),  # the bench has one thread
        **options,
    )


def dying_with_this_process() -> Callable[[], None] | None:
    """Return what a new process calls to die with this one; None where systems know no such."""
    return _die_with(os.getpid()) if sys.platform == "linux" else None


def _die_with(parent: int) -> Callable[[], None]:
    """Return what a new process calls to be killed as soon as `parent` is no more."""
    prctl = ctypes.CDLL(None).prctl  # found before the fork, which must not load anything

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it was bound
            os._exit(1)

    return bind
