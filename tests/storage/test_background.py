"""Threads that nobody waits for."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from job.storage.background import in_thread


def test_what_blocks_runs_in_a_thread_of_its_own() -> None:
    assert asyncio.run(in_thread(threading.get_ident)) != threading.get_ident()


def test_what_it_raises_is_raised_where_it_is_waited_for() -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(in_thread(lambda: 1 // 0))


def test_waiting_for_it_can_be_given_up() -> None:
    done = threading.Event()

    async def give_up() -> None:
        async with asyncio.timeout(0.05):
            await in_thread(lambda: done.wait(60))

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    done.set()  # what it returns now is for nobody


def test_one_that_is_given_up_does_not_hold_back_the_end_of_the_process() -> None:
    program = """
import asyncio, time
from job.storage.background import in_thread
async def main():
    try:
        async with asyncio.timeout(0.05):
            await in_thread(lambda: time.sleep(300))
    except TimeoutError:
        print("given up")
asyncio.run(main())
"""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=200
    )
    assert (ended.stdout, ended.stderr) == ("given up\n", "")
    assert time.monotonic() - began < 100
