"""What every kind of storage promises, said once and asked of each: files, S3, Google's store."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from job import storage
from job.errors import ConflictError, DataError, JobError, MissingInputError
from job.storage import Place, objects, parse

KINDS = ["path", "file", "s3", "gs"]
CONTENTS = {
    "empty": b"",
    "few": b"content",
    "every byte": bytes(range(256)) * 5,
    "like a message": b"\r\n--boundary\r\n\r\n{}\r\n0\r\n\r\n",
    "like gcsfs's own": b"before\n--==0==--\nafter\r\n--==0==\r\nafter",
    "many": b"0123456789abcdef" * 100_000,
}


@pytest.fixture(params=KINDS)
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Return an empty place of each kind."""
    if request.param in {"path", "file"}:
        folder = tmp_path / "an output"
        return parse(str(folder) if request.param == "path" else folder.as_uri())
    server = request.getfixturevalue("stores")[request.param]
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return parse(f"{server.root}/{tmp_path.name}/{id(tmp_path)}")


@pytest.mark.parametrize("content", CONTENTS.values(), ids=list(CONTENTS))
def test_what_was_created_can_be_read(root: Place, content: bytes) -> None:
    storage.create(root / "a/b.bin", content)
    assert storage.read(root / "a/b.bin", len(content)) == content
    assert storage.exists(root / "a/b.bin")


@pytest.mark.parametrize("content", CONTENTS.values(), ids=list(CONTENTS))
def test_the_same_bytes_again_are_a_success(root: Place, content: bytes) -> None:
    for _ in range(3):
        storage.create(root / "object", content)
    assert storage.read(root / "object", len(content)) == content


@pytest.mark.parametrize(
    "other", [b"", b"conten", b"content and more", b"CONTENT"], ids=["no", "less", "more", "other"]
)
@pytest.mark.parametrize("begun", [False, True])
def test_other_bytes_are_a_conflict_and_nothing_is_overwritten(
    root: Place, other: bytes, begun: bool
) -> None:
    storage.create(root / "object", b"content")
    if begun:  # as another process finds it
        storage.configure(storage.Settings())
    with pytest.raises(ConflictError, match="/object already exists"):
        storage.create(root / "object", other)
    assert storage.read(root / "object", 100) == b"content"


def test_an_empty_object_is_not_overwritten(root: Place) -> None:
    storage.create(root / "object", b"")
    with pytest.raises(ConflictError):
        storage.create(root / "object", b"content")
    assert storage.read(root / "object", 100) == b""


def test_what_does_not_exist_is_missing(root: Place) -> None:
    assert not storage.exists(root / "nothing")
    assert not storage.is_folder(root)
    assert storage.names(root) == []
    assert storage.folders(root) == []
    with pytest.raises(MissingInputError, match="/nothing does not exist"):
        storage.read(root / "nothing", 10)
    storage.remove(root / "nothing")
    storage.remove_folder(root / "nothing")


def test_the_limit_is_the_largest_that_is_read(root: Place) -> None:
    storage.create(root / "object", b"x" * 101)
    assert len(storage.read(root / "object", 101)) == 101
    with pytest.raises(DataError, match="/object has more than 0 MiB"):
        storage.read(root / "object", 100)


def test_names_are_those_directly_below_and_sorted(root: Place) -> None:
    for path in ("b", "a", "c/deep/er", "c/x", "ä 1", "b-longer"):
        storage.create(root / f"{path}", b"x")
    assert storage.names(root) == ["a", "b", "b-longer", "c", "ä 1"]
    assert storage.names(root / "c") == ["deep", "x"]
    assert storage.names(parse(f"{root}/c/")) == ["deep", "x"]
    assert storage.names(root / "nothing") == []


def test_folders_are_told_from_objects(root: Place) -> None:
    storage.create(root / "folder/object", b"x")
    storage.create(root / "folder-object", b"x")
    assert storage.is_folder(root)
    assert storage.is_folder(root / "folder")
    assert not storage.is_folder(root / "folder/object")
    assert not storage.is_folder(root / "fold")


def test_the_folders_in_a_folder_are_listed_without_its_objects(root: Place) -> None:
    for path in ("b", "a/x", "c/deep/er", "c/x", "ä 1/y", "b-longer/z"):
        storage.create(root / path, b"x")
    assert storage.folders(root) == ["a", "b-longer", "c", "ä 1"]
    assert storage.folders(root / "c") == ["deep"]
    assert storage.folders(parse(f"{root}/c/")) == ["deep"]
    assert storage.folders(root / "a") == []
    assert storage.folders(root / "nothing") == []


