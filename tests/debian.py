"""Programs of Prometheus, which no index for Python has: `scripts/prometheus` brings Debian's."""

import os
import shutil

import pytest
from conftest import REPOSITORY


def program(*names: str) -> str:
    """Return a program that has one of these names, or skip the test, loudly.

    It fails where the variable PROMETHEUS_TEST is `required`.
    """
    folder = REPOSITORY / ".prometheus" / "usr" / "bin"
    for name in names:
        if found := shutil.which(name, path=folder) or shutil.which(name):
            return found
    end = pytest.fail if os.environ.get("PROMETHEUS_TEST") == "required" else pytest.skip
    return end(f"NOT TRIED: there is no {names[0]}; scripts/prometheus brings Debian's")
