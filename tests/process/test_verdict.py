"""The verdict in the termination log: due however a process ends, and never in its way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from job import run
from job.errors import JobError, StoppedError, TemporaryError, UsageError
from job.process import verdict


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a termination log as Kubernetes makes one: there, and empty."""
    path = tmp_path / "termination-log"
    path.touch()
    return path


def read(log: Path) -> dict[str, object]:
    return json.loads(log.read_text())


@pytest.mark.parametrize(
    ("words", "environment", "named"),
    [
        (["train", "--termination-log", "a"], {}, "a"),
        (["train", "--termination-log=a", "--epochs", "0"], {}, "a"),
        (["train", "--termination-log=a", "--termination-log", "b"], {}, "b"),
        (["train"], {"MNIST_JOB_TERMINATION_LOG": "c"}, "c"),
        (["train", "--termination-log", "a"], {"MNIST_JOB_TERMINATION_LOG": "c"}, "a"),
        (["train", "--termination-log"], {"MNIST_JOB_TERMINATION_LOG": "c"}, "c"),
    ],
)
def test_the_place_is_the_flag_or_the_variable(words, environment, named, log) -> None:
    assert verdict.path(words, environment, default=str(log)) == named


def test_the_place_is_kubernetes_own_where_that_is_there(log, tmp_path) -> None:
    assert verdict.path(["train"], {}, default=str(log)) == str(log)
    assert verdict.path(["train"], {}, default=str(tmp_path / "nowhere")) is None
    assert verdict.path(["train"], {}, default=str(tmp_path)) is None
    assert verdict.KUBERNETES_LOG == "/dev/termination-log"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (UsageError.exit_code, "failed"),
        (JobError.exit_code, "failed"),
        (TemporaryError.exit_code, "retry"),
        (StoppedError.exit_code, "stopped"),
        (130, "stopped"),
    ],
)
def test_the_status_says_what_the_code_means(code, status) -> None:
    assert verdict.failure("x", code)["status"] == status


@pytest.mark.parametrize("text", ["x" * 10_000, "\u2028" * 10_000, "\udcff" * 10_000, '"' * 10_000])
def test_a_long_error_is_cut_to_what_kubernetes_keeps(text) -> None:
    line = verdict.to_json(verdict.failure(text, 70))
    assert 500 < len(line) <= verdict.MAX_BYTES
    assert json.loads(line)["error"].endswith("...")
    assert json.loads(line)["code"] == 70


def test_a_verdict_that_is_long_for_other_reasons_than_its_texts_is_told_all_the_same() -> None:
    """Nothing can be cut there: better too long than to try for ever."""
    told = {"why": "x" * 9_000, "values": {"data": "y" * 9_000}}
    assert json.loads(verdict.to_json(told)) == told | {"why": "..."}


def test_a_short_error_is_not_cut() -> None:
    assert json.loads(verdict.to_json(verdict.failure("x" * 3_000, 70)))["error"] == "x" * 3_000


def test_success(command, small_mnist, tmp_path, log) -> None:
    flags = ["--data", small_mnist, "--output", tmp_path / "out", "--run-id", "r", "--epochs", "1"]
    for _ in range(2):  # the second time there is nothing to do, and the verdict is the same
        log.write_text("")
        done = command("train", *flags, "--termination-log", log)
        assert done.code == 0, done.err
        test = json.loads((tmp_path / "out" / "r" / "metrics.json").read_text())["test"]
        found = read(log)
        assert found.pop("seconds") > 0
        assert found == {
            "status": "complete",
            "code": 0,
            "run": f"{tmp_path}/out/r",
            "accuracy": test["accuracy"],
            "accuracy_interval_95": test["accuracy_interval_95"],
            "examples": 505,
        }


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--epochs", "0"],
        ["train", "--epochs", "many"],
        ["train", "--no-such-flag"],
        ["train", "surplus"],
        ["publish"],
        ["evaluate"],
    ],
)
def test_what_is_wrong_at_the_door(command, monkeypatch, log, words) -> None:
    monkeypatch.setenv("MNIST_JOB_TERMINATION_LOG", str(log))
    failed = command(*words)
    found = read(log)
    assert (found["status"], found["code"]) == ("failed", failed.code) == ("failed", 64)
    if failed.err.startswith("{"):  # in the form of the run's log
        assert json.loads(failed.err)["error"] == found["error"]
    else:
        assert failed.err == f"mnist-job: error: {found['error']} (exit 64)\n"


def test_a_bug(command, monkeypatch, log) -> None:
    def fail(*_):
        raise ZeroDivisionError("of a bug")

    monkeypatch.setattr(run, "train_run", fail)
    assert command("train", "--termination-log", log).code == 70
    assert "ZeroDivisionError('of a bug')" in read(log)["error"]