def test_when_objects_were_written_is_told_of_those_directly_below(root: Place) -> None:
    moment = timedelta(seconds=2)  # some tell whole seconds
    before = datetime.now(UTC) - moment
    for path in ("b", "a", "c/x"):
        storage.create(root / path, b"x")
    written = storage.written(root)
    assert sorted(written) == ["a", "b"]
    for time in written.values():
        assert time is not None
        assert before <= time <= datetime.now(UTC) + moment
    assert storage.written(root / "nothing") == {}


def test_a_folder_goes_with_its_last_object_and_not_before(root: Place) -> None:
    storage.create(root / "beside/object", b"x")
    storage.create(root / "folder/object", b"x")
    storage.remove_folder(root / "folder")
    assert storage.read(root / "folder/object", 10) == b"x"
    storage.remove(root / "folder/object")
    storage.remove_folder(root / "folder")
    storage.remove_folder(root / "folder")
    assert storage.names(root / "folder") == []
    if root.kind != "s3":  # SeaweedFS shows an empty one for a while
        assert storage.folders(root) == storage.names(root) == ["beside"]
    storage.create(root / "folder/object", b"anew")
    assert storage.names(root / "folder") == ["object"]


def test_what_is_removed_is_gone_and_may_be_created_anew(root: Place) -> None:
    storage.create(root / "object", b"one")
    storage.remove(root / "object")
    storage.remove(root / "object")
    assert not storage.exists(root / "object")
    storage.create(root / "object", b"two")
    assert storage.read(root / "object", 10) == b"two"


def test_long_listings_come_whole(root: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_PAGE", 3)
    for number in range(10):
        storage.create(root / f"{number}", b"x")
    assert storage.names(root) == [str(number) for number in range(10)]
    for number in range(10):
        storage.create(root / f"below/{number}/x", b"x")
    assert storage.folders(root / "below") == [str(number) for number in range(10)]
    assert storage.folders(root) == ["below"]


@pytest.mark.parametrize("size", [12, 13, 31, 32, 33, 1000])
def test_large_objects_come_whole_in_pieces(
    root: Place, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(objects, "FIRST_BYTES", 12)
    monkeypatch.setattr(objects, "PIECE_BYTES", 20)
    content = bytes(number % 251 for number in range(size))
    storage.create(root / "object", content)
    assert storage.read(root / "object", 2000) == content
    storage.create(root / "object", content)
    with pytest.raises(ConflictError):
        storage.create(root / "object", content[:-1] + b"!")
    with pytest.raises(DataError):
        storage.read(root / "object", size - 1)


RACER = """
import sys
from job import storage
from job.errors import ConflictError
content = sys.argv[1].encode() * 10_000
print("ready", flush=True)
for line in sys.stdin:
    try:
        storage.create(storage.parse(line.strip()), content)
    except ConflictError:
        print("conflict", flush=True)
    else:
        print("success", flush=True)
"""


def race(folder: Place, contents: str, rounds: int) -> list[list[str]]:
    """Let one process for each of `contents` create the same objects; return what they say."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, content],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for content in contents
    ]
    try:
        for racer in racers:
            assert racer.stdout
            assert racer.stdout.readline() == "ready\n"
        said = []
        for number in range(rounds):
            for racer in racers:
                assert racer.stdin
                racer.stdin.write(f"{folder}/{number}\n")
            said.append([racer.stdout.readline().strip() for racer in racers if racer.stdout])
        return said
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_of_racing_writers_exactly_one_wins_and_twins_all_succeed(root: Place) -> None:
    contents = "abca"
    for number, said in enumerate(race(root, contents, rounds=8)):
        winner = storage.read(root / f"{number}", 100_000)[:1].decode()
        wanted = ["success" if content == winner else "conflict" for content in contents]
        assert said == wanted


@pytest.mark.parametrize(
    "verb", ["read", "exists", "names", "folders", "written", "is_folder", "create", "remove"]
)
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_every_verb_ends_in_bytes_or_an_error_of_the_job(
    scheme: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens, and the job says so."""
    monkeypatch.setattr("job.storage.retrying.FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9")
    more: dict[str, Callable[[], tuple[object, ...]]] = {
        "read": lambda: (10,),
        "create": lambda: (b"x",),
    }
    with pytest.raises(JobError) as caught:
        getattr(storage, verb)(parse(f"{scheme}://bucket/key"), *more.get(verb, tuple)())
    assert caught.value.exit_code == 75
    assert f"{scheme}://bucket/key" in str(caught.value)
