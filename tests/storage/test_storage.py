"""The front of storage: what goes where, and with which settings."""

import math
import subprocess
import sys

import pytest

from job import storage
from job.errors import UsageError


@pytest.mark.parametrize("seconds", [0, -1, 0.05, 1e9, math.nan, math.inf])
def test_a_deadline_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="--storage-timeout"):
        storage.Settings(timeout_seconds=seconds)


@pytest.mark.parametrize(
    ("uri", "needed"),
    [
        ("object", set()),
        ("file:///nowhere/object", set()),
        ("s3://bucket/key", {"asyncio", "fsspec", "s3fs"}),
        ("gs://bucket/key", {"asyncio", "fsspec", "gcsfs"}),
    ],
)
def test_only_what_a_uri_needs_is_imported(uri: str, needed: set[str]) -> None:
    program = f"""
import sys
from job import storage
from job.errors import JobError
storage.configure(storage.Settings(timeout_seconds=0.1))
try:
    storage.read(storage.parse({uri!r}), 10)
except JobError:
    pass
print(*({{"asyncio", "fsspec", "s3fs", "gcsfs"}} & set(sys.modules)))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert set(ended.stdout.split()) == needed
    assert ended.stderr == ""  # nothing is left open, and no library talks
