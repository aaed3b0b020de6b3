"""How often and how long a store is asked."""

import asyncio
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, get_args

import fsspec.asyn
import pytest

from job.errors import StoppedError
from job.storage import retrying
from job.storage.connection import Failure, StoreError
from job.storage.retrying import ATTEMPTS, OPERATION_TIMEOUTS, Operation, Patience

PASSES = ["passing", "busy", "not yet"]
NO_USE = sorted(set(get_args(Failure)) - set(PASSES))


class Asked:
    """A store that fails as it is told, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.count = 0
        self.told: list[dict[str, Any]] = []

    async def answer(self) -> str:
        self.count += 1
        if self.failures:
            raise self.failures.pop(0)
        return "answer"

    def notify(self, event: str, **details: Any) -> None:
        assert event == "storage_retry"
        self.told.append(details)

    def ask(self, timeout_seconds: float = 10) -> str:
        patience = Patience(timeout_seconds, self.notify)
        return Operation(patience).request(self.answer, "GET s3://bucket/key")


def silently(seconds: float, ends_at: Callable[[], float] = lambda: math.inf) -> Operation:
    """Return an operation with so many seconds for a try, which tells nobody of retries."""
    return Operation(Patience(seconds, lambda *_, **__: None, ends_at))


async def silent() -> None:
    await asyncio.sleep(600)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT_SECONDS", 0.001)


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize("failures", range(ATTEMPTS))
def test_what_passes_is_waited_for_and_each_try_is_told(kind: Any, failures: int) -> None:
    asked = Asked(*[StoreError(kind, "503 SlowDown")] * failures)
    assert asked.ask() == "answer"
    assert asked.count == failures + 1
    assert [told["attempt"] for told in asked.told] == list(range(2, failures + 2))
    for told in asked.told:
        assert told["request"] == "GET s3://bucket/key"
        assert told["reason"] == "503 SlowDown"
        assert told["attempts"] == ATTEMPTS


def test_tries_are_counted() -> None:
    asked = Asked(*[StoreError("passing", f"{number}") for number in range(9)])
    with pytest.raises(StoreError, match=f"^{ATTEMPTS - 1}$") as caught:
        asked.ask()
    assert asked.count == caught.value.tries == ATTEMPTS


@pytest.mark.parametrize("kind", NO_USE)
def test_what_cannot_pass_is_not_tried_again(kind: Any) -> None:
    asked = Asked(StoreError(kind, "no"))
    with pytest.raises(StoreError, match="no") as caught:
        asked.ask()
    assert asked.count == caught.value.tries == 1
    assert asked.told == []


@pytest.mark.parametrize("error", [KeyError("ETag"), RuntimeError("hunter2"), OSError(5, "x")])
def test_whatever_else_is_raised_is_the_stores_and_passes(error: Exception) -> None:
    """Neither botocore nor google-auth tells all that it can raise."""
    asked = Asked(error)
    assert asked.ask() == "answer"
    assert [told["reason"] for told in asked.told] == [type(error).__name__]
    asked = Asked(*[error] * ATTEMPTS)
    with pytest.raises(StoreError) as caught:
        asked.ask()
    assert (caught.value.kind, caught.value.detail) == ("passing", type(error).__name__)


def test_memory_that_ran_out_is_no_fault_of_the_store() -> None:
    asked = Asked(MemoryError())
    with pytest.raises(MemoryError):
        asked.ask()
    assert asked.count == 1


def test_each_try_has_a_deadline_and_all_have_another() -> None:
    tries = []

    async def counted() -> None:
        tries.append(time.monotonic())
        await silent()

    began = time.monotonic()
    with pytest.raises(StoreError, match=r"no answer in 0\.\d+ s") as caught:
        silently(0.3).request(counted, "GET")
    assert caught.value.kind == "passing"
    assert 2 <= len(tries) <= OPERATION_TIMEOUTS
    assert caught.value.tries == len(tries)
    assert time.monotonic() - began < OPERATION_TIMEOUTS * 0.3 + 5


def test_requests_of_an_operation_share_its_time() -> None:
    operation = silently(0.1)
    with pytest.raises(StoreError, match="no answer"):
        operation.request(silent, "GET")
    time.sleep(0.4)
    with pytest.raises(StoreError, match=r"^no answer in .* s, and no time is left$"):
        operation.request(silent, "PUT")


@pytest.mark.parametrize("blocked", [False, True], ids=["waiting", "blocked"])
def test_time_that_gets_short_is_seen_by_what_is_under_way(blocked: bool) -> None:
    ends = [math.inf]
    free = threading.Event()

    async def stuck() -> None:
        free.wait(60)  # the loop itself, as by a server of tokens that says nothing

    threading.Timer(0.3, lambda: ends.__setitem__(0, time.monotonic())).start()
    began = time.monotonic()
    try:
        with pytest.raises(StoreError, match=r"no answer in \d\.?\d* s$"):  # and not in 60
            silently(60, lambda: ends[0]).request(stuck if blocked else silent, "PUT")
    finally:
        free.set()
    assert time.monotonic() - began < 20


def test_what_nobody_waits_for_is_given_up() -> None:
    operation = silently(60)
    threading.Timer(0.2, operation.given_up.set).start()
    began = time.monotonic()
    with pytest.raises(StoreError):
        operation.request(silent, "GET")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("signalled", [KeyboardInterrupt(), StoppedError("stopped")])
def test_a_request_ends_with_the_waiting_for_it(signalled: BaseException) -> None:
    """A signal raises in the thread that waits: nothing goes on behind its back."""
    ended = threading.Event()

    def stop(*_: Any) -> float:
        if began.is_set():
            raise signalled
        return math.inf

    began = threading.Event()

    async def watched() -> None:
        began.set()
        try:
            await silent()
        finally:
            ended.set()

    with pytest.raises(type(signalled)):
        silently(60, stop).request(watched, "PUT")
    assert ended.wait(20)


def test_requests_run_in_the_loop_of_fsspec() -> None:
    async def where() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    assert silently(10).request(where, "GET") is fsspec.asyn.get_loop()


def test_a_store_that_says_when_to_ask_again_is_asked_then() -> None:
    asked = Asked(StoreError("passing", "503 SlowDown", after="1"))
    began = time.monotonic()
    assert asked.ask() == "answer"
    assert time.monotonic() - began >= 1
    assert [told["wait_seconds"] for told in asked.told] == [1]


def test_a_store_that_wants_more_time_than_there_is_is_not_waited_for() -> None:
    asked = Asked(StoreError("passing", "503 SlowDown", after="31"))
    with pytest.raises(StoreError):
        asked.ask(timeout_seconds=10)
    assert asked.count == 1


@pytest.mark.parametrize("after", ["", "-1", "1.5", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_of_a_wish_to_be_asked_later_only_seconds_are_understood(after: str) -> None:
    assert StoreError("passing", "503", after=after).after_seconds == 0


def test_waits_grow_are_spread_and_stay_within_what_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT_SECONDS", 0.5)
    waits: list[list[float]] = []

    def sleep(_: Operation, seconds: float) -> None:
        waits[-1].append(seconds)

    monkeypatch.setattr(Operation, "_sleep", sleep)
    for _ in range(50):
        waits.append([])
        with pytest.raises(StoreError):
            Asked(*[StoreError("passing", "x")] * ATTEMPTS).ask()
    assert all(len(each) == ATTEMPTS - 1 for each in waits)
    assert max(map(sum, waits)) <= retrying.LONGEST_WAITS_SECONDS == 5.25  # as README says
    for number in range(ATTEMPTS - 1):
        column = [each[number] for each in waits]
        assert 0.25 * 2**number <= min(column) < max(column) <= 0.75 * 2**number
        assert len(set(column)) > 1


def test_a_look_for_a_name_that_hangs_holds_no_exit() -> None:
    program = """
