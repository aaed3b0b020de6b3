"""A folder of shards is one data set: what grows, what is held out, and what is refused by name."""

import resource
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_source import (
    Arrays,
    assert_valid,
    idx_files,
    mutate,
    mutations,
    npz,
    refused,
    run_mutations,
    small_set,
    write,
    zipped,
)

from job import storage
from job.config import EMBEDDED, DataSource
from job.data import arrays as arrays_module
from job.data import files, shards, source
from job.data.examples import ALIGNMENT_BYTES
from job.data.source import Dataset
from job.errors import DataError, MissingInputError, OutputError, UsageError
from job.storage import Place, parse

BASE = small_set()


def shard(kind: str, count: int, seed: int = 0) -> Arrays:
    """Return a shard of the shape and the classes of `BASE`."""
    generator = np.random.default_rng([count, seed])
    images = generator.integers(0, 256, (count, 12, 9)).astype(np.uint8)
    return {f"x_{kind}": images, f"y_{kind}": generator.integers(0, 3, count).astype(np.uint8)}


TRAIN, MORE, TEST = shard("train", 60), shard("train", 40, 1), shard("test", 7)
SHARDS = {"train-a.npz": TRAIN, "train-b.npz": MORE, "test-a.npz": TEST}


def folder(path: Path, parts: dict[str, Arrays], base: Arrays | None = BASE) -> Path:
    path.mkdir(exist_ok=True)
    contents = {name: npz(arrays) for name, arrays in parts.items()}
    write(path, contents | ({} if base is None else {"base.npz": npz(base)}))
    return path


def of(path: Path, base: Path | None = None, **more: Any) -> DataSource:
    return DataSource(parse(str(path)), None if base is None else parse(str(base)), **more)


def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
    return [(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)]


def apart(arrays: Arrays) -> np.ndarray:
    """Tell which images of a training shard must be held out, by the rule as it is written down."""
    import hashlib

    digests = [hashlib.blake2b(i.tobytes(), digest_size=16).digest() for i in arrays["x_train"]]
    return np.array([int.from_bytes(digest[:8], "big") / 2**64 < 0.1 for digest in digests], bool)


# --- what is put together -----------------------------------------------------------------------


def test_shards_add_to_their_base(tmp_path: Path) -> None:
    found = source.load(of(folder(tmp_path / "data", SHARDS)))
    assert_valid(found)
    held = {name: apart(SHARDS[name]) for name in ("train-a.npz", "train-b.npz")}
    assert 0 < sum(map(np.sum, held.values())) < 30
    for letter in "xy":
        trained = [SHARDS[name][f"{letter}_train"][~held[name]] for name in held]
        expected = np.concatenate([BASE[f"{letter}_train"], *trained])
        assert np.array_equal(getattr(found, f"{letter}_train"), expected)
        expected = np.concatenate([BASE[f"{letter}_test"], TEST[f"{letter}_test"]])
        assert np.array_equal(getattr(found, f"{letter}_test"), expected)
    assert found.x_train.ctypes.data % ALIGNMENT_BYTES == 0  # TensorFlow need not copy it
    assert [(s.name, s.examples, s.held_out) for s in found.shards] == [
        ("train-a.npz", 60, held["train-a.npz"].sum()),
        ("train-b.npz", 40, held["train-b.npz"].sum()),
        ("test-a.npz", 7, 0),
    ]
    assert [part.name for part in found.parts] == ["base.npz", *SHARDS]
    assert found.classes == 3
    assert list(found.remarks()) == []
    images, labels = found.base_examples
    assert rows(images, labels) == rows(BASE["x_train"], BASE["y_train"])


def test_each_shard_is_found_again_whole(tmp_path: Path) -> None:
    found = source.load(of(folder(tmp_path / "data", SHARDS)))
    for name, arrays in SHARDS.items():
        kind = name.partition("-")[0]
        expected = rows(arrays[f"x_{kind}"], arrays[f"y_{kind}"])
        assert sorted(rows(*found.shard(name))) == sorted(expected)
    for name, (images, labels) in found.held_out.items():
        held = apart(SHARDS[name])
        expected = rows(SHARDS[name]["x_train"][held], SHARDS[name]["y_train"][held])
        assert rows(images, labels) == expected
        assert not images.flags.writeable


