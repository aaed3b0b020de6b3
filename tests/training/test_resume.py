"""Real processes, really killed: whatever was killed goes on, and ends with the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import free_ports

from job.training.checkpoint import from_bytes

EPOCHS = 60  # about a second of training on the small data


@pytest.fixture(autouse=True)
def _own_threads(monkeypatch):
    """Let the job count its threads itself: what these tests compute with is set for all."""
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    monkeypatch.delenv("TF_NUM_INTEROP_THREADS")


def start(data: str, output: Path, run_id: str, *flags: str) -> subprocess.Popen[str]:
    place = ["--data", data, "--output", str(output), "--run-id", run_id]
    return subprocess.Popen(
        [sys.executable, "-m", "job", "train", *place, "--epochs", str(EPOCHS), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], event: str) -> None:
    """Read the process's log up to `event`."""
    for line in process.stdout:
        if json.loads(line)["event"] == event:
            return
    pytest.fail(f"no {event}: {process.stderr.read()}")


def finish(data: str, output: Path, run_id: str, *flags: str) -> tuple[int, str]:
    process = start(data, output, run_id, *flags)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.fixture(scope="module")
def unbroken(small_mnist, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("unbroken")
    assert finish(small_mnist, output, "whole") == (0, "")
    return output / "whole"


def outcome(run: Path) -> tuple[bytes, bytes, list, dict]:
    metrics = json.loads((run / "metrics.json").read_text())
    history = [
        {key: value for key, value in epoch.items() if "second" not in key}
        for epoch in metrics["train"]["history"]
    ]
    weights, archive = ((run / name).read_bytes() for name in ("model_weights.h5", "model.keras"))
    return weights, archive, history, metrics["test"]


@pytest.mark.parametrize(
    ("event", "delay"),
    [
        pytest.param(None, 0.5, marks=pytest.mark.slow),
        pytest.param("attempt_started", 0.5, marks=pytest.mark.slow),
        pytest.param("compiled", 0.1, marks=pytest.mark.slow),
        pytest.param("compiled", 0.5, marks=pytest.mark.slow),
        ("epoch", 0),
    ],
)
def test_sigterm_at_any_stage_exits_143_and_loses_nothing(
    small_mnist, tmp_path, unbroken, event, delay
):
    process = start(small_mnist, tmp_path, "r")
    if event:
        wait_for(process, event)
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    # Before the handler is there SIGTERM ends the process by itself, without a word.
    told = json.loads(errors)["code"] if errors else None
    assert (process.returncode, told) in {(143, 143), (-signal.SIGTERM, None)}
    assert not event or told == 143
    assert not (tmp_path / "r" / "metrics.json").exists()
    assert finish(small_mnist, tmp_path, "r") == (0, "")
    assert outcome(tmp_path / "r") == outcome(unbroken)
    if event == "epoch":
        assert "stopped by SIGTERM, the work is saved" in errors
        metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
        assert metrics["attempts"] == 2
        assert metrics["train"]["resumed_step"] >= 63


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sigkill_at_random_moments(small_mnist, tmp_path, unbroken, seed):
    draw = random.Random(seed)
    for _ in range(2):
        process = start(small_mnist, tmp_path, "r", "--checkpoint-seconds", "0")
        wait_for(process, "compiled")
        time.sleep(draw.uniform(0, 1))
        process.kill()
        process.communicate()
    assert finish(small_mnist, tmp_path, "r", "--checkpoint-seconds", "0") == (0, "")
    assert outcome(tmp_path / "r") == outcome(unbroken)
    assert len(list((tmp_path / "r" / "checkpoints").glob("*.safetensors"))) == 1


@pytest.mark.slow
def test_time_limit_exits_75_until_the_run_is_complete(small_mnist, tmp_path, command):
    """The limit has passed before the first step: each attempt does one chunk, of one step."""
    flags = ["--time-limit", "1", "--epochs", "1", "--batch-size", "1000"]
    ended = [finish(small_mnist, tmp_path, "r", *flags) for _ in range(3)]
    assert [code for code, _ in ended] == [75, 75, 0]  # two steps, and what comes after them
    assert all("--time-limit 1 reached, the work is saved" in errors for _, errors in ended[:2])
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert metrics["train"]["resumed_step"] == 2
    place = ["--data", small_mnist, "--output", tmp_path, "--run-id", "whole"]
    assert command("train", *place, *flags[2:]).code == 0
    assert outcome(tmp_path / "r") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        pytest.param(["taskset", "-c", "0"], {}, id="cores", marks=pytest.mark.slow),
        pytest.param([], {"TF_NUM_INTRAOP_THREADS": "1"}, id="variable", marks=pytest.mark.slow),
    ],
)
def test_threads_of_the_first_attempt_are_kept(small_mnist, tmp_path, unbroken, words, variables):
    """With another number of threads XLA would add in another order: other bits."""
    process = start(small_mnist, tmp_path, "r")
    wait_for(process, "epoch")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    again = [*words, sys.executable, "-m", "job", "train", "--data", small_mnist]
    place = ["--output", str(tmp_path), "--run-id", "r", "--epochs", str(EPOCHS)]
    ended = subprocess.run(
        [*again, *place],
        env=os.environ | variables,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert outcome(tmp_path / "r") == outcome(unbroken)
    assert "resumed_differently" not in ended.stdout
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    [first, second] = metrics["attempt_records"]
    assert first["threads"] == second["threads"] == metrics["environment"]["threads"]


@pytest.mark.slow
def test_threads_in_force_are_recorded(small_mnist, tmp_path, monkeypatch):
    """With TensorFlow's variable set, the number of cores is not what counts."""
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    process = start(small_mnist, tmp_path, "r")
    wait_for(process, "epoch")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    [saved] = (tmp_path / "r" / "checkpoints").iterdir()
    state = from_bytes(saved.read_bytes(), str(saved))
    [maker] = state.made_by
    assert (state.threads, maker["attempt"], maker["threads"]) == (1, 1, [1])


@pytest.mark.slow
def test_workers_say_which_threads_differ_and_keep_them(small_mnist, tmp_path):
    """Sums of two workers have the bits of the threads that each has."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    flags = ["--epochs", "200", "--batch-size", "500"]

    def begin(index: int, **variables: str) -> subprocess.Popen[str]:
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"TF_CONFIG": json.dumps(task), **variables}.items():
                patch.setenv(name, value)
            return start(small_mnist, tmp_path, "r", *flags)

    chief, other = begin(0), begin(1, TF_NUM_INTRAOP_THREADS="1")
    wait_for(chief, "epoch")
    chief.send_signal(signal.SIGTERM)
    chief.communicate(timeout=60)
    told, _ = other.communicate(timeout=60)
    [event] = [json.loads(line) for line in told.splitlines() if "threads_differ" in line]
    cores = json.loads((tmp_path / "r" / "attempts" / "0001.json").read_text())["cores"]
    assert (event["worker"], event["threads"], event["chief_threads"]) == (1, 1, cores)
    pair = [begin(index) for index in range(2)]
    said = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert not any("resumed_differently" in log for log in said)
    records = json.loads((tmp_path / "r" / "metrics.json").read_text())["attempt_records"]
    assert [record["threads"] for record in records] == [[cores, 1], [cores, 1]]
