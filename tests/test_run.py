"""A whole run: trained, scored and published, never twice, never over another."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from conftest import REPOSITORY

from job.errors import OutputError, StoppedError
from job.results import publishing

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
    assert set(artifacts) == {"model_weights.h5", "model.keras"}
    for path, artifact in artifacts.items():
        content = (trained / path).read_bytes()
        assert artifact["size"] == len(content)
        assert artifact["sha256"] == hashlib.sha256(content).hexdigest()


def test_run_holds_nothing_else(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    checkpoints = {path for path in files if path.startswith("checkpoints/")}
    assert len(checkpoints) == 1
    assert files - checkpoints == {
        "attempts/0001.json",
        "metrics.json",
        "model.keras",
        "model_weights.h5",
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
    for path in ("model_weights.h5", "model.keras"):
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


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_metrics_are_those_of_the_published_files(small_mnist, tmp_path, command, model, precision):
    """To the last digit, whatever the training computed in."""
    flags = ["--data", small_mnist, "--epochs", 1, "--model", model, "--precision", precision]
    assert command("train", *flags, "--output", tmp_path, "--run-id", "run").code == 0
    report = tmp_path / "report.json"
    assert command("evaluate", "--weights", tmp_path / "run", "--output", report).code == 0
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


def test_a_verdict_that_cannot_be_left_changes_no_exit_code(
    small_mnist, tmp_path, command, monkeypatch
):
    from job import storage
    from job.training import train

    def stop(*_, **__):
        monkeypatch.setattr(storage, "create", refuse)
        raise StoppedError("stopped by SIGTERM, the work is saved")

    def refuse(*_):
        raise OutputError("no room")

    monkeypatch.setattr(train, "train", stop)
    flags = ["--data", small_mnist, "--epochs", 1, "--output", tmp_path, "--run-id", "run"]
    stopped = command("train", *flags)
    assert stopped.code == 143
    assert '"event": "end_not_recorded", "reason": "no room"' in stopped.out


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


def test_loss_that_is_no_number_is_not_published(small_mnist, tmp_path, command, monkeypatch):
    import numpy as np

    from job.training import train

    monkeypatch.setattr(
        train, "learning_rates", lambda *asked: np.full(asked[-1], np.inf, np.float32)
    )
    flags = ["--data", small_mnist, "--output", tmp_path, "--run-id", "diverged"]
    diverged = command("train", *flags)
    assert diverged.code == 64
    assert "--learning-rate" in diverged.err
    assert not (tmp_path / "diverged" / "metrics.json").exists()
