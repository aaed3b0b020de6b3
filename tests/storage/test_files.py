"""That files are read whole, written whole and never overwritten, and what killed writers leave."""

import ctypes
import errno
import io
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from job import storage
from job.errors import (
    ClusterError,
    ConflictError,
    DataError,
    JobError,
    MissingInputError,
    OutputError,
    UsageError,
)
from job.storage import Place, parse
from job.storage.files import _name, temporary_name


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 100], ids=["empty", "nul", "full"])
@pytest.mark.parametrize("as_uri", [str, Path.as_uri], ids=["path", "file"])
def test_reading_returns_the_whole_object(
    tmp_path: Path, data: bytes, as_uri: Callable[[Path], str]
) -> None:
    path = tmp_path / "an objéct"
    path.write_bytes(data)
    assert storage.read(parse(as_uri(path)), 100) == data


def test_the_limit_is_the_largest_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(b"x" * 101)
    assert len(storage.read(parse(str(path)), 101)) == 101
    with pytest.raises(DataError, match=r"/object has more than 0 MiB"):
        storage.read(parse(str(path)), 100)
    with path.open("wb") as file:
        file.truncate(3 * storage.MEBIBYTE)
    with pytest.raises(DataError, match="more than 2 MiB"):
        storage.read(parse(str(path)), 2 * storage.MEBIBYTE)


def test_what_does_not_exist_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("nothing", "no/folder/either", "file/below", "dangling"):
        with pytest.raises(MissingInputError, match=f"/{name}(:| does not exist)"):
            storage.read(parse(str(tmp_path / name)), 10)


def test_what_is_no_file_is_named_so(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    with listening:
        listening.bind(str(tmp_path / "socket"))
        for path, kind in [
            (tmp_path, "is a folder"),
            (tmp_path / "socket", "is a device or a pipe"),
            (Path("/dev/null"), "is a device or a pipe"),
            (Path("/dev/zero"), "is a device or a pipe"),
        ]:
            with pytest.raises(MissingInputError, match=kind):
                storage.read(parse(str(path)), 10)


@pytest.mark.parametrize("through_a_link", [False, True])
@pytest.mark.parametrize("verb", ["read", "mapped"])
def test_a_pipe_nobody_writes_to_does_not_hang_the_job(
    tmp_path: Path, verb: str, through_a_link: bool
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    uri = str(tmp_path / "link" if through_a_link else pipe)
    program = "import sys; from job import storage; place = storage.parse(sys.argv[1]); "
    program += "storage.mapped(place, 10); " if verb == "mapped" else ""
    program += "storage.read(place, 10)"
    ended = subprocess.run(
        [sys.executable, "-c", program, uri],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "MissingInputError" in ended.stderr
    assert "is a device or a pipe" in ended.stderr


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, MissingInputError),
        (errno.EPERM, MissingInputError),
        (errno.ENOENT, MissingInputError),  # removed since we looked
        (errno.EIO, OutputError),
        (errno.EMFILE, OutputError),
        (errno.ESTALE, OutputError),
    ],
)
def test_a_failure_to_open_is_reported_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[JobError]
) -> None:
    path = tmp_path / "object"
    path.write_bytes(b"x")
    monkeypatch.setattr(Path, "open", failing(number, Path.open, lambda found, *_: found == path))
    with pytest.raises(expected, match=r"/object(:| does not exist)"):
        storage.read(parse(str(path)), 10)


def test_a_failure_while_reading_is_an_error_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def fileno(self) -> int:
            return 0

        def read(self, _: int) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "object"
    path.write_bytes(b"x")
    monkeypatch.setattr(Path, "open", lambda *_: Failing())
    with pytest.raises(OutputError, match="input/output error"):
        storage.read(parse(str(path)), 10)


