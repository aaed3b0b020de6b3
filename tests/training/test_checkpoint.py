"""Checkpoints: whole or passed by, never mistaken, and never silently absent."""

import contextlib
import hashlib
import io
import json
import os
import random
import resource
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import numpy as safetensors

from job import storage
from job.errors import (
    ClusterError,
    ConflictError,
    CredentialsError,
    DataError,
    MissingInputError,
    OutputError,
    TemporaryError,
    UsageError,
)
from job.process.progress import Progress
from job.storage import Place
from job.training import checkpoint
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


RETRY_SECONDS = checkpoint.RETRY_SECONDS


@pytest.fixture(autouse=True)
def no_wait(monkeypatch) -> None:
    """Let what failed be tried again at once."""
    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", 0.0)


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
    turned = replace(
        STATE,
        arrays=dict(reversed(STATE.arrays.items())),
        owner=dict(reversed(STATE.owner.items())),
    )
    assert to_bytes(turned) == to_bytes(STATE)


def test_arrays_in_the_order_of_columns_come_back_as_they_were():
    state = replace(STATE, arrays={"w": np.asfortranarray(np.arange(6.0).reshape(2, 3))})
    assert_same(from_bytes(to_bytes(state), "x"), state)


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


def test_one_too_large_is_not_read(tmp_path, checkpoints, log, monkeypatch):
    saved(tmp_path, STATE)
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="none is intact"):
        checkpoints.restore(OWNER)
    assert "has more than" in events(log)[0]["reason"]


def test_a_name_that_lies_about_the_step_is_not_believed(tmp_path, checkpoints):
    [path] = saved(tmp_path, STATE)
    path.rename(path.with_name(path.name.replace("0000000007", "0000000009")))
    with pytest.raises(DataError, match="none is intact"):
        checkpoints.restore(OWNER)


# --- one odd answer is not the last word -----------------------------------------------------


def at(folder: Place, log: io.StringIO) -> Checkpoints:
    return Checkpoints(folder, 0, Progress("json", log))


def twin_saves(folder: Place, step: int) -> None:
    """Do what a twin of this process does that is further on: save, and remove what is older."""
    twin = at(folder, io.StringIO())
    twin.restore(OWNER)
    twin.save(replace(STATE, step=step))
    twin.prune(keep=1)


def test_what_was_read_damaged_once_is_read_again(tmp_path, checkpoints, log, monkeypatch):
    whole = saved(tmp_path, STATE)[0].read_bytes()
    [path] = files(tmp_path)
    path.write_bytes(whole[:-1])
    read = storage.read

    def then_whole(place: Place, limit_bytes: int) -> bytes:
        data = read(place, limit_bytes)
        path.write_bytes(whole)
        return data

    monkeypatch.setattr(storage, "read", then_whole)
    assert checkpoints.restore(OWNER).step == 7
    assert events(log) == []


def twin_in_between(monkeypatch: pytest.MonkeyPatch, folder: Place) -> None:
    """Let a twin save between the listing and the reading."""
    names_in = checkpoint.names_in

    def then_gone(listed: Place) -> list[str]:
        found = names_in(listed)
        monkeypatch.setattr(checkpoint, "names_in", names_in)
        twin_saves(folder, step=9)
        return found

    monkeypatch.setattr(checkpoint, "names_in", then_gone)


def test_what_a_twin_removed_meanwhile_is_listed_anew(tmp_path, checkpoints, log, monkeypatch):
    saved(tmp_path, STATE, replace(STATE, step=8))
    twin_in_between(monkeypatch, Place.of(tmp_path / "run" / "checkpoints"))
    assert checkpoints.restore(OWNER).step == 9
    assert events(log) == []


def test_what_a_twin_removed_meanwhile_is_listed_anew_in_a_store(place, log, monkeypatch):
    at(place, log).save(STATE)
    twin_in_between(monkeypatch, place)
    assert at(place, log).restore(OWNER).step == 9
    assert "checkpoint_passed_by" not in log.getvalue()


