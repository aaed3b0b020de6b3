"""The liveness file: touched as long as a run moves, and by nothing else."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from job.errors import OutputError, UsageError
from job.process.liveness import Liveness


def test_a_beat_makes_the_file_young_again(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    liveness = Liveness(str(file))
    assert file.stat().st_size == 0  # the first one beats by being made
    os.utime(file, (0, 0))
    liveness.beat()
    assert time.time() - file.stat().st_mtime < 60


def test_without_a_file_nothing_is_touched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Liveness().beat()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "nowhere/alive", "file/alive", ".", "nul\0"])
def test_a_file_that_cannot_be_touched_is_found_out_at_the_door(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--liveness-file"):
        Liveness(f"{tmp_path}/{name}")


def test_a_beat_that_fails_later_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    liveness = Liveness(str(folder / "alive"))
    (folder / "alive").unlink()
    folder.rmdir()
    with pytest.raises(OutputError, match="any more"):
        liveness.beat()


@pytest.mark.slow
def test_a_training_beats_between_its_events(small_mnist, tmp_path: Path) -> None:
    """Makes the file old after each line, long before the next: the chunks must touch it again."""
    file = tmp_path / "alive"
    flags = ["--data", small_mnist, "--output", tmp_path, "--epochs", "2000", "--batch-size", "500"]
    training = subprocess.Popen(
        [sys.executable, "-m", "job", "train", *map(str, flags), "--liveness-file", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        for line in training.stdout:
            if json.loads(line)["event"] == "compiled":
                break
        for _ in range(3):
            os.utime(file, (0, 0))
            deadline = time.monotonic() + 60
            while file.stat().st_mtime == 0 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert file.stat().st_mtime > 0
    finally:
        training.kill()
        training.communicate()


def test_the_command_line_checks_the_file(command, tmp_path: Path) -> None:
    failed = command("train", "--output", tmp_path, "--liveness-file", tmp_path / "no" / "alive")
    assert failed.code == 64
    assert "--liveness-file" in failed.err
    assert not list(tmp_path.iterdir())
