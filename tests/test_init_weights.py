"""Weights to begin with: put in at step 0 and never again, recorded, and of one digest."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, free_ports, schema

from job.config import RunConfig
from job.errors import StoppedError
from job.results import hdf5, publishing
from job.training import train
from job.training.checkpoint import State

STILL = ["--learning-rate", "1e-12", "--weight-decay", "0"]  # too small a step to move a weight


@pytest.fixture(scope="module")
def flags(small_mnist):
    return ["--data", small_mnist, "--epochs", "1"]


@pytest.fixture
def initial(trained, tmp_path) -> Path:
    """Return a copy of `trained`, of one's own."""
    shutil.copytree(trained, tmp_path / "initial", ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_path / "initial"


@pytest.fixture
def stopped(monkeypatch) -> int:
    """Let trainings be stopped before anything is saved, and return their exit code."""

    def stop(*_, **__):
        raise StoppedError("before anything is saved")

    monkeypatch.setattr(train, "train", stop)
    return StoppedError.exit_code


def place(output: Path, run_id: str = "run") -> list:
    return ["--output", output, "--run-id", run_id]


def read(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def arrays(run: Path) -> list[np.ndarray]:
    return hdf5.read((run / "model_weights.h5").read_bytes(), str(run))


def same(one: Path, other: Path) -> bool:
    pairs = zip(arrays(one), arrays(other), strict=True)
    return all(np.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_a_run_begins_with_them_and_says_so(initial, flags, tmp_path, command):
    words = [*place(tmp_path), "--init-weights", initial]
    done = command("train", *flags, *words, *STILL)
    assert done.code == 0, done.err
    assert '"event": "begins_with"' in done.out
    run, metrics = tmp_path / "run", read(tmp_path / "run")
    assert same(run, initial)
    schema("metrics").validate(metrics)
    [artifact] = [each for each in read(initial)["artifacts"] if "h5" in each["path"]]
    assert metrics["init_weights"] == {"uri": str(initial), "sha256": artifact["sha256"]}
    assert metrics["config"]["init_weights"] == str(initial)
    other = command("train", *flags, *place(tmp_path), *STILL)
    assert other.code == 73
    assert "init_weights" in other.err
    assert command("verify", "run", "--output", tmp_path).code == 0


def test_more_epochs_are_a_new_run_from_the_weights_file(initial, flags, tmp_path, command):
    file = initial / "model_weights.h5"
    assert command("train", *flags, *place(tmp_path), "--init-weights", file).code == 0
    assert not same(tmp_path / "run", initial)
    [epoch] = read(tmp_path / "run")["train"]["history"]
    assert epoch["loss"] < read(initial)["train"]["history"][0]["loss"] / 2


def test_a_run_that_goes_on_reads_them_no_more(initial, flags, tmp_path, command, monkeypatch):
    words = ["train", *flags, *place(tmp_path), "--init-weights", initial]
    with monkeypatch.context() as patch:
        patch.setattr(publishing.RunFolder, "complete", lambda *_: 1 / 0)
        assert command(*words).code == 70  # all steps are done and saved
    sha256 = publishing.describe("", (initial / "model_weights.h5").read_bytes()).sha256
    shutil.rmtree(initial)
    assert command(*words).code == 0
    assert read(tmp_path / "run")["attempts"] == 2
    assert read(tmp_path / "run")["init_weights"]["sha256"] == sha256


def test_other_weights_at_the_same_place_are_refused(initial, flags, tmp_path, command, stopped):
    words = ["train", *flags, *place(tmp_path), "--init-weights", initial / "model_weights.h5"]
    assert command(*words).code == stopped
    file = initial / "model_weights.h5"
    content = file.read_bytes()
    (initial / "metrics.json").unlink()  # which would tell of the damage
    file.write_bytes(content + b"x")
    refused = command(*words)
    assert refused.code == 73
    assert "the run was begun with others" in refused.err
    file.write_bytes(content)
    assert command(*words).code == stopped


@pytest.mark.parametrize(
    ("more", "name", "code", "said"),
    [
        (["--model", "cnn"], "model_weights.h5", 65, "784x128, 128, 128x64"),
        ([], "model.keras", 65, "is not an HDF5 file"),
        ([], "nothing.h5", 66, "nothing.h5"),
    ],
)
def test_what_does_not_fit_is_named(initial, flags, tmp_path, command, more, name, code, said):
    words = [*place(tmp_path), "--init-weights", initial / name, *more]
    refused = command("train", *flags, *words)
    assert refused.code == code
    assert said in refused.err
    assert str(initial / name) in refused.err


def test_a_wrong_uri_is_found_at_the_door(flags, tmp_path, command):
    refused = command("train", *flags, *place(tmp_path), "--init-weights", "http://x/y")
    assert refused.code == 64
    assert "--init-weights" in refused.err


def test_the_champion_is_the_one_when_the_run_was_begun(initial, flags, tmp_path, command, stopped):
    words = ["train", *flags, *place(tmp_path), "--init-weights", "champion"]
    assert command(*words).code == 66  # there is none
    shutil.copytree(initial, tmp_path / "other")
    for run, more in (("initial", b""), ("other", b"x")):  # weights make a champion another one
        file = tmp_path / run / "model_weights.h5"
        file.write_bytes(file.read_bytes() + more)
        metrics = read(file.parent) | {"run_id": run}
        metrics["artifacts"][0] = asdict(publishing.describe(file.name, file.read_bytes()))
        (tmp_path / run / "metrics.json").write_text(json.dumps(metrics))
    assert command("promote", "initial", "--reason", "x", "--output", tmp_path).code == 0
    assert command(*words).code == stopped
    assert command("promote", "other", "--reason", "x", "--output", tmp_path).code == 0
    again = command(*words)
    assert again.code == stopped
    assert str(initial) in again.out
    # What a run began with is no champion for being asked for as one.
    words = ["train", *flags, *place(tmp_path, "third"), "--init-weights"]
    assert command(*words, tmp_path / "nothing").code == 66
    refused = command(*words, "champion")
    assert refused.code == 73
    assert (
        f"init_weights '{tmp_path / 'nothing'}' there, '{tmp_path / 'other'}' here" in refused.err
    )


@pytest.mark.slow
def test_all_members_of_an_ensemble_begin_with_them(initial, flags, tmp_path, command):
    words = [*flags, *place(tmp_path), "--init-weights", initial, "--ensemble", "2"]
    assert command("train", *words, *STILL).code == 0
    assert all(same(tmp_path / run, initial) for run in ("run-1", "run-2"))
    assert read(tmp_path / "run")["init_weights"]["uri"] == str(initial)
    schema("metrics").validate(read(tmp_path / "run"))


@pytest.mark.parametrize(("uri", "sent"), [("w.h5", True), (None, False)])
def test_a_worker_gets_them_from_the_chief(uri, sent):
    """Only the chief reads them; each worker would have drawn its own."""

    class Loop:
        def __init__(self):
            self.held = {"x": np.zeros(2)}

        def arrays(self):
            return self.held

        def assign(self, arrays):
            self.held = arrays

    class Collectives:
        is_chief = False

        def from_chief(self, arrays):
            chiefs = {"x": np.ones(2), "step": np.array(0)}
            return {name: chiefs[name] for name in arrays}

    loop, config = Loop(), RunConfig(run_id="r", init_weights=uri)
    state = train._begin(State({}, threads=1), loop, config, Collectives())
    assert state.step == 0
    assert loop.held["x"].all() == sent


@pytest.mark.slow
def test_two_real_workers_begin_with_the_same(initial, small_mnist, tmp_path, command):
    """The chief's files are its own; what both come to is what one alone does, but for rounding."""
    words = ["--data", small_mnist, "--epochs", "1", "--batch-size", "500"]
    alone = command("train", *words, *place(tmp_path), "--init-weights", initial)
    assert alone.code == 0, alone.err
    nodes = [tmp_path / "chief", tmp_path / "other"]
    nodes[0].mkdir()
    nodes[1].mkdir()
    initial.rename(nodes[0] / "initial")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = []
    for index, node in enumerate(nodes):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        own = [*place(node), "--init-weights", "initial"]
        workers.append(
            subprocess.Popen(
                [sys.executable, "-m", "job", "train", *words, *own],
                cwd=node,
                env=os.environ | {"TF_CONFIG": json.dumps(config), "PYTHONPATH": str(REPOSITORY)},
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
        )
    errors = [worker.communicate(timeout=400)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    assert not list(nodes[1].glob("**/init_weights.json"))
    begun, one, both = map(arrays, (nodes[0] / "initial", tmp_path / "run", nodes[0] / "run"))
    moved = sum(np.abs(a - b).sum() for a, b in zip(begun, one, strict=True))
    apart = sum(np.abs(a - b).sum() for a, b in zip(both, one, strict=True))
    assert apart < moved / 20
