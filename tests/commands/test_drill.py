"""The drill: it passes where resume works, and fails where it doesn't."""

import sys

import pytest

from job.commands import drill
from job.errors import JobError

BROKEN = """
import sys
from job.training import loop
from job.cli import main
assign = loop.Loop.assign
def forget(self, arrays):
    assign(self, arrays)
    self._optimizer.variables[{index}].assign_add({add})
loop.Loop.assign = forget
sys.exit(main(sys.argv[5:]))
"""


@pytest.mark.slow
def test_drill_proves_resume(command, small_mnist):
    flags = ["--data", small_mnist, "--epochs", 60, "--augment", "shift", "--export", "savedmodel"]
    proved = command("drill", *flags)
    assert proved.code == 0, proved.err
    lines = proved.out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "unbroken", "stopped", "resumed", "compared", "verdict"
    ]  # fmt: skip
    assert lines[-2].endswith("60 epochs of history, 7 published files")
    assert lines[-1] == "verdict    identical, bit for bit"


@pytest.mark.slow
def test_drill_notices_a_job_that_forgets(small_mnist, tmp_path, monkeypatch):
    """One number of the optimizer's state is changed at each restore: Adam's first moment."""
    script = tmp_path / "broken.sh"
    code = BROKEN.format(index=2, add=1e-3)
    (tmp_path / "broken.py").write_text(code)
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/broken.py x "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(JobError, match=r"drill failed: .* differs"):
        drill.drill(["--data", small_mnist, "--epochs", "60"], lambda _: None)


def test_drill_passes_on_what_a_training_says(command, tmp_path):
    failed = command("drill", "--data", tmp_path / "nowhere.npz")
    assert failed.code == 66
    assert "nowhere.npz does not exist" in failed.err


def test_drill_imports_nothing_from_the_current_folder(command, foreign_folder, monkeypatch):
    monkeypatch.chdir(foreign_folder)
    failed = command("drill", "--data", "nowhere.npz")
    assert failed.code == 66
    assert "nowhere.npz does not exist" in failed.err


PUBLISHING = ["--pushgateway", "--model-dir", "--tensorboard-dir", "--failure-file"]


def test_what_it_trains_is_for_nobody(monkeypatch):
    """Neither for a platform, whose folders are for what is kept, nor where variables say."""
    seen = []

    def start(words, *, env, **_):
        seen.append((words, env))
        raise JobError

    variables = [f"MNIST_JOB_{flag[2:].upper().replace('-', '_')}" for flag in PUBLISHING]
    for name in variables:
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(drill.subprocess, "Popen", start)
    with pytest.raises(JobError):
        drill.drill(["--platform", "sagemaker"], print)
    [(words, env)] = seen
    assert words[-2:] == ["--platform", "none"]  # the last one counts
    assert not set(variables) & env.keys()


@pytest.mark.parametrize("flag", PUBLISHING)
def test_it_publishes_nothing(command, flag):
    for words in ([flag, "x"], [f"{flag}=x"]):
        refused = command("drill", *words)
        assert refused.code == 64
        assert f"leave {flag} out" in refused.err
