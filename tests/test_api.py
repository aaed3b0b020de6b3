"""What other programs call: the README's own snippets, and what a notebook does with them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from job import RunConfig, api, cli, evaluate, predict, storage, train
from job.config import PRESETS
from job.errors import ClusterError, MissingInputError, StoppedError, TemporaryError, UsageError
from job.process import preemption, runtime
from job.process.progress import Silence
from job.results.publishing import RunFolder
from job.training import checkpoint


@pytest.fixture(autouse=True)
def _a_program_of_somebody_else(monkeypatch):
    """Count as before after the test, and have Python's own handler, as a notebook does."""
    monkeypatch.setattr(runtime, "_counted_from", None)
    preemption._hear(None)  # a command that ran before in this process would end it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def config(small_mnist, tmp_path):
    """Return the config of the run `trained`, to be published elsewhere."""
    return RunConfig.of(data=small_mnist, epochs=2, output=tmp_path, run_id="mine", report=False)


def weights_of(metrics):
    return next(
        each["sha256"] for each in metrics["artifacts"] if each["path"] == "model_weights.h5"
    )


@pytest.fixture
def expected(trained):
    """Return the digest of the weights that the command line made."""
    return weights_of(json.loads((trained / "metrics.json").read_text()))


def handlers():
    return [signal.getsignal(number) for number in signal.valid_signals()]


# --- the README ---------------------------------------------------------------------------------


def snippets(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_snippets_of_the_readme_run(tmp_path, monkeypatch, small_mnist, capfd):
    """One after the other, as in a notebook."""
    house = (REPOSITORY / "job" / "README.md").read_text()
    section = house.partition("\n## From Python\n")[2].partition("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    for name in ("digits.npz", "other.npz"):
        shutil.copy(small_mnist, name)
    drawn = Image.new("L", (28, 28))
    drawn.paste(255, (12, 4, 16, 24))
    drawn.save("my-seven.jpg")
    cells = snippets(section)
    assert len(cells) == 4
    names = {}
    for cell in cells:
        exec(cell, names)
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
    assert names["metrics"]["test"]["examples"] == 505
    out, err = capfd.readouterr()
    assert out.startswith("runs/mine 0.8")
    assert err == ""


def test_the_snippet_of_the_package_is_of_its_names():
    [cell] = snippets((REPOSITORY / "job/PACKAGE.md").read_text())
    called = []
    names = {"train": lambda config: called.append(config) or {"test": {"accuracy": 0.99}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "train", names["train"])
        exec(cell, {})
    assert called[0].run_id == "first"
    assert called[0].model == "cnn"


# --- train --------------------------------------------------------------------------------------


def vars_of(config):
    names = ("data", "epochs", "output", "report")
    return {name: getattr(config, name) for name in names}


@pytest.mark.slow
def test_off_the_main_thread_an_event_stops_a_training_that_can_be_gone_on_with(
    config, expected, monkeypatch, capfd
):
    stop, raised = threading.Event(), []
    monkeypatch.setattr(Silence, "moved", lambda *_: stop.set())

    def work():
        try:
            train(config, stop=stop)
        except StoppedError as error:
            raised.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert raised == ["stopped as asked, the work is saved"]
    metrics = train(config, log="text")
    assert metrics["train"]["resumed_step"] > 0
    assert weights_of(metrics) == expected
    assert "accuracy   " in capfd.readouterr().out


def test_ctrl_c_saves_and_the_same_call_makes_the_commands_bytes(
    config, expected, monkeypatch, capfd
):
    """As a kernel of a notebook has it: Python's own handler, and TensorFlow in the way."""
    before, pressed = handlers(), iter([True])

    def moved(*_):
        if next(pressed, False):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # as a chunk of a larger training takes

    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Silence, "moved", moved)
        with pytest.raises(KeyboardInterrupt, match="the work is saved"):
            train(config)
    metrics = train(config)
    assert metrics["attempts"] == 2
    assert metrics["train"]["resumed_step"] > 0
    assert weights_of(metrics) == expected
    assert metrics == json.loads(Path(str(config.place), "metrics.json").read_text())
    assert metrics["timing"]["total_seconds"] < 60  # of the call, not of this old process
    assert train(config) == metrics  # complete already
    assert capfd.readouterr() == ("", "")
    assert handlers() == before


def test_a_second_ctrl_c_waits_no_longer():
    go_on, asked = threading.Event(), []

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait(30)

    def interrupt():
        asked.append(True)
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        api._aside(work, interrupt)
    assert time.monotonic() - began < 15
    assert asked == [True]
    assert not go_on.is_set()
    go_on.set()


# --- the config ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        *(([("--preset", name)], {"preset": name}) for name in PRESETS),
        ([("--preset", "fast"), ("--epochs", "3")], {"preset": "fast", "epochs": 3}),
        ([("--preset", "cnn"), ("--augment", "shift")], {"preset": "cnn", "augment": "shift"}),
        ([("--tensorboard-dir", "logs")], {"tensorboard_dir": "logs"}),
        ([("--tensorboard",), ("--dropout", "0.5")], {"tensorboard": True, "dropout": 0.5}),
    ],
)
def test_a_config_is_what_the_flags_of_these_names_give(monkeypatch, command, words, fields):
    monkeypatch.delenv("MNIST_JOB_NO_REPORT")
    made = []
    monkeypatch.setattr(cli.api, "trained", lambda config, *_: (made.append(config), None))
    flags = [word for pair in words for word in pair]
    assert command("train", "--run-id", "r", *flags).code == 0
    assert made == [RunConfig.of(run_id="r", **fields)]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"epoch": 3}, "epochs"),
        ({"place": "here"}, "no field 'place'"),
        ({"epochs": 0}, "--epochs"),
        ({"preset": "quick"}, "--preset"),
    ],
)
def test_a_wrong_config_is_refused(fields, word):
    with pytest.raises(UsageError, match=word):
        RunConfig.of(**fields)