VERBS: dict[str, Callable[[Place], object]] = {
    "read": lambda place: storage.read(place, 10),
    "exists": storage.exists,
    "is_folder": storage.is_folder,
    "names": storage.names,
    "folders": storage.folders,
    "written": storage.written,
    "create": lambda place: storage.create(place, b"x"),
    "remove": storage.remove,
    "remove_folder": storage.remove_folder,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "name", ["x" * 300, "x/" * 3000 + "x", "loop/x"], ids=["name", "path", "loop"]
)
def test_a_path_that_no_file_can_have_is_a_mistake_of_its_user(
    tmp_path: Path, verb: str, name: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=r"too long|too many levels") as caught:
        VERBS[verb](parse(str(tmp_path / name)))
    assert len(str(caught.value)) < 300  # nobody needs all of it
    assert left_in(tmp_path) == ["loop"]


def test_a_link_to_itself_is_one_as_well(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for verb in ("read", "is_folder", "names", "folders", "written"):
        with pytest.raises(UsageError, match="/loop: too many levels"):
            VERBS[verb](parse(str(tmp_path / "loop")))


def break_folder(patch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """Let every call for what lies in `folder` fail with the error `number`."""

    def below(path: object, *_: object, **__: object) -> bool:
        return str(path).startswith(f"{folder}/")

    for name in ("stat", "lstat", "open", "listdir", "scandir", "unlink", "mkdir", "link"):
        patch.setattr(os, name, failing(number, getattr(os, name), below))
    patch.setattr(io, "open", failing(number, io.open, below))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN]
)
def test_a_device_that_fails_is_no_missing_input_whatever_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, number: int
) -> None:
    """Worth another try, which exit 66 would rule out."""
    path = tmp_path / "an object"
    path.write_bytes(b"x")
    break_folder(monkeypatch, tmp_path, number)
    assert storage.mapped(parse(str(path)), 0) is None  # `read` comes next
    with pytest.raises(OutputError, match=f"/an object: {os.strerror(number).lower()}; check"):
        VERBS[verb](parse(str(path)))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("read", MissingInputError),
        ("exists", MissingInputError),
        ("names", OutputError),
        ("folders", OutputError),
        ("written", OutputError),
        ("remove_folder", OutputError),
        ("create", OutputError),
        ("remove", OutputError),
    ],
)
def test_what_may_not_be_used_is_said_with_its_cause(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    number: int,
    expected: type[JobError],
) -> None:
    break_folder(monkeypatch, tmp_path, number)
    with pytest.raises(expected, match=r"/an object: .*permi") as caught:
        VERBS[verb](parse(str(tmp_path / "an object")))
    assert isinstance(caught.value.__cause__, PermissionError)  # which others look at


def peak_bytes(path: Path, limit_bytes: int) -> int:
    """Return how much memory reading takes at most."""
    place = parse(str(path))
    storage.read(place, limit_bytes)  # what it imports is there now
    tracemalloc.start()
    try:
        storage.read(place, limit_bytes)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_takes_the_memory_of_the_file_once_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 1000)
    assert peak_bytes(tmp_path / "small", 256 * storage.MEBIBYTE) < storage.MEBIBYTE
    (tmp_path / "large").write_bytes(bytes(8 * storage.MEBIBYTE))
    assert peak_bytes(tmp_path / "large", 256 * storage.MEBIBYTE) < 9 * storage.MEBIBYTE


def test_no_more_than_the_limit_is_read_of_a_file_that_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**12)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 1 MiB"):
            storage.read(parse(str(tmp_path / "sparse")), storage.MEBIBYTE)
        assert tracemalloc.get_traced_memory()[1] < 2 * storage.MEBIBYTE
    finally:
        tracemalloc.stop()


def test_only_a_file_above_a_size_is_mapped(tmp_path: Path) -> None:
    place = parse(str(tmp_path / "object"))
    (tmp_path / "object").write_bytes(b"x" * 100)
    mapped = storage.mapped(place, 99)
    assert mapped is not None
    with mapped:
        assert mapped[:] == b"x" * 100
    assert storage.mapped(place, 100) is None
    assert storage.mapped(parse(str(tmp_path)), 0) is None
    assert storage.mapped(parse(str(tmp_path / "nothing")), 0) is None


def test_a_link_to_nothing_is_there(tmp_path: Path) -> None:
    """It is in the way of who writes."""
    (tmp_path / "dangling").symlink_to("nowhere")
    assert storage.exists(parse(str(tmp_path / "dangling")))
    assert not storage.exists(parse(str(tmp_path / "nowhere")))
    assert not storage.exists(parse(str(tmp_path / "nowhere/below")))


