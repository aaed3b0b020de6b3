"""A whole run: trained, scored and published, never twice, never over another."""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import jsonschema
import pytest
from conftest import REPOSITORY

from job.config import PRESETS
from job.errors import ConflictError, CredentialsError, OutputError, StoppedError
from job.process import runtime
from job.results import publishing
from job.results.predictions import Predictions
from job.results.publishing import RunFolder
from job.results.scores import score
from job.storage import parse

SCHEMA = json.loads((REPOSITORY / "job/assets/metrics.schema.json").read_text())

# What a user writes who has never heard of this project's code.
FOREIGN_SCRIPT = """
import sys
import numpy as np
if sys.argv[1] == "keras":
    import keras
else:
    import tf_keras as keras
model = keras.Sequential([
    keras.layers.Input((784,)),
    keras.layers.Dense(128, activation="relu"),
    keras.layers.Dense(64, activation="relu"),
    keras.layers.Dense(10, activation="softmax"),
])
model.load_weights(sys.argv[2])
data = np.load(sys.argv[3])
probabilities = model.predict(data["x_test"].reshape(-1, 784) / 255.0, verbose=0)
print((probabilities.argmax(1) == data["y_test"]).sum())
assert "job" not in sys.modules
"""


def read(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def test_metrics_follow_the_schema(trained):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(read(trained))


@pytest.mark.parametrize(
    "place",
    [
        (),
        ("test",),
        ("test", "per_class", 0),
        ("train", "history", 0),
        ("timing",),
        ("environment",),
        ("artifacts", 0),
        ("data",),
    ],
)
def test_schema_refuses_metrics_with_a_member_missing_or_unknown(trained, place):
    for spoil in (lambda part: part.popitem(), lambda part: part.update(unheard_of=1)):
        document = part = read(trained)
        for key in place:
            part = part[key]
        spoil(part)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_artifacts_are_what_metrics_say(trained):
    artifacts = {artifact["path"]: artifact for artifact in read(trained)["artifacts"]}
    assert set(artifacts) == {"model_weights.h5", "model.keras", "predictions.safetensors"}
    for path, artifact in artifacts.items():
        content = (trained / path).read_bytes()
        assert artifact["size"] == len(content)
        assert artifact["sha256"] == hashlib.sha256(content).hexdigest()


def test_predictions_give_the_scores_of_the_metrics_again(trained):
    found = Predictions.read(RunFolder(parse(str(trained))))
    assert found.logits.shape == (505, 10)
    again = asdict(score(found.logits.astype(float), found.labels))
    assert json.loads(json.dumps(again)) == read(trained)["test"]  # to the bit


def test_run_holds_nothing_else(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    checkpoints = {path for path in files if path.startswith("checkpoints/")}
    assert len(checkpoints) == 1
    assert files - checkpoints == {
        "attempts/0001.json",
        "metrics.json",
        "metrics.prom",
        "model.keras",
        "model_weights.h5",
        "predictions.safetensors",
        "report.html",
    }


def test_metrics_are_consistent_with_themselves(trained):
    metrics = read(trained)
    test, train, timing = metrics["test"], metrics["train"], metrics["timing"]
    assert metrics["data"]["train_examples"] == 2000
    assert test["examples"] == 505 == sum(map(sum, test["confusion"]))
    assert test["accuracy"] == pytest.approx(test["correct"] / 505)
    assert test["accuracy"] > 0.8  # two epochs on 2,000 images give about 0.87
    assert train["steps"] == 2 * 63  # 2,000 images in batches of 32, rounded up
    assert [epoch["epoch"] for epoch in train["history"]] == [1, 2]
    stages = sum(
        timing[f"{stage}_seconds"]
        for stage in ("import", "load", "compile", "train", "evaluate", "publish")
    )
    assert 0 < stages <= timing["total_seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_weights_open_without_this_project(trained, small_mnist, library, tmp_path):
    script = tmp_path / "foreign.py"
    script.write_text(FOREIGN_SCRIPT)
    weights = trained / "model_weights.h5"
    counted = subprocess.run(
        [sys.executable, script, library, weights, small_mnist],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert int(counted.stdout) == read(trained)["test"]["correct"]


def test_archive_opens_with_keras_alone(trained, small_mnist):
    import keras
    import numpy as np

    data = np.load(small_mnist)
    model = keras.models.load_model(trained / "model.keras", compile=False)
    probabilities = model.predict(data["x_test"] / 255.0, verbose=0)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.argmax(1) == data["y_test"]).sum() == read(trained)["test"]["correct"]


def test_same_seed_in_another_process_gives_the_same_bytes(trained, small_mnist, tmp_path):
    flags = ["--data", small_mnist, "--epochs", "2", "--output", tmp_path, "--run-id", "twin"]
    subprocess.run([sys.executable, "-m", "job", "train", *flags], check=True, capture_output=True)
    for path in ("model_weights.h5", "model.keras", "predictions.safetensors"):
        assert (tmp_path / "twin" / path).read_bytes() == (trained / path).read_bytes()
    mine, twins = read(trained), read(tmp_path / "twin")
    for history in (mine["train"]["history"], twins["train"]["history"]):
        for epoch in history:
            del epoch["seconds"], epoch["images_per_second"]
    assert mine["train"] == twins["train"]
    assert mine["test"] == twins["test"]


def test_another_seed_gives_other_weights(trained, small_mnist, tmp_path, command):
    flags = ["--data", small_mnist, "--epochs", 2, "--output", tmp_path, "--run-id", "other"]
    assert command("train", *flags, "--seed", 1).code == 0
    mine, other = (read(run)["artifacts"][0]["sha256"] for run in (trained, tmp_path / "other"))
    assert mine != other


def test_finished_run_is_left_alone(trained, small_mnist, command):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    flags = [
        "--data",
        small_mnist,
        "--epochs",
        2,
        "--output",
        trained.parent,
        "--run-id",
        "trained",
    ]
    again = command("train", *flags)
    assert again.code == 0
    assert '"event": "already_complete"' in again.out
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*")}


def test_finished_run_of_other_data_is_a_conflict(small_mnist, tmp_path, command):
    """The same path and config, but other bytes: "complete already" would be a lie."""
    import numpy as np

    path = tmp_path / "data.npz"
    path.write_bytes(Path(small_mnist).read_bytes())
    flags = ["--data", path, "--epochs", 1, "--output", tmp_path, "--run-id", "done"]
    assert command("train", *flags).code == 0
    with np.load(small_mnist) as arrays:
        np.savez(path, **{**arrays, "y_train": 9 - arrays["y_train"]})
    changed = command("train", *flags)
    assert changed.code == 73
    assert "made of other data" in changed.err
    path.unlink()  # published is published, even where the data is gone
    gone = command("train", *flags)
    assert gone.code == 0
    assert '"event": "data_not_compared"' in gone.out
    assert '"event": "already_complete"' in gone.out


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        ("mlp", "float32"),
        ("mlp", "mixed_bfloat16"),
        pytest.param("cnn", "float32", marks=pytest.mark.slow),
        pytest.param("cnn", "mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_metrics_are_those_of_the_published_files(small_mnist, tmp_path, command, model, precision):
    """To the last digit, whatever the training computed in."""
    flags = ["--data", small_mnist, "--epochs", 1, "--model", model, "--precision", precision]
    assert command("train", *flags, "--output", tmp_path, "--run-id", "run").code == 0
    report = tmp_path / "report.json"
    assert command("evaluate", "--weights", tmp_path / "run", "--report", report).code == 0
    assert json.loads(report.read_text())["test"] == read(tmp_path / "run")["test"]


def test_a_stopped_attempt_leaves_its_verdict_beside_the_run(
    small_mnist, tmp_path, command, monkeypatch
):
    """A pod's log and termination message go with the pod."""
    from job.training import train

    def stop(*_, **__):
        raise StoppedError("stopped by SIGTERM, the work is saved")

    flags = ["--data", small_mnist, "--epochs", 1, "--output", tmp_path, "--run-id", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(train, "train", stop)
        assert command("train", *flags).code == 143
        patch.setattr(train, "train", lambda *_, **__: 1 / 0)
        assert command("train", *flags).code == 70
    assert command("train", *flags).code == 0
    attempts = tmp_path / "run" / "attempts"
    ends = {path.name: json.loads(path.read_text()) for path in attempts.glob("*-end.json")}
    assert sorted(ends) == ["0001-end.json", "0002-end.json"]  # the third is in metrics.json
    assert ends["0001-end.json"]["status"] == "stopped"
    assert "SIGTERM" in ends["0001-end.json"]["error"]
    assert (ends["0002-end.json"]["status"], ends["0002-end.json"]["code"]) == ("failed", 70)
    records = read(tmp_path / "run")["attempt_records"]
    assert [record["attempt"] for record in records] == [1, 2, 3]
    assert {record["tensorflow"] for record in records} == {records[0]["tensorflow"]}


@pytest.mark.parametrize(
    ("error", "said"),
    [(OutputError("no room"), "no room"), (MemoryError(), "MemoryError()")],
)
def test_a_verdict_that_cannot_be_left_changes_no_exit_code(
    small_mnist, tmp_path, command, monkeypatch, error, said
):
    from job import storage
    from job.training import train

    def stop(*_, **__):
        monkeypatch.setattr(storage, "create", refuse)
        raise StoppedError("stopped by SIGTERM, the work is saved")

    def refuse(*_):
        raise error

    monkeypatch.setattr(train, "train", stop)
    flags = ["--data", small_mnist, "--epochs", 1, "--output", tmp_path, "--run-id", "run"]
    stopped = command("train", *flags)
    assert stopped.code == 143
    assert f'"event": "end_not_recorded", "reason": "{said}"' in stopped.out


def test_finished_run_of_another_config_is_a_conflict(trained, small_mnist, command):
    flags = [
        "--data",
        small_mnist,
        "--epochs",
        3,
        "--output",
        trained.parent,
        "--run-id",
        "trained",
    ]
    other = command("train", *flags)
    assert other.code == 73
    assert "epochs 2 there, 3 here" in other.err


def test_begun_run_goes_on_and_counts_its_attempts(small_mnist, tmp_path, command, monkeypatch):
    flags = ["--data", small_mnist, "--epochs", 1, "--output", tmp_path, "--run-id", "begun"]
    with monkeypatch.context() as patch:
        patch.setattr(
            publishing.RunFolder, "complete", lambda *_: 1 / 0
        )  # dies after all but the last file
        assert command("train", *flags).code == 70
    assert not (tmp_path / "begun" / "metrics.json").exists()
    assert command("train", *flags, "--seed", 5).code == 73
    assert command("train", *flags).code == 0
    assert read(tmp_path / "begun")["attempts"] == 2


def test_begun_run_does_not_go_on_with_other_data(mnist, tmp_path, command):
    import numpy as np

    path = tmp_path / "changing.npz"
    flags = ["--data", path, "--output", tmp_path, "--run-id", "begun", "--batch-size", "100"]
    for start, code in ((0, 78), (100, 73)):
        part = slice(start, start + 100)
        np.savez(
            path,
            x_train=mnist.x_train[part],
            y_train=mnist.y_train[part],
            x_test=mnist.x_test[part],
            y_test=mnist.y_test[part],
        )
        assert command("train", *flags, "--strategy", "gpu").code == code


@pytest.mark.parametrize(
    "flags",
    [
        ("--augment", "shift"),
        ("--precision", "mixed_bfloat16"),
        ("--schedule", "cosine"),
        ("--schedule", "constant"),
        ("--batch-size", "250"),
        ("--strategy", "cpu"),
    ],
)
def test_every_choice_trains_a_model_that_learned(small_mnist, tmp_path, command, flags):
    place = ["--data", small_mnist, "--output", tmp_path, "--run-id", "run"]
    done = command("train", *place, "--epochs", 8, *flags)
    assert done.code == 0, done.err
    assert read(tmp_path / "run")["test"]["accuracy"] > 0.7


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_other_sizes_and_classes_are_inferred(tmp_path, command, channels):
    import numpy as np

    draw = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = draw.integers(0, 60, (90, 12, 9, *channels)).astype(np.uint8)
    images[labels == 1, :6] += 120
    images[labels == 2, 6:] += 120
    path = tmp_path / "stripes.npz"
    np.savez(path, x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    flags = ["--data", path, "--output", tmp_path, "--batch-size", "7", "--epochs", "5"]
    assert command("train", *flags, "--run-id", "stripes").code == 0
    metrics = read(tmp_path / "stripes")
    assert metrics["test"]["accuracy"] == 1
    assert metrics["data"]["image_shape"] == [12, 9, *channels]
    assert len(metrics["test"]["per_class"]) == 3
    jsonschema.Draft202012Validator(SCHEMA).validate(metrics)
    weights = tmp_path / "stripes"
    scored = command("evaluate", "--weights", weights, "--data", path)
    assert "test accuracy: 1.0000" in scored.out


@pytest.mark.slow
@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_trains_on_data_of_another_kind(tmp_path, command, preset):
    """Coloured textures of four kinds, neither square nor of MNIST's size."""
    import numpy as np

    draw = np.random.default_rng(0)
    labels = np.arange(1_200) % 4
    images = draw.integers(0, 120, (1_200, 20, 26, 3)).astype(np.uint8)
    images[labels == 1, ::2] += 120
    images[labels == 2, :, ::2] += 120
    images[labels == 3, :, :, 2] += 120
    path = tmp_path / "textures.npz"
    np.savez(
        path, x_train=images[:960], y_train=labels[:960], x_test=images[960:], y_test=labels[960:]
    )
    flags = ["--preset", preset, "--data", path, "--output", tmp_path, "--run-id", "textures"]
    small = ["--epochs", "6", "--batch-size", "32", "--validation", "0.1"]
    done = command("train", *flags, *small)
    assert done.code == 0, done.err
    metrics = read(tmp_path / "textures")
    assert metrics["test"]["accuracy"] > 0.9
    assert metrics["train"]["history"][-1]["validation_accuracy"] > 0.9
    jsonschema.Draft202012Validator(SCHEMA).validate(metrics)
    scored = command("evaluate", "--weights", tmp_path / "textures")
    assert f"test accuracy: {metrics['test']['accuracy']:.4f}" in scored.out


def test_loss_that_is_no_number_is_not_published(small_mnist, tmp_path, command):
    flags = ["--data", small_mnist, "--output", tmp_path, "--run-id", "diverged", "--epochs", 2]
    diverged = command("train", *flags, "--learning-rate", 10, "--weight-decay", 10)
    assert diverged.code == 64
    assert "the loss became nan in epoch 1: --learning-rate 10" in diverged.err
    assert "--weight-decay 10" in diverged.err
    assert not (tmp_path / "diverged" / "metrics.json").exists()


@pytest.mark.slow
def test_a_learning_rate_that_is_not_to_blame_is_not_blamed(
    small_mnist, tmp_path, command, monkeypatch
):
    """A machine whose memory or GPU is faulty, say."""
    import numpy as np

    from job.training.loop import Loop

    monkeypatch.setattr(Loop, "means", lambda *_: (np.nan, 0.1))
    flags = ["--data", small_mnist, "--output", tmp_path, "--epochs", 1]
    failed = command("train", *flags, "--run-id", "plain")
    assert failed.code == 65
    assert "no flag explains that (--learning-rate is 0.003)" in failed.err
    coarse = command("train", *flags, "--run-id", "coarse", "--precision", "mixed_bfloat16")
    assert coarse.code == 64
    assert "--precision mixed_bfloat16 is too coarse" in coarse.err
    assert "--learning-rate" not in coarse.err


@pytest.fixture
def begin(small_mnist, tmp_path, command, monkeypatch):
    """Return a function that stops the run `r` after some chunks, or lets it finish."""
    from job.process.preemption import Preemption
    from job.training import train

    monkeypatch.setattr(train, "CHUNK_SECONDS", 1e-9)  # a step a chunk

    def run(chunks=0):
        left = [chunks]

        def reason(*_):
            left[0] -= 1
            return StoppedError("enough") if left[0] == 0 else None

        with monkeypatch.context() as patch:
            patch.setattr(Preemption, "reason", reason)
            flags = ["--data", small_mnist, "--epochs", 1, "--batch-size", 100, "--log", "json"]
            ended = command("train", *flags, "--output", tmp_path, "--run-id", "r")
        assert ended.code == (143 if chunks else 0), ended.err
        return {event["event"]: event for event in map(json.loads, ended.out.splitlines())}

    return run


@pytest.mark.slow
def test_a_resume_with_other_versions_or_devices_says_so(begin, tmp_path, monkeypatch):
    from job.training import strategy

    begin(3)
    with monkeypatch.context() as patch:
        describe = strategy.describe
        others = {"devices": ("Other GPU",), "strategy": "gpu"}
        patch.setattr(strategy, "describe", lambda chosen: replace(describe(chosen), **others))
        patch.setattr(runtime, "import_tensorflow", lambda: {"tensorflow": "9", "keras": "8"})
        events = begin(2)
    versions = [read_attempt(tmp_path, 1)[name] for name in ("tensorflow", "keras")]
    assert events["resumed_differently"]["level"] == "warning"
    assert events["resumed_differently"]["changes"] == {
        "tensorflow": [versions[0], "9"],
        "keras": [versions[1], "8"],
        "devices": [["CPU"], ["Other GPU"]],
        "strategy": ["cpu", "gpu"],
    }
    events = begin()  # compared with the attempt before, not with the first
    assert events["resumed_differently"]["changes"]["devices"] == [["Other GPU"], ["CPU"]]
    metrics = read(tmp_path / "r")
    jsonschema.Draft202012Validator(SCHEMA).validate(metrics)
    assert [record["tensorflow"] for record in metrics["attempt_records"]] == [
        versions[0],
        "9",
        versions[0],
    ]
    devices = [record["devices"] for record in metrics["attempt_records"]]
    assert devices == [["CPU"], ["Other GPU"], ["CPU"]]
    assert metrics["environment"]["devices"] == ["CPU"]


def test_an_attempt_that_saved_nothing_is_listed_without_devices(begin, tmp_path, monkeypatch):
    from job.training import train

    with monkeypatch.context() as patch:
        patch.setattr(train, "train", lambda *_: 1 / 0)
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            begin()
    begin()
    metrics = read(tmp_path / "r")
    jsonschema.Draft202012Validator(SCHEMA).validate(metrics)
    assert ["threads" in record for record in metrics["attempt_records"]] == [False, True]


def read_attempt(output: Path, number: int) -> dict:
    return json.loads((output / "r" / "attempts" / f"{number:04}.json").read_text())


@pytest.mark.slow
def test_a_resume_in_the_same_place_has_nothing_to_say(begin):
    first, events = begin(3), begin()
    assert "resumed" in events
    unsaid = {"resumed_differently", "records_missing", "nothing_saved_before"}
    assert not unsaid & {*first, *events}


@pytest.mark.slow
def test_a_resume_tells_its_own_time_from_that_of_all(begin, tmp_path):
    begin(15)
    events = begin()
    timing = read(tmp_path / "r")["timing"]
    assert 0 < timing["attempt_train_seconds"] < timing["train_seconds"]
    stages = ("import", "load", "compile", "attempt_train", "evaluate", "publish")
    assert sum(timing[f"{stage}_seconds"] for stage in stages) <= timing["total_seconds"]
    for event in (events["complete"], begin()["already_complete"]):
        assert event["attempts"] == 2
        assert event["attempt_train_seconds"] == timing["attempt_train_seconds"]


def test_metrics_of_before_still_have_a_closing_line(trained):
    from job.results import metrics

    document = read(trained)
    del document["timing"]["attempt_train_seconds"]
    assert metrics.summary("runs/r", document)["attempt_train_seconds"] is None


@pytest.mark.slow
def test_a_checkpoint_of_before_goes_on_and_says_what_is_not_known(begin, tmp_path):
    """One that holds no versions, devices and threads."""
    from job.training.checkpoint import from_bytes, to_bytes

    begin(3)
    [saved] = (tmp_path / "r" / "checkpoints").iterdir()
    old = to_bytes(replace(from_bytes(saved.read_bytes(), "x"), made_by=()))
    saved.unlink()
    name = f"{saved.name[:10]}-{hashlib.sha256(old).hexdigest()}.safetensors"
    saved.with_name(name).write_bytes(old)
    changes = begin()["resumed_differently"]["changes"]
    assert {before for before, _ in changes.values()} == {None}
    assert read(tmp_path / "r")["train"]["resumed_step"] == 3


@pytest.mark.parametrize(
    ("had", "takes"), [(({"threads": [2, 5]},), 5), (({"threads": [7]},), 7), ((), 7)]
)
def test_a_worker_computes_with_the_threads_it_had_or_the_chiefs(tmp_path, monkeypatch, had, takes):
    from io import StringIO
    from types import SimpleNamespace

    from job import run
    from job.config import RunConfig
    from job.process.progress import Progress
    from job.storage import Place
    from job.training.checkpoint import Checkpoints, State
    from job.workers.cluster import Workers

    monkeypatch.setattr(runtime, "_in_force", None)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    config = RunConfig(run_id="r", output=str(tmp_path))
    dataset = SimpleNamespace(fingerprint="f")
    attempt = run.Attempt(publishing.RunFolder(config.place), 0, {"cores": 3})
    workers = Workers(("a:1", "b:1"), 1)
    progress = Progress("json", StringIO())
    checkpoints = Checkpoints(Place.of(tmp_path / "checkpoints"), 0, progress)

    def begins() -> State:
        return run._where_to_begin(attempt, checkpoints, config, dataset, workers, progress)

    assert begins().threads == 3  # nothing was saved
    owner = {"config": config.digest, "data": "f"}
    Checkpoints(Place.of(tmp_path / "checkpoints"), 0, progress).save(
        State(owner, threads=7, step=4, made_by=had)
    )
    assert (begins().threads, begins().step) == (takes, 0)

    def stop(*_: object) -> None:
        raise StoppedError("stopped by SIGTERM")

    monkeypatch.setattr(checkpoints, "restore", stop)
    with pytest.raises(StoppedError):  # no failure of the checkpoint's
        begins()


@pytest.mark.slow
def test_checkpoints_without_their_records_are_gone_on_from(begin, tmp_path):
    """Somebody moved a damaged record away, as its error advises: no fresh start in silence."""
    import shutil

    begin(5)
    shutil.rmtree(tmp_path / "r" / "attempts")
    events = begin()
    assert events["attempt_started"]["attempt"] == 1
    assert events["resumed"]["step"] > 0
    assert events["records_missing"]["step"] == events["resumed"]["step"]


def test_sigterm_is_heeded_between_the_batches_of_scoring(
    small_mnist, tmp_path, command, monkeypatch
):
    import os
    import signal

    from job.results import evaluation

    def small(_):
        os.kill(os.getpid(), signal.SIGTERM)
        return 100

    monkeypatch.setattr(evaluation, "batch_size", small)
    flags = ["--data", small_mnist, "--epochs", 1, "--output", tmp_path, "--run-id", "r"]
    scored = []
    monkeypatch.setattr("job.run.scored", scored.append)
    assert command("train", *flags).code == 143
    assert scored == []
    assert (tmp_path / "r" / "attempts" / "0001-end.json").exists()


def test_loading_and_scoring_beat_between_their_pieces(small_mnist, tmp_path, command, monkeypatch):
    import os

    from job.data import source
    from job.results import evaluation

    file, moved = tmp_path / "alive", {}

    def noticed(name, work):
        def wrapped(*arguments):
            *given, beat = arguments

            def counted():
                os.utime(file, (0, 0))
                beat()
                moved[name] = moved.get(name, 0) + (file.stat().st_mtime > 0)

            return work(*given, counted)

        return wrapped

    monkeypatch.setattr(source, "load", noticed("load", source.load))
    monkeypatch.setattr(evaluation, "predict_logits", noticed("look", evaluation.predict_logits))
    monkeypatch.setattr(evaluation, "MOST_EXAMPLES", 100)
    flags = ["--data", small_mnist, "--epochs", 1, "--output", tmp_path, "--liveness-file", file]
    assert command("train", *flags).code == 0
    assert moved == {"load": 7, "look": 6}  # opened, two parts, four arrays; 505 images


def test_a_complete_run_waits_little_for_its_data(trained, small_mnist, command, monkeypatch):
    import threading
    import time

    from job import run
    from job.data import source

    never = threading.Event()
    monkeypatch.setattr(run, "COMPARE_SECONDS", 0.2)
    flags = ["--data", small_mnist, "--epochs", 2, "--output", trained.parent]
    with monkeypatch.context() as patch:
        patch.setattr(source, "load", lambda *_: never.wait(30))
        began = time.monotonic()
        slow = command("train", *flags, "--run-id", "trained")
    never.set()
    assert time.monotonic() - began < 10
    assert slow.code == 0
    assert '"reason": "reading them takes over 0.2 s"' in slow.out


@pytest.mark.parametrize(
    "error",
    [CredentialsError("no credentials"), MemoryError(), ZeroDivisionError("a bug")],
    ids=lambda error: type(error).__name__,
)
def test_data_that_cannot_be_read_fail_no_complete_run(
    trained, small_mnist, command, monkeypatch, error
):
    from job.data import source

    def fail(*_):
        raise error

    monkeypatch.setattr(source, "load", fail)
    flags = ["--data", small_mnist, "--epochs", 2, "--output", trained.parent]
    done = command("train", *flags, "--run-id", "trained")
    assert done.code == 0
    assert '"event": "data_not_compared"' in done.out
    assert '"event": "already_complete"' in done.out


# --- a store that fails, and what its end says ------------------------------------------------


def told(ended) -> list[dict]:
    return [json.loads(line) for line in ended.out.splitlines()]


def events_of(ended, name: str) -> list[dict]:
    return [event for event in told(ended) if event["event"] == name]


LONG = ("--epochs", 4_000, "--batch-size", 100, "--checkpoint-seconds", 0.2)


def test_credentials_that_expire_in_mid_run_end_it(
    small_mnist, command, monkeypatch, faulty, place
):
    note, put = faulty.note, []

    def after_the_first_checkpoint(request):
        put.append(request.method == "PUT" and "/checkpoints/" in request.key)
        return "expired" if sum(put) > 1 else note(request)

    monkeypatch.setattr(faulty, "note", after_the_first_checkpoint)
    ended = command("train", "--data", small_mnist, "--output", place, "--run-id", "r", *LONG)
    assert ended.code == 77
    [saved] = events_of(ended, "checkpoint_saved")
    [failed] = events_of(ended, "checkpoint_failed")
    assert f"nothing more can be saved: the last step saved is {saved['step']:,}" in ended.err
    assert 0 < saved["step"] < failed["step"]
    assert events_of(ended, "epoch")[-1]["epoch"] < 2_000


def test_a_folder_that_takes_no_more_files_ends_the_run(
    small_mnist, tmp_path, command, monkeypatch
):
    from job.training import checkpoint
    from job.training.checkpoint import Checkpoints

    prune, folder = Checkpoints.prune, tmp_path / "r" / "checkpoints"

    def then_in_the_way(self, keep):
        prune(self, keep)
        folder.rename(tmp_path / "aside")
        folder.write_bytes(b"")

    monkeypatch.setattr(Checkpoints, "prune", then_in_the_way)
    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", 0.0)
    ended = command("train", "--data", small_mnist, "--output", tmp_path, "--run-id", "r", *LONG)
    assert ended.code == 74
    [saved] = events_of(ended, "checkpoint_saved")
    assert len(events_of(ended, "checkpoint_failed")) == 3
    assert f"saves in a row failed, for 0 s: the last step saved is {saved['step']:,}" in ended.err
    assert events_of(ended, "epoch")[-1]["epoch"] < 2_000


@pytest.mark.parametrize(
    ("end", "code"), [("stop", 70), ("time limit", 70), ("last step", 70), ("divergence", 65)]
)
def test_a_bug_in_the_writer_is_told_however_the_training_ends(
    small_mnist, tmp_path, command, monkeypatch, end, code
):
    """It meets it while the training waits for it, so no later offer looks at it."""
    import threading

    from job import storage
    from job.errors import TemporaryError
    from job.process.preemption import Preemption
    from job.training import train
    from job.training.loop import Loop

    ending, create = threading.Event(), storage.create

    def fail_in_the_background(place, data):
        if threading.current_thread().name.startswith("checkpoint"):
            assert ending.wait(60)
            raise ZeroDivisionError("a bug")
        create(place, data)

    left = [5]

    def reason(*_):
        left[0] -= 1
        if left[0] > 0 or end in {"last step", "divergence"}:
            return None
        return StoppedError("enough") if end == "stop" else TemporaryError("--time-limit reached")

    def not_a_number(*_):
        ending.set()
        return float("nan"), 0.1

    rests = train.watchdog.rests
    monkeypatch.setattr(train, "CHUNK_SECONDS", 1e-9)  # a step a chunk
    monkeypatch.setattr(storage, "create", fail_in_the_background)
    monkeypatch.setattr(Preemption, "reason", reason)
    monkeypatch.setattr(train.watchdog, "rests", lambda: (ending.set(), rests()))
    if end == "divergence":
        monkeypatch.setattr(Loop, "means", not_a_number)
    flags = ["--data", small_mnist, "--epochs", 1, "--batch-size", 100, "--checkpoint-seconds", 0]
    ended = command("train", *flags, "--output", tmp_path, "--run-id", "r")
    assert ended.code == code
    [failed] = events_of(ended, "checkpoint_failed")
    assert failed["reason"] == "ZeroDivisionError('a bug')"
    if code == 70:  # and no work is lost
        assert "ZeroDivisionError('a bug')" in ended.err
        assert events_of(ended, "checkpoint_saved")[-1]["step"] > failed["step"]


def test_an_attempt_after_some_that_saved_nothing_says_so(begin, monkeypatch):
    from job.training import train

    with monkeypatch.context() as patch:
        patch.setattr(train, "train", lambda *_: 1 / 0)
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            begin()
    events = begin()
    assert (
        events["nothing_saved_before"]["level"],
        events["nothing_saved_before"]["attempts"],
    ) == (
        "warning",
        1,
    )


@pytest.mark.slow
def test_a_run_without_its_weights_can_be_published_again_as_its_error_says(
    begin, tmp_path, command, small_mnist
):
    begin()
    weights, metrics = tmp_path / "r" / "model_weights.h5", tmp_path / "r" / "metrics.json"
    before = weights.read_bytes()
    weights.unlink()
    flags = ["--data", small_mnist, "--epochs", 1, "--batch-size", 100, "--output", tmp_path]
    ended = command("train", *flags, "--run-id", "r")
    assert ended.code == 65
    assert "move metrics.json away, and the same command publishes both again" in ended.err
    metrics.unlink()
    assert begin()["resumed"]["step"] == 20
    assert weights.read_bytes() == before


def test_a_complete_run_is_tidied(begin, tmp_path):
    """Its process died between publishing and removing what it no longer needs."""
    begin()
    [last] = (tmp_path / "r" / "checkpoints").iterdir()
    older = last.with_name(f"{7:010}-{'a' * 64}.safetensors")
    older.write_bytes(b"")
    assert "already_complete" in begin()
    assert list(last.parent.iterdir()) == [last]


def test_a_run_that_a_twin_completes_meanwhile_is_complete(begin, tmp_path, monkeypatch):
    """Its checkpoints go while this process looks for them."""
    import shutil

    from job.training import checkpoint

    begin()
    run, names_in = tmp_path / "r", checkpoint.names_in
    shutil.move(run / "metrics.json", tmp_path)

    def then_complete(folder):
        found = names_in(folder)
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        if (tmp_path / "metrics.json").exists():
            shutil.move(tmp_path / "metrics.json", run)
        return found

    monkeypatch.setattr(checkpoint, "names_in", then_complete)
    events = begin()
    assert "already_complete" in events
    assert "resumed" not in events


# --- data that grow ---------------------------------------------------------------------------


@pytest.fixture
def shards(small_mnist, mnist, tmp_path):
    """Return a folder of shards: the small data, and one more of each kind."""
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "base.npz").write_bytes(Path(small_mnist).read_bytes())
    put(folder, "train-a.npz", mnist.x_train[3000:3300], mnist.y_train[3000:3300])
    put(folder, "test-a.npz", mnist.x_test[600:650], mnist.y_test[600:650])
    return folder


def put(folder, name, images, labels):
    import numpy as np

    kind = name.partition("-")[0]
    np.savez(folder / name, **{f"x_{kind}": images, f"y_{kind}": labels})


def test_a_run_on_shards_records_its_lineage(shards, tmp_path, command):
    (shards / "notes.npz").write_bytes(b"")
    flags = ["--epochs", 1, "--output", tmp_path, "--run-id", "grown"]
    done = command("train", "--data", shards, *flags)
    assert done.code == 0, done.err
    events = {line["event"]: line for line in map(json.loads, done.out.splitlines())}
    assert events["not_a_shard"]["level"] == "warning"
    assert events["not_a_shard"]["file"] == f"{shards}/notes.npz"
    assert "shards" not in events["data_loaded"]  # there may be thousands
    metrics = read(tmp_path / "grown")
    jsonschema.Draft202012Validator(SCHEMA).validate(metrics)
    data = metrics["data"]
    assert [file["name"] for file in data["base"]["files"]] == ["base.npz"]
    for part in (*data["base"]["files"], *data["shards"]):
        content = (shards / part["name"]).read_bytes()
        assert part["size"] == len(content)
        assert part["sha256"] == hashlib.sha256(content).hexdigest()
    train, test = data["shards"]
    assert (train["examples"], test["examples"], test["held_out"]) == (300, 50, 0)
    assert 0 < train["held_out"] < 60
    assert data["train_examples"] == 2300 - train["held_out"]
    assert metrics["test"]["examples"] == data["test_examples"] == 555
    assert "base" not in metrics["config"]
    assert '"event": "already_complete"' in command("train", "--data", shards, *flags).out


def test_a_base_by_name_is_part_of_what_a_run_is(shards, small_mnist, tmp_path, command):
    (shards / "base.npz").unlink()
    flags = ["--data", shards, "--base", small_mnist, "--epochs", 1, "--output", tmp_path]
    assert command("train", *flags, "--run-id", "based").code == 0
    metrics = read(tmp_path / "based")
    jsonschema.Draft202012Validator(SCHEMA).validate(metrics)
    assert metrics["config"]["base"] == small_mnist
    assert metrics["data"]["base"]["uri"] == small_mnist
    scored = command("evaluate", "--weights", tmp_path / "based")  # which finds it again
    assert (scored.code, scored.err) == (0, "")
    by_folder = command("evaluate", "--weights", tmp_path / "based", "--data", shards)
    assert (by_folder.code, by_folder.err) == (0, "")


def test_a_bad_shard_ends_a_training_by_name(shards, tmp_path, command):
    (shards / "train-b.npz").write_bytes(b"PK half")
    refused = command("train", "--data", shards, "--output", tmp_path / "output")
    assert refused.code == 65
    assert "train-b.npz" in refused.err
    assert not (tmp_path / "output").exists()


def test_evaluate_takes_the_shards_that_the_run_took(shards, mnist, tmp_path, command):
    flags = ["--data", shards, "--epochs", 1, "--output", tmp_path, "--run-id", "run"]
    assert command("train", *flags).code == 0
    put(shards, "test-b.npz", mnist.x_test[700:800], mnist.y_test[700:800])
    report = tmp_path / "report.json"
    words = ["evaluate", "--weights", tmp_path / "run"]
    scored = command(*words, "--report", report)
    assert (scored.code, scored.err) == (0, "")
    assert json.loads(report.read_text())["test"] == read(tmp_path / "run")["test"]
    now = command(*words, "--data", shards)
    assert "of 655;" in now.out
    assert "were trained on other data" in now.err
    assert command("train", *flags).code == 73  # another data set has no place in this run
    content = (shards / "train-a.npz").read_bytes()
    (shards / "train-a.npz").write_bytes(content + b"\0")
    changed = command(*words)
    assert changed.code == 65
    assert "train-a.npz" in changed.err
    (shards / "train-a.npz").unlink()
    assert "lacks train-a.npz" in command(*words).err


def test_data_that_are_loaded_already_are_not_read_again(tmp_path, monkeypatch, small_mnist):
    from job import run
    from job.config import DataSource, RunConfig
    from job.data import source
    from job.process.preemption import Preemption
    from job.process.progress import Progress
    from job.storage import parse
    from job.workers.cluster import Cluster

    dataset = source.load(DataSource(parse(small_mnist)))
    monkeypatch.setattr(source, "load", lambda *_: 1 / 0)
    config = RunConfig(data=small_mnist, output=str(tmp_path), run_id="given", epochs=1)
    alone = Cluster.from_environment({}, together=False)
    for _ in range(2):  # the second finds it complete
        document = run.train_run(config, alone, Preemption(), Progress(), dataset=dataset)
        assert document["data"]["fingerprint"] == dataset.fingerprint
    other = replace(dataset, fingerprint="0" * 64)
    with pytest.raises(ConflictError, match="made of other data"):
        run.train_run(config, alone, Preemption(), Progress(), dataset=other)
