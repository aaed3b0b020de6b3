"""A run is trained again from its record, and only the same bytes prove it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Finished

from job.config import RunConfig
from job.data.source import Dataset
from job.errors import StoppedError
from job.nightly import champions, proof
from job.nightly.champions import Log, Model
from job.storage import Place

Command = Callable[..., Finished]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def output(trained: Path, tmp_path: Path) -> Path:
    """Return an output of one's own, with the run `trained` in it."""
    folder = tmp_path / "out" / "trained"
    folder.mkdir(parents=True)
    for name in ("metrics.json", "model_weights.h5", "model.keras"):
        (folder / name).write_bytes((trained / name).read_bytes())
    return folder.parent


def said(output: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((output / "trained/metrics.json").read_text())
    return metrics


def forge(output: Path, *changes: Change) -> None:
    """Let the record say something else than the truth."""
    metrics = said(output)
    for change in changes:
        change(metrics)
    (output / "trained/metrics.json").write_text(json.dumps(metrics))


def another_seed(metrics: dict[str, Any]) -> None:
    metrics["config"]["seed"] = 1
    config = RunConfig(**metrics["config"], run_id="trained")
    metrics["config_sha256"] = config.digest


def another_version(metrics: dict[str, Any]) -> None:
    metrics["environment"]["tensorflow"] = "2.0"


def verify(command: Command, output: Path, *flags: object, run: str = "trained") -> Finished:
    return command("verify", run, "--output", output, *flags)


def test_a_run_that_is_what_it_says_is_proven(output: Path, command: Command) -> None:
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    done = verify(command, output)
    assert done.code == 0, done.err
    [weights] = [a for a in said(output)["artifacts"] if a["path"] == "model_weights.h5"]
    assert done.out == (
        "proven: trained was trained again from its record to the same bytes "
        f"(model_weights.h5, sha256 {weights['sha256']})\n"
    )
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_a_record_that_makes_other_weights_is_a_lie(output: Path, command: Command) -> None:
    forge(output, another_seed)
    lie = verify(command, output)
    assert (lie.code, lie.out) == (65, "")
    assert "not proven: trained was trained again from its record" in lie.err
    assert "although all that they depend on is as it was" in lie.err


def test_other_weights_prove_nothing_where_not_all_is_as_it_was(
    output: Path, command: Command
) -> None:
    forge(output, another_seed, another_version)
    unclear = verify(command, output)
    assert (unclear.code, unclear.out) == (78, "")
    now = json.loads((output / "trained/metrics.json").read_text())["environment"]["keras"]
    assert "tensorflow '2." in unclear.err
    assert "instead of '2.0'" in unclear.err
    assert now not in unclear.err  # what is the same is not told


def test_the_same_bytes_in_another_environment_prove_it_all_the_more(
    output: Path, command: Command
) -> None:
    forge(output, another_version)
    done = verify(command, output)
    assert done.code == 0, done.err
    assert ", also with tensorflow '2." in done.out


def test_an_attempt_that_had_a_part_in_it_counts_as_well(output: Path, command: Command) -> None:
    """A run that was resumed elsewhere was made in two environments."""

    def resumed(metrics: dict[str, Any]) -> None:
        [record] = metrics["attempt_records"]
        early, idle = record | {"processor": "Another"}, dict(record)
        idle.pop("threads")  # it saved nothing
        idle["processor"] = "Idle"
        metrics["attempt_records"] = [early, idle, record]

    forge(output, resumed)
    done = verify(command, output)
    assert done.code == 0, done.err
    assert "instead of 'Another'" in done.out
    assert "Idle" not in done.out


# --- found out before anything is trained -------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, Dataset]]:
    """Let nothing be trained; return what would have been."""
    seen: list[tuple[RunConfig, Dataset]] = []

    def stopped(config: RunConfig, *_: object, dataset: Dataset) -> None:
        seen.append((config, dataset))
        raise StoppedError("stopped by SIGTERM, the work is saved")

    monkeypatch.setattr(proof, "train_run", stopped)
    return seen


def test_a_stop_proves_nothing(
    output: Path, command: Command, untrained: list[tuple[RunConfig, Dataset]]
) -> None:
    stopped = verify(command, output)
    assert stopped.code == 143
    assert "nothing is proven" in stopped.err
    assert "the work is saved" not in stopped.err
    [(config, _)] = untrained
    assert not Path(config.output).exists()
    assert config.identity == said(output)["config"]
    assert config.strategy == said(output)["environment"]["strategy"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda m: m.update(config_sha256="0" * 64), 65, "its config has another digest"),
        (lambda m: m["config"].update(layers=3), 65, "layers"),
        (lambda m: m["config"].update(epochs=0), 65, "--epochs"),
        (lambda m: m.pop("environment"), 65, "environment"),
        (lambda m: m["environment"].update(workers=2, threads=[2, 2]), 78, "2 workers together"),
        (lambda m: m["data"].update(fingerprint="0" * 64), 65, "holds other data than trained"),
        (lambda m: m["artifacts"][0].update(sha256="0" * 64), 65, "is damaged"),
    ],
)
def test_a_record_that_cannot_be_followed_is_refused_at_once(
    output: Path,
    command: Command,
    untrained: list[tuple[RunConfig, Dataset]],
    change: Change,
    code: int,
    words: str,
) -> None:
    forge(output, change)
    refused = verify(command, output)
    assert (refused.code, refused.err.count("\n")) == (code, 1), refused
    assert words in refused.err
    assert untrained == []