def test_names_are_sorted_and_without_temporary_files(tmp_path: Path) -> None:
    for name in ("b", "ä", "c", "a", temporary_name(), ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "d").mkdir()
    assert storage.names(parse(str(tmp_path))) == [".hidden", "a", "b", "c", "d", "ä"]
    assert storage.names(parse(str(tmp_path / "nothing"))) == []
    with pytest.raises(OutputError, match=r"cannot list .*/a: not a directory"):
        storage.names(parse(str(tmp_path / "a")))


def test_removing_is_done_also_if_it_was_done(tmp_path: Path) -> None:
    (tmp_path / "object").touch()
    for _ in range(2):
        storage.remove(parse(str(tmp_path / "object")))
    assert left_in(tmp_path) == []


def test_a_link_to_a_folder_is_none_of_the_folders(tmp_path: Path) -> None:
    """What is removed through it would be missing elsewhere."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert storage.folders(parse(str(tmp_path))) == ["folder"]
    assert storage.folders(parse(str(tmp_path / "nothing"))) == []
    with pytest.raises(OutputError, match=r"cannot list .*/file: not a directory"):
        storage.folders(parse(str(tmp_path / "file")))


def test_a_folder_goes_with_what_killed_writers_left_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / temporary_name()).touch()
    (folder / "object").touch()
    storage.remove_folder(parse(str(folder)))
    assert len(left_in(folder)) == 2  # a writer may still be there
    (folder / "object").unlink()
    for _ in range(2):
        storage.remove_folder(parse(str(folder)))
    assert left_in(tmp_path) == []
    storage.create(parse(str(folder / "object")), b"x")
    storage.remove(parse(str(folder / "object")))
    storage.remove_folder(parse(str(folder)))
    storage.create(parse(str(folder / "object")), b"it was taken away on purpose")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot remove .*/file: not a directory"):
        storage.remove_folder(parse(str(tmp_path / "file")))


def test_is_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "to folder").symlink_to(tmp_path)
    assert storage.is_folder(parse(str(tmp_path)))
    assert storage.is_folder(parse(tmp_path.as_uri()))
    assert storage.is_folder(parse((tmp_path / "to folder").as_uri()))
    assert not storage.is_folder(parse(str(tmp_path / "file")))
    assert not storage.is_folder(parse(str(tmp_path / "file" / "below")))
    assert not storage.is_folder(parse(str(tmp_path / "nothing")))


def test_what_cannot_be_looked_at_is_no_folder_and_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`read` says afterwards what is the matter with it; here it must only not be a traceback."""
    monkeypatch.setattr(os, "stat", failing(errno.EACCES, os.stat, lambda *_, **__: True))
    monkeypatch.setattr(Path, "stat", failing(errno.EACCES, Path.stat, lambda *_, **__: True))
    assert not storage.is_folder(parse(str(tmp_path)))


# --- create ---------------------------------------------------------------------------------


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"", b"content", bytes(3_000_000)], ids=["empty", "few", "many"])
@pytest.mark.parametrize("as_uri", [str, Path.as_uri], ids=["path", "file"])
def test_creating_writes_the_object_and_nothing_else(
    tmp_path: Path, data: bytes, as_uri: Callable[[Path], str]
) -> None:
    path = tmp_path / "new" / "folders" / "objéct 1"
    storage.create(parse(as_uri(path)), data)
    assert path.read_bytes() == data
    assert left_in(path.parent) == ["objéct 1"]
    assert storage.read(parse(as_uri(path)), len(data)) == data


def test_a_relative_path_lies_below_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage.create(parse("object"), b"1")
    storage.create(parse("runs/r1/object"), b"2")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    storage.create(parse("runs/r1/object"), b"3")
    assert (tmp_path / "object").read_bytes() == b"1"
    assert (tmp_path / "runs/r1/object").read_bytes() == b"2"
    assert (tmp_path / "elsewhere/runs/r1/object").read_bytes() == b"3"