@pytest.mark.slow
def test_a_stop(small_mnist, tmp_path, log) -> None:
    flags = ["--data", small_mnist, "--output", str(tmp_path), "--epochs", "5000"]
    training = subprocess.Popen(
        [sys.executable, "-m", "job", "train", *flags],
        stdout=subprocess.PIPE,
        env=os.environ | {"MNIST_JOB_TERMINATION_LOG": str(log)},
        text=True,
    )
    for line in training.stdout:
        if json.loads(line)["event"] == "compiled":
            training.send_signal(signal.SIGTERM)
            break
    training.communicate(timeout=300)
    assert training.returncode == 143
    assert (read(log)["status"], read(log)["code"]) == ("stopped", 143)


@pytest.mark.parametrize("name", ["", "nowhere/log", "."])
def test_a_place_that_cannot_be_written_is_found_out_at_the_door(command, tmp_path, name) -> None:
    failed = command("train", "--output", tmp_path, "--termination-log", f"{tmp_path}/{name}")
    assert failed.code == 64
    assert "--termination-log" in failed.err
    assert not list(tmp_path.iterdir())


def test_a_place_lost_on_the_way_changes_no_exit_code(command, monkeypatch, tmp_path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()

    def finish(*_):
        folder.rmdir()
        return {"test": {"accuracy": 1.0, "accuracy_interval_95": [0.9, 1.0], "examples": 9}}

    monkeypatch.setattr(run, "train_run", finish)
    done = command("train", "--termination-log", folder / "log")
    assert done.code == 0
    assert json.loads(done.err)["event"] == "verdict_not_written"
    assert "--termination-log" in done.err


def test_a_signal_that_comes_too_late_changes_nothing(command, monkeypatch, log) -> None:
    """It raises where it strikes, which here is while the verdict is being written."""
    strikes, write = [StoppedError("too late")], verdict.write

    def struck(*words):
        if strikes:
            raise strikes.pop()
        return write(*words)

    monkeypatch.setattr(verdict, "write", struck)
    assert command("train", "--epochs", "0", "--termination-log", log).code == 64
    assert read(log)["code"] == 64


@pytest.mark.parametrize("code", [64, 70, 74, 75, 77, 78])
def test_a_failure_leaves_its_reason_in_one_line(tmp_path: Path, code: int) -> None:
    path = tmp_path / "failure"
    assert verdict.write_failure(str(path), verdict.failure("--epochs must be ...", code)) is None
    assert path.read_text() == f"exit {code}: --epochs must be ..."


@pytest.mark.parametrize("code", [130, 143])
def test_what_was_stopped_has_not_failed(tmp_path: Path, code: int) -> None:
    path = tmp_path / "failure"
    assert verdict.write_failure(str(path), verdict.failure("stopped", code)) is None
    assert verdict.write_failure(str(path), verdict.success("r", None)) is None
    assert not path.exists()


@pytest.mark.parametrize(("length", "cut"), [(1015, False), (1016, True), (9_000, True)])
def test_a_reason_has_1024_characters_at_most(tmp_path: Path, length: int, *, cut: bool) -> None:
    path = tmp_path / "failure"
    verdict.write_failure(str(path), verdict.failure("ä" * length, 64))
    text = path.read_text(encoding="utf-8")
    assert len(text) == min(1024, len("exit 64: ") + length)
    assert text.endswith("...") is cut


def test_a_reason_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    refusal = verdict.write_failure(str(tmp_path / "no" / "x"), verdict.failure("x", 64))
    assert refusal is not None
    assert refusal.startswith("--failure-file ")
    assert verdict.write_failure(None, verdict.failure("x", 64)) is None


def test_a_file_in_a_folder_that_may_not_be_searched_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, **_: bool) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(UsageError, match=r"--failure-file .* cannot be written"):
        verdict.check(str(tmp_path / "x"), verdict.FAILURE)


def test_a_complete_run_takes_away_why_a_try_before_it_failed(tmp_path: Path) -> None:
    path = tmp_path / "failure"
    complete = verdict.success("r", None)
    verdict.write_failure(str(path), verdict.failure("no room", 74))
    for stopped in (130, 143):
        verdict.write_failure(str(path), verdict.failure("stopped", stopped))
        assert path.exists()
    assert verdict.write_failure(str(path), complete) is None
    assert not path.exists()
    assert verdict.write_failure(str(path), complete) is None


def test_only_what_tells_a_failure_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, link, told = (tmp_path / name for name in ("foreign", "link", "told"))
    foreign.write_text("exit strategies: none")
    told.write_text("exit 64: x")
    link.symlink_to(told)
    complete = verdict.success("r", None)
    for path in (foreign, link, tmp_path, Path("/dev/null"), Path("x\0y")):
        assert verdict.write_failure(str(path), complete) is None
    assert foreign.exists()
    assert link.exists()
    assert Path("/dev/null").is_char_device()

    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    assert verdict.write_failure(str(told), complete) is None  # a failure to remove is none
    assert told.exists()


def test_a_run_that_is_complete_at_last_leaves_no_failure(command, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(run, "train_run", lambda *_: None)
    path = tmp_path / "failure"
    flags = ["--data", "mnist", "--output", tmp_path / "runs", "--failure-file", path]
    assert command("train", *flags, "--epochs", "0").code == 64
    assert path.exists()
    assert command("train", *flags).code == 0
    assert not path.exists()