def test_a_twin_that_is_faster_each_time_is_no_damage(tmp_path, checkpoints, monkeypatch):
    saved(tmp_path, STATE, replace(STATE, step=8))
    twin, read = at(Place.of(tmp_path / "run" / "checkpoints"), io.StringIO()), storage.read
    twin.restore(OWNER)
    steps = iter(range(9, 99))

    def late(place: Place, limit_bytes: int) -> bytes:
        for _ in range(2):
            twin.save(replace(STATE, step=next(steps)))
            twin.prune(keep=2)
        return read(place, limit_bytes)

    monkeypatch.setattr(storage, "read", late)
    with pytest.raises(TemporaryError, match="try again later"):
        checkpoints.restore(OWNER)


def test_what_a_listing_names_again_and_again_is_passed_by(tmp_path, checkpoints, log, monkeypatch):
    saved(tmp_path, STATE)
    names_in, gone = checkpoint.names_in, f"{8:010}-{'a' * 64}.safetensors"
    monkeypatch.setattr(checkpoint, "names_in", lambda folder: [*names_in(folder), gone])
    assert checkpoints.restore(OWNER).step == 7
    [event] = events(log)
    assert event["event"] == "checkpoint_passed_by"
    assert "does not exist" in event["reason"]


def all_go_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    names_in = checkpoint.names_in

    def then_gone(folder: Place) -> list[str]:
        found = names_in(folder)
        for name in found:
            storage.remove(folder / name)
        return found

    monkeypatch.setattr(checkpoint, "names_in", then_gone)


def test_what_was_seen_and_is_gone_is_no_fresh_start(tmp_path, checkpoints, monkeypatch):
    saved(tmp_path, STATE)
    all_go_in_between(monkeypatch)
    with pytest.raises(DataError, match="showed 1 checkpoints and none is intact"):
        checkpoints.restore(OWNER)


def test_what_was_seen_and_is_gone_from_a_store_is_no_fresh_start(place, log, monkeypatch):
    at(place, log).save(STATE)
    all_go_in_between(monkeypatch)
    with pytest.raises(TemporaryError, match="none is intact"):
        at(place, log).restore(OWNER)


def test_none_intact_in_a_store_may_pass(place, log):
    """A store has objects whole or not at all: it is the answer that is odd."""
    storage.create(place / f"{7:010}-{'a' * 64}.safetensors", to_bytes(STATE))
    with pytest.raises(TemporaryError, match="none is intact") as caught:
        at(place, log).restore(OWNER)
    assert "try again" in str(caught.value)
    assert "is damaged" in log.getvalue()


def test_a_whole_one_of_another_version_does_not_pass(place, log):
    data = to_bytes(STATE).replace(b'\\"format\\": 1', b'\\"format\\": 2')
    name = f"{7:010}-{hashlib.sha256(data).hexdigest()}.safetensors"
    storage.create(place / name, data)
    with pytest.raises(DataError, match="none is intact"):
        at(place, log).restore(OWNER)
    assert "another version" in log.getvalue()


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user that permissions mean something to."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_not_damaged(log):
    """An older one would be gone on from, and this one removed after that."""
    with as_nobody(), tempfile.TemporaryDirectory() as folder:
        for step in (7, 8):
            at(Place.of(Path(folder)), log).save(replace(STATE, step=step))
        newest = max(Path(folder).iterdir())
        newest.chmod(0)
        with pytest.raises(MissingInputError, match="cannot read") as caught:
            at(Place.of(Path(folder)), log).restore(OWNER)
    assert str(newest) in str(caught.value)
    assert "checkpoint_passed_by" not in log.getvalue()


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


def test_what_is_saved_last_is_the_newest_however_slow_the_store(
    tmp_path, checkpoints, monkeypatch
):
    create, going = storage.create, threading.Event()

    def slow(place, data):
        if threading.current_thread() is not threading.main_thread():
            assert going.wait(30)
        create(place, data)

    monkeypatch.setattr(storage, "create", slow)
    checkpoints.offer(lambda: STATE)
    timer = threading.Timer(0.1, going.set)
    timer.start()
    checkpoints.save(replace(STATE, step=8))
    timer.join()
    checkpoints.prune(keep=1)
    assert [path.name[:10] for path in files(tmp_path)] == ["0000000008"]


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


def test_the_newest_and_one_to_step_back_to_are_kept(tmp_path, checkpoints):
    offered(checkpoints, 1, 2, 3)
    assert [path.name[:10] for path in files(tmp_path)] == ["0000000002", "0000000003"]


# --- what ends a run -------------------------------------------------------------------------