counts = st.lists(st.integers(1, 30), max_size=4)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(train=counts, test=counts, limit=st.sampled_from([0, 500, 2000, 2**30]))
def test_whatever_is_there_nothing_is_lost_and_nothing_held_out_is_trained_on(
    train: list[int], test: list[int], limit: int
) -> None:
    parts = {f"train-{i}.npz": shard("train", count, i) for i, count in enumerate(train)}
    parts |= {f"test-{i}.npz": shard("test", count, i) for i, count in enumerate(test)}
    with tempfile.TemporaryDirectory() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "RESIDENT_BYTES", limit)
        where = of(folder(Path(path), parts))
        found = source.load(where)
        assert shards.look(where).fingerprint == found.fingerprint
    assert_valid(found)
    given_rows = {"train": rows(BASE["x_train"], BASE["y_train"])}
    given_rows["test"] = rows(BASE["x_test"], BASE["y_test"])
    for name, arrays in parts.items():
        kind = name.partition("-")[0]
        given_rows[kind] += rows(arrays[f"x_{kind}"], arrays[f"y_{kind}"])
    kept = rows(found.x_train, found.y_train)
    held = [row for pair in found.held_out.values() for row in rows(*pair)]
    assert sorted(kept + held) == sorted(given_rows["train"])
    assert rows(found.x_test, found.y_test)[:5] == given_rows["test"][:5]
    assert sorted(rows(found.x_test, found.y_test)) == sorted(given_rows["test"])
    ours = kept[len(BASE["x_train"]) :]
    for image, _ in ours:
        assert not shards.held_out(shards.digests(np.frombuffer(image, np.uint8)[None])).any()
    for image, _ in held:
        assert shards.held_out(shards.digests(np.frombuffer(image, np.uint8)[None])).all()
    assert sum(s.examples for s in found.shards) == sum(train) + sum(test)
    assert sum(s.held_out for s in found.shards) == len(held)


def test_what_is_held_out_never_changes(mnist: Dataset) -> None:
    """A change here trains on images that champions were judged on."""
    held = shards.held_out(shards.digests(mnist.x_test))
    assert np.flatnonzero(held)[:5].tolist() == [2, 7, 26, 38, 50]
    assert held.sum() == 1054  # 1,000 expected, with a standard deviation of 30
    assert shards.digests(mnist.x_test[:1])[0].hex() == "f251dcdf1180645fafdb160265037b37"


