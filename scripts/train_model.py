"""Train the reference model and save its weights as model_weights.h5 in the current folder."""

import os
import shutil
import sys
from pathlib import Path

from job.cli import main
from job.config import fresh_run_id

WEIGHTS = "model_weights.h5"


def train_model() -> int:
    """Train, copy the published weights to the current folder, and return the exit code."""
    run_id = fresh_run_id("mlp")
    code = main(["train", "--output", "runs", "--run-id", run_id, "--log", "text"])
    if code == 0:
        unfinished = f".{WEIGHTS}.{os.getpid()}.tmp"  # so that a kill leaves no half of a file
        shutil.copyfile(Path("runs", run_id, WEIGHTS), unfinished)
        Path(unfinished).replace(WEIGHTS)
        print(f"saved      {WEIGHTS}")
    return code


if __name__ == "__main__":
    sys.exit(train_model())
