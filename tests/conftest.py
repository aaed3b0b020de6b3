"""What many tests share: small real data, one trained run, and the command line as a function."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from job import data, runtime
from job.cli import main

REPOSITORY = Path(__file__).parent.parent

# Whichever test imports TensorFlow first, it must compute as it does in the job.
runtime.prepare_tensorflow()
runtime.limit_threads(runtime.available_cores())


@dataclass(frozen=True)
class Finished:
    """A command that has run: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's flags and a cluster's variables out of the tests."""
    for name in list(os.environ):
        if name.startswith(("MNIST_JOB_", "K8S_")):
            monkeypatch.delenv(name)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Return a function that runs `mnist-job` with its arguments in this process."""

    def run(*arguments: object) -> Finished:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Finished(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def mnist() -> data.Dataset:
    """Return the embedded data set."""
    return data.load("mnist")


@pytest.fixture(scope="session")
def small_mnist(mnist: data.Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return where an .npz with 2,000 training and 505 test images of MNIST lies."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(
        path,
        x_train=mnist.x_train[:2000],
        y_train=mnist.y_train[:2000],
        x_test=mnist.x_test[:505],
        y_test=mnist.y_test[:505],
    )
    return str(path)


@pytest.fixture(scope="session")
def trained(small_mnist: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two epochs on the small data."""
    output = tmp_path_factory.mktemp("output")
    flags = ["--data", small_mnist, "--epochs", "2", "--output", str(output), "--run-id", "trained"]
    assert main(["train", *flags]) == 0
    return output / "trained"
