"""Every failure has its exit code, and says what happened in one line."""

import inspect
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from job import errors
from job.errors import JobError

# Manifests and people rely on this table: a change here is a change of the product.
EXIT_CODES = {
    "JobError": 70,
    "UsageError": 64,
    "DataError": 65,
    "MissingInputError": 66,
    "ConflictError": 73,
    "OutputError": 74,
    "TemporaryError": 75,
    "CredentialsError": 77,
    "ClusterError": 78,
    "StoppedError": 143,
}
SIGTERM_ENDS_WITH = 143  # as shells have it
TENSORFLOW_RESTARTS_WITH = 42

TREE = {
    name: found
    for name, found in inspect.getmembers(errors, inspect.isclass)
    if found.__module__ == errors.__name__
}


def test_exit_codes_are_the_documented_ones() -> None:
    assert {name: found.exit_code for name, found in TREE.items()} == EXIT_CODES


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = re.findall(r"([A-Z]\w+Error) +(\d+)  ", errors.__doc__ or "")
    assert {name: int(code) for name, code in drawn} == EXIT_CODES


@pytest.mark.parametrize("name", EXIT_CODES)
def test_each_class_is_a_job_error_and_says_what_it_means(name: str) -> None:
    assert issubclass(TREE[name], JobError)
    assert "__doc__" in vars(TREE[name])
    assert (vars(TREE[name])["__doc__"] or "").strip()


def test_each_class_owns_its_code() -> None:
    assert all("exit_code" in vars(found) for found in TREE.values())
    codes = [found.exit_code for found in TREE.values()]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, 2, TENSORFLOW_RESTARTS_WITH} & set(codes)
    # From 126 on, shells and signals have their own meanings; one of them is ours.
    assert [code for code in codes if code >= 126] == [SIGTERM_ENDS_WITH]


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("as it is", "as it is"),
        ("two\nlines", "two lines"),
        ("return\r\nand\rfeed", "return and feed"),
        ("  margins\t and   gaps \n\n", "margins and gaps"),
        ("page\x0cbreak\x0bs", "page break s"),
        ("unicode\u2028line\u2029breaks\x85too", "unicode line breaks too"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("name", EXIT_CODES)
def test_a_message_is_folded_into_one_line(name: str, message: str, line: str) -> None:
    assert str(TREE[name](message)) == line


@pytest.mark.parametrize(
    "hostile",
    ["\x1b[2Jcleared", "rung\x07", "over\x08\x08written", "nul\x00", "\x9b31mred", "\u202edlrow"],
)
def test_a_message_cannot_steer_the_terminal_it_is_read_on(hostile: str) -> None:
    """Names from foreign files end up in messages, and messages in terminals and logs."""
    shown = str(errors.DataError(f"weights.h5: {hostile} is damaged"))
    assert not [sign for sign in shown if unicodedata.category(sign) in {"Cc", "Cf"}]


REPORTS_THEN_PUBLISHES = """
import sys
from pathlib import Path
import job.run
from job.cli import entry_point

def train_run(config, cluster, preemption, progress):
    progress.event("attempt_started", run=str(config.place), attempt=1)
    Path(config.output, "published").touch()

job.run.train_run = train_run
sys.argv = ["mnist-job", "train", "--output", sys.argv[1]]
entry_point()
"""


@pytest.mark.parametrize("somebody_reads", [True, False])
def test_exit_0_means_published(tmp_path: Path, somebody_reads: bool) -> None:
    """`mnist-job train | head -1` must not stop early and call that a success."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "wb") as writer:
        if not somebody_reads:
            reader.close()
        program = [sys.executable, "-c", REPORTS_THEN_PUBLISHES, str(tmp_path)]
        ended = subprocess.run(program, stdout=writer, timeout=60, check=False)
    published = (tmp_path / "published").exists()
    assert ended.returncode in ({0} if published else set(EXIT_CODES.values()))
    assert published or not somebody_reads
