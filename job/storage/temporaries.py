"""The temporary files that objects are written to: their names, and what killed writers left."""

import hashlib
import os
import re
import secrets
import socket
from pathlib import Path

ABANDONED_SECONDS = 3600  # no write takes this long: its writer is gone, wherever it ran

_NAME = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{16}\.tmp")


def new_name() -> str:
    """Return a name of its own, so that two writers of one object never share a file."""
    return f".{_here()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"


def is_one(name: str) -> bool:
    """Tell whether a file's name is that of a temporary file."""
    return _NAME.fullmatch(name) is not None


def _here() -> str:
    """Return a digest of what makes a process id unique: this boot, container and host."""
    facts = [socket.gethostname()]
    try:
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    except OSError:
        facts.append("")  # not Linux: the host's name has to do
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def sweep(mine: Path) -> None:
    """Remove what killed writers left in the folder of `mine`, a file written just now.

    A process id means something only where it was given, and a folder may be shared by machines:
    elsewhere only age tells, by the clock of the file system. A writer that loses its temporary
    file after an hour fails and is repeated; nothing that was promised is lost.
    """
    now = mine.stat().st_mtime
    with os.scandir(mine.parent) as entries:
        others = [entry for entry in entries if entry.name != mine.name]
    for entry in others:
        if (match := _NAME.fullmatch(entry.name)) is None:
            continue
        try:
            dead = match[1] == _here() and not _alive(int(match[2]))
            if dead or now - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_SECONDS:
                Path(entry.path).unlink()
        except OSError:
            continue  # another has swept it, or may


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's
    return True