def test_a_folder_that_a_twin_makes_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def made_by_both(*arguments: Any) -> None:
        make(*arguments)
        make(*arguments)

    monkeypatch.setattr(os, "mkdir", made_by_both)
    storage.create(parse(str(tmp_path / "new/folders/object")), b"content")
    assert (tmp_path / "new/folders/object").read_bytes() == b"content"


def test_the_same_bytes_again_are_a_success(tmp_path: Path) -> None:
    path = tmp_path / "object"
    storage.create(parse(str(path)), b"content")
    before = path.stat()
    storage.create(parse(str(path)), b"content")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert left_in(tmp_path) == ["object"]


@pytest.mark.parametrize(
    "other", [b"", b"conten", b"content and more", b"CONTENT"], ids=["no", "less", "more", "other"]
)
def test_other_bytes_are_a_conflict_and_nothing_is_overwritten(
    tmp_path: Path, other: bytes
) -> None:
    path = tmp_path / "object"
    storage.create(parse(str(path)), b"content")
    with pytest.raises(ConflictError, match="/object already exists"):
        storage.create(parse(str(path)), other)
    assert path.read_bytes() == b"content"
    assert left_in(tmp_path) == ["object"]


def test_what_is_there_is_not_read_if_its_size_tells(tmp_path: Path) -> None:
    with (tmp_path / "object").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ConflictError):
        storage.create(parse(str(tmp_path / "object")), b"content")


@pytest.mark.parametrize("below", ["object", "deeper/object", "and/deeper/object"])
def test_a_file_where_a_folder_should_be_is_in_the_way(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    told = f"cannot write {tmp_path}/file/{below}: {tmp_path}/file is in the way and is no folder"
    with pytest.raises(OutputError, match=told):
        storage.create(parse(str(tmp_path / "file" / below)), b"content")
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert left_in(tmp_path) == ["file"]


@pytest.mark.parametrize("in_the_way", ["folder", "full folder", "pipe", "dangling link"])
def test_what_is_no_file_is_in_the_way_and_named(tmp_path: Path, in_the_way: str) -> None:
    path = tmp_path / "object"
    if "folder" in in_the_way:
        path.mkdir()
    if in_the_way == "full folder":
        (path / "file").touch()
    if in_the_way == "pipe":
        os.mkfifo(path)
    if in_the_way == "dangling link":
        path.symlink_to("nowhere")
    with pytest.raises(OutputError, match="in the way") as caught:
        storage.create(parse(str(path)), b"content")
    assert left_in(tmp_path) == ["object"]
    assert f"{path} is in the way" in str(caught.value)
    assert ".tmp" not in str(caught.value)  # which is gone already


@pytest.mark.parametrize("uri", [".", "/", "./", "file:///"])
def test_a_folder_without_a_name_is_no_place_for_an_object(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError):
        storage.create(parse(uri), b"content")
    assert left_in(tmp_path) == []


def test_the_longest_name_the_disk_takes_is_not_too_long(tmp_path: Path) -> None:
    name = "n" * os.pathconf(tmp_path, "PC_NAME_MAX")
    storage.create(parse(str(tmp_path / name)), b"content")
    assert (tmp_path / name).read_bytes() == b"content"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="lists what is open on Linux only")
