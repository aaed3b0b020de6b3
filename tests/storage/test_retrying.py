"""How often and how long a store is asked."""

import asyncio
import time
from typing import Any

import pytest

from job.storage import retrying
from job.storage.connection import StoreError
from job.storage.retrying import ATTEMPTS, Patience

NO_USE = ["absent", "no bucket", "exists", "changed", "refused", "unable", "setup", "wrong"]


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
        return asyncio.run(patience.request(self.answer, "GET s3://bucket/key"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT_SECONDS", 0.001)


@pytest.mark.parametrize("kind", ["passing", "busy"])
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
    with pytest.raises(StoreError, match=f"^{ATTEMPTS - 1}$"):
        asked.ask()
    assert asked.count == ATTEMPTS


@pytest.mark.parametrize("kind", NO_USE)
def test_what_cannot_pass_is_not_tried_again(kind: Any) -> None:
    asked = Asked(StoreError(kind, "no"))
    with pytest.raises(StoreError, match="no"):
        asked.ask()
    assert asked.count == 1
    assert asked.told == []


def test_a_bug_is_not_tried_again() -> None:
    asked = Asked(KeyError("x"))
    with pytest.raises(KeyError):
        asked.ask()
    assert asked.count == 1


def test_each_try_has_a_deadline() -> None:
    tries = []

    async def silent() -> None:
        tries.append(time.monotonic())
        await asyncio.sleep(600)

    patience = Patience(0.05, lambda *_, **__: None)
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"no answer in 0\.05 s") as caught:
        asyncio.run(patience.request(silent, "GET"))
    assert caught.value.kind == "passing"
    assert len(tries) == ATTEMPTS
    assert time.monotonic() - began < 30


def test_waits_grow_are_spread_and_stay_within_what_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT_SECONDS", 0.5)
    waits: list[list[float]] = []

    async def sleep(seconds: float) -> None:
        waits[-1].append(seconds)

    monkeypatch.setattr(retrying.asyncio, "sleep", sleep)
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
