"""The proof of resume, for anybody's own flags: stop a training, go on, compare every bit.

Each training is a process of its own, stopped by a real SIGTERM, as a cluster would do it.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from job.errors import JobError, StoppedError, UsageError
from job.process import verdict
from job.results import publishing
from job.results.publishing import RunFolder
from job.storage import Place
from job.training import checkpoint

BRIEF = ("--epochs", "2")  # unless the flags say otherwise: the proof needs no long training
# Nobody else is to hear of trainings that are thrown away, nor to find anything of them.
_PUBLISHING = ("--pushgateway", "--model-dir", "--tensorboard-dir", "--failure-file")
_NOT_HANDED_ON = {
    "MNIST_JOB_QUIET",  # this process listens
    "MLFLOW_TRACKING_URI",
    "KUBEFLOW_TRAINER_SERVER_URL",
    *("MNIST_JOB_" + flag[2:].upper().replace("-", "_") for flag in _PUBLISHING),
}
TRIES = 5  # a signal can come too late, when the training is over already


def drill(flags: Sequence[str], say: Callable[[str], None]) -> None:
    """Train with `flags` twice, once without a stop and once with one, and compare the two.

    Args:
        flags: of `train`; output, run id and log format are the drill's own.
        say: told what happened, a line at a time.

    Raises:
        UsageError: it is to train an ensemble.
        JobError: the two differ, which is a bug; or a training failed, with its own message.
    """
    if verdict.given(flags, os.environ, "--ensemble"):
        raise UsageError("the drill stops one training: leave --ensemble out")
    for flag in (word.partition("=")[0] for word in flags):
        if flag in _PUBLISHING:
            raise UsageError(f"the drill publishes nothing: leave {flag} out")
    with tempfile.TemporaryDirectory(prefix="mnist-job-drill-") as folder:
        unbroken = Path(folder, "unbroken")
        _train(flags, unbroken)
        metrics = _metrics(unbroken)
        steps = metrics["train"]["steps"]
        say(f"unbroken   {metrics['train']['epochs']} epochs, {steps:,} steps")
        for attempt in range(TRIES):
            stopped = Path(folder, f"stopped-{attempt}")
            # Earlier with each try, should the machine be faster than it was.
            wait = random.uniform(0, metrics["timing"]["train_seconds"]) / (attempt + 1)  # noqa: S311
            step = _train(flags, stopped, stop_after_seconds=wait)
            if step is not None and step < steps:
                break
        else:
            raise UsageError(
                f"the training is too short to be stopped: all {TRIES} signals came after it; give "
                "more --epochs"
            )
        say(f"stopped    by SIGTERM, saved at step {step:,}")
        _train(flags, stopped)
        say(f"resumed    from step {_metrics(stopped)['train']['resumed_step']:,} to {steps:,}")
        say(f"compared   {_compare(unbroken, stopped)}")
    say("verdict    identical, bit for bit")


def _train(flags: Sequence[str], run: Path, stop_after_seconds: float | None = None) -> int | None:
    """Run the job; return the step it was stopped at, or None if it was not."""
    own = ["--output", str(run.parent), "--run-id", run.name, "--log", "json", "--no-report"]
    own += ["--platform", "none"]  # whose folders are for what is to be kept
    heard = [word for word in flags if word != "--quiet"]  # this process listens
    process = subprocess.Popen(
        # Safe from whatever is called `job` or `json` in the current folder.
        [sys.executable, "-P", "-m", "job", "train", *BRIEF, *heard, *own],
        env={name: value for name, value in os.environ.items() if name not in _NOT_HANDED_ON},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    step = None
    for line in process.stdout or ():
        event = json.loads(line)
        if event["event"] == "compiled" and stop_after_seconds is not None:
            time.sleep(stop_after_seconds)
            process.terminate()
        if event["event"] == "checkpoint_saved":
            step = event["step"]
    _, errors = process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode == StoppedError.exit_code and stop_after_seconds is not None:
        return step
    raise JobError(
        f"the drill's training failed: {errors.strip()[-300:]}",
        exit_code=process.returncode if process.returncode > 0 else None,
    )


def _compare(one: Path, other: Path) -> str:
    """Say what was found equal.

    Raises:
        JobError: something is not.
    """
    states = [_last_state(run) for run in (one, other)]
    arrays, others = (state.arrays for state in states)
    if arrays.keys() != others.keys():
        raise JobError("the drill failed: the two runs have other variables")
    for name, array in arrays.items():
        if not np.array_equal(array, others[name], equal_nan=True):
            raise JobError(f"the drill failed: {name} differs between the two runs")
    histories = [[_untimed(epoch) for epoch in state.history] for state in states]
    if histories[0] != histories[1]:
        raise JobError("the drill failed: the histories of the two runs differ")
    files, others_files = (
        [artifact["path"] for artifact in _metrics(run)["artifacts"]] for run in (one, other)
    )
    if files != others_files:
        raise JobError("the drill failed: the two runs have published other files")
    for name in files:
        if (one / name).read_bytes() != (other / name).read_bytes():
            raise JobError(f"the drill failed: {name} differs between the two runs")
    return (
        f"{len(arrays)} arrays of model and optimizer, {len(histories[0])} epochs of history, "
        f"{len(files)} published files"
    )


def _last_state(run: Path) -> checkpoint.State:
    folder = _folder(run).checkpoints
    return checkpoint.read(folder / checkpoint.names_in(folder)[-1])


def _untimed(epoch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in epoch.items() if "second" not in name}


def _metrics(run: Path) -> dict[str, Any]:
    return publishing.read_json(_folder(run).metrics)


def _folder(run: Path) -> RunFolder:
    return RunFolder(Place.of(run))
