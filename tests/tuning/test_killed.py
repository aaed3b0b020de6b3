"""A study of sixteen real trials, killed at random points: winner and bytes of the unbroken one.

Trials run one after the other, so the order in which they come to a rung is fixed, and with it
every decision. Same are all objects of the study to the byte, but for seconds; and every number of
the last state of each trial that didn't fail.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from job.storage import Place
from job.training import checkpoint

TRIALS = 16
FLAGS = (
    "--study", "s", "--trials", str(TRIALS), "--epochs", "6", "--log", "json",
    "--checkpoint-seconds", "0", "--reduction", "2", "--vary", "learning-rate=0.0003..10:log",
    "--vary", "batch-size=16..64", "--vary", "weight-decay=0.01..10:log",
    "--vary", "augment=none,shift",
)  # fmt: skip


def start(data: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    """Begin a study, or go on with it, in a session of its own that can be killed as a whole."""
    words = ["tune", "--data", str(data), "--output", str(output), *FLAGS, *more]
    with Path(f"{output}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "job", *words],
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def end(process: subprocess.Popen[bytes], output: Path) -> dict:
    """Wait for a process to succeed; return the last event that it told."""
    process.wait()
    told = Path(f"{output}.log").read_text().splitlines()
    assert process.returncode == 0, told[-5:]
    return json.loads(told[-1])


def objects(output: Path) -> dict[str, bytes]:
    """Return what trials agreed on, without what clocks said."""
    study = output / "studies" / "s"
    names = [name for part in ("rungs", "decisions") for name in study.glob(f"{part}/*/*.json")]
    found = {str(path.relative_to(study)): path.read_bytes() for path in names}
    for path in study.glob("trials/*.json"):
        result = json.loads(path.read_text())
        del result["seconds"]
        found[f"trials/{path.name}"] = json.dumps(result).encode()
    return found | {"study.json": (study / "study.json").read_bytes()}


def last_state(output: Path, trial: int) -> checkpoint.State:
    folder = Place.of(output / f"studies/s/runs/{trial:06}/checkpoints")
    return checkpoint.read(folder / checkpoint.names_in(folder)[-1])


@pytest.mark.slow
def test_a_study_killed_at_random_points_ends_with_the_winner_of_the_unbroken_one(
    mnist, tmp_path
) -> None:
    data = tmp_path / "tiny.npz"
    parts = {"x_train": mnist.x_train[:1200], "y_train": mnist.y_train[:1200]}
    np.savez(data, **parts, x_test=mnist.x_test[:50], y_test=mnist.y_test[:50])
    began = time.monotonic()
    whole, killed = tmp_path / "unbroken", tmp_path / "killed"
    unbroken = end(start(data, whole), whole)
    a_trial = (time.monotonic() - began) / TRIALS
    assert (unbroken["event"], unbroken["trials"]) == ("study_over", TRIALS)
    assert unbroken["complete"] > 0
    assert unbroken["halted"] > 0
    assert unbroken["failed"] > 0  # weights that such a decay makes grow without end

    for twin in [start(data, killed, "--trial", "0") for _ in range(2)]:  # an index twice, at once
        assert twin.wait() in {0, 75}  # 75: it met checkpoints that its twin took away
    seed = random.SystemRandom().randrange(2**32)
    draw, kills = random.Random(seed), 0
    while True:
        process = start(data, killed)
        try:
            process.wait(timeout=draw.uniform(0.3, 3) * a_trial)
        except subprocess.TimeoutExpired:
            if draw.random() < 0.5:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # the study alone: its trial is told to stop by the system
            process.wait()
            kills += 1
        else:
            if process.returncode != 75:  # it met the trial that was about to stop
                break
    print(f"\n{kills} kills at random points (seed {seed}) of a study of {TRIALS} trials")
    assert kills >= TRIALS // 4
    again = end(process, killed) | {"study": unbroken["study"], "time": unbroken["time"]}
    assert again == unbroken  # the same winner, among the same numbers of trials
    assert objects(killed) == objects(whole)
    results = [json.loads(path.read_text()) for path in whole.glob("studies/s/trials/*.json")]
    # A failed one saved when it was time to, not at an end.
    ended = [result["trial"] for result in results if result["state"] != "failed"]
    for trial in ended:
        one, other = (last_state(folder, trial) for folder in (whole, killed))
        assert (one.step, one.arrays.keys()) == (other.step, other.arrays.keys())
        assert all(np.array_equal(one.arrays[each], other.arrays[each]) for each in one.arrays)
    counts = ", ".join(f"{again[state]} {state}" for state in ("complete", "halted", "failed"))
    print(f"the same {len(objects(killed))} objects and {len(ended)} last states: {counts}")
    print(f"the same winner, trial {again['best']['trial']}: {again['best']}")
