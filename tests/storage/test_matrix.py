"""A run's life with one request spoiled, or with all from one on: a sample of `make chaos-storage`.

And what a twin does between a listing and the reading of what was listed.
"""

import hashlib
import io
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import faults
import matrix
import numpy as np
import pytest
import rehearsal
import servers

from job import storage
from job.storage import Place, parse
from job.training import checkpoint

TWIN = "import sys, rehearsal; sys.exit(rehearsal.train(*sys.argv[1:]).code)"
SAMPLE = 4  # lives for each store
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
    "no length": ("GET",),
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
def life(store: servers.Server, faulty: faults.Proxy, place: Place) -> Iterator[matrix.Life]:
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


@pytest.mark.slow
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
    assert drawn == [(5, "page"), (12, "page"), (2, "500"), (5, "expired")]
    assert drawn != [(case.number, case.fault) for case in sample(cases, "another seed")]


@pytest.mark.slow
def test_the_matrix_sees_what_is_wrong(life: matrix.Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that starts afresh when it may not look is found out."""
    cases = [case for case in life.cases() if case.request.method == "LIST" and case.fault == "403"]
    cases = cases[1:2]  # of the start that finds a checkpoint
    [case] = life.tried(cases)
    assert case.wrong == ()
    assert 77 in case.codes
    monkeypatch.setattr(storage, "names", lambda _: [])
    [case] = life.tried(cases)
    assert any("fresh start" in fault for fault in case.wrong)
    [case] = life.tried([matrix.Case(cases[0].request, 1000, "403")])
    assert case.wrong[-1] == "the fault was never met"


@pytest.mark.parametrize("lost", ["metrics.json", "model_weights.h5"])
def test_the_matrix_sees_what_is_missing(
    life: matrix.Life, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A job that publishes what it never wrote is found out."""
    create = storage.create
    monkeypatch.setattr(
        storage, "create", lambda place, data: place.name == lost or create(place, data)
    )
    case = life._live(matrix.Case(faults.Request("", ""), -1, "none"))
    assert any("wrong commit" in fault and lost in fault for fault in case.wrong), case


@pytest.fixture
def run(life: matrix.Life, store: servers.Server) -> tuple[Place, tuple[str, ...]]:
    """Return the folder and the flags of a run that was stopped after a checkpoint."""
    run_id = secrets.token_hex(8)
    flags = life.flags(run_id)
    assert rehearsal.train(*flags, stop=True).code == 143
    return parse(f"{store.root}/matrix/{run_id}"), flags


def steps(ended: rehearsal.Ended) -> list[int]:
    return [event["step"] for event in ended.events if event["event"] == "resumed"]


def test_a_checkpoint_that_a_twin_replaced_by_its_next_is_looked_for_again(
    life: matrix.Life, faulty: faults.Proxy, run: tuple[Place, tuple[str, ...]]
) -> None:
    folder, flags = run
    direct = life._direct

    def go_on() -> None:
        [name] = direct.names(folder / "checkpoints")
        old = folder / f"checkpoints/{name}"
        later = replace(checkpoint.from_bytes(direct.read(old, 10**6), str(old)), step=50)
        data = checkpoint.to_bytes(later)
        digest = hashlib.sha256(data).hexdigest()
        direct.create(folder / f"checkpoints/{50:010}-{digest}.safetensors", data)
        direct.remove(old)

    faulty.after_listing = go_on
    ended = rehearsal.train(*flags)
    assert faulty.after_listing is None
    assert ended.code == 0, ended.error
    assert steps(ended) == [50]
    assert rehearsal.look(direct, folder) == []


def test_a_run_that_a_twin_completed_meanwhile_is_complete(
    life: matrix.Life,
    store: servers.Server,
    faulty: faults.Proxy,
    run: tuple[Place, tuple[str, ...]],
) -> None:
    folder, flags = run
    direct = life._direct
    published = []

    def complete() -> None:
        environment = os.environ | store.environment()
        environment["PYTHONPATH"] = str(Path(rehearsal.__file__).parent)
        command = [sys.executable, "-c", TWIN, *flags]
        subprocess.run(command, env=environment, check=True, timeout=120)
        published.append(direct.read(folder / "metrics.json", 10**6))

    faulty.after_listing = complete
    ended = rehearsal.train(*flags, "--storage-timeout", "60")  # which a twin may take as well
    assert len(published) == 1
    assert ended.code == 0, ended.error
    assert direct.read(folder / "metrics.json", 10**6) == published[0]
    assert rehearsal.look(direct, folder) == []