def offered(checkpoints: Checkpoints, *steps: int) -> None:
    """Offer the states of these steps, and wait for each to be written or not."""
    for step in steps:
        checkpoints.offer(lambda step=step: replace(STATE, step=step))
        assert checkpoints._pending is not None, f"step {step} was not due"
        checkpoints._pending.exception()  # waits for it


def nothing_more() -> State:
    pytest.fail("nobody asks for a state any more")


HOPELESS = (ClusterError, ConflictError, CredentialsError, MissingInputError, UsageError)


@pytest.mark.parametrize("kind", HOPELESS)
def test_what_cannot_pass_ends_the_run_at_the_next_offer(checkpoints, log, monkeypatch, kind):
    offered(checkpoints, 1)

    def fail(*_):
        raise kind("no hope")

    monkeypatch.setattr(storage, "create", fail)
    offered(checkpoints, 2)
    with pytest.raises(kind) as caught:
        checkpoints.offer(nothing_more)
    said = "no hope; nothing more can be saved: the last step saved is 1"
    assert (str(caught.value), caught.value.exit_code) == (said, kind.exit_code)
    assert events(log)[-1]["reason"] == "no hope"


def test_credentials_that_expire_end_the_run(faulty, place, log):
    checkpoints = at(place, log)
    offered(checkpoints, 1)
    faulty.spoil("expired", first=len(faulty.requests), count=1_000)
    offered(checkpoints, 2)
    with pytest.raises(CredentialsError, match="the last step saved is 1"):
        checkpoints.offer(nothing_more)


def test_three_failures_in_a_row_end_the_run(tmp_path, checkpoints, log):
    saved(tmp_path, STATE)
    checkpoints.restore(OWNER)
    folder = tmp_path / "run" / "checkpoints"
    folder.rename(tmp_path / "aside")
    folder.write_bytes(b"in the way")
    offered(checkpoints, 8, 9, 10)
    with pytest.raises(OutputError) as caught:
        checkpoints.offer(nothing_more)
    assert str(caught.value).endswith(
        "; 3 saves in a row failed, for 0 s: the last step saved is 7"
    )
    assert [event["event"] for event in events(log)] == 3 * ["checkpoint_failed"]


def test_a_success_in_between_counts_from_nothing_again(tmp_path, checkpoints):
    folder, aside = tmp_path / "run" / "checkpoints", tmp_path / "aside"
    folder.mkdir(parents=True)
    for step in (1, 4, 7):
        folder.rename(aside)
        folder.write_bytes(b"in the way")
        offered(checkpoints, step, step + 1)
        if step == 7:
            break
        folder.unlink()
        aside.rename(folder)
        offered(checkpoints, step + 2)
    offered(checkpoints, 9)
    with pytest.raises(OutputError, match="the last step saved is 6"):
        checkpoints.offer(nothing_more)