def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(10):
        storage.create(parse(str(tmp_path / f"{number}/object")), b"content")
        storage.read(parse(str(tmp_path / f"{number}/object")), 10)
        storage.folders(parse(str(tmp_path)))
        storage.names(parse(str(tmp_path)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def failing(
    number: int, original: Callable[..., Any], when: Callable[..., bool]
) -> Callable[..., Any]:
    """Return `original`, but for calls with arguments that `when` picks, which fail."""

    def wrapper(*arguments: Any, **more: Any) -> Any:
        if when(*arguments, **more):
            raise OSError(number, os.strerror(number), str(arguments[0]))
        return original(*arguments, **more)

    return wrapper


def full_disk(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `open`, but what it opens for writing takes only half of what it is given."""

    def wrapper(path: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        file = original(path, mode, *arguments, **more)
        if "x" not in mode and "w" not in mode:
            return file

        class Full:
            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> int:
                file.write(data[: len(data) // 2])
                file.flush()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    return wrapper


FAILURES = {
    "folder refused": (Path, "mkdir", errno.EACCES),
    "folder read-only": (Path, "mkdir", errno.EROFS),
    "file refused": (Path, "open", errno.EACCES),
    "file read-only": (Path, "open", errno.EROFS),
    "no descriptors": (Path, "open", errno.EMFILE),
    "no room": (Path, "open", errno.ENOSPC),
    "no room for the rest": (Path, "open", None),
    "quota": (os, "fsync", errno.EDQUOT),
    "no room when flushed": (os, "fsync", errno.ENOSPC),
    "device": (os, "fsync", errno.EIO),
    "link without room": (os, "link", errno.ENOSPC),
    "link read-only": (os, "link", errno.EROFS),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_write_leaves_nothing_and_can_be_repeated(tmp_path: Path, failure: str) -> None:
    owner, name, number = FAILURES[failure]
    path = tmp_path / "new" / "object"
    original = getattr(owner, name)
    with pytest.MonkeyPatch.context() as patch:
        broken = failing(number, original, lambda *_, **__: True) if number else full_disk(original)
        patch.setattr(owner, name, broken)
        with pytest.raises(OutputError) as caught:
            storage.create(parse(str(path)), b"content")
    assert str(caught.value).startswith(f"cannot write {path}: ")
    assert os.strerror(number or errno.ENOSPC).lower() in str(caught.value)
    assert [left for left in tmp_path.rglob("*") if not left.is_dir()] == []
    storage.create(parse(str(path)), b"content")
    assert path.read_bytes() == b"content"


def test_a_name_that_may_not_last_is_reported_and_can_be_repeated(tmp_path: Path) -> None:
    """The object is there, but its folder was not flushed: no success yet, and no conflict."""
    path = tmp_path / "object"
    calls: list[int] = []

    def second_fails(descriptor: int) -> bool:
        calls.append(descriptor)
        return len(calls) == 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.EIO, os.fsync, second_fails))
        with pytest.raises(OutputError, match="input/output error"):
            storage.create(parse(str(path)), b"content")
    assert left_in(tmp_path) == ["object"]
    storage.create(parse(str(path)), b"content")
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOENT])
def test_an_object_that_cannot_be_compared_is_neither_success_nor_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "object"
    storage.create(parse(str(path)), b"content")
    with monkeypatch.context() as patch:
        patch.setattr(
            Path,
            "open",
            failing(number, Path.open, lambda _, mode="r", **__: "x" not in mode),
        )
        patch.setattr(Path, "read_bytes", failing(number, Path.read_bytes, lambda *_: True))
        with pytest.raises(OutputError, match="/object"):
            storage.create(parse(str(path)), b"content")
    assert path.read_bytes() == b"content"
    assert left_in(tmp_path) == ["object"]


class Recorder:
    """Notes what is flushed and linked, in order; files are told apart by device and inode."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.flushed_bytes: dict[int, int] = {}
        fsync, link = os.fsync, os.link

        def noting_fsync(descriptor: int) -> None:
            self.flushed_bytes[len(self.calls)] = os.fstat(descriptor).st_size
            self.calls.append(("fsync", *self._identity(os.fstat(descriptor))))
            fsync(descriptor)

        def noting_link(source: Path, target: Path) -> None:
            self.calls.append(("link", *self._identity(Path(source).stat())))
            link(source, target)

        patch.setattr(os, "fsync", noting_fsync)
        patch.setattr(os, "link", noting_link)

    @staticmethod
    def _identity(status: os.stat_result) -> tuple[int, int]:
        return status.st_dev, status.st_ino

    def when(self, call: str, path: Path) -> list[int]:
        wanted = (call, *self._identity(path.stat()))
        return [index for index, found in enumerate(self.calls) if found == wanted]


def test_content_is_on_disk_before_the_name_and_the_name_before_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    path = tmp_path / "object"
    storage.create(parse(str(path)), b"content")
    [flushed], [linked] = recorder.when("fsync", path), recorder.when("link", path)
    assert flushed < linked < recorder.when("fsync", tmp_path)[-1]
    assert recorder.flushed_bytes[flushed] == len(b"content")  # none of it in Python's buffer


def test_finding_the_same_bytes_flushes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer before may have been killed between naming the object and flushing the name."""
    path = tmp_path / "object"
    path.write_bytes(b"content")
    recorder = Recorder(monkeypatch)
    storage.create(parse(str(path)), b"content")
    assert recorder.when("fsync", tmp_path)


def test_the_names_of_new_folders_are_on_disk_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    storage.create(parse(str(tmp_path / "out" / "r1" / "attempts" / "object")), b"content")
    for holder in (tmp_path, tmp_path / "out", tmp_path / "out/r1", tmp_path / "out/r1/attempts"):
        assert recorder.when("fsync", holder), f"{holder} was not flushed"


# --- file systems without hard links --------------------------------------------------------

needs_renameat2 = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "renameat2"), reason="FILES WITHOUT LINKS ARE NOT TESTED: Linux"
)


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let no file be linked, as vfat, SMB and some FUSE do; return what was to be."""
    asked: list[Path] = []

    def link(source: Path, target: Path) -> None:
        del source
        asked.append(target)
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", link)
    return asked


@needs_renameat2
def test_where_nothing_can_be_linked_nothing_is_overwritten_either(
    tmp_path: Path, no_links: list[Path]
) -> None:
    path = tmp_path / "new" / "objéct"
    storage.create(parse(str(path)), b"content")
    storage.create(parse(str(path)), b"content")
    with pytest.raises(ConflictError, match="/objéct already exists"):
        storage.create(parse(str(path)), b"CONTENT")
    (tmp_path / "new" / "empty").mkdir()
    with pytest.raises(OutputError, match="/empty is in the way"):
        storage.create(parse(str(tmp_path / "new" / "empty")), b"content")
    assert path.read_bytes() == b"content"
    assert left_in(path.parent) == ["empty", "objéct"]
    assert len(no_links) == 4


def fail_renames(patch: pytest.MonkeyPatch, number: int | None) -> None:
    """Let the C library's renameat2 fail with the error `number`, or be unknown."""

    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            if number is not None:
                self.renameat2 = lambda *_: ctypes.set_errno(number) or -1

    patch.setattr(ctypes, "CDLL", Library)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, None])
def test_a_file_system_that_would_overwrite_is_refused_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_links: list[Path], number: int | None
) -> None:
    fail_renames(monkeypatch, number)
    path = tmp_path / "object"
    with pytest.raises(ClusterError, match="/object: its file system has neither hard links nor"):
        storage.create(parse(str(path)), b"content")
    assert no_links == [path]
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/gcs/bucket/runs/r/metrics.json", "gs://bucket in the place of"),
        ("/gcs/bucket", "choose an --output on another"),
        ("/mnt/gcs/bucket/runs", "choose an --output on another"),
        ("/x", "choose an --output on another"),
    ],
)
def test_of_a_mounted_bucket_the_uri_is_told(
    path: str, told: str, monkeypatch: pytest.MonkeyPatch, no_links: list[Path]
) -> None:
    """As Vertex AI mounts them; a link and such a rename fail there."""
    fail_renames(monkeypatch, errno.EINVAL)
    with pytest.raises(ClusterError, match=told):
        _name(Path("temporary"), Path(path))
    assert no_links == [Path(path)]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.usefixtures("no_links")
