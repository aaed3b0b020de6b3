"""Checkpoints: whole or passed by, never mistaken, and never silently absent."""

import io
import json
import os
import random
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as safetensors

from job import storage
from job.errors import ConflictError, DataError, OutputError
from job.process.progress import Progress
from job.storage import Place
from job.training.checkpoint import Checkpoints, State, from_bytes, to_bytes

OWNER = {"config": "c" * 64, "data": "d" * 64}
STATE = State(
    owner=OWNER,
    threads=2,
    step=7,
    arrays={
        "model/000/kernel": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
        "optimizer/000/iteration": np.array(7, np.int64),
        "model/001/seed_generator_state": np.array([1, 2**32 - 1], np.uint32),
        "epoch/loss_sum": np.float32(0.1) * np.ones((), np.float32),
    },
    history=({"epoch": 1, "loss": 0.1 + 0.2},),
    train_seconds=1.5,
    epoch_seconds=0.25,
    made_by=({"attempt": 1, "tensorflow": "2.21.0", "devices": ["CPU"], "threads": [2, 2]},),
)


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def checkpoints(tmp_path, log) -> Checkpoints:
    return Checkpoints(Place.of(tmp_path / "run" / "checkpoints"), 0, Progress("json", log))


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "run" / "checkpoints").iterdir())


def saved(tmp_path, *states: State) -> list[Path]:
    for state in states:
        Checkpoints(
            Place.of(tmp_path / "run" / "checkpoints"), 0, Progress("json", io.StringIO())
        ).save(state)
    return files(tmp_path)


def events(log: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def assert_same(one: State, other: State) -> None:
    assert replace(one, arrays={}) == replace(other, arrays={})
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.dtype == other.arrays[name].dtype
        assert array.shape == other.arrays[name].shape
        assert np.array_equal(array, other.arrays[name])


def test_a_state_comes_back_as_it_was():
    assert_same(from_bytes(to_bytes(STATE), "x"), STATE)


def test_the_same_state_is_the_same_bytes_in_any_order():
    turned = replace(STATE, arrays=dict(reversed(STATE.arrays.items())))
    assert to_bytes(turned) == to_bytes(STATE)


def test_numbers_of_the_history_keep_every_bit():
    values = [random.Random(1).random() * 10.0**power for power in range(-30, 30)]
    state = replace(STATE, history=tuple({"loss": value} for value in values))
    assert [done["loss"] for done in from_bytes(to_bytes(state), "x").history] == values


def test_the_newest_is_restored(tmp_path, checkpoints):
    saved(tmp_path, STATE, replace(STATE, step=1000), replace(STATE, step=99))
    restored = checkpoints.restore(OWNER)
    assert restored.step == 1000
    assert_same(restored, replace(STATE, step=1000))


def test_no_checkpoint_is_none(checkpoints):
    assert checkpoints.restore(OWNER) is None


def test_other_files_are_no_checkpoints(tmp_path, checkpoints):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("notes.txt", ".1-ab.tmp", "0000000007.safetensors"):
        (folder / name).write_bytes(b"x")
    assert checkpoints.restore(OWNER) is None


def test_a_damaged_one_is_passed_by_and_said_so(tmp_path, checkpoints, log):
    _, newest = saved(tmp_path, STATE, replace(STATE, step=8))
    newest.write_bytes(newest.read_bytes()[:-1])
    assert checkpoints.restore(OWNER).step == 7
    [event] = events(log)
    assert event["event"] == "checkpoint_passed_by"
    assert event["uri"] == str(newest)
    assert "damaged" in event["reason"]


def test_a_damaged_one_is_removed_before_a_whole_one(tmp_path, checkpoints):
    """What is kept to step back to must be whole."""
    whole, damaged = saved(tmp_path, STATE, replace(STATE, step=9))
    damaged.write_bytes(b"")
    assert checkpoints.restore(OWNER).step == 7
    checkpoints.save(replace(STATE, step=8))
    checkpoints.prune(keep=2)
    assert whole.exists()
    assert not damaged.exists()


def test_where_the_newest_was_deleted_the_one_before_is_restored(tmp_path, checkpoints):
    _, newest = saved(tmp_path, STATE, replace(STATE, step=8))
    newest.unlink()
    assert checkpoints.restore(OWNER).step == 7


def test_none_intact_is_an_error_and_no_fresh_start(tmp_path, checkpoints):
    for path in saved(tmp_path, STATE, replace(STATE, step=8)):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none is intact"):
        checkpoints.restore(OWNER)
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("part", ["config", "data"])
def test_a_checkpoint_of_another_owner_is_a_conflict(tmp_path, checkpoints, part):
    saved(tmp_path, STATE)
    with pytest.raises(ConflictError, match="another config or other data"):
        checkpoints.restore(OWNER | {part: "e" * 64})


def test_a_folder_that_cannot_be_seen_is_not_an_empty_one(tmp_path, checkpoints, monkeypatch):
    saved(tmp_path, STATE)

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OutputError, match="cannot list"):
        checkpoints.restore(OWNER)


def test_a_name_that_lies_about_the_step_is_not_believed(tmp_path, checkpoints):
    [path] = saved(tmp_path, STATE)
    path.rename(path.with_name(path.name.replace("0000000007", "0000000009")))
    with pytest.raises(DataError, match="none is intact"):
        checkpoints.restore(OWNER)