def test_no_room_in_the_file_system_ends_the_run(tmp_path, checkpoints):
    """A limit on the size of files fails as a full disk does, in the middle of a file."""
    large = replace(STATE, arrays={"w": np.zeros(1_000_000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        for _ in range(3):
            checkpoints.offer(lambda: large)
            checkpoints._pending.exception()
        with pytest.raises(OutputError, match=r"file too large.*no step is saved"):
            checkpoints.offer(nothing_more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == []


def no_memory(*_):
    raise MemoryError


def no_memory_for_an_array(*_):
    np.empty(2**60, np.uint8)  # NumPy's own kind of error, which is made of shape and type


@pytest.mark.parametrize("fail", [no_memory, no_memory_for_an_array])
def test_no_memory_for_three_in_a_row_ends_the_run(checkpoints, monkeypatch, fail):
    monkeypatch.setattr(storage, "create", fail)
    offered(checkpoints, 1, 2, 3)
    with pytest.raises(MemoryError, match=r"MemoryError\(.*\); 3 saves in a row failed"):
        checkpoints.offer(nothing_more)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock for checkpoints alone; tests move it."""
    clock = SimpleNamespace(seconds=1_000.0)
    watch = SimpleNamespace(monotonic=lambda: clock.seconds)
    monkeypatch.setattr(checkpoint, "time", watch)
    return clock


@pytest.mark.parametrize(("lasting", "ends"), [(300.0, True), (299.0, False)])
def test_failures_for_minutes_end_the_run_however_few(
    clock, checkpoints, monkeypatch, lasting, ends
):
    def fail(*_):
        clock.seconds += lasting
        raise TemporaryError("no answer")

    monkeypatch.setattr(storage, "create", fail)
    offered(checkpoints, 1, 2)
    if ends:
        with pytest.raises(TemporaryError, match="2 saves in a row failed, for 600 s: no step"):
            checkpoints.offer(nothing_more)
    else:
        offered(checkpoints, 3)


@pytest.mark.parametrize("every_seconds", [0, 3600])
def test_after_a_failure_the_next_save_is_soon_and_not_at_once(
    clock, tmp_path, log, monkeypatch, every_seconds
):
    """A long interval is for work, not for hope; in a short one no trouble would ever pass."""
    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", RETRY_SECONDS)
    saves = Checkpoints(Place.of(tmp_path), every_seconds, Progress("json", log))

    def fail(*_):
        raise OutputError("no room")

    clock.seconds += 3600
    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", fail)
        offered(saves, 1)
    clock.seconds += 29
    saves.offer(lambda: pytest.fail("too soon"))
    clock.seconds += 1
    offered(saves, 2)
    clock.seconds += every_seconds - 1
    saves.offer(lambda: pytest.fail("it was written, so there is time again"))
    assert [event["event"] for event in events(log)] == ["checkpoint_failed", "checkpoint_saved"]


def test_what_ended_a_save_does_not_matter_once_a_newer_one_is_saved(
    tmp_path, checkpoints, monkeypatch
):
    with monkeypatch.context() as patch:

        def fail(*_):
            raise CredentialsError("expired")

        patch.setattr(storage, "create", fail)
        offered(checkpoints, 1)
    checkpoints.save(replace(STATE, step=2))
    assert [path.name[:10] for path in files(tmp_path)] == ["0000000002"]


def test_what_would_end_the_process_ends_the_run(checkpoints, log, monkeypatch):
    """In a thread, SystemExit ends nothing and says nothing; raised later, it might say 0."""

    def leave(*_):
        raise SystemExit(0)

    monkeypatch.setattr(storage, "create", leave)
    offered(checkpoints, 1)
    with pytest.raises(RuntimeError, match=r"SystemExit\(0\)"):
        checkpoints.offer(nothing_more)
    assert events(log)[-1]["reason"] == "SystemExit(0)"


def test_closing_leaves_what_the_log_tells_to_it(checkpoints, log, monkeypatch):
    """Whoever closes has an error of its own, or none."""
    monkeypatch.setattr(storage, "create", lambda *_: 1 / 0)
    checkpoints.offer(lambda: STATE)
    checkpoints.close()
    [event] = events(log)
    assert "ZeroDivisionError" in event["reason"]


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


@pytest.mark.parametrize("end", ["offer", "close"])
def test_a_writer_that_cannot_even_say_so_is_heard_at_the_end(checkpoints, monkeypatch, end):
    def fail(*_, **__):
        raise OutputError("--liveness-file cannot be touched any more")

    monkeypatch.setattr(checkpoints._progress, "event", fail)
    offered(checkpoints, 7)
    with pytest.raises(OutputError, match="liveness"):
        checkpoints.offer(nothing_more) if end == "offer" else checkpoints.close()
    checkpoints.close()  # once is enough


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


def test_an_old_one_that_cannot_be_removed_stays_and_is_said(tmp_path, checkpoints, log):
    old = tmp_path / "run" / "checkpoints" / f"{6:010}-{'a' * 64}.safetensors"
    (old / "a file").mkdir(parents=True)
    saved(tmp_path, STATE)
    checkpoints.tidy()
    [event] = events(log)
    assert (event["event"], event["uri"]) == ("checkpoint_kept", str(old))
    assert "cannot remove" in event["reason"]


def test_what_a_complete_run_left_is_tidied_away(tmp_path, checkpoints):
    """Its process died between publishing and removing."""
    saved(tmp_path, *(replace(STATE, step=step) for step in range(3)))
    checkpoints.tidy()
    assert [path.name[:10] for path in files(tmp_path)] == ["0000000002"]


def test_what_cannot_be_tidied_away_is_only_said(tmp_path, log):
    (tmp_path / "checkpoints").write_bytes(b"no folder")
    at(Place.of(tmp_path / "checkpoints"), log).tidy()
    [event] = events(log)
    assert event["event"] == "checkpoint_kept"
    assert "cannot list" in event["reason"]
