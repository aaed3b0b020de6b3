"""What killed writers leave, and who may remove it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from job import storage
from job.storage import files, parse

HOUR = files.ABANDONED_SECONDS


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def leave(folder: Path, name: str, *, age_seconds: float = 0) -> Path:
    path = folder / name
    path.write_bytes(b"half an obj")
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def name_of(process: int, place: str | None = None) -> str:
    here = files.temporary_name()[1:9]
    return f".{place or here}-{process}-0123456789abcdef.tmp"


def test_names_are_known_and_never_the_same() -> None:
    names = {files.temporary_name() for _ in range(100)}
    assert len(names) == 100
    assert all(files.is_temporary(name) for name in names)
    assert not files.is_temporary(files.temporary_name() + "x")
    assert not files.is_temporary("x" + files.temporary_name())
    assert not any(map(files.is_temporary, ("x.tmp", ".tmp", "metrics.json", ".a-1-b.tmp")))


def test_a_process_is_told_by_boot_container_and_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process id says nothing after a reboot, in another container or on another host."""
    boot, processes = tmp_path / "boot", tmp_path / "processes"
    boot.write_text("one")
    processes.touch()
    monkeypatch.setattr(files, "_BOOT", boot)
    monkeypatch.setattr(files, "_PROCESSES", processes)
    names = [files.temporary_name(), files.temporary_name()]
    boot.write_text("two")
    names.append(files.temporary_name())
    processes.rename(tmp_path / "other")
    processes.touch()
    names.append(files.temporary_name())
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    names.append(files.temporary_name())
    processes.unlink()  # no Linux
    names.append(files.temporary_name())
    assert names[0][1:9] == names[1][1:9]
    assert len({name[1:9] for name in names}) == 5


def test_what_tells_them_apart_is_there_on_linux() -> None:
    if sys.platform == "linux":
        assert files._BOOT.read_text().strip()
        assert files._PROCESSES.stat().st_ino


def test_what_a_dead_process_of_this_machine_left_is_swept_at_once(tmp_path: Path) -> None:
    left = leave(tmp_path, name_of(dead_process()))
    storage.create(parse(str(tmp_path / "object")), b"x")
    assert not left.exists()


@pytest.mark.parametrize("process", [None, 1, 2**70], ids=["mine", "another", "none"])
def test_what_a_living_process_writes_is_left_alone_for_an_hour(
    tmp_path: Path, process: int | None
) -> None:
    process = process or os.getpid()
    young = leave(tmp_path, name_of(process), age_seconds=HOUR - 60)
    old = leave(tmp_path, name_of(process).replace("0123", "abcd"), age_seconds=HOUR + 60)
    storage.create(parse(str(tmp_path / "object")), b"x")
    assert young.exists()
    assert not old.exists()


def test_a_process_of_another_machine_is_judged_by_age_alone(tmp_path: Path) -> None:
    """The folder may be shared: that number may be alive over there, and be nobody here."""
    process = dead_process()
    young = leave(tmp_path, name_of(process, "00000000"), age_seconds=HOUR - 60)
    old = leave(tmp_path, name_of(process, "11111111"), age_seconds=HOUR + 60)
    storage.create(parse(str(tmp_path / "object")), b"x")
    assert young.exists()
    assert not old.exists()


def test_age_is_told_by_the_clock_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a server may be another than ours."""
    write = files._write_synced

    def written_there(path: Path, data: bytes) -> None:
        write(path, data)
        then = time.time() + HOUR + 60
        os.utime(path, (then, then))

    left = leave(tmp_path, name_of(1, "00000000"))
    monkeypatch.setattr(files, "_write_synced", written_there)
    storage.create(parse(str(tmp_path / "object")), b"x")
    assert not left.exists()


def test_files_of_others_are_left_alone_however_old(tmp_path: Path) -> None:
    names = ("notes.tmp", ".hidden", "object.json", f".{dead_process()}-0123456789abcdef.tmp")
    names += (f"x{name_of(dead_process())}", f"{name_of(dead_process())}.x")
    others = [leave(tmp_path, name, age_seconds=10 * HOUR) for name in names]
    storage.create(parse(str(tmp_path / "object")), b"x")
    assert all(path.exists() for path in others)


def test_a_link_is_as_old_as_itself(tmp_path: Path) -> None:
    old = leave(tmp_path, "old", age_seconds=10 * HOUR)
    link = tmp_path / name_of(1, "00000000")
    link.symlink_to(old)
    storage.create(parse(str(tmp_path / "object")), b"x")
    assert link.is_symlink()


def test_a_folder_that_cannot_be_swept_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = leave(tmp_path, name_of(dead_process()))
    unlink = Path.unlink

    def refused(path: Path, *, missing_ok: bool = False) -> None:
        if path == left:
            raise PermissionError
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    storage.create(parse(str(tmp_path / "object")), b"x")
    assert (tmp_path / "object").read_bytes() == b"x"


def test_a_killed_writer_is_swept_by_the_next(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from job import storage
from job.storage import parse
os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
storage.create(parse(sys.argv[1]), b"content")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "object")], check=False)
    assert [files.is_temporary(path.name) for path in tmp_path.iterdir()] == [True]
    storage.create(parse(str(tmp_path / "object")), b"other content")
    assert [path.name for path in tmp_path.iterdir()] == ["object"]
