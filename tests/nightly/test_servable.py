"""What was published, opened by a stranger in a process of its own: real files, really broken."""

import io
import signal
import subprocess
import time
from dataclasses import dataclass, replace

import h5py
import keras
import numpy as np
import pytest

from job.errors import OutputError, TemporaryError
from job.nightly import servable
from job.results import evaluation, weights
from job.training import model


@dataclass(frozen=True)
class Published:
    archive: bytes
    weights: bytes
    images: np.ndarray
    probabilities: np.ndarray

    def check(self, **more):
        return servable.check(self.archive, self.weights, self.images, self.probabilities, **more)


def published(net, mnist) -> Published:
    """Return what a run publishes of `net`, and what the job computes with it."""
    images = mnist.x_test[:100]
    plain = model.with_probabilities(model.in_float32(net))
    return Published(
        archive=weights.to_keras_archive(plain),
        weights=weights.to_hdf5(plain),
        images=images,
        probabilities=np.exp(evaluation.log_softmax(evaluation.predict_logits(net, images))),
    )


@pytest.fixture(scope="module")
def mlp(mnist) -> Published:
    return published(model.build("mlp", (28, 28), 10, seed=1), mnist)


def test_what_was_published_is_opened_and_gives_the_same(mlp, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # the stranger's variables are not ours
    beats = []
    assert mlp.check(beat=lambda: beats.append(1)) is None
    assert beats


def test_layers_of_convolutions_and_of_normalisation_are_opened_too(mnist):
    assert published(model.build("cnn", (28, 28), 10, seed=1), mnist).check() is None


def test_another_probability_than_was_recorded_is_told(mlp):
    """Of a hundred images one, by little more than the tolerance."""
    probabilities = mlp.probabilities.copy()
    probabilities[99, 9] += 1.5e-5
    reason = replace(mlp, probabilities=probabilities).check()
    assert reason.startswith(
        "model.keras gives other probabilities than were recorded, by up to 1."
    )
    probabilities[99, 9] -= 1e-5
    assert replace(mlp, probabilities=probabilities).check() is None


def test_weights_of_another_model_are_told(mlp, mnist):
    other = published(model.build("mlp", (28, 28), 10, seed=2), mnist)
    reason = replace(mlp, weights=other.weights).check()
    assert reason.startswith("model_weights.h5 gives other probabilities than were recorded")


def test_an_archive_of_another_model_is_told(mlp, mnist):
    other = published(model.build("mlp", (28, 28), 10, seed=2), mnist)
    reason = replace(mlp, archive=other.archive).check()
    assert reason.startswith("model.keras gives other probabilities than were recorded")


def test_outputs_of_another_shape_are_told(mlp):
    reason = replace(mlp, probabilities=mlp.probabilities[:, :1]).check()
    assert reason == "model.keras gives outputs of shape (100, 10), not (100, 1)"


def test_probabilities_that_are_no_numbers_match_nothing(mlp):
    buffer = io.BytesIO(mlp.weights)
    with h5py.File(buffer, "r+") as file:
        file["model_weights"]["hidden_1"]["hidden_1"]["bias"][3] = np.nan
    reason = replace(mlp, weights=buffer.getvalue()).check()
    assert reason == "model_weights.h5 gives other probabilities than were recorded, by up to nan"


@pytest.mark.parametrize("name", ["archive", "weights"])
def test_half_a_file_is_told(mlp, name):
    half = getattr(mlp, name)[: len(getattr(mlp, name)) // 2]
    reason = replace(mlp, **{name: half}).check()
    file = {"archive": "model.keras", "weights": "model_weights.h5"}[name]
    assert reason.startswith(f"{file} can't be opened by plain Keras")


def test_a_layer_of_the_jobs_own_is_told(mnist):
    """Keras imports by name what an archive names: the job's code would open it, and only that."""
    net = model.build("mlp", (28, 28), 10, seed=1)
    hidden = keras.layers.Dense(10, name="own")(net.output)
    own = model.shared.Dropout(0.5, seed=1, name="dropped", dtype="float32")(hidden)
    whole = keras.Model(net.input, keras.layers.Softmax(dtype="float32")(own))
    files = replace(published(net, mnist), archive=weights.to_keras_archive(whole))
    reason = files.check()
    assert "model.keras can't be opened by plain Keras" in reason or "the job's own" in reason


def test_code_in_an_archive_is_not_run(mlp, tmp_path):
    """A lambda would be a stranger's code: Keras' safe mode refuses it."""
    net = keras.Sequential([keras.Input((28, 28)), keras.layers.Lambda(lambda x: x[:, 0, :10])])
    path = tmp_path / "model.keras"
    net.save(path)
    reason = replace(mlp, archive=path.read_bytes()).check()
    assert reason.startswith("model.keras can't be opened by plain Keras")
    assert "unsafe" in reason


def test_an_archive_that_asks_for_the_jobs_code_is_told_even_if_it_opens(mlp, monkeypatch):
    monkeypatch.setattr(servable, "PROGRAM", "import job.errors\n" + servable.PROGRAM)
    reason = mlp.check()
    assert reason == "opening what was published imports the job's own job"


def test_a_current_folder_or_python_path_full_of_strangers_changes_nothing(
    mlp, foreign_folder, monkeypatch
):
    monkeypatch.chdir(foreign_folder)
    monkeypatch.setenv("PYTHONPATH", str(foreign_folder))
    assert mlp.check() is None


def test_python_without_keras_is_told(mlp, monkeypatch):
    monkeypatch.setattr(
        servable, "PROGRAM", "import sys\nsys.path[:] = sys.path[:1]\n" + servable.PROGRAM
    )
    reason = mlp.check()
    assert reason == (
        "a clean process with plain Keras failed (exit 1): "
        "ModuleNotFoundError: No module named 'keras'"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_being_killed_says_nothing_of_the_model(mlp, monkeypatch, number):
    program = f"import os\nos.kill(os.getpid(), {int(number)})\n"
    monkeypatch.setattr(servable, "PROGRAM", program)
    with pytest.raises(TemporaryError, match=f"was killed .signal {int(number)}."):
        mlp.check()


def test_a_crash_is_told(mlp, monkeypatch):
    monkeypatch.setattr(servable, "PROGRAM", "import os\nos.abort()\n")
    assert mlp.check() == (
        f"a clean process with plain Keras failed (exit -{int(signal.SIGABRT)}): it said nothing"
    )


def test_what_never_ends_is_ended(mlp, monkeypatch):
    monkeypatch.setattr(servable, "PROGRAM", "import time\ntime.sleep(60)\n")
    monkeypatch.setattr(servable, "LIMIT_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(TemporaryError, match="took over 1 s"):
        mlp.check()
    assert time.monotonic() - began < 20


def test_a_stop_takes_the_process_along(mlp, monkeypatch):
    """Whoever is asked to stop leaves nobody behind who computes on."""
    started = []
    popen = subprocess.Popen

    def noted(*arguments, **more):
        started.append(popen(*arguments, **more))
        return started[-1]

    class StopNowError(Exception):
        pass

    def beat():
        raise StopNowError

    monkeypatch.setattr(subprocess, "Popen", noted)
    with pytest.raises(StopNowError):
        mlp.check(beat=beat)
    assert started[0].returncode == -signal.SIGKILL


def test_no_room_for_the_files_is_told(mlp, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(OutputError, match="TMPDIR"):
        mlp.check()
