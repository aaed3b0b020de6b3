"""Memory that runs out is one sentence and an exit code that nobody retries, not a bug."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from job.errors import ClusterError, DataError, OutputError
from job.process import memory

GIBIBYTE = 1024**3


def op_error(kind: type[tf.errors.OpError], said: str) -> tf.errors.OpError:
    return kind(None, None, said)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError"),
        (MemoryError("Unable to allocate 9.00 TiB"), "Unable to allocate 9.00 TiB"),
        (
            op_error(tf.errors.ResourceExhaustedError, "OOM when allocating tensor\nmore\nlines"),
            "OOM when allocating tensor",
        ),
        (
            op_error(tf.errors.InternalError, "RESOURCE_EXHAUSTED: Failed to allocate 9.31GiB"),
            "RESOURCE_EXHAUSTED: Failed to allocate 9.31GiB",
        ),
        (
            op_error(tf.errors.InvalidArgumentError, "Graph\nCannot parse tensor from proto: x"),
            "Cannot parse tensor from proto: x",
        ),
    ],
)
def test_memory_that_ran_out_is_explained(error: Exception, said: str) -> None:
    with (
        pytest.raises(ClusterError, match="lower --batch-size") as caught,
        memory.explained("lower --batch-size"),
    ):
        raise error
    assert str(caught.value) == f"out of memory ({said}): lower --batch-size"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        op_error(tf.errors.InternalError, "something else"),
        ValueError("RESOURCE_EXHAUSTED"),
        DataError("x cannot be read (MemoryError): give the job more memory"),
        OutputError("no room"),
        KeyboardInterrupt(),
    ],
)
def test_anything_else_is_left_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, memory.explained("lower --batch-size"):
        raise error
    assert caught.value is error


def test_an_allocation_that_really_fails(command, monkeypatch, trained, small_mnist) -> None:
    from job.results import inference

    monkeypatch.setattr(inference, "score", lambda _: np.empty(2**50))
    failed = command("evaluate", "--weights", trained, "--data", small_mnist)
    assert failed.code == 78
    assert "out of memory (Unable to allocate 8.00 PiB" in failed.err
    assert "Traceback" not in failed.err


@pytest.mark.slow
def test_a_batch_too_large_for_the_memory(tmp_path: Path) -> None:
    """For real: activations of which one layer's take 6.3 GiB, in a process that may have 5."""
    images = np.zeros((400, 512, 512), np.uint8)
    labels = np.arange(400) % 2
    np.savez_compressed(
        tmp_path / "large.npz",
        x_train=images,
        y_train=labels,
        x_test=images[:2],
        y_test=labels[:2],
    )
    flags = ["--data", "large.npz", "--model", "cnn", "--batch-size", "400", "--run-id", "r"]
    ended = subprocess.run(
        [sys.executable, "-m", "job", "train", *flags, "--log", "json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (5 * GIBIBYTE, 5 * GIBIBYTE)),
    )
    assert ended.returncode == 78, ended.stderr
    [line] = ended.stderr.splitlines()
    told = json.loads(line)
    assert (told["event"], told["code"]) == ("failed", 78)
    assert "out of memory" in told["error"]
    assert "lower --batch-size, now 400, or give the job more memory" in told["error"]
    verdict = json.loads((tmp_path / "runs" / "r" / "attempts" / "0001-end.json").read_text())
    assert (verdict["code"], verdict["error"]) == (78, told["error"])
