"""Many reads at once: in order, the first alone, and an error is raised."""

import threading
import time

import pytest

from job.catalog.reading import each


def test_what_is_read_comes_in_order_and_several_at_once():
    together = threading.Barrier(4, timeout=10)
    threads = {}

    def read(number):
        threads[number] = threading.current_thread()
        if number:
            together.wait()  # which lets nobody pass before four are there
        return number

    assert each(read, range(9), at_once=4) == list(range(9))
    assert threads[0] is threading.main_thread()
    assert len(set(threads.values())) == 5


def test_nothing_is_nothing():
    assert each(lambda _: pytest.fail("read"), []) == []


def test_an_error_is_raised_and_the_rest_is_given_up():
    seen = []

    def read(number):
        seen.append(number)
        if number == 1:
            raise ValueError("one")
        time.sleep(0.01)

    with pytest.raises(ValueError, match="one"):
        each(read, range(300), at_once=2)
    assert len(seen) < 100
