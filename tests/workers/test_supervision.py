"""A worker is taken from its collectives; nobody waits for ever, and the run goes on. For real."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, free_ports

from job.errors import JobError, StoppedError
from job.process.preemption import Preemption
from job.workers import supervision


@pytest.mark.parametrize(
    "harm",
    [
        "killed",
        pytest.param("frozen", marks=pytest.mark.slow),
        pytest.param("missing", marks=pytest.mark.slow),
    ],
)
def test_a_lost_worker_ends_all_with_75_and_the_run_goes_on(harm):
    """The short version of `make chaos`, which does this ten times with two and three workers."""
    script = str(REPOSITORY / "scripts" / "chaos" / "workers.py")
    flags = ["--times", "1", "--workers", "2", "--harms", harm, "--peer-timeout", "5"]
    flags += ["--epochs", "12"]
    done = subprocess.run(
        [sys.executable, script, *flags], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def worker(small_mnist, tmp_path):
    """Return a function that starts worker `index` of two; those left are killed at the end."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    started = []

    def start(index: int, *flags: str) -> subprocess.Popen:
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        words = ["--data", small_mnist, "--output", str(tmp_path), "--run-id", "r", *flags]
        process = subprocess.Popen(
            [sys.executable, "-m", "job", "train", *words],
            env=os.environ | {"TF_CONFIG": json.dumps(config)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_sigterm_to_one_stops_all_after_saving(worker, tmp_path):
    chief, other = worker(0, "--epochs", "2000"), worker(1, "--epochs", "2000")
    for line in chief.stdout:
        if json.loads(line)["event"] == "epoch":
            break
    other.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, of_chief = chief.communicate(timeout=60)
    _, of_other = other.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert (chief.returncode, other.returncode) == (75, 143), of_chief + of_other
    assert "another worker was asked to stop, the work is saved" in of_chief
    assert "stopped by SIGTERM, the work is saved" in of_other
    assert len(list((tmp_path / "r" / "checkpoints").iterdir())) >= 1


def test_a_worker_that_somebody_killed_says_so(worker):
    """As the kernel does when memory runs out: the watcher is left, and must tell."""
    chief, other = worker(0, "--epochs", "2000"), worker(1, "--epochs", "2000")
    for line in chief.stdout:
        if json.loads(line)["event"] == "epoch":
            break
    children = Path(f"/proc/{other.pid}/task/{other.pid}/children").read_text().split()
    assert len(children) == 1
    os.kill(int(children[0]), signal.SIGKILL)
    _, of_other = other.communicate(timeout=60)
    _, of_chief = chief.communicate(timeout=60)
    assert (chief.returncode, other.returncode) == (75, 137), of_chief + of_other
    assert of_other.count("\n") == 1
    assert "the worker was killed by signal 9" in of_other


class Unbothered:
    """Membership that are never lost."""

    def lost(self) -> None:
        return None


@pytest.mark.parametrize(
    ("number", "sent_by_us", "error", "code"),
    [
        (signal.SIGTERM, True, StoppedError, 143),
        (signal.SIGINT, True, KeyboardInterrupt, None),
        (signal.SIGTERM, False, JobError, 143),
        (signal.SIGSEGV, False, JobError, 139),
    ],
)
def test_a_worker_that_a_signal_ends_before_it_could_take_it(
    number, sent_by_us, error, code, tmp_path, monkeypatch
):
    worker = tmp_path / "worker"
    worker.write_text("#!/bin/sh\necho $$ > " + str(tmp_path / "pid") + "\nexec sleep 60\n")
    worker.chmod(0o755)
    monkeypatch.setattr(supervision.sys, "executable", str(worker))
    monkeypatch.setattr(supervision, "HEARSAY_SECONDS", 0.2)
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    preemption = Preemption()
    preemption.install()

    def send() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid() if sent_by_us else int((tmp_path / "pid").read_text()), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(error) as caught:
            supervision._watch([], Unbothered(), preemption)
    finally:
        sender.join()
        for one, handler in before.items():
            signal.signal(one, handler)
    assert getattr(caught.value, "exit_code", None) == code
    assert ("killed by signal" in str(caught.value)) is not sent_by_us


def test_sigterm_while_waiting_for_the_others(worker, tmp_path):
    alone = worker(0)
    time.sleep(2)
    alone.send_signal(signal.SIGTERM)
    _, errors = alone.communicate(timeout=30)
    assert alone.returncode == 143
    assert errors.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_workers_of_different_configs_refuse_each_other(worker, tmp_path):
    both = worker(0, "--epochs", "1"), worker(1, "--epochs", "2")
    ends = [process.communicate(timeout=60) for process in both]
    assert 78 in {process.returncode for process in both}
    assert {process.returncode for process in both} <= {78, 75}
    assert any("give all workers the same flags" in errors for _, errors in ends)
    assert not (tmp_path / "r").exists()


def test_of_a_finished_run_no_worker_waits_for_others(worker, trained, tmp_path):
    """Its pod may have been replaced after the others had ended: they will not come again."""
    (tmp_path / "r").symlink_to(trained)
    alone = worker(1, "--epochs", "2")
    output, _ = alone.communicate(timeout=60)
    assert alone.returncode == 0
    told = [json.loads(line)["event"] for line in output.splitlines()]
    assert told == ["started", "already_complete"]