def test_a_rename_that_fails_may_succeed_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "object"
    with monkeypatch.context() as patch:
        fail_renames(patch, number)
        with pytest.raises(OutputError, match=f"/object: {os.strerror(number).lower()}; "):
            storage.create(parse(str(path)), b"content")
    assert left_in(tmp_path) == []


@pytest.mark.slow
def test_a_real_vfat_takes_objects_and_lets_one_writer_win(tmp_path: Path) -> None:
    image, folder = tmp_path / "image", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(16 * storage.MEBIBYTE)
    folder.mkdir()
    for command in (["mkfs.vfat", image], ["mount", "-t", "vfat", "-o", "loop", image, folder]):
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", b"").decode()
            pytest.skip(f"NO REAL VFAT IS TESTED: root, its tools and its kernel: {error} {told}")
    try:
        (folder / "file").touch()
        with pytest.raises(PermissionError):
            (folder / "link").hardlink_to(folder / "file")
        (folder / "file").unlink()
        test_of_racing_writers_exactly_one_wins(folder, "")
        storage.create(parse(str(folder / "a/b")), b"content")
        storage.create(parse(str(folder / "a/b")), b"content")
        assert left_in(folder / "a") == ["b"]
    finally:
        subprocess.run(["umount", folder], check=True)


# --- volumes that go away -------------------------------------------------------------------


