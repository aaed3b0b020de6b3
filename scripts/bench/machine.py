"""What the bench runs on, and with which versions."""

import os
import platform
from pathlib import Path
from typing import Any

from contestants import Contestant
from environments import own_python, versions


def facts() -> dict[str, Any]:
    """Return what the bench runs on, and how busy it was before."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        cpu = next(line for line in text.splitlines() if line.startswith("model name"))
        cpu = cpu.partition(":")[2].strip()
    except (OSError, StopIteration):
        cpu = platform.processor()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_mib": pages // 2**20,
        "platform": platform.platform(),
        "load": os.getloadavg()[0],
    }


def versions_of(everyone: list[Contestant]) -> dict[str, str]:
    """Return the version of each contestant's library."""
    found = versions(own_python(), ("tensorflow-cpu", "tensorflow", "keras", "numpy"))
    for contestant in everyone:
        if name := contestant.library:
            found |= {name: versions(contestant.python, (name,))[name]}
    return found
