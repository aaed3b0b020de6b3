"""A run's life with one request spoiled: a sample of `make chaos-storage`."""

import io
import os
import random
import secrets
from collections.abc import Iterator, Sequence

import faults
import matrix
import numpy as np
import pytest
import servers

from job import storage

SAMPLE = 6  # lives for each store
SEED = "MATRIX_SEED"  # variable that names the sample to try, of a test that failed
# What every run of the tests tries of what isn't the store's answer, so that no kind goes unseen:
# what would come of it in a run. Each meets each verb in test_foreign_answers.py.
ONCE = {
    "page": ("PUT", "GET", "LIST"),
    "page with ETag": ("PUT", "GET", "LIST"),
    "page as 206": ("GET",),
    "empty": ("PUT", "GET", "LIST"),
    "204": ("PUT", "LIST"),
    "other answer": ("LIST",),
    "other listing": ("LIST",),
    "404 page": ("PUT", "GET", "LIST"),
    "404 of another service": ("GET",),
    "301": ("PUT",),
    "302": ("GET",),
    "307": ("LIST",),
    "308": ("PUT",),
    "no proof": ("PUT", "GET", "LIST"),
    "no range": ("GET",),
    "no length": ("GET", "LIST"),
    "other bytes": ("GET",),
    "trickle": ("GET",),
    "403 page": ("LIST",),
}
LASTING = {
    "page": ("PUT",),
    "404 page": ("GET",),
    "307": ("PUT",),
    "204": ("LIST",),
    "no proof": ("PUT",),
    "same page": ("LIST",),
    "expired": ("PUT",),
}


def small_data() -> bytes:
    """Return a data set as an .npz of some KiB."""
    chance = np.random.default_rng(0)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        x_train=chance.integers(0, 256, (40, 8, 8), np.uint8),
        y_train=np.arange(40, dtype=np.uint8) % 10,
        x_test=chance.integers(0, 256, (20, 8, 8), np.uint8),
        y_test=np.arange(20, dtype=np.uint8) % 10,
    )
    return buffer.getvalue()


def sample(cases: Sequence[matrix.Case], seed: str) -> list[matrix.Case]:
    """Draw `SAMPLE` cases: the same by number for the same seed, in any process."""
    return random.Random(seed).sample(cases, SAMPLE)


def fixed(cases: Sequence[matrix.Case]) -> list[matrix.Case]:
    """Choose one case for each of `ONCE` and `LASTING`.

    A listing is that of the start which has a checkpoint to go on with.
    """
    wanted = [(fault, method, False) for fault, methods in ONCE.items() for method in methods]
    wanted += [(fault, method, True) for fault, methods in LASTING.items() for method in methods]
    chosen = []
    for number, what in enumerate(wanted):
        fit = [case for case in cases if (case.fault, case.request.method, case.lasting) == what]
        chosen.append(fit[-1 if what[1] == "LIST" else number % len(fit)])
    return chosen


@pytest.fixture
def life(
    store: servers.Server, faulty: faults.Proxy, place: storage.Place
) -> Iterator[matrix.Life]:
    data = place / "data.npz"
    storage.create(data, small_data())
    with matrix.quick():
        living = matrix.Life(store, faulty, data)
        yield living
        living.close()


def live(life: matrix.Life, cases: Sequence[matrix.Case]) -> None:
    """Live through all the cases; fail at the end if anything was wrong with any."""
    wrong = [case for case in life.tried(cases) if case.wrong or matrix.too_slow(case)]
    for case in wrong:
        print(case)
    assert not wrong, f"{len(wrong)} of {len(cases)} cases, printed above"


def test_what_the_store_did_not_say_loses_nothing_and_hangs_nothing(life: matrix.Life) -> None:
    live(life, fixed(life.cases()))


def test_a_spoiled_request_loses_nothing_and_hangs_nothing(life: matrix.Life) -> None:
    seed = os.environ.get(SEED) or secrets.token_hex(4)  # another sample each time
    print(f"to try the same sample again: {SEED}={seed}")  # shown when the test fails
    live(life, sample(life.cases(), seed))


def test_every_fault_that_is_no_answer_of_the_store_is_tried_each_time() -> None:
    assert {*faults.FOREIGN, *faults.ALTERED, *faults.SLOW, "403 page"} == set(ONCE)
    assert set(faults.LASTING_ONLY) <= set(LASTING)


def test_a_sample_is_drawn_by_its_seed_alone() -> None:
    request = faults.Request("GET", "key")
    kinds = ("500", "page", "expired")
    cases = [matrix.Case(request, number, fault) for fault in kinds for number in range(20)]
    drawn = [(case.number, case.fault) for case in sample(cases, "a seed")]
    # Pinned: whoever is told a seed must get the same sample, in another process too.
    assert drawn == [
        (5, "page"),
        (12, "page"),
        (2, "500"),
        (5, "expired"),
        (8, "expired"),
        (19, "500"),
    ]
    assert drawn != [(case.number, case.fault) for case in sample(cases, "another seed")]


def test_the_matrix_sees_what_is_wrong(life: matrix.Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that starts afresh when it may not look is found out."""
    cases = [case for case in life.cases() if case.request.method == "LIST" and case.fault == "403"]
    cases = cases[-1:]  # of the start that finds a checkpoint
    [case] = life.tried(cases)
    assert case.wrong == ()
    assert 77 in case.codes
    monkeypatch.setattr(storage, "names", lambda _: [])
    [case] = life.tried(cases)
    assert any("fresh start" in fault for fault in case.wrong)
    [case] = life.tried([matrix.Case(cases[0].request, 1000, "403")])
    assert case.wrong[-1] == "the fault was never met"
