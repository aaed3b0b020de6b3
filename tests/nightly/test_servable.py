"""What was published, opened by a stranger in a process of its own: real files, really broken."""

import io
import signal
import subprocess
import time
from dataclasses import dataclass, field, replace
from functools import partial

import h5py
import keras
import numpy as np
import pytest

from job.errors import OutputError, TemporaryError
from job.nightly import servable
from job.results import evaluation, serving, weights
from job.results.scores import log_softmax
from job.training import layers, model


@dataclass(frozen=True)
class Published:
    archive: bytes
    weights: bytes
    images: np.ndarray
    probabilities: np.ndarray
    serving: dict[str, bytes] = field(default_factory=dict)

    def check(self, **more):
        files = self.archive, self.weights, self.images, self.probabilities
        return servable.check(*files, serving=self.serving, **more)


def published(net, mnist) -> Published:
    """Return what a run publishes of `net`, and what the job computes with it."""
    images = mnist.x_test[:100]
    plain = model.with_probabilities(model.in_float32(net))
    return Published(
        archive=weights.to_keras_archive(plain),
        weights=weights.to_hdf5(plain),
        images=images,
        probabilities=np.exp(log_softmax(evaluation.predict_logits(net, images))),
    )


@pytest.fixture(scope="module")
def mlp(mnist) -> Published:
    return published(model.build("mlp", (28, 28), 10, seed=1), mnist)


def of_another_model(mlp, mnist, name):
    other = published(model.build("mlp", (28, 28), 10, seed=2), mnist)
    return replace(mlp, **{name: getattr(other, name)})


def by_little(mlp, _, more):
    """Return it with one of its thousand probabilities a little larger."""
    probabilities = mlp.probabilities.copy()
    probabilities[99, 9] += more
    return replace(mlp, probabilities=probabilities)


def with_a_class_less(mlp, _):
    return replace(mlp, probabilities=mlp.probabilities[:, :9])


def with_nan(mlp, _):
    buffer = io.BytesIO(mlp.weights)
    with h5py.File(buffer, "r+") as file:
        file["model_weights"]["hidden_1"]["hidden_1"]["bias"][3] = np.nan
    return replace(mlp, weights=buffer.getvalue())


