"""Published runs are opened by Keras on JAX and on PyTorch, as `make test-backends` runs it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from test_readmes import blocks

from job.cli import main

pytestmark = pytest.mark.backends

PYTHON = REPOSITORY / ".venv-backends" / "bin" / "python"
PROGRAM = Path(__file__).with_name("open_with_keras.py")
TOLERANCE = 1e-5  # of a probability: another library sums in another order, no more
RUNS = {
    "mlp": [],
    "cnn": ["--model", "cnn"],
    "ensemble": ["--model", "cnn", "--ensemble", "2"],
}


@pytest.fixture(scope="module")
def runs(small_mnist, tmp_path_factory) -> list[Path]:
    """Return the folders of a run of each kind, trained on the small data with TensorFlow."""
    output = tmp_path_factory.mktemp("runs")
    for name, more in RUNS.items():
        flags = ["--data", small_mnist, "--epochs", "2", "--batch-size", "128", "--no-report"]
        assert main(["train", *flags, *more, "--output", str(output), "--run-id", name]) == 0
    return [output / name for name in RUNS]


@pytest.fixture(params=["jax", "torch"])
def backend(request) -> str:
    """Return the name of a backend of Keras that is installed."""
    assert PYTHON.exists(), f"{PYTHON} is missing: `make test-backends` installs it"
    there = subprocess.run([PYTHON, "-c", f"import {request.param}"], check=False).returncode == 0
    if not there and request.param == "torch":
        pytest.skip("PYTORCH IS NOT TRIED HERE: no place has its build for the CPU")
    return request.param


def run(backend: str, folder: Path, *words: object) -> str:
    """Return what a program prints that has Keras on `backend`, and nothing of the job."""
    ended = subprocess.run(
        [PYTHON, "-P", *map(str, words)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_probabilities_are_those_that_were_published(backend, runs, small_mnist, tmp_path):
    told: dict[str, Any] = json.loads(run(backend, tmp_path, PROGRAM, small_mnist, *runs))
    assert (told["backend"], told["loaded"]) == (backend, [])
    assert list(told["runs"]) == list(RUNS)
    for name, apart in told["runs"].items():
        assert apart.pop("no weights") > 0.1, name  # so the comparison can tell
        assert set(apart) == {"model.keras", "model_weights.h5"}
        assert max(apart.values()) <= TOLERANCE, (name, apart)


def test_what_the_text_says_of_it_is_so(backend, runs, small_mnist):
    text = (REPOSITORY / "job" / "README.md").read_text()
    [snippet] = [code for language, code in blocks(text) if "KERAS_BACKEND" in code]
    given = f"import numpy\nimages = numpy.load({small_mnist!r})['x_test'][:5]\n"
    said = run(backend, runs[0], "-c", f"{given}{snippet}\nprint(probabilities.shape)")
    assert said.splitlines()[-1] == "(5, 10)"
