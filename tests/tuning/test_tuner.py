"""Trials one after the other, each a process: its words, its code, its signals.

The processes are a shell script in place of Python, which acts by what it is told to run.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from studies import make_study

from job.errors import JobError, StoppedError, TemporaryError
from job.process.preemption import Preemption
from job.tuning import tuner
from job.tuning.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path)


def acting(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """Let `script` run in place of Python; return the file that tells how it was called."""
    told, python = folder / "told", folder / "python"
    head = f'#!/bin/sh\nset -- $MNIST_JOB_INTERNAL_TRIAL "$*"\necho "$@" >> {told}\n'
    python.write_text(head + script)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return told


def test_each_trial_that_is_not_over_is_run_with_the_same_words(study, tmp_path, monkeypatch):
    over = Path(study.trial(1).key)
    over.parent.mkdir(parents=True)
    over.write_text(json.dumps({}))
    told = acting(monkeypatch, tmp_path, "exit 0")
    assert tuner.run_trials(study, 4, ["tune", "--study", "s"], Preemption()) == 0
    words = "-P -m job tune --study s"
    assert told.read_text().splitlines() == [
        f"{trial} 0 {os.getpid()} {words}" for trial in (0, 2, 3)
    ]


def test_the_command_runs_each_trial_as_it_was_called_itself(command, tmp_path, monkeypatch):
    told = acting(monkeypatch, tmp_path, "exit 0")
    flags = ["--study", "s", "--output", str(tmp_path / "runs"), "--vary", "dropout=0..0.5"]
    ended = command("tune", *flags, "--trials", "2")
    assert ended.code == 0, ended.err
    words = f"-P -m job tune {' '.join(flags)} --trials 2"
    assert told.read_text().splitlines() == [f"{trial} 0 {os.getpid()} {words}" for trial in (0, 1)]


@pytest.mark.parametrize("code", [65, 75, 143])
def test_a_trial_that_does_not_end_well_ends_the_study_with_its_code(
    study, tmp_path, monkeypatch, code
):
    told = acting(monkeypatch, tmp_path, f"[ $1 = 1 ] && exit {code}; exit 0")
    assert tuner.run_trials(study, 4, ["tune"], Preemption()) == code
    assert len(told.read_text().splitlines()) == 2


def test_a_trial_that_was_killed_says_by_what(study, tmp_path, monkeypatch):
    acting(monkeypatch, tmp_path, "kill -9 $$")
    with pytest.raises(JobError, match=r"trial 0 was killed by signal 9.*goes on") as caught:
        tuner.run_trials(study, 4, ["tune"], Preemption())
    assert caught.value.exit_code == 137


def test_sigterm_is_passed_on_and_begins_no_other_trial(study, tmp_path, monkeypatch):
    script = f"trap 'kill $!; exit 143' TERM; touch {tmp_path}/up; sleep 60 & wait"
    told = acting(monkeypatch, tmp_path, script)
    preemption = Preemption()
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def send() -> None:
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        preemption.install()
        threading.Thread(target=send).start()
        assert tuner.run_trials(study, 4, ["tune"], preemption) == 143
        with pytest.raises(StoppedError):
            tuner.run_trials(study, 4, ["tune"], preemption)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
            signal.signal(number, handler)
    assert len(told.read_text().splitlines()) == 1


def test_the_time_limit_is_that_of_the_study(study, tmp_path, monkeypatch):
    spent = tmp_path / "spent"
    acting(monkeypatch, tmp_path, f"echo $MNIST_JOB_INTERNAL_SPENT_SECONDS >> {spent}; exit 0")
    assert tuner.run_trials(study, 1, ["tune"], Preemption(1000, spent_seconds=500)) == 0
    assert 500 <= float(spent.read_text()) < 600
    with pytest.raises(TemporaryError, match="--time-limit 1000"):
        tuner.run_trials(study, 1, ["tune"], Preemption(1000, spent_seconds=1001))


def test_a_process_knows_what_it_was_started_for(monkeypatch):
    assert tuner.which() is None
    monkeypatch.setenv(tuner.ONE, "7 0 99")
    assert tuner.which() == (7, 0)
    monkeypatch.setenv(tuner.ONE, "3 2 99")
    assert tuner.which() == (3, 2)


STUDY = """
import os, subprocess, sys
from job.tuning import tuner
pid = os.getpid() if sys.argv[2] == "alive" else 1
told = os.environ | {tuner.ONE: f"0 0 {pid}"}
trial = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=told)
trial.wait()
"""
TRIAL = """
import os, signal, sys, time
from job.tuning import tuner
def stop(*_):
    os.write(1, b"stopped\\n")
    sys.exit()
signal.signal(signal.SIGTERM, stop)
tuner.stop_with_parent()
os.write(1, b"up\\n")  # print would refuse to be called again by a handler that comes meanwhile
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="where the system tells of a parent's end")
@pytest.mark.parametrize("at_first", ["alive", "gone"])
def test_a_trial_is_stopped_when_its_study_is_killed(at_first):
    command = [sys.executable, "-c", STUDY, TRIAL, at_first]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as study:
        if at_first == "alive":
            assert study.stdout.readline() == "up\n"
            study.kill()
        began = time.monotonic()
        assert study.stdout.read() == "stopped\n"
        assert time.monotonic() - began < 30
