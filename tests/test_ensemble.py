"""An ensemble: members that are runs of their own, published as one model for plain Keras."""

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import schema

import job
from job import ensemble
from job.config import RunConfig
from job.errors import TemporaryError
from job.nightly import servable
from job.nightly.champions import Model
from job.nightly.contest import Contender
from job.process import runtime
from job.process.progress import Progress
from job.results.publishing import RunFolder
from job.storage import Place
from job.training import checkpoint

FILES = ("model_weights.h5", "model.keras")


@pytest.fixture(scope="module")
def flags(small_mnist):
    return ["--data", small_mnist, "--epochs", "1"]


@pytest.fixture(scope="module")
def output(flags, tmp_path_factory) -> Path:
    """Return a folder with the ensemble `e` of two members, which nobody changes."""
    from job.cli import main

    output = tmp_path_factory.mktemp("ensemble")
    assert main(["train", *flags, *place(output), "--ensemble", "2"]) == 0
    return output


@pytest.fixture
def mine(output, tmp_path) -> Path:
    """Return a copy of that folder of one's own."""
    shutil.copytree(output, tmp_path / "mine")
    return tmp_path / "mine"


def place(output: Path, run_id: str = "e") -> list[str]:
    return ["--output", str(output), "--run-id", run_id]


def read(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def contents(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in FILES]


def unpublish(run: Path) -> None:
    for name in ("metrics.json", *FILES):
        (run / name).unlink()


# --- what is published ------------------------------------------------------------------------


def test_metrics_follow_the_schema_and_name_the_members(output):
    metrics = read(output / "e")
    schema("metrics").validate(metrics)
    members = [read(output / run) for run in ("e-1", "e-2")]
    assert metrics["members"] == [
        {
            "run": member["run_id"],
            "seed": seed,
            "weights_sha256": member["artifacts"][0]["sha256"],
            "accuracy": member["test"]["accuracy"],
        }
        for seed, member in enumerate(members)
    ]
    assert metrics["config"] == members[0]["config"] | {"ensemble": 2}
    assert metrics["train"] == {"epochs": 2, "steps": 126, "resumed_step": 0, "history": []}
    assert metrics["model"]["parameters"] == 2 * members[0]["model"]["parameters"]
    for name in ("train_seconds", "attempt_train_seconds"):
        assert metrics["timing"][name] == sum(member["timing"][name] for member in members)


def test_a_member_is_what_a_run_alone_would_be(output, flags, tmp_path, command):
    assert command("train", *flags, *place(tmp_path, "alone"), "--seed", "1").code == 0
    assert contents(output / "e-2") == contents(tmp_path / "alone")


def test_plain_keras_opens_both_files_and_gets_the_mean_of_the_members(output, mnist):
    import keras

    images = mnist.x_test[:100]
    each = [
        keras.models.load_model(output / run / "model.keras")(images.astype("float32") / 255)
        for run in ("e-1", "e-2")
    ]
    mean = np.mean(each, axis=0)
    assert np.abs(each[0] - mean).max() > 0.01
    net = keras.models.load_model(output / "e" / "model.keras")
    inputs = images.astype("float32") / 255
    assert np.abs(net(inputs) - mean).max() < 1e-6
    other = keras.models.clone_model(net)
    other.load_weights(output / "e" / "model_weights.h5")
    assert np.abs(other(inputs) - mean).max() < 1e-6


@pytest.mark.slow
def test_a_process_that_has_keras_alone_gets_the_same(output, mnist):
    images = mnist.x_test[:100]
    weights, archive = contents(output / "e")
    import keras

    mean = keras.models.load_model(output / "e" / "model.keras")(images.astype("float32") / 255)
    assert servable.check(archive, weights, images, np.asarray(mean)) is None


def test_metrics_are_those_of_the_published_files(output, tmp_path, command):
    """To the last digit; and evaluate and predict know an ensemble by its metrics."""
    report = tmp_path / "report.json"
    run = output / "e"
    assert command("evaluate", "--weights", run, "--report", report).code == 0
    told = json.loads(report.read_text())
    schema("evaluation").validate(told)
    assert (told["test"], told["model"]) == (read(run)["test"], read(run)["model"])
    assert command("predict", "--weights", run).code == 0


@pytest.mark.parametrize("words", [["evaluate", "--weights"], ["train", "--init-weights"]])
def test_without_its_metrics_an_ensemble_is_known_by_its_shapes(
    output, flags, tmp_path, command, words
):
    bare = tmp_path / "bare.h5"
    bare.write_bytes((output / "e" / "model_weights.h5").read_bytes())
    more = ["--output", tmp_path] if "train" in words else []
    refused = command(*words, bare, *flags[:2], *more)
    assert (refused.code, refused.err.count("\n")) == (65, 1)
    assert f"{bare} holds an ensemble of 2 models 'mlp'" in refused.err


def test_a_night_judges_an_ensemble_as_what_it_is(output, small_mnist):
    metrics = read(output / "e")
    contender = Contender.of(Place.of(output), Model.of_run("e", metrics))
    with np.load(small_mnist) as data:
        guesses, labels = contender.classes(data["x_test"]), data["y_test"]
    assert (guesses == labels).sum() == metrics["test"]["correct"]


def test_the_drill_stops_one_training(command, flags):
    refused = command("drill", *flags, "--ensemble", "2")
    assert refused.code == 64
    assert "leave --ensemble out" in refused.err


# --- proven again -----------------------------------------------------------------------------


def test_an_ensemble_is_proven_by_joining_its_members_again(mine, command, monkeypatch):
    monkeypatch.setattr(ensemble, "train_run", lambda *_, **__: 1 / 0)
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    done = command("verify", "e", "--output", mine)
    assert done.code == 0, done.err
    weights, *_ = read(mine / "e")["artifacts"]
    assert done.out == (
        "proven: e was joined again from its members to the same bytes (model_weights.h5, sha256 "
        f"{weights['sha256']}); verify e-1 to e-2 too, to train them again\n"
    )
    assert before == {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    (mine / "e-2" / "metrics.json").unlink()
    gone = command("verify", "e", "--output", mine)
    assert gone.code == 66
    assert "e-2 is no complete run" in gone.err


@pytest.mark.parametrize(("keras", "code"), [(None, 65), ("3.0", 78)])
def test_members_that_are_not_what_they_were_prove_nothing(mine, command, keras, code):
    replace_weights(mine / "e-2", mine / "e-1")
    metrics = read(mine / "e")
    metrics["environment"]["keras"] = keras or metrics["environment"]["keras"]
    (mine / "e" / "metrics.json").write_text(json.dumps(metrics))
    lie = command("verify", "e", "--output", mine)
    assert (lie.code, lie.out) == (code, "")
    assert "not proven: e was joined again from its members" in lie.err
    assert ("keras" in lie.err) == (code == 78)


def replace_weights(run: Path, other: Path) -> None:
    """Let `run` have published the weights of `other`."""
    (run / FILES[0]).write_bytes((other / FILES[0]).read_bytes())
    metrics = read(run)
    metrics["artifacts"][0] = read(other)["artifacts"][0]
    (run / "metrics.json").write_text(json.dumps(metrics))


# --- going on ---------------------------------------------------------------------------------


def test_a_finished_ensemble_is_left_alone(mine, flags, command):
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*")}
    again = command("train", *flags, *place(mine), "--ensemble", "2")
    assert again.code == 0
    assert again.out.count('"event": "already_complete"') == 1
    assert before == {path: path.stat().st_mtime_ns for path in mine.rglob("*")}
    assert command("train", *flags, *place(mine), "--ensemble", "3").code == 73


def test_complete_members_are_not_trained_again(mine, output, flags, command):
    """As after a kill between the last member and the publishing."""
    unpublish(mine / "e")
    assert command("train", *flags, *place(mine), "--ensemble", "2").code == 0
    assert contents(mine / "e") == contents(output / "e")
    assert read(mine / "e-1")["attempts"] == read(mine / "e-2")["attempts"] == 1
    assert read(mine / "e")["timing"]["attempt_train_seconds"] == 0
    assert read(mine / "e")["test"] == read(output / "e")["test"]


def start(output: Path, *flags: str, **variables: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if "NUM_INT" not in name}
    return subprocess.Popen(
        [sys.executable, "-m", "job", "train", *place(output), "--ensemble", "2", *flags],
        env=environment | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], event: str, times: int) -> None:
    for line in process.stdout:
        times -= json.loads(line)["event"] == event
        if not times:
            return
    pytest.fail(f"too few of {event}: {process.stderr.read()}")


@pytest.mark.slow
def test_sigterm_between_epochs_of_the_second_member(small_mnist, tmp_path, command):
    flags = ["--data", small_mnist, "--epochs", "60"]
    process = start(tmp_path, *flags)
    wait_for(process, "compiled", 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"--run-id e --ensemble 2 {' '.join(flags)}" in json.loads(errors)["error"]
    ends = [path.parent.parent.name for path in tmp_path.rglob("*-end.json")]
    assert ends == ["e-2"]  # one, since each may wait seconds for a store
    assert command("train", *flags, *place(tmp_path), "--ensemble", 2).code == 0
    assert [read(tmp_path / run)["attempts"] for run in ("e", "e-1", "e-2")] == [2, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_sigkill_at_random_moments(flags, output, tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(4):
        process = start(tmp_path, *flags, "--checkpoint-seconds", "0")
        time.sleep(draw.uniform(2, 14))
        process.kill()
        process.communicate()
    process = start(tmp_path, *flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert contents(tmp_path / "e") == contents(output / "e")


@pytest.mark.slow
def test_time_limit_holds_over_members(flags, tmp_path):
    """The limit has passed before the first step: each attempt does one step of one member."""
    limited = [*flags, "--batch-size", "1000", "--time-limit", "1"]
    codes = []
    while len(codes) < 7 and 0 not in codes:
        process = start(tmp_path, *limited)
        process.communicate(timeout=120)
        codes.append(process.returncode)
    assert codes == [75, 75, 75, 75, 75, 0]  # two steps and the end of each
    assert [read(tmp_path / run)["train"]["resumed_step"] for run in ("e-1", "e-2")] == [2, 2]


def test_the_time_limit_is_looked_at_between_members(flags, tmp_path, command, monkeypatch):
    """But not before the first, or a limit shorter than the start would never get anywhere."""
    begun = []

    def train(member, *_, **__):
        begun.append(member.run_id)
        time.sleep(1.1)
        return {}

    monkeypatch.setattr(ensemble, "train_run", train)
    words = [*flags, *place(tmp_path), "--ensemble", "2", "--time-limit", "1", "--log", "json"]
    late = command("train", *words)
    assert (late.code, begun) == (75, ["e-1"])
    assert "--time-limit 1 reached" in late.err
    events = map(json.loads, late.out.splitlines())
    [told] = [event for event in events if event["event"] == "member_begins"]
    assert (told["run"], told["member"], told["members"]) == ("e-1", 1, 2)


def test_a_member_that_other_threads_began_waits_for_a_process_of_its_own(
    flags, tmp_path, command, monkeypatch
):
    """The first trained one says how many there are; nothing is computed of the second."""
    monkeypatch.setattr(runtime, "_in_force", None)
    place_of = RunFolder(RunConfig(run_id="e-2", output=str(tmp_path)).place).checkpoints
    saved = checkpoint.Checkpoints(place_of, 0, Progress())
    saved.save(checkpoint.State({}, threads=3, step=7, arrays={"x": np.zeros(1)}))
    begun = []

    def train(member, *_, **__):
        begun.append(member.run_id)
        runtime.limit_threads(2)
        return {}

    monkeypatch.setattr(ensemble, "train_run", train)
    waits = command("train", *flags, *place(tmp_path), "--ensemble", "2")
    assert (waits.code, begun) == (75, ["e-1"])
    assert "computes with 2 threads, and e-2 was begun with 3" in waits.err


@pytest.mark.slow
def test_a_member_leaves_no_memory_taken(flags, tmp_path, command, monkeypatch):
    """The net and the data on the device of the member before are gone when the next begins."""
    from job.training import train

    loops: list[weakref.ref] = []
    alive = []

    class Loop(train.Loop):
        def __init__(self, *arguments):
            alive.append(sum(loop() is not None for loop in loops))
            super().__init__(*arguments)
            loops.append(weakref.ref(self))

    monkeypatch.setattr(train, "Loop", Loop)
    gc.disable()  # or it may come by chance, before what it looks at is kept for good
    try:
        assert command("train", *flags, *place(tmp_path), "--ensemble", "2").code == 0
    finally:
        gc.enable()
    assert alive == [0, 0]


# --- pods of an Indexed Job -------------------------------------------------------------------


def test_a_pod_that_others_are_missing_to_ends_well_and_the_last_one_publishes(
    output, mine, flags, command, monkeypatch, tmp_path
):
    unpublish(mine / "e")
    absent = tmp_path / "absent"
    (mine / "e-1").rename(absent)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    log = tmp_path / "verdict"
    words = ["train", *flags, *place(mine), "--ensemble", "2", "--termination-log", log]
    first = command(*words)
    assert first.code == 0, first.err
    assert '"event": "members_missing", "runs": ["e-1"]' in first.out
    assert not (mine / "e" / "metrics.json").exists()
    told = json.loads(log.read_text())
    assert told["run"] == str(mine / "e-2")
    assert told["accuracy"] == read(mine / "e-2")["test"]["accuracy"]
    absent.rename(mine / "e-1")
    assert command(*words).code == 0
    assert contents(mine / "e") == contents(output / "e")
    assert json.loads(log.read_text())["run"] == str(mine / "e")


@pytest.mark.parametrize("from_python", [False, True])
def test_who_is_no_pod_of_many_trains_all_members(
    flags, command, monkeypatch, tmp_path, from_python
):
    """The only node of a TrainJob has an index too; and a program said what it wants."""
    begun = []

    def train(members, *_):
        begun.append([member.run_id for member in members])
        raise TemporaryError("far enough")

    monkeypatch.setattr(ensemble, "_train", train)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    monkeypatch.setattr(runtime, "_counted_from", None)  # train() counts from its call on
    if from_python:
        config = RunConfig.of(data=flags[1], output=tmp_path, run_id="e", ensemble=2)
        with pytest.raises(TemporaryError, match="far enough"):
            job.train(config)
    else:
        monkeypatch.setenv("K8S_WORKERS", "1")
        assert command("train", *flags, *place(tmp_path), "--ensemble", "2").code == 75
    assert begun == [["e-1", "e-2"]]


@pytest.mark.slow
def test_two_pods_at_once_publish_the_same(output, flags, tmp_path):
    pods = [start(tmp_path, *flags, JOB_COMPLETION_INDEX=str(index)) for index in (0, 1)]
    logs = [pod.communicate(timeout=300) for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], logs
    assert contents(tmp_path / "e") == contents(output / "e")
    trained = [log.count('"event": "compiled"') for log, _ in logs]
    assert trained == [1, 1]


def test_who_comes_second_takes_the_word_of_the_first(mine, flags, command, monkeypatch):
    """Both have found all members complete; the first publishes while the second scores."""
    first = read(mine / "e")
    monkeypatch.setattr(ensemble, "complete_already", lambda *_: None)
    second = command("train", *flags, *place(mine), "--ensemble", "2")
    assert second.code == 0
    assert '"event": "complete"' in second.out
    assert read(mine / "e") == first


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--ensemble", "1"], 64, "--ensemble must be a whole number from 2 to 50, not 1"),
        (["--ensemble", "51"], 64, "not 51"),
        (["--ensemble", "2", "--strategy", "multiworker"], 64, "--strategy multiworker"),
        (["--ensemble", "2", "--seed", "2147483647"], 64, "--seed"),
        (["--ensemble", "10", "--run-id", "x" * 61], 64, "--ensemble 10, of its last member"),
    ],
)
def test_bad_flags_are_refused_at_the_door(flags, tmp_path, command, more, code, said):
    refused = command("train", *flags, "--output", tmp_path, *more)
    assert (refused.code, list(tmp_path.iterdir())) == (code, [])
    assert said in refused.err


@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({"JOB_COMPLETION_INDEX": "2"}, 78, "JOB_COMPLETION_INDEX is 2"),
        (
            {"JOB_COMPLETION_INDEX": "0", "K8S_WORKERS": "2", "K8S_SERVICE_NAME": "s"},
            64,
            "leave K8S_WORKERS",
        ),
    ],
)
def test_a_cluster_that_does_not_fit_is_refused(
    flags, tmp_path, command, monkeypatch, variables, code, said
):
    for name, value in {"K8S_JOB_NAME": "j", **variables}.items():
        monkeypatch.setenv(name, value)
    refused = command("train", *flags, *place(tmp_path), "--ensemble", "2")
    assert (refused.code, list(tmp_path.iterdir())) == (code, [])
    assert said in refused.err


def test_a_members_name_that_is_taken_is_found_before_anything_is_trained(mine, flags, command):
    shutil.rmtree(mine / "e")
    shutil.rmtree(mine / "e-1")
    refused = command("train", *flags, "--seed", "3", *place(mine), "--ensemble", "2")
    assert refused.code == 73
    assert "e-2" in refused.err
    assert "seed 1 there, 4 here" in refused.err
    assert [path.name for path in mine.iterdir()] == ["e-2"]


def forge(run: Path, part: str, said: dict) -> None:
    metrics = read(run)
    metrics[part] = metrics.get(part, {}) | said
    (run / "metrics.json").write_text(json.dumps(metrics))


@pytest.mark.parametrize(
    ("part", "first", "second", "refused"),
    [
        ("data", {}, {"fingerprint": "0" * 64}, "e-2 was made of other data"),
        ("init_weights", {"sha256": "0"}, {"sha256": "1"}, "did not hold the same weights"),
    ],
)
def test_members_that_differ_in_more_than_the_seed_are_no_ensemble(
    mine, flags, command, part, first, second, refused
):
    """Each was trained by itself, and a file changed in between."""
    unpublish(mine / "e")
    forge(mine / "e-1", part, first)
    forge(mine / "e-2", part, second)
    mixed = command("train", *flags, *place(mine), "--ensemble", "2")
    assert mixed.code == 73
    assert refused in mixed.err
    assert not (mine / "e" / "metrics.json").exists()
    end = json.loads((mine / "e" / "attempts" / "0002-end.json").read_text())
    assert end["code"] == 73


def test_what_its_members_began_with_an_ensemble_says_too(mine, flags, command):
    unpublish(mine / "e")
    began = {"uri": "w.h5", "sha256": "0" * 64}
    for run in ("e-1", "e-2"):
        forge(mine / run, "init_weights", began)
    assert command("train", *flags, *place(mine), "--ensemble", "2").code == 0
    assert read(mine / "e")["init_weights"] == began


def test_its_event_files_go_where_those_of_runs_go(command, flags, mine, tmp_path):
    (mine / "e" / "metrics.json").unlink()  # so that it publishes, of members that are complete
    logs = ["--ensemble", "2", "--tensorboard-dir", tmp_path / "logs"]
    ended = command("train", *flags, *place(mine), *logs)
    assert ended.code == 0, ended.err
    [folder] = (tmp_path / "logs").iterdir()
    assert folder.name.startswith("e-")
    assert [path.name for path in folder.iterdir()] == ["scores.tfevents"]
    assert not (mine / "e" / "tensorboard").exists()