def test_every_damage_is_noticed(tmp_path, checkpoints, log):
    """Each byte flipped or deleted, each cut, each block zeroed, growth: never a silent load."""
    [path] = saved(tmp_path, STATE)
    whole = path.read_bytes()
    damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    damaged += [whole[:length] for length in range(len(whole))]
    damaged += [whole[:at] + whole[at + 1 :] for at in range(len(whole))]
    damaged += [
        whole[:at] + bytes(len(block)) + whole[at + 64 :]
        for at in range(0, len(whole), 64)
        if any(block := whole[at : at + 64])
    ]
    damaged += [whole + b"\0", b"\0" * len(whole), whole[::-1]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match="none is intact"):
            checkpoints.restore(OWNER)
    assert len(events(log)) == len(damaged)
    path.write_bytes(whole)
    assert_same(checkpoints.restore(OWNER), STATE)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\x02\0\0\0\0\0\0\0{}",
        b"\xff" * 100,
        to_bytes(STATE).replace(b'\\"format\\": 1', b'\\"format\\": 2'),
        to_bytes(STATE).replace(b'\\"step\\"', b'\\"stop\\"'),
    ],
)
def test_what_is_no_checkpoint_is_bad_data(content):
    with pytest.raises(DataError):
        from_bytes(content, "x")


def test_offers_are_taken_when_due(tmp_path, checkpoints):
    rare = Checkpoints(
        Place.of(tmp_path / "run" / "checkpoints"), 3600, Progress("json", io.StringIO())
    )
    rare.offer(lambda: pytest.fail("an hour has not passed"))
    checkpoints.offer(lambda: STATE)
    checkpoints.save(replace(STATE, step=8))
    assert [path.name[:10] for path in files(tmp_path)] == ["0000000007", "0000000008"]


def test_an_offer_does_not_wait_for_a_slow_store(tmp_path, checkpoints, monkeypatch):
    create, going = storage.create, threading.Event()

    def slow(uri, data):
        assert going.wait(30)
        create(uri, data)

    monkeypatch.setattr(storage, "create", slow)
    checkpoints.offer(lambda: STATE)
    checkpoints.offer(lambda: pytest.fail("the one before is still being written"))
    going.set()
    checkpoints.save(replace(STATE, step=8))
    assert len(files(tmp_path)) == 2


def test_a_failed_offer_is_said_and_training_goes_on(checkpoints, log, monkeypatch):
    def fail(*_):
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", fail)
        checkpoints.offer(lambda: STATE)
        with pytest.raises(OutputError, match="disk is full"):
            checkpoints.save(STATE)  # but one that must be kept is not given up in silence
    [event] = events(log)
    assert (event["event"], event["step"]) == ("checkpoint_failed", 7)


def test_a_background_write_without_memory_is_said_and_training_goes_on(
    tmp_path, checkpoints, log, monkeypatch
):
    """Three MemoryErrors once left an empty log."""

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", fail)
        for step in (1, 2, 3):
            checkpoints.offer(lambda step=step: replace(STATE, step=step))
            checkpoints._pending.exception()  # waits for it
    checkpoints.save(replace(STATE, step=4))
    assert [
        (event["event"], event["step"], event.get("reason")) for event in events(log)
    ] == [
        *(("checkpoint_failed", step, "MemoryError()") for step in (1, 2, 3)),
        ("checkpoint_saved", 4, None),
    ]  # fmt: skip
    assert [path.name[:10] for path in files(tmp_path)] == ["0000000004"]


def test_a_bug_in_the_background_is_raised_at_the_next_offer(checkpoints, log, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", lambda *_: 1 / 0)
        checkpoints.offer(lambda: STATE)
        checkpoints._pending.exception()
    with pytest.raises(ZeroDivisionError):
        checkpoints.offer(lambda: pytest.fail("nobody asks for a state any more"))
    [event] = events(log)
    assert event["event"] == "checkpoint_failed"
    assert "ZeroDivisionError" in event["reason"]


def test_a_bug_in_the_background_costs_no_work(tmp_path, checkpoints, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", lambda *_: 1 / 0)
        checkpoints.offer(lambda: STATE)
        checkpoints._pending.exception()
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(replace(STATE, step=8))
    assert [path.name[:10] for path in files(tmp_path)] == ["0000000008"]


def test_a_writer_that_cannot_even_say_so_is_heard(checkpoints, monkeypatch):
    """Each event touches the liveness file, which may be gone."""

    def fail(*_, **__):
        raise OutputError("--liveness-file cannot be touched any more")

    monkeypatch.setattr(checkpoints._progress, "event", fail)
    checkpoints.offer(lambda: STATE)
    with pytest.raises(OutputError, match="liveness"):
        checkpoints.save(STATE)


def test_a_checkpoint_of_before_still_opens():
    """One that says nothing of versions, devices and threads."""
    header = {
        "state": json.dumps(
            {
                "format": 1,
                "owner": OWNER,
                "cores": 2,
                "step": 7,
                "history": [],
                "train_seconds": 1.5,
                "epoch_seconds": 0.0,
            }
        )
    }
    state = from_bytes(safetensors.save({"w": np.zeros(3)}, header), "x")
    assert (state.step, state.threads, state.made_by) == (7, 2, ())


def test_the_same_state_saved_twice_is_one_checkpoint(tmp_path, checkpoints):
    checkpoints.offer(lambda: STATE)
    checkpoints.save(STATE)
    checkpoints.prune(keep=1)
    assert len(files(tmp_path)) == 1


def test_old_ones_are_removed(tmp_path, log):
    saved(tmp_path, *(replace(STATE, step=step) for step in range(5)))
    checkpoints = Checkpoints(Place.of(tmp_path / "run" / "checkpoints"), 0, Progress("json", log))
    assert checkpoints.restore(OWNER).step == 4
    checkpoints.prune(keep=2)
    assert [path.name[:10] for path in files(tmp_path)] == ["0000000003", "0000000004"]
    checkpoints.save(replace(STATE, step=5))
    checkpoints.prune(keep=1)
    assert [path.name[:10] for path in files(tmp_path)] == ["0000000005"]
