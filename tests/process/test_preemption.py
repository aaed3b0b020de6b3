"""Signals and time limits: at once where nothing can be lost, after saving where something can."""

import os
import signal

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
