"""Signals and time limits: at once where nothing can be lost, after saving where something can."""

import os
import signal
import subprocess
import sys
import time

import pytest

from job.errors import StoppedError, TemporaryError
from job.process.preemption import Preemption


@pytest.fixture
def preemption():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    made = Preemption()
    made.install()
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, StoppedError), (signal.SIGINT, KeyboardInterrupt)]
)
@pytest.mark.usefixtures("preemption")
def test_a_signal_raises_at_once(number, error):
    with pytest.raises(error):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, StoppedError), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_deferred_signal_is_a_reason_and_raises_at_the_end(preemption, number, error):
    noted = []

    def work():
        with preemption.deferred():
            os.kill(os.getpid(), number)
            noted.append(preemption.reason())

    assert preemption.reason() is None
    with pytest.raises(error):
        work()
    assert isinstance(noted[0], error)


def test_a_deferred_block_without_a_signal_ends_as_it_is(preemption):
    with preemption.deferred():
        pass
    assert preemption.reason() is None


def test_a_deferred_block_in_another_leaves_the_raising_to_the_outer_one(preemption):
    reached = []

    def work():
        with preemption.deferred():
            with preemption.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
            reached.append("between")
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("end")

    with pytest.raises(StoppedError):
        work()
    assert reached == ["between", "end"]


def test_an_error_inside_is_not_hidden_by_a_signal(preemption):
    def work():
        with preemption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()


def test_only_the_first_signal_counts(preemption):
    with pytest.raises(StoppedError):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # an impatient second one must not disturb the clean-up
    os.kill(os.getpid(), signal.SIGINT)
    assert isinstance(preemption.reason(), StoppedError)


def test_time_limit_is_a_reason_to_come_back(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    preemption = Preemption(time_limit_seconds=10)
    assert preemption.reason() is None
    assert preemption.reason(needed_seconds=9) is None
    assert isinstance(preemption.reason(needed_seconds=11), TemporaryError)
    now[0] = 110.5
    assert isinstance(preemption.reason(), TemporaryError)
    assert "--time-limit 10" in str(preemption.reason())


def test_who_waits_for_a_signal_is_called_at_the_first(preemption):
    asked = []
    preemption = Preemption(when_asked=lambda: asked.append(preemption.reason()))
    preemption.install()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        try:
            os.kill(os.getpid(), number)
        except StoppedError:
            assert len(asked) == 1  # so before anything is saved
    [reason] = asked
    assert isinstance(reason, StoppedError)


# --- the second Ctrl-C --------------------------------------------------------------------------

BUSY = """
import hashlib, sys, time
from job.process.preemption import Preemption

preemption = Preemption(when_interrupted=lambda: print("stopping", flush=True))
preemption.install()
with preemption.deferred():
    print("ready", flush=True)
    {work}
    print("saved", flush=True)
"""
# In C for minutes, as TensorFlow may be: no handler of Python's runs before it returns.
IN_C = 'hashlib.pbkdf2_hmac("sha512", b"", b"", 2**31 - 1)'


@pytest.fixture
def busy():
    """Return a function that starts a process at its work, a signal away from saving it."""
    started = []

    def start(work: str) -> subprocess.Popen:
        program = [sys.executable, "-c", BUSY.format(work=work)]
        process = subprocess.Popen(
            program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("work", ["time.sleep(60)", IN_C])
def test_a_second_ctrl_c_ends_the_process_at_once(busy, work):
    process = busy(work)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"  # a person knows
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert process.communicate() == ("", "")


def test_a_second_ctrl_c_ends_a_process_whose_words_nobody_takes(busy):
    """Its standard output is a full pipe, and waits for whoever reads it."""
    process = busy('print("x" * 2**20)')
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130


def test_a_command_that_has_ended_does_not_say_that_it_stops(busy):
    process = busy("import job.process.preemption as all; all.ignore(); time.sleep(2)")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("saved\n", "")


def test_a_first_ctrl_c_that_comes_twice_is_one(busy):
    """A terminal sends it to all that it started, and who started us may send it again."""
    process = busy("time.sleep(3)")
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    output, errors = process.communicate(timeout=20)
    assert output == "stopping\nsaved\n"
    assert "KeyboardInterrupt" in errors


def test_sigterm_is_no_ctrl_c(busy):
    process = busy("time.sleep(3)")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.7)
    output, errors = process.communicate(timeout=20)
    assert output == "saved\n"
    assert "StoppedError" in errors


def test_a_process_that_another_watches_over_leaves_the_second_to_it(preemption):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    for _ in range(3):  # as its watcher repeats the first
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
    assert isinstance(preemption.reason(), KeyboardInterrupt)