def test_a_shard_that_comes_later_moves_no_image(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", {"train-b.npz": MORE})
    before = source.load(of(path))
    after = source.load(of(folder(path, SHARDS)))
    assert rows(*before.held_out["train-b.npz"]) == rows(*after.held_out["train-b.npz"])
    assert rows(*before.shard("train-b.npz")) == rows(*after.shard("train-b.npz"))
    assert before.fingerprint != after.fingerprint


# --- the base -----------------------------------------------------------------------------------


def test_the_base_may_lie_anywhere_and_have_any_form(tmp_path: Path) -> None:
    among = source.load(of(folder(tmp_path / "among", SHARDS)))
    bare = folder(tmp_path / "bare", SHARDS, base=None)
    other = tmp_path / "other.npz"
    other.write_bytes(npz(BASE))
    named = source.load(of(bare, other))
    idx = tmp_path / "idx"
    idx.mkdir()
    write(idx, idx_files(BASE))
    from_idx = source.load(of(bare, idx))
    write(folder(tmp_path / "idx among", SHARDS, base=None), idx_files(BASE))
    idx_among = source.load(of(tmp_path / "idx among"))
    for found in (named, from_idx, idx_among):
        assert rows(found.x_train, found.y_train) == rows(among.x_train, among.y_train)
        assert rows(found.x_test, found.y_test) == rows(among.x_test, among.y_test)
    assert named.fingerprint == among.fingerprint  # the same files, wherever they lie
    assert idx_among.fingerprint == from_idx.fingerprint != among.fingerprint
    assert named.facts()["base"] == among.facts()["base"] | {"uri": str(other)}


def test_mnist_may_be_the_base(tmp_path: Path, mnist: Dataset) -> None:
    arrays = {"x_train": mnist.x_test[:50], "y_train": mnist.y_test[:50]}
    path = folder(tmp_path / "data", {"train-a.npz": arrays}, base=None)
    found = source.load(DataSource(parse(str(path)), EMBEDDED))
    assert [part.name for part in found.parts] == ["mnist", "train-a.npz"]
    assert len(found.x_train) == 60_050 - found.shards[0].held_out
    assert found.test_fingerprint == mnist.test_fingerprint


@pytest.mark.parametrize("there", [True, False])
def test_no_shard_yet_is_no_failure_where_the_base_is_named(tmp_path: Path, there: bool) -> None:
    path, other = tmp_path / "data", tmp_path / "other.npz"
    other.write_bytes(npz(BASE))
    if there:
        path.mkdir()
    found = source.load(of(path, other))
    assert rows(found.x_train, found.y_train) == rows(BASE["x_train"], BASE["y_train"])
    assert list(found.remarks()) == [("no_shards", {"data": str(path), "base": str(other)})]
    assert shards.look(of(path, other)).fingerprint == found.fingerprint
    (tmp_path / "base.npz").write_bytes(npz(BASE))
    alone = source.load(of(tmp_path))  # base.npz among no shards
    assert alone.fingerprint == found.fingerprint
    assert [name for name, _ in alone.remarks()] == ["no_shards", "not_a_shard"]


def test_a_folder_of_idx_files_is_what_it_was(tmp_path: Path) -> None:
    write(tmp_path, idx_files(BASE))
    before = source.load(of(tmp_path))
    write(tmp_path, {"base.npz": npz(BASE), "notes.npz": b"x"})
    after = source.load(of(tmp_path))
    assert after.fingerprint == before.fingerprint
    assert (after.parts, after.only) == ((), None)
    assert after.facts()["base"] is None
    assert after.facts()["shards"] == []


def test_bases_that_cannot_be(tmp_path: Path) -> None:
    bare = folder(tmp_path / "bare", SHARDS, base=None)
    refused(MissingInputError, lambda: source.load(of(bare)), str(bare), "--base", "test-a.npz")
    both = folder(tmp_path / "both", SHARDS)
    refused(DataError, lambda: source.load(of(both, bare)), str(both), "base.npz", f"--base {bare}")
    write(both, idx_files(BASE))
    refused(DataError, lambda: source.load(of(both)), "base.npz", "four IDX files")
    refused(MissingInputError, lambda: source.load(of(bare, bare)), str(bare), "train-images-idx3")
    one = tmp_path / "one.npz"
    one.write_bytes(npz(BASE))
    refused(UsageError, lambda: source.load(of(one, one)), "--base", str(one))
    refused(UsageError, lambda: source.load(DataSource(EMBEDDED, EMBEDDED)), "--base", "mnist")


@pytest.mark.parametrize("name", ["train-ä.npz", "train-a b.npz", f"test-{'x' * 150}.npz"])
def test_a_shard_with_a_name_that_is_no_plain_one(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path / "data", {name: TRAIN})
    refused(DataError, lambda: source.load(of(path)), "rename it", "train" if "ä" in name else name)


def test_other_names_are_ignored_but_archives_are_told(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", SHARDS)
    before = source.load(of(path)).fingerprint
    write(path, {"training-b.npz": b"x", "train.npz": b"x", "train-c.npz.part": b"x", "a.txt": b""})
    found = source.load(of(path))
    assert found.fingerprint == before
    told = [("not_a_shard", {"file": f"{path}/{name}"}) for name in ("train.npz", "training-b.npz")]
    assert list(found.remarks()) == told


# --- bad shards ---------------------------------------------------------------------------------

CONTENT = npz(TRAIN)
BAD: dict[str, tuple[bytes, list[str]]] = {
    "half-written": (CONTENT[: len(CONTENT) // 2], ["damaged"]),
    "empty": (b"", ["empty"]),
    "a whole set": (npz({"x_test": TRAIN["x_train"], "y_test": TRAIN["y_train"]}), ["x_train"]),
    "one label too few": (npz(TRAIN | {"y_train": TRAIN["y_train"][1:]}), ["60", "59"]),
    "another shape": (npz(TRAIN | {"x_train": TRAIN["x_train"][:, :8]}), ["(8, 9)", "(12, 9)"]),
    "a new class": (npz(TRAIN | {"y_train": TRAIN["y_train"] + 1}), ["is 3", "new base"]),
    "no image": (npz({"x_train": TRAIN["x_train"][:0], "y_train": TRAIN["y_train"][:0]}), ["0 im"]),
    "half a grey": (npz(TRAIN | {"x_train": TRAIN["x_train"] / 2}), ["whole numbers"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_shard_is_refused_by_name_or_left_out(tmp_path: Path, case: str) -> None:
    content, words = BAD[case]
    path = folder(tmp_path / "data", {name: SHARDS[name] for name in ("train-a.npz", "test-a.npz")})
    without = source.load(of(path))
    (path / "train-bad.npz").write_bytes(content)
    error = refused(DataError, lambda: source.load(of(path)), f"{path}/train-bad.npz", *words)
    found = source.load(of(path), skip_bad=True)
    assert found.skipped == (("train-bad.npz", str(error)),)
    assert found.facts()["skipped"] == [{"name": "train-bad.npz", "reason": str(error)}]
    assert list(found.remarks()) == [
        ("shard_skipped", {"shard": "train-bad.npz", "reason": str(error)})
    ]
    assert found.fingerprint == without.fingerprint  # of what was taken
    assert found.parts == without.parts
    assert rows(found.x_train, found.y_train) == rows(without.x_train, without.y_train)
    again = source.load(of(path, only=found.only))  # which names it no more
    assert (again.fingerprint, again.skipped) == (found.fingerprint, ())
    with_it = shards.look(of(path))  # which can't tell that it is bad
    assert {part.name for part in with_it.parts} - {p.name for p in found.parts} == {
        "train-bad.npz"
    }


def test_a_bad_test_shard_is_left_out_as_well(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", SHARDS)
    (path / "test-b.npz").write_bytes(npz(TRAIN))
    refused(DataError, lambda: source.load(of(path)), "test-b.npz", "x_test")
    assert [name for name, _ in source.load(of(path), skip_bad=True).skipped] == ["test-b.npz"]


def test_a_bad_base_is_never_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", SHARDS)
    (path / "base.npz").write_bytes(npz(BASE)[:-100])
    refused(DataError, lambda: source.load(of(path), skip_bad=True), "base.npz")


def test_too_little_memory_is_no_fault_of_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "data", SHARDS)
    inflate = arrays_module._read_at_most

    def exhausted(file: Any, limit_bytes: int) -> memoryview:
        if limit_bytes == TRAIN["x_train"].nbytes:
            raise MemoryError
        return inflate(file, limit_bytes)

    monkeypatch.setattr(arrays_module, "_read_at_most", exhausted)
    refused(DataError, lambda: source.load(of(path), skip_bad=True), "train-a.npz", "more memory")


@pytest.mark.parametrize("content", [CONTENT, zipped([])], ids=["shard", "empty archive"])
def test_a_mutated_shard_is_refused_or_unharmed(tmp_path: Path, content: bytes) -> None:
    path = folder(tmp_path / "data", SHARDS)
    expected = rows(TRAIN["x_train"], TRAIN["y_train"])

    def check(steps: Any) -> bool:
        (path / "train-a.npz").write_bytes(mutate(content, steps))
        found = source.load(of(path), skip_bad=True)
        if found.skipped:
            assert found.skipped[0][0] == "train-a.npz"
            return False
        assert sorted(rows(*found.shard("train-a.npz"))) == sorted(expected)
        return True

    if content == CONTENT:
        run_mutations(80, check)
        return

    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(mutations())
    def each(steps: Any) -> None:
        assert not check(steps)

    each()


def test_a_folder_called_like_a_shard_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", SHARDS)
    (path / "train-c.npz").mkdir()
    words = ("train-c.npz", "folder")
    refused(MissingInputError, lambda: source.load(of(path)), *words)
    refused(MissingInputError, lambda: source.load(of(path), skip_bad=True), *words)


# --- only the files that are meant --------------------------------------------------------------


def test_only_the_files_that_were_seen_are_taken(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", {name: SHARDS[name] for name in ("train-a.npz", "test-a.npz")})
    seen = shards.look(of(path))
    before = source.load(of(path))
    folder(path, SHARDS)
    (path / "train-c.npz").write_bytes(b"half")
    found = source.load(of(path, only=seen.only))
    assert found.fingerprint == before.fingerprint == seen.fingerprint
    assert rows(found.x_train, found.y_train) == rows(before.x_train, before.y_train)
    assert shards.look(of(path, only=seen.only)) == seen
    assert shards.recorded(found.facts()) == found.only == seen.only


@pytest.mark.parametrize("name", ["base.npz", "train-a.npz", "test-a.npz"])
@pytest.mark.parametrize("act", [source.load, shards.look], ids=["load", "look"])
def test_a_file_that_changed_or_is_gone_is_named(
    tmp_path: Path, name: str, act: Callable[[DataSource], object]
) -> None:
    path = folder(tmp_path / "data", SHARDS)
    meant = of(path, only=shards.look(of(path)).only)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content + b"x")
    refused(DataError, lambda: act(meant), f"{path}/{name}", "have changed")
    (path / name).unlink()
    if name == "base.npz":  # another is there now
        write(path, idx_files(BASE))
        refused(DataError, lambda: act(meant), str(path), "none of the files")
    else:
        refused(DataError, lambda: act(meant), str(path), f"lacks {name}")


def test_a_changed_shard_is_not_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", SHARDS)
    meant = of(path, only=shards.look(of(path)).only)
    (path / "train-a.npz").write_bytes(b"half")
    refused(DataError, lambda: source.load(meant, skip_bad=True), "train-a.npz", "have changed")


def test_a_set_in_one_piece_can_be_meant_as_well(tmp_path: Path) -> None:
    one = tmp_path / "one.npz"
    one.write_bytes(npz(BASE))
    idx = tmp_path / "idx"
    idx.mkdir()
    write(idx, idx_files(BASE))
    for where in (of(one), of(idx), DataSource(EMBEDDED)):
        seen = shards.look(where)
        meant = DataSource(where.place, None, seen.only)
        assert source.load(meant).fingerprint == source.load(where).fingerprint
        other = DataSource(where.place, None, ((seen.parts[0].name, "0" * 64), *seen.only[1:]))
        with pytest.raises(DataError, match="000000000000"):
            source.load(other)
    missing = DataSource(of(one).place, None, (*shards.look(of(one)).only, ("train-a.npz", "0")))
    refused(DataError, lambda: source.load(missing), "lacks train-a.npz")


@pytest.mark.parametrize(
    "record",
    [
        None,
        7,
        {},
        {"base": None, "shards": []},
        {"base": {"files": [{}]}, "shards": []},
        {"base": 1},
    ],
)
def test_a_record_of_somebody_else_names_no_files(record: object) -> None:
    assert shards.recorded(record) is None
    wrong = {"base": {"files": [{"name": 1, "sha256": "0"}]}, "shards": []}
    assert shards.recorded(wrong) is None


# --- a look -------------------------------------------------------------------------------------


def test_a_look_tells_any_change(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", SHARDS)
    seen = {shards.look(of(path)).fingerprint}

    def changes() -> Iterator[None]:
        yield folder(path, {"train-c.npz": TRAIN})  # the bytes of another one
        yield (path / "train-c.npz").rename(path / "train-d.npz")
        yield (path / "train-d.npz").write_bytes(npz(TRAIN) + b"\0")
        yield (path / "train-d.npz").write_bytes(npz(TRAIN) + b"\1")  # as long as before
        yield (path / "test-a.npz").unlink()
        yield (path / "base.npz").write_bytes(npz(small_set((12, 9), 4)))

    for number, _ in enumerate(changes(), start=2):
        seen.add(shards.look(of(path)).fingerprint)
        assert len(seen) == number


def test_a_look_inflates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "data", SHARDS)
    (path / "train-z.npz").write_bytes(b"no archive at all")
    write(tmp_path, idx_files(BASE))
    for name in ("from_npz", "from_idx"):
        monkeypatch.setattr(source, name, lambda *_: 1 / 0)
    names = [part.name for part in shards.look(of(path)).parts]
    assert names == ["base.npz", "train-a.npz", "train-b.npz", "train-z.npz", "test-a.npz"]
    assert [part.name for part in shards.look(of(path)).shards] == names[1:]
    assert [part.name for part in shards.look(of(tmp_path)).parts] == [*idx_files(BASE)]
    assert shards.look(of(tmp_path)).shards == ()
    assert shards.look(DataSource(EMBEDDED)).parts == (
        shards.Part("mnist", EMBEDDED.path.stat().st_size, files.EMBEDDED_SHA256),
    )


def test_a_look_and_a_load_show_that_they_move(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", SHARDS)
    beats: list[int] = []
    shards.look(of(path), lambda: beats.append(1))
    assert len(beats) == 4  # files
    beats.clear()
    source.load(of(path), lambda: beats.append(1))
    assert len(beats) == 3 + 2 * 3  # the base; each shard, read and taken


def test_a_folder_in_a_store_is_the_same_data_set(tmp_path: Path, place: Place) -> None:
    path = folder(tmp_path / "data", SHARDS)
    empty = DataSource(place, parse(str(path / "base.npz")))
    assert [name for name, _ in source.load(empty).remarks()] == ["no_shards"]
    for file in path.iterdir():
        storage.create(place / file.name, file.read_bytes())
    found = source.load(DataSource(place))
    assert found.fingerprint == source.load(of(path)).fingerprint
    assert shards.look(DataSource(place)).fingerprint == found.fingerprint


# --- more than memory ---------------------------------------------------------------------------


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_too_much_for_memory_lies_in_a_file_that_nobody_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "data", SHARDS)
    expected = source.load(of(path))
    aside = tmp_path / "aside"
    aside.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(aside))
    monkeypatch.setattr(files, "RESIDENT_BYTES", 40 * 12 * 9)
    found = source.load(of(path))
    assert list(aside.iterdir()) == []
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "aside" in line]
    assert len(mapped) == 1  # what is trained on; the rest is small
    assert mapped[0].endswith("(deleted)")
    assert rows(found.x_train, found.y_train) == rows(expected.x_train, expected.y_train)
    assert found.held_out.keys() == expected.held_out.keys()
    assert_valid(found)


def test_no_room_on_disk_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "data", SHARDS)
    monkeypatch.setattr(files, "RESIDENT_BYTES", 0)
    with files_no_larger_than(5000):
        refused(OutputError, lambda: source.load(of(path)), tempfile.gettempdir(), "too large")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    refused(OutputError, lambda: source.load(of(path)), "nowhere", "TMPDIR")


def test_shards_that_are_on_disk_take_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for two that are at hand: one as it was read, with its numbers, and those it has kept."""
    count, side = 4, 1024
    size = count * side * side
    generator = np.random.default_rng(2)
    base = small_set((side, side))
    for number in range(12):
        images = generator.integers(0, 256, (count, side, side), np.uint8)
        labels = np.arange(count) % 3
        np.savez(tmp_path / f"train-{number:02}.npz", x_train=images, y_train=labels)
    np.savez(tmp_path / "base.npz", **base)  # type: ignore[arg-type]
    del images
    monkeypatch.setattr(files, "RESIDENT_BYTES", size)
    tracemalloc.start()
    try:
        found = source.load(of(tmp_path))
        left, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.x_train) + sum(len(pair[0]) for pair in found.held_out.values()) == 8 + 12 * 4
    base_bytes = 2 * sum(array.nbytes for array in base.values())
    assert most < base_bytes + 4 * size
    assert left < base_bytes + 2 * size
