"""`mnist-job tensorboard`: the files of one run or of all, on this machine and in stores."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from job import storage
from job.commands import looks
from job.errors import MissingInputError, OutputError, UsageError
from job.report import logdir
from job.storage import Place, parse


def put(output: Place, run: str, *names: str, begun: bytes = b"{}") -> None:
    storage.create(output / run / "attempts/0001.json", begun)
    for name in names:
        storage.create(output / run / "tensorboard" / name, f"{run} {name}".encode())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.tfevents")}


def test_all_runs_of_an_output_come_to_the_cache_once(place, cache):
    put(place, "a", "0001-0000000005.tfevents", "scores.tfevents")
    put(place, "b", "0001-0000000005.tfevents")
    put(place, "c")  # trained without the flag
    brought = logdir.bring(place, os.environ)
    assert (brought.runs, brought.fetched) == (2, 3)
    assert below(brought.folder) == {
        "a/0001-0000000005.tfevents", "a/scores.tfevents", "b/0001-0000000005.tfevents",
    }  # fmt: skip
    assert brought.folder.is_relative_to(cache / "mnist-job" / "tensorboard")
    put(place, "b", "0001-0000000010.tfevents")
    again = logdir.bring(place, os.environ)
    assert (again.folder, again.runs, again.fetched) == (brought.folder, 2, 1)


def test_one_run_is_brought_alone(place):
    put(place, "a", "0001-0000000005.tfevents")
    put(place, "b", "0001-0000000005.tfevents")
    brought = logdir.bring(place / "b", os.environ)
    assert below(brought.folder) == {"b/0001-0000000005.tfevents"}


def test_a_run_that_was_made_anew_is_fetched_anew(place):
    put(place, "a", "0001-0000000005.tfevents", begun=b"first")
    logdir.bring(place, os.environ)
    for name in ("attempts/0001.json", "tensorboard/0001-0000000005.tfevents"):
        storage.remove(place / "a" / name)
    storage.create(place / "a" / "attempts/0001.json", b"second")
    storage.create(place / "a" / "tensorboard/0001-0000000005.tfevents", b"of another training")
    brought = logdir.bring(place, os.environ)
    found = brought.folder / "a" / "0001-0000000005.tfevents"
    assert (brought.fetched, found.read_bytes()) == (1, b"of another training")


def test_what_was_removed_leaves_the_cache_too(place):
    put(place, "a", "0001-0000000005.tfevents")
    put(place, "b", "0001-0000000005.tfevents")
    logdir.bring(place, os.environ)
    storage.remove(place / "a" / "tensorboard/0001-0000000005.tfevents")
    assert below(logdir.bring(place, os.environ).folder) == {"b/0001-0000000005.tfevents"}


@pytest.mark.parametrize("single", [False, True])
def test_what_lies_on_this_machine_is_read_there(tmp_path, cache, single):
    output = parse(str(tmp_path / "runs"))
    put(output, "a", "0001-0000000005.tfevents")
    brought = logdir.bring(output / "a" if single else output, os.environ)
    assert brought == logdir.Brought(tmp_path / "runs" / ("a" if single else ""), 1, 0)
    assert not cache.exists()


def test_there_are_none(tmp_path):
    with pytest.raises(MissingInputError, match="--tensorboard"):
        logdir.bring(parse(str(tmp_path)), os.environ)


def test_hostile_names_bring_nothing_elsewhere(place):
    put(place, "a", "0001-0000000005.tfevents")
    storage.create(place / "champion" / "tensorboard" / "x.tfevents", b"reserved")
    storage.create(place / "-odd-" / "tensorboard" / "x.tfevents", b"no run id")
    storage.create(place / "a" / "tensorboard" / ".begun", b"not an event file")
    assert below(logdir.bring(place, os.environ).folder) == {"a/0001-0000000005.tfevents"}


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"XDG_CACHE_HOME": "/somewhere"}, Path("/somewhere")),
        ({"XDG_CACHE_HOME": "not/absolute"}, Path.home() / ".cache"),
        ({}, Path.home() / ".cache"),
    ],
)
def test_the_cache_is_where_caches_are(variables, folder):
    assert logdir.cache(variables) == folder


def test_no_home_is_no_crash(monkeypatch):
    def homeless():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UsageError, match="XDG_CACHE_HOME"):
        logdir.cache({})


def test_a_cache_that_cannot_be_written_is_told(place, tmp_path, monkeypatch):
    put(place, "a", "0001-0000000005.tfevents")
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(OutputError, match="XDG_CACHE_HOME"):
        logdir.bring(place, os.environ)


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path) -> Path:
    folder = tmp_path / "my runs"
    put(parse(str(folder)), "a", "0001-0000000005.tfevents")
    return folder


def test_it_starts_tensorboard_where_it_is_installed(command, output, monkeypatch):
    started = []
    monkeypatch.setattr(looks.os, "execv", lambda *words: started.append(words))
    ended = command("tensorboard", output, "--", "--port", "0")
    program = str(Path(sys.executable).parent / "tensorboard")
    assert ended.code == 0
    assert started == [(program, ["tensorboard", "--logdir", str(output), "--port", "0"])]


@pytest.mark.parametrize("installed", [False, True])
def test_else_and_with_print_it_prints_the_command(command, output, monkeypatch, installed):
    monkeypatch.setattr(looks.os, "execv", lambda *_: pytest.fail("started"))
    if not installed:
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    ended = command("tensorboard", output, *(["--print"] if installed else []))
    assert (ended.code, ended.out) == (0, f"tensorboard --logdir '{output}'\n")


def test_no_event_files_are_no_input(command, tmp_path):
    ended = command("tensorboard", tmp_path)
    assert ended.code == 66
    assert "--tensorboard" in ended.err
