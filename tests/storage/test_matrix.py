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

SAMPLE = 8  # lives for each store
SEED = "MATRIX_SEED"  # variable that names the sample to try, of a test that failed


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


def test_a_spoiled_request_loses_nothing_and_hangs_nothing(life: matrix.Life) -> None:
    seed = os.environ.get(SEED) or secrets.token_hex(4)  # another sample each time
    print(f"to try the same sample again: {SEED}={seed}")  # shown when the test fails
    for case in life.tried(sample(life.cases(), seed)):
        assert case.wrong == (), case
        assert not matrix.too_slow(case), case


def test_a_sample_is_drawn_by_its_seed_alone() -> None:
    request = faults.Request("GET", "key")
    cases = [matrix.Case(request, number, fault) for fault in faults.FAULTS for number in range(20)]
    drawn = [(case.number, case.fault) for case in sample(cases, "a seed")]
    # Pinned: whoever is told a seed must get the same sample, in another process too.
    assert drawn == [
        (1, "lost reply"),
        (8, "truncated"),
        (9, "500"),
        (1, "403"),
        (15, "403"),
        (19, "reset"),
        (2, "lost reply"),
        (16, "expired"),
    ]
    assert drawn != [(case.number, case.fault) for case in sample(cases, "another seed")]


def test_the_matrix_sees_what_is_wrong(life: matrix.Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that starts afresh when it may not look is found out."""
    cases = [case for case in life.cases() if case.request.method == "LIST" and case.fault == "403"]
    cases = cases[1:2]  # of the start that finds a checkpoint
    [case] = life.tried(cases)
    assert case.wrong == ()
    assert 77 in case.codes
    monkeypatch.setattr(storage, "names", lambda _: [])
    [case] = life.tried(cases)
    assert any("resumed from" in fault for fault in case.wrong)
    [case] = life.tried([matrix.Case(cases[0].request, 1000, "403")])
    assert case.wrong[-1] == "the fault was never met"
