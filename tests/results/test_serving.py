"""What is published for TensorFlow Serving: the same bytes always, and open to plain TensorFlow."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from job import storage
from job.cli import main
from job.errors import JobError, OutputError
from job.results import serving
from job.results.predictions import Predictions
from job.results.publishing import RunFolder
from job.storage import parse
from job.training import model

FILES = [
    "serving/1/variables/variables.data-00000-of-00001",
    "serving/1/variables/variables.index",
    "serving/1/fingerprint.pb",
    "serving/1/saved_model.pb",
]
EXPORT = ["--export", "savedmodel"]

# Once as `tf.saved_model.load` reads it, by its objects; once as TensorFlow Serving's own loader
# does: the graph of the tag `serve`, its restore op, and the tensors that the signature names.
STRANGER = """
import json
import sys

import numpy as np

sys.modules["keras"] = None  # which TensorFlow would import if it could
import tensorflow as tf

folder, images = sys.argv[1:]
pixels = (np.load(images)["x_test"][:100] / 255).astype("float32")
loaded = tf.saved_model.load(folder)
served = loaded.signatures["serving_default"](pixels=tf.constant(pixels))
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    graph = tf.compat.v1.saved_model.load(session, ["serve"], folder)
    signature = graph.signature_def["serving_default"]
    outputs = {name: each.name for name, each in signature.outputs.items()}
    again = session.run(outputs, {signature.inputs["pixels"].name: pixels})
shape = [each.size for each in signature.inputs["pixels"].tensor_shape.dim]
print(json.dumps({
    "inputs": {name: [each.dtype, shape] for name, each in signature.inputs.items()},
    "outputs": {name: each.dtype for name, each in signature.outputs.items()},
    "probabilities": served["probabilities"].numpy().tolist(),
    "class": served["class"].numpy().tolist(),
    "apart": float(np.abs(again["probabilities"] - served["probabilities"]).max()),
    "same class": bool((again["class"] == served["class"].numpy()).all()),
    "fingerprint": tf.saved_model.experimental.read_fingerprint(folder).saved_model_checksum,
    "ours": [name for name in sys.modules if name.partition(".")[0] == "job"],
}))
"""

# Killed when so many of the files have been written: before the next one is.
KILLED = """
import os
import signal
import sys

from job import cli, storage

create, left = storage.create, [int(sys.argv[1])]

def create_some(place, data):
    served = "/serving/" in place.key
    if (served or place.name == "metrics.json") and not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= served
    create(place, data)

storage.create = create_some
cli.main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def net() -> keras.Model:
    return model.with_probabilities(model.build("cnn", (12, 10), 4, seed=1))


@pytest.fixture(scope="module")
def files(net) -> dict[str, bytes]:
    return serving.to_saved_model(net)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).random((9, 12, 10), np.float32)


@pytest.fixture(scope="module")
def output(small_mnist, tmp_path_factory) -> Path:
    """Return a folder with the run `served`, of one epoch on the small data."""
    output = tmp_path_factory.mktemp("runs")
    assert train(small_mnist, output, "served") == 0
    return output


def train(data: str, output: Path, run: str, *more: str) -> int:
    words = ["--data", data, "--output", str(output), "--run-id", run, "--no-report"]
    return main(["train", *words, "--epochs", "1", "--batch-size", "128", *EXPORT, *more])


def artifacts(run: Path) -> dict[str, str]:
    """Return the digest of each file that a run's metrics name, by its path."""
    named = json.loads((run / "metrics.json").read_text())["artifacts"]
    return {each["path"]: each["sha256"] for each in named}


def test_the_bytes_are_the_same_whatever_the_process_did_before(net, files):
    for number in range(3):  # TensorFlow and Keras number what a process makes
        tf.function(lambda x, more=number: x + more)(tf.constant(1.0))
        keras.layers.Dense(3).build((1, 2))
    assert serving.to_saved_model(net) == files
    copy = model.with_probabilities(model.build("cnn", (12, 10), 4, seed=1))
    assert serving.to_saved_model(copy) == files
    assert [f"{serving.FOLDER}/{path}" for path in files] == FILES


def test_what_is_of_the_machine_is_left_out(files):
    """As a machine with other devices would have saved it."""
    saved = saved_model_pb2.SavedModel.FromString(files["saved_model.pb"])
    [graph] = saved.meta_graphs
    for node in [*graph.graph_def.node, *graph.graph_def.library.function[-1].node_def]:
        if "PartitionedCall" in node.op:
            node.attr["config_proto"].s = b"devices and threads"
    assert b"devices and threads" in saved.SerializeToString()
    assert serving._numbered_anew(saved.SerializeToString()) == files["saved_model.pb"]


