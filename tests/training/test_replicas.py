"""The same global batch on one device, two replicas, three that don't divide it, two workers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from job.results import hdf5

FLAGS = ["--epochs", "3", "--batch-size", "40", "--run-id", "r", "--augment", "shift"]
CLOSE = 1e-5  # of weights that rounding alone moves apart in ten steps: 3e-6 was the most
REPLICATED = """
import sys
from job.process import runtime
runtime.prepare_tensorflow()
runtime.limit_threads(2)
runtime.import_tensorflow()
import tensorflow as tf
cpus = [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1])
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
from job.cli import main
sys.exit(main(sys.argv[2:]))
"""


def train(command: list[str], data: str, output: Path, *flags: str) -> Path:
    place = ["--data", data, "--output", str(output)]
    ended = subprocess.run(
        [sys.executable, *command, *place, *FLAGS, *flags],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return output / "r"


def mirrored(replicas: int, data: str, output: Path, *flags: str) -> Path:
    command = ["-c", REPLICATED, str(replicas), "train"]
    return train(command, data, output, "--strategy", "mirrored", *flags)


def workers(count: int, data: str, output: Path, *flags: str) -> Path:
    return train(
        [str(REPOSITORY / "scripts" / "multiworker-local"), str(count)], data, output, *flags
    )


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def weights(run: Path) -> np.ndarray:
    path = run / "model_weights.h5"
    return np.concatenate([array.ravel() for array in hdf5.read(path.read_bytes(), str(path))])


@pytest.fixture(scope="module")
def one_device(small_mnist, tmp_path_factory) -> Path:
    return train(["-m", "job", "train"], small_mnist, tmp_path_factory.mktemp("one"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "count"),
    [(mirrored, 2), (mirrored, 3), (workers, 2)],
    ids=["2", "3", "2 workers"],
)
def test_replicas_train_what_one_device_would(small_mnist, tmp_path, one_device, run, count):
    replicated = run(count, small_mnist, tmp_path)
    one, several = metrics(one_device), metrics(replicated)
    assert several["environment"]["replicas"] == count
    assert several["environment"]["workers"] == (count if run is workers else 1)
    assert several["train"]["steps"] == one["train"]["steps"]
    for mine, theirs in zip(one["train"]["history"], several["train"]["history"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["accuracy"] == pytest.approx(theirs["accuracy"], abs=2e-3)
    assert several["test"]["examples"] == 505  # none dropped, none counted twice
    assert np.abs(weights(one_device) - weights(replicated)).max() < 1e-3


@pytest.mark.slow
def test_gradients_may_be_sent_rounded(small_mnist, tmp_path, one_device):
    rounded = mirrored(2, small_mnist, tmp_path, "--exchange", "bfloat16")
    one, several = metrics(one_device), metrics(rounded)
    assert several["config"]["exchange"] == "bfloat16"
    for mine, theirs in zip(one["train"]["history"], several["train"]["history"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
    assert 1e-3 < np.abs(weights(one_device) - weights(rounded)).max() < 0.1


def apart(replicas: int, *case: str) -> dict[str, float]:
    """Return by how much replicas' weights differ from one device's, by what was broken."""
    command = [sys.executable, str(Path(__file__).with_name("replicas.py")), str(replicas), *case]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize(
    ("replicas", "broken"),
    [
        pytest.param(2, ["statistics", "masks"], id="2", marks=pytest.mark.slow),
        pytest.param(3, ["fill-ups"], id="3 that don't divide it", marks=pytest.mark.slow),
    ],
)
def test_batch_statistics_and_masks_are_those_of_the_whole_batch(replicas, broken):
    """The convolutional net normalises by batch and drops out; here are eight images in one."""
    found = apart(replicas, "cnn", "8", *broken)
    assert found["nothing"] < CLOSE
    # If this were too small, the test couldn't tell.
    assert {case for case in found if found[case] > 1000 * CLOSE} == set(broken)