@pytest.mark.parametrize("make", [RunConfig, RunConfig.of])
def test_a_folder_for_event_files_asks_for_them_unless_told_no(make, monkeypatch):
    monkeypatch.setattr(api, "trained", lambda config, *_: (None, vars(config)["tensorboard"]))
    for fields, written in (
        ({"tensorboard_dir": "logs"}, True),
        ({"tensorboard_dir": "logs", "tensorboard": False}, False),
        ({"tensorboard": True}, True),
        ({}, False),
    ):
        assert train(make(run_id="r", **fields)) is written


def test_event_files_that_cannot_be_written_are_refused_before_anything_is(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    config = RunConfig.of(output=tmp_path, tensorboard=True)
    with pytest.raises(ClusterError, match="needs tensorboardX") as refused:
        train(config)
    assert refused.value.exit_code == 78
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_other_threads_began_is_gone_on_with_in_a_new_process(config, monkeypatch):
    folder = RunFolder(config.place)
    saved = checkpoint.Checkpoints(folder.checkpoints, 0, Silence())
    saved.save(checkpoint.State({}, threads=3, step=7, arrays={"x": np.zeros(1)}))
    monkeypatch.setattr(runtime, "_in_force", 2)
    with pytest.raises(TemporaryError, match=r"computes with 2 threads, and mine .* with 3"):
        train(config)
    assert not storage.exists(folder.attempt(1))
    trained = []
    monkeypatch.setattr(api, "trained", lambda config, *_: (trained.append(config), {}))
    for fits in (3, None):
        monkeypatch.setattr(runtime, "_in_force", fits)
        train(config)
    assert trained == [config, config]


def test_a_complete_run_needs_no_threads(trained, small_mnist, monkeypatch):
    """Its last checkpoint is still there."""
    config = RunConfig.of(
        data=small_mnist, epochs=2, output=trained.parent, run_id=trained.name, report=False
    )
    monkeypatch.setattr(runtime, "_in_force", 99)
    assert train(config) == json.loads((trained / "metrics.json").read_text())


def test_several_workers_are_of_the_command_line():
    with pytest.raises(UsageError, match="mnist-job train"):
        train(RunConfig.of(strategy="multiworker"))


# --- evaluate and predict -----------------------------------------------------------------------


def test_evaluation_says_what_the_run_said(trained, capfd):
    metrics = json.loads((trained / "metrics.json").read_text())
    scores = evaluate(trained)["test"]
    assert scores["accuracy"] == metrics["test"]["accuracy"]
    assert capfd.readouterr() == ("", "")


def test_predictions_by_index_are_those_of_the_same_images(trained, small_mnist):
    indices = [7, 3, 500]
    with np.load(small_mnist) as data:
        images, labels = data["x_test"][indices], data["y_test"][indices]
    known, computed = predict(trained, indices=indices), predict(trained, images)
    assert [each.image for each in known] == indices
    assert [each.true for each in known] == labels.tolist()
    assert [each.image for each in computed] == [0, 1, 2]
    assert [each.right for each in computed] == [None] * 3
    for one, other in zip(known, computed, strict=True):
        assert one.predicted == other.predicted
        assert np.allclose(one.probabilities, other.probabilities, atol=1e-6)
    listed = predict(trained, list(images))
    assert [each.predicted for each in listed] == [each.predicted for each in computed]
    assert len(predict(trained)) == 505
    assert predict(trained, indices=range(2)) == predict(trained, indices=np.arange(2))


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"indices": [505]}, "none of the 505 test images"),
        ({"indices": [-1]}, "index -1"),
        ({"indices": [1.5]}, "index 1.5 is no whole"),
        ({"indices": ["1"]}, "index '1' is no whole"),
        ({"indices": [True]}, "index True"),
        ({"images": np.zeros((1, 28, 28))}, "must be uint8"),
        ({"images": np.zeros((28, 28), np.uint8)}, r"shape \(28, 28\)"),
        ({"images": ["a.png"], "indices": [0]}, "leave one out"),
        ({"model": "mpl"}, "one of mlp"),
    ],
)
def test_what_cannot_be_predicted_is_refused(trained, given, word):
    with pytest.raises(UsageError, match=word):
        predict(trained, **given)


@pytest.mark.parametrize("given", [{"images": []}, {"images": ()}, {"indices": []}])
def test_of_no_images_there_are_no_predictions(trained, given):
    assert predict(trained, **given) == []


def test_a_champion_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(MissingInputError, match="champion"):
        evaluate("champion", output=tmp_path)


# --- the import ---------------------------------------------------------------------------------


def test_importing_the_package_is_light():
    program = (
        "import sys, job\n"
        "first = 'job.api' in sys.modules\n"
        "job.RunConfig.of(epochs=3), job.train, dir(job)\n"
        "print(first, *{'tensorflow', 'keras', 'numpy', 'typer'} & set(sys.modules))\n"
        "try:\n"
        "    job.trian\n"
        "except AttributeError as error:\n"
        "    print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.splitlines() == ["False", "module 'job' has no attribute 'trian'"]