def test_a_folder_that_was_written_in_is_not_made_anew(tmp_path: Path) -> None:
    storage.create(parse(str(tmp_path / "out/r1/checkpoints/1")), b"1")
    (tmp_path / "out").rename(tmp_path / "moved")
    for later in ("out/r1/checkpoints/2", "out/r1/metrics.json", "out/r2/x", "out/x"):
        with pytest.raises(OutputError, match=r"/out(/r1(/checkpoints)?)? is gone or another file"):
            storage.create(parse(str(tmp_path / later)), b"2")
    assert left_in(tmp_path) == ["moved"]
    storage.create(parse(str(tmp_path / "elsewhere/x")), b"2")
    (tmp_path / "moved").rename(tmp_path / "out")
    storage.create(parse(str(tmp_path / "out/r1/checkpoints/2")), b"2")


def test_a_folder_that_another_thread_makes_meanwhile_is_not_called_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That thread writes between the look for the folder and what is made of its absence."""
    folder, stat, twins = tmp_path / "new", Path.stat, []

    def absent(path: Path, **more: Any) -> os.stat_result:
        try:
            return stat(path, **more)
        except FileNotFoundError:
            if path == folder and not twins:
                twins.append(path)
                storage.create(parse(str(folder / "theirs")), b"1")
            raise

    monkeypatch.setattr(Path, "stat", absent)
    storage.create(parse(str(folder / "mine")), b"2")
    assert twins
    assert sorted(storage.names(parse(str(folder)))) == ["mine", "theirs"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_another_device_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Devices have other numbers from then on, which a test without mounts can't do for real."""
    changed: list[bool] = []
    stat, link = Path.stat, os.link

    def changing(path: Path, **more: Any) -> os.stat_result:
        found = stat(path, **more)
        return os.stat_result((*found[:2], found.st_dev + len(changed), *found[3:]))

    def linking(source: Path, target: Path) -> None:
        link(source, target)
        changed.append(True)

    storage.create(parse(str(tmp_path / "1")), b"1")
    monkeypatch.setattr(Path, "stat", changing)
    if when == "before":
        changed.append(True)
    else:
        monkeypatch.setattr(os, "link", linking)
    with pytest.raises(OutputError, match=f"{tmp_path} is gone or another file system lies there"):
        storage.create(parse(str(tmp_path / "2")), b"2")
    assert left_in(tmp_path) == (["1"] if when == "before" else ["1", "2"])


UNMOUNTED = """
import subprocess, sys
from job import storage
from job.errors import OutputError
first, later, change, folder, volume = sys.argv[1:]

def run(*command):
    subprocess.run(command, check=True)

def create(name, content):
    storage.create(storage.parse(f"{folder}/{name}"), content)

run("mount", "-t", "tmpfs", "none", volume)
run("mount", "--bind", volume, folder)
create(first, b"1")
if change == "unmounted":
    run("umount", "--lazy", folder)
else:
    run("mount", "-t", "tmpfs", "none", folder)
try:
    create(later, b"2")
except OutputError as error:
    print(error)
run("mount", "--bind", volume, folder)
create(later, b"3")
create(first, b"1")
"""