import socket, time
from job import storage
socket.getaddrinfo = lambda *_, **__: time.sleep(600)
storage.configure(storage.Settings(timeout_seconds=0.5, anonymous=True))
storage.read(storage.parse("s3://bucket/key"), 10)
"""
    environment = {**os.environ, "AWS_ENDPOINT_URL": "http://store.invalid"}
    words = [sys.executable, "-c", program]
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=60, env=environment
    )
    assert "no answer in" in done.stderr


def test_what_is_done_aside_takes_no_more_threads_than_are_busy_at_once() -> None:
    aside = retrying._Aside()
    go_on = threading.Event()
    stuck = aside.submit(go_on.wait)
    threads = set()
    for _ in range(50):
        threads.add(aside.submit(threading.current_thread).result(timeout=10))
        aside._free.acquire()  # a moment after the result it is free, and not before
        aside._free.release()
    assert len(threads) == 1
    assert not stuck.done()
    go_on.set()
    assert stuck.result(timeout=10)
    failed = aside.submit(int, "x")
    assert isinstance(failed.exception(timeout=10), ValueError)


def test_a_wait_between_two_tries_ends_when_nobody_waits_for_the_result() -> None:
    operation = Operation(Patience(60, lambda *_, **__: None))
    threading.Timer(0.2, operation.given_up.set).start()
    began = time.monotonic()
    operation._sleep(30)
    assert time.monotonic() - began < 10
