"""A sign of life for whoever watches from outside: a file whose age tells when the run last moved.

A probe that looks at the file's age needs no Python and no port. What hangs, be it a device, a
store or a peer, stops touching it.
"""

import errno
from pathlib import Path

from job.errors import OutputError, UsageError


class Liveness:
    """Touches one local file, or nothing if there is none to touch."""

    def __init__(self, path: str | None = None) -> None:
        """Beat for the first time, so that a path which can't be touched is found out at once.

        Raises:
            UsageError: the file can't be made.
        """
        self._path = None if path is None else Path(path)
        try:
            self._touch()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--liveness-file {path!r} cannot be touched ({_reason(error)}): name a file in a "
                "folder that is there and writable"
            ) from error

    def beat(self) -> None:
        """Say that the run moves.

        Raises:
            OutputError: the file can't be touched any more: whoever watches may end a run that is
                well, so people must be told.
        """
        try:
            self._touch()
        except OSError as error:
            raise OutputError(
                f"--liveness-file {self._path} cannot be touched any more ({_reason(error)}): "
                "check its folder"
            ) from error

    def _touch(self) -> None:
        if self._path is None:
            return
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        self._path.touch()


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
