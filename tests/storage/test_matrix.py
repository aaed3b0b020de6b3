"""A run's life with one request spoiled: a sample of `make chaos-storage`."""

import io
import os
import random
from collections.abc import Iterator

import faults
import matrix
import numpy as np
import pytest
import servers

from job import storage

SAMPLE = 8  # lives for each store


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
    cases = life.cases()
    seed = os.environ.get("PYTEST_XDIST_TESTRUNUID", "0")  # another sample each time
    chosen = random.Random(seed).sample(cases, SAMPLE)
    for case in life.tried(chosen):
        assert case.wrong == (), f"{case} of the sample {seed}"
        assert not matrix.too_slow(case), case


def test_the_matrix_sees_what_is_wrong(life: matrix.Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that starts afresh when it may not look is found out."""
    cases = [case for case in life.cases() if case.request.method == "LIST" and case.fault == "403"]
    [case] = life.tried(cases)
    assert case.wrong == ()
    assert 77 in case.codes
    monkeypatch.setattr(storage, "names", lambda _: [])
    [case] = life.tried(cases)
    assert any("resumed from" in fault for fault in case.wrong)