def test_data_that_lie_elsewhere_now_can_be_named(
    output: Path,
    command: Command,
    untrained: list[tuple[RunConfig, Dataset]],
    small_mnist: str,
    tmp_path: Path,
) -> None:
    def moved(metrics: dict[str, Any]) -> None:
        metrics["config"]["data"] = str(tmp_path / "gone.npz")
        config = RunConfig(**metrics["config"], run_id="trained")
        metrics["config_sha256"] = config.digest

    forge(output, moved)
    assert verify(command, output).code == 66
    assert verify(command, output, "--data", "mnist").code == 65
    assert untrained == []
    assert verify(command, output, "--data", small_mnist).code == 143
    assert len(untrained) == 1


def test_no_run_and_no_name_of_one(output: Path, command: Command) -> None:
    assert verify(command, output, run="nothing").code == 66
    assert verify(command, output, run="a/b").code == 64
    assert verify(command, output, run="champion").code == 66
    (output / "trained/metrics.json").unlink()
    bare = verify(command, output)
    assert bare.code == 66
    assert "is no complete run" in bare.err


# --- a champion ---------------------------------------------------------------------------------


def promote(output: Path, **changes: Any) -> None:
    model = Model.of_run("trained", said(output))
    entry = champions.first(replace(model, **changes), why="a test")
    Log(Place.of(output)).append(entry)


def test_the_champion_is_the_run_that_the_log_names(
    output: Path, command: Command, untrained: list[tuple[RunConfig, Dataset]]
) -> None:
    promote(output)
    assert verify(command, output, run="champion").code == 143
    assert [config.run_id for config, _ in untrained] == ["trained"]


@pytest.mark.parametrize("what", ["weights_sha256", "data_fingerprint"])
def test_a_run_that_is_not_what_the_log_names_is_refused(
    output: Path, command: Command, untrained: list[tuple[RunConfig, Dataset]], what: str
) -> None:
    promote(output, **{what: "f" * 64})
    refused = verify(command, output, run="champion")
    assert refused.code == 65
    assert f"000001.json names the {what.partition('_')[0]} ffffffffffff... of" in refused.err
    assert untrained == []


# --- what it takes from the record --------------------------------------------------------------


def stripes(path: Path, names: tuple[str, ...], count: int, seed: int) -> None:
    """Write a small set of images with three kinds of stripes."""
    draw = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.uint8)
    images = draw.integers(0, 60, (count, 12, 9)).astype(np.uint8)
    images[labels == 1, :6] += 120
    images[labels == 2, 6:] += 120
    arrays = {f"x_{name}": images for name in names} | {f"y_{name}": labels for name in names}
    np.savez(path, **arrays)


@pytest.mark.slow
def test_of_data_that_have_grown_those_of_the_record_are_taken(
    tmp_path: Path, command: Command
) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    stripes(data / "base.npz", ("train", "test"), 90, 0)
    stripes(data / "train-1.npz", ("train",), 60, 1)
    flags = ["--data", data, "--epochs", 1, "--batch-size", 30, "--output", output]
    assert command("train", *flags, "--run-id", "trained").code == 0
    stripes(data / "train-2.npz", ("train",), 60, 2)
    done = verify(command, output)
    assert done.code == 0, done.err
    stripes(data / "train-1.npz", ("train",), 60, 3)
    changed = verify(command, output)
    assert changed.code == 65
    assert "train-1.npz" in changed.err


def test_it_computes_with_the_threads_of_the_record(
    output: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def seen_and_stopped(threads: int) -> None:
        seen.append(threads)
        raise StoppedError("far enough")

    monkeypatch.setattr(proof.runtime, "limit_threads", seen_and_stopped)
    forge(output, lambda metrics: metrics["environment"].update(threads=[7]))
    assert verify(command, output).code == 143
    assert seen == [7]


@pytest.mark.slow
def test_a_run_of_another_number_of_threads_is_proven_where_there_are_more(
    small_mnist: str, tmp_path: Path
) -> None:
    job = [sys.executable, "-m", "job"]
    place = ["--output", str(tmp_path)]
    flags = ["--data", small_mnist, "--epochs", "1", *place, "--run-id", "run"]
    alone = os.environ | {"TF_NUM_INTRAOP_THREADS": "1"}
    subprocess.run([*job, "train", *flags], env=alone, check=True, capture_output=True)
    done = subprocess.run(
        [*job, "verify", "run", *place], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("proven: run ")
    assert "also with" not in done.stdout