@pytest.mark.parametrize("change", ["unmounted", "mounted over"])
@pytest.mark.parametrize(
    ("first", "later"), [("a", "b"), ("r1/checkpoints/1", "r1/checkpoints/2"), ("r1/a/1", "r2/b/2")]
)
def test_a_volume_that_went_away_hides_no_files_below_its_mount_point(
    tmp_path: Path, change: str, first: str, later: str
) -> None:
    folder, volume = tmp_path / "mounted", tmp_path / "volume"
    folder.mkdir()
    volume.mkdir()
    alone = ["unshare", "--mount", "--propagation", "private"]
    alone += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    try:
        trial = [*alone, "mount", "-t", "tmpfs", "none", str(folder)]
        subprocess.run(trial, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"VOLUMES THAT GO AWAY ARE NOT TESTED: no namespace to mount in: {error}")
    program = [sys.executable, "-c", UNMOUNTED, first, later, change, str(folder), str(volume)]
    ended = subprocess.run([*alone, *program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "is gone or another file system lies there now; mount again" in ended.stdout
    assert left_in(folder) == []


# --- several processes ----------------------------------------------------------------------

NO_LINKS = "import errno, os; os.link = lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, ''))"

RACER = """
import sys
from job.errors import ConflictError
from job import storage
content = sys.argv[1].encode() * 100_000
print("ready", flush=True)
for line in sys.stdin:
    try:
        storage.create(storage.parse(line.strip()), content)
    except ConflictError:
        print("conflict", flush=True)
    else:
        print("success", flush=True)
"""


def race(folder: Path, contents: str, rounds: int, before: str = "") -> list[list[str]]:
    """Let one process for each of `contents` create the same objects; return what they say."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", before + RACER, content],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for content in contents
    ]
    try:
        assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * len(
            contents
        )
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


@pytest.mark.parametrize("before", ["", NO_LINKS], ids=["links", "no links"])
def test_of_racing_writers_exactly_one_wins(tmp_path: Path, before: str) -> None:
    contents = "abcdefgh"
    for number, said in enumerate(race(tmp_path, contents, rounds=6, before=before)):
        assert sorted(said) == ["conflict"] * 7 + ["success"]
        winner = contents[said.index("success")]
        assert (tmp_path / str(number)).read_bytes() == winner.encode() * 100_000
    assert left_in(tmp_path) == ["0", "1", "2", "3", "4", "5"]


def test_racing_twins_all_succeed(tmp_path: Path) -> None:
    assert race(tmp_path, "aaaa", rounds=4) == [["success"] * 4] * 4
    assert left_in(tmp_path) == ["0", "1", "2", "3"]


WRITERS_KILLED = """
import os, random, signal, sys, time
from job import storage

chance = random.Random(20261122)
for folder in sys.argv[1:]:
    reading, writing = os.pipe()
    writer = os.fork()
    if not writer:
        for number in range(256):
            storage.create(storage.parse(f"{folder}/{number}"), b"%d " % number * 20_000)
            os.write(writing, bytes([number]))
        os._exit(0)
    os.close(writing)
    promised = b""
    # Some objects, then a part of one: the kill falls anywhere in between.
    for _ in range(chance.randrange(1, 4)):
        promised += os.read(reading, 1)
    time.sleep(chance.uniform(0, 0.01))
    os.kill(writer, signal.SIGKILL)
    while more := os.read(reading, 256):
        promised += more
    os.close(reading)
    assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGKILL
    with open(f"{folder}.promised", "wb") as file:
        file.write(promised)
"""


def test_a_killed_writer_leaves_whole_objects_or_none(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(24)]
    program = [sys.executable, "-c", WRITERS_KILLED, *map(str, folders)]
    subprocess.run(program, timeout=120, check=True)
    for folder in folders:
        names = [name for name in left_in(folder) if not name.startswith(".")]
        assert names
        for number in folder.with_suffix(".promised").read_bytes():
            assert str(number) in names, f"{folder / str(number)} was promised"
        for name in names:
            content = b"%d " % int(name) * 20_000
            assert (folder / name).read_bytes() == content, f"{folder / name} is torn"
            storage.create(
                parse(str(folder / name)), content
            )  # whoever comes next finds its own bytes
        unfinished = [name for name in left_in(folder) if name.startswith(".")]
        assert len(unfinished) <= 1  # the temporary file of the object it was at
        storage.create(parse(str(folder / str(len(names)))), b"%d " % len(names) * 20_000)