def test_other_weights_are_other_variables_of_the_same_graph(files):
    other = model.with_probabilities(model.build("cnn", (12, 10), 4, seed=2))
    theirs = serving.to_saved_model(other)
    assert [path for path in files if files[path] != theirs[path]] == [
        "variables/variables.data-00000-of-00001",
        "variables/variables.index",
        "fingerprint.pb",  # TensorFlow's digest of the variables
    ]


def test_what_gives_other_probabilities_is_not_published(net, files, pixels):
    probabilities = np.asarray(net(pixels), np.float64)
    serving.check(files, pixels, probabilities)
    for wrong in (probabilities + 2e-5, probabilities * np.nan):
        with pytest.raises(JobError, match="serving/1 gives other probabilities") as refused:
            serving.check(files, pixels, wrong)
        assert refused.value.exit_code == 70


def test_published_again_after_it_was_broken_off_it_is_the_same(net, files, tmp_path, monkeypatch):
    folder = RunFolder(parse(str(tmp_path / "run")))

    def publish(files: dict[str, bytes]) -> list[str]:
        places = {folder.place / f"{serving.FOLDER}/{path}": files[path] for path in files}
        return [artifact.path for artifact in folder.publish(places)]

    create = storage.create

    def create_some(place: storage.Place, data: bytes) -> None:
        if place.name == "fingerprint.pb":
            raise OutputError(f"{place}: no more room")
        create(place, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", create_some)
        with pytest.raises(OutputError):
            publish(files)
    assert not (tmp_path / "run/serving/1/saved_model.pb").exists()  # nothing to be served yet
    assert publish(serving.to_saved_model(net)) == FILES


def test_a_stranger_with_plain_tensorflow_gets_what_the_run_published(output, small_mnist):
    run = output / "served"
    assert list(artifacts(run))[3:] == FILES
    words = [sys.executable, "-I", "-c", STRANGER, str(run / "serving" / "1"), small_mnist]
    ended = subprocess.run(words, cwd=output, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["inputs"] == {"pixels": [tf.float32.as_datatype_enum, [-1, 28, 28]]}
    wanted = {"probabilities": tf.float32, "class": tf.int64}
    assert told["outputs"] == {name: kind.as_datatype_enum for name, kind in wanted.items()}
    published = Predictions.read(RunFolder(parse(str(run))))
    np.testing.assert_allclose(told["probabilities"], published.probabilities[:100], atol=1e-5)
    assert told["class"] == published.predicted[:100].tolist()
    assert told["apart"] <= 1e-6
    assert told["same class"]
    assert told["fingerprint"] > 0
    assert told["ours"] == []


def test_a_complete_run_is_found_with_it_and_never_published_without(output, small_mnist, command):
    before = artifacts(output / "served")
    assert train(small_mnist, output, "served") == 0
    assert artifacts(output / "served") == before
    words = ["--data", small_mnist, "--output", output, "--run-id", "served", "--epochs", "1"]
    done = command("train", *words, "--batch-size", "128")
    assert done.code == 73
    assert "(export 'savedmodel' there, None here)" in done.err


def test_it_is_fetched_with_the_run(output, command, tmp_path):
    assert command("fetch", output / "served", tmp_path).code == 0
    for path, digest in artifacts(output / "served").items():
        assert hashlib.sha256((tmp_path / "served" / path).read_bytes()).hexdigest() == digest


@pytest.mark.slow
@pytest.mark.parametrize("written", [1, 3])
def test_killed_between_its_files_a_run_goes_on_to_the_same_bytes(
    output, small_mnist, tmp_path, written
):
    flags = ["--data", small_mnist, "--output", str(tmp_path), "--run-id", "killed", "--no-report"]
    flags += ["--epochs", "1", "--batch-size", "128", *EXPORT]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(written), "train", *flags], check=False
    )
    assert ended.returncode == -signal.SIGKILL
    found = [path for path in (tmp_path / "killed" / "serving").rglob("*") if path.is_file()]
    assert len(found) == written
    assert train(small_mnist, tmp_path, "killed") == 0
    assert artifacts(tmp_path / "killed") == artifacts(output / "served")


@pytest.mark.slow
def test_an_ensemble_is_served_as_one_and_its_members_are_not(small_mnist, tmp_path):
    assert train(small_mnist, tmp_path, "both", "--ensemble", "2") == 0
    assert list(artifacts(tmp_path / "both"))[3:] == FILES
    for number in (1, 2):
        assert (
            list(artifacts(tmp_path / f"both-{number}")) == list(artifacts(tmp_path / "both"))[:3]
        )
