"""The commands that look: runs, compare and fetch, as somebody types them."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest


@pytest.fixture
def output(trained, tmp_path):
    """Return an output with two runs of the same test set, and one that was begun."""
    folder = tmp_path / "runs"
    for name in ("trained", "twin"):
        shutil.copytree(trained, folder / name)
    (folder / "begun" / "attempts").mkdir(parents=True)
    record = (trained / "attempts" / "0001.json").read_text()
    (folder / "begun" / "attempts" / "0001.json").write_text(record)
    return folder


def test_runs_are_listed_for_people_and_for_programs(command, output, trained):
    shown = command("runs", "--output", output, "--sort", "run")
    assert [line.split()[0] for line in shown.out.splitlines()[:4]] == [
        *("run", "begun", "trained", "twin"),
    ]
    assert "made as trained" in shown.out
    told = json.loads(command("runs", "--output", output, "--json", "--sort", "run").out)
    assert [run["status"] for run in told] == ["running?", "complete", "complete"]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert told[1]["accuracy"] == metrics["test"]["accuracy"]
    assert told[1]["accuracy_interval_95"] == metrics["test"]["accuracy_interval_95"]
    assert told[1]["seconds"] == metrics["timing"]["total_seconds"]
    assert told[1]["uri"] == f"{output}/trained"
    silent = command("runs", "--output", output, "--json", "--silent-after", "0s")
    assert "silent" in silent.out


def test_where_nothing_was_published_that_is_said(command, tmp_path):
    shown = command("runs", "--output", tmp_path / "nothing")
    assert (shown.code, shown.err) == (0, "")
    assert "no run lies below" in shown.out
    assert json.loads(command("runs", "--output", tmp_path, "--json").out) == []


def test_two_runs_are_compared(command, output):
    shown = command("compare", "trained", f"{output}/twin", "--output", output)
    assert shown.code == 0
    assert "No difference that this test can tell from chance" in shown.out
    assert shown.out.count("the same") == 3
    told = json.loads(command("compare", "trained", "twin", "--output", output, "--json").out)
    assert told["paired"]["p"] == 1.0
    assert told["paired"]["both_right"] == told["runs"][0]["correct"]


def test_a_run_without_predictions_is_compared_as_far_as_it_goes(command, output):
    (output / "twin" / "predictions.safetensors").unlink()
    shown = command("compare", "trained", "twin", "--output", output)
    assert shown.code == 0
    assert f"No test: {output}/twin published no predictions.safetensors; --compute" in shown.out
    computed = command("compare", "trained", "twin", "--output", output, "--compute", "--json")
    assert json.loads(computed.out)["paired"]["both_wrong"] > 0
    assert json.loads(computed.out)["paired"]["only_a_right"] == 0


def test_data_that_are_others_now_are_not_computed_with(command, output, mnist, tmp_path):
    import numpy as np

    (output / "twin" / "predictions.safetensors").unlink()
    metrics = json.loads((output / "twin" / "metrics.json").read_text())
    part = {"x_train": mnist.x_train[:20], "y_train": mnist.y_train[:20]}
    np.savez(tmp_path / "other.npz", **part, x_test=mnist.x_test[:9], y_test=mnist.y_test[:9])
    metrics["config"]["data"] = f"{tmp_path}/other.npz"
    (output / "twin" / "metrics.json").write_text(json.dumps(metrics))
    failed = command("compare", "trained", "twin", "--output", output, "--compute")
    assert failed.code == 65
    assert "holds other test images" in failed.err


def test_a_run_that_is_not_complete_is_not_compared(command, output):
    failed = command("compare", "trained", "begun", "--output", output)
    assert failed.code == 66
    assert "begun is no complete run" in failed.err


def test_a_run_is_brought_home_and_used(command, output, tmp_path):
    home = tmp_path / "home"
    first = command("fetch", "trained", home, "--output", output)
    assert first.code == 0
    [files, of] = re.findall(r": (\d+) of (\d+) files fetched", first.out)[0]
    assert int(files) == int(of) >= 5
    assert command("predict", "--weights", home / "trained").code == 0
    again = command("fetch", f"{output}/trained", home)
    assert f"{home}/trained: 0 of {of} files fetched, 0.0 KiB" in again.out
    begun = command("fetch", "begun", home, "--output", output)
    assert begun.code == 0
    assert "begun is not complete" in begun.err
    assert begun.out.endswith("not complete: the same command fetches the rest\n")


@pytest.mark.slow
def test_a_run_that_was_brought_home_is_gone_on_with(command, small_mnist, tmp_path):
    """As its twin, which was never stopped: to the byte."""
    flags = ["--data", small_mnist, "--epochs", 3, "--run-id", "r"]
    far, home, unbroken = (tmp_path / name for name in ("far", "home", "unbroken"))
    assert command("train", *flags, "--output", unbroken).code == 0
    started = subprocess.Popen(
        [sys.executable, "-m", "job", "train", *map(str, flags), "--output", far,
         "--checkpoint-seconds", "0"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not list((far / "r" / "checkpoints").glob("*.safetensors")):
        assert started.poll() is None
        time.sleep(0.02)
    started.kill()
    started.wait()
    assert command("fetch", "r", home, "--output", far).code == 0
    assert command("train", *flags, "--output", home).code == 0
    weights = [(folder / "r" / "model_weights.h5").read_bytes() for folder in (unbroken, home)]
    assert weights[0] == weights[1]
    attempts = json.loads((home / "r" / "metrics.json").read_text())["attempts"]
    assert attempts == 2


def watched(output, *, until: bytes) -> tuple[int, bytes]:
    """Return exit code and output of `runs --watch` in a terminal, interrupted at `until`."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(
            sys.executable,
            [sys.executable, "-m", "job", "runs", "--watch", "--output", str(output)],
        )
    seen, deadline = b"", time.monotonic() + 60
    try:
        while until not in seen and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 10_000)
        os.write(terminal, b"\x03")
        while time.monotonic() < deadline:
            try:
                seen += os.read(terminal, 10_000)
            except OSError:  # it has ended
                break
    finally:
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    return os.waitstatus_to_exitcode(status), seen


@pytest.mark.slow
def test_watching_ends_by_ctrl_c_and_leaves_the_terminal_as_it_was(output):
    code, seen = watched(output, until=b"last sign of life")
    assert code == 0
    assert b"trained" in seen
    assert b"\x1b[?25l" in seen  # the cursor is hidden
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")  # and shown again
    assert b"Traceback" not in seen