def half(mlp, _, name):
    whole = getattr(mlp, name)
    return replace(mlp, **{name: whole[: len(whole) // 2]})


def with_code(mlp, _):
    """Return it with a stranger's code, which Keras' safe mode refuses to run."""
    net = keras.Sequential([keras.Input((28, 28)), keras.layers.Lambda(lambda x: x[:, 0, :10])])
    return replace(mlp, archive=weights.to_keras_archive(net))


def served(mlp, _, seed, part=1.0):
    """Return it with what TensorFlow Serving takes of a net of this seed, its files cut short."""
    net = model.with_probabilities(model.build("mlp", (28, 28), 10, seed=seed))
    files = {
        f"serving/1/{path}": content[: round(part * len(content))]
        for path, content in serving.to_saved_model(net).items()
    }
    return replace(mlp, serving=files)


def convolutions(_, mnist):
    return published(model.build("cnn", (28, 28), 10, seed=1), mnist)


OTHER = "gives other probabilities than were recorded, by up to"
CLOSED = "can't be opened by plain Keras:"
CASES = {
    "convolutions": (convolutions, None),
    "within the tolerance": (partial(by_little, more=0.8e-5), None),
    "beyond the tolerance": (partial(by_little, more=1.2e-5), f"model.keras {OTHER} 1.2e-05"),
    "another archive": (partial(of_another_model, name="archive"), f"model.keras {OTHER} 0."),
    "other weights": (partial(of_another_model, name="weights"), f"model_weights.h5 {OTHER} 0."),
    "no numbers": (with_nan, f"model_weights.h5 {OTHER} nan"),
    "another shape": (
        with_a_class_less,
        "model.keras gives outputs of shape (100, 10), not (100, 9)",
    ),
    "half an archive": (partial(half, name="archive"), f"model.keras {CLOSED}"),
    "half the weights": (partial(half, name="weights"), f"model_weights.h5 {CLOSED}"),
    "served": (partial(served, seed=1), None),
    "another model is served": (partial(served, seed=2), f"serving/1 {OTHER} 0."),
    "half of it is served": (
        partial(served, seed=1, part=0.5),
        "serving/1 can't be opened by plain TensorFlow: ",
    ),
    "code": (with_code, f"model.keras {CLOSED} ValueError"),
}
each_case = pytest.mark.parametrize(
    ("make", "expected"), CASES.values(), ids=[name.replace(" ", "_") for name in CASES]
)


@each_case
def test_what_the_program_finds(mlp, mnist, tmp_path, monkeypatch, make, expected):
    """Its text is run in this process, which has Keras already, on the files laid out for it."""
    files = make(mlp, mnist)
    servable.lay_out(tmp_path, *vars(files).values())
    monkeypatch.chdir(tmp_path)
    program = {}
    exec(servable.JUDGE, program)
    found = program["judge"](servable.TOLERANCE)
    assert found is None if expected is None else found.startswith(expected)


def test_weights_that_are_quietly_not_loaded_are_noticed(mlp, tmp_path, monkeypatch):
    servable.lay_out(tmp_path, *vars(mlp).values())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.Model, "load_weights", lambda *_: None)
    program = {}
    exec(servable.JUDGE, program)
    assert program["judge"](servable.TOLERANCE).startswith(f"model_weights.h5 {OTHER}")


def test_the_process_is_isolated(mlp, monkeypatch):
    program = "import sys\ndef judge(_):\n    return None if sys.flags.isolated else 'no'\n"
    monkeypatch.setattr(servable, "JUDGE", program)
    assert mlp.check() is None


@pytest.mark.slow
@each_case
def test_what_a_process_finds(mlp, mnist, make, expected):
    """The same as above, each in a process of its own: 3 s of import for each."""
    found = make(mlp, mnist).check()
    assert found is None if expected is None else found.startswith(expected)


@pytest.mark.slow
def test_what_was_published_is_opened_and_gives_the_same(mlp, foreign_folder, monkeypatch):
    """Whatever lies about, and whatever this process was told."""
    monkeypatch.chdir(foreign_folder)
    monkeypatch.setenv("PYTHONPATH", str(foreign_folder))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    beats = []
    assert mlp.check(beat=lambda: beats.append(1)) is None
    assert len(beats) > 1


@pytest.mark.slow
def test_what_is_wrong_with_the_files_is_told(mlp, mnist):
    found = of_another_model(mlp, mnist, "weights").check()
    assert found.startswith(f"model_weights.h5 {OTHER} 0.")
    assert len(found.splitlines()) == 1


@pytest.mark.slow
def test_a_layer_of_the_jobs_own_is_told(mlp):
    """Here it opens, since the job's code is imported; a stranger has none of it."""
    net = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
            layers.Dropout(0.5, seed=1, name="dropped", dtype="float32"),
        ]
    )
    archive = weights.to_keras_archive(net)
    found = replace(mlp, archive=archive).check()
    assert found.startswith(f"model.keras {CLOSED} TypeError")
    assert "Could not locate class 'Dropout'" in found
    assert len(found.splitlines()) == 1


def test_the_jobs_own_code_is_noticed_even_if_all_else_is_well(mlp, monkeypatch):
    monkeypatch.setattr(servable, "JUDGE", "import job.errors\ndef judge(_):\n    return None\n")
    assert mlp.check() == "opening what was published imports the job's own job"


def test_python_without_keras_is_told(mlp, monkeypatch):
    monkeypatch.setattr(
        servable, "JUDGE", "import sys\nsys.path[:] = sys.path[:1]\n" + servable.JUDGE
    )
    assert mlp.check() == (
        "a clean process with plain Keras failed (exit 1): "
        "ModuleNotFoundError: No module named 'keras'"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_being_killed_says_nothing_of_the_model(mlp, monkeypatch, number):
    program = f"import os\nos.kill(os.getpid(), {int(number)})\n"
    monkeypatch.setattr(servable, "JUDGE", program)
    with pytest.raises(TemporaryError, match=f"was killed .signal {int(number)}."):
        mlp.check()


def test_a_crash_is_told(mlp, monkeypatch):
    monkeypatch.setattr(servable, "JUDGE", "import os\nos.abort()\n")
    assert mlp.check() == (
        f"a clean process with plain Keras failed (exit -{int(signal.SIGABRT)}): it said nothing"
    )


def test_what_never_ends_is_ended(mlp, monkeypatch):
    monkeypatch.setattr(servable, "JUDGE", "import time\ntime.sleep(60)\n")
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
