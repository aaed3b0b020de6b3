"""Event files: whatever is stopped, killed or begun again, TensorBoard sees every step once."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from job import storage
from job.errors import OutputError
from job.process.progress import Progress
from job.report import summary_images, tensorboard
from job.report.tensorboard import Board
from job.results.predictions import Predictions
from job.results.publishing import RunFolder
from job.storage import Place, parse
from job.training.checkpoint import State

# TensorBoard as most have it: by itself, without TensorFlow.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

STEPS = 5  # in an epoch of the made-up trainings
TRAIN = ["train/accuracy", "train/images_per_second", "train/learning_rate", "train/loss"]


def epoch(number: int) -> dict[str, float]:
    return {
        "epoch": number, "loss": 1 / number, "accuracy": 1 - 1 / (number + 1),
        "learning_rate": 0.001 * number, "seconds": 2.0, "images_per_second": 1000.0 + number,
    }  # fmt: skip


def state(step: int) -> State:
    """Return a made-up training's state after so many steps."""
    return State({}, 1, step=step, history=tuple(map(epoch, range(1, step // STEPS + 1))))


def board(folder: Path, attempt: int = 1, stream: io.StringIO | None = None) -> Board:
    progress = Progress("json", stream or io.StringIO())
    return Board(RunFolder(Place.of(folder)), attempt, STEPS, progress)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return all points that TensorBoard reads in a folder, by tag, in the order it has them."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(point.step, point.value) for point in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_each_checkpoint_after_an_epoch_has_a_file(tmp_path):
    mine = board(tmp_path)
    for step in (3, 5, 7, 9, 21):
        mine.add(state(step))
    files = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert files == ["0001-0000000005.tfevents", "0001-0000000020.tfevents"]
    found = scalars(tmp_path / "tensorboard")
    assert sorted(found) == TRAIN
    assert found["train/loss"] == [
        (STEPS * number, pytest.approx(1 / number)) for number in range(1, 5)
    ]


def test_held_out_scores_are_there_where_there_are_some(tmp_path):
    held_out = {"validation_loss": 0.25, "validation_accuracy": 0.75}
    board(tmp_path).add(replace(state(5), history=({**epoch(1), **held_out},)))
    found = scalars(tmp_path / "tensorboard")
    assert (found["validation/loss"], found["validation/accuracy"]) == ([(5, 0.25)], [(5, 0.75)])


def test_points_have_the_times_that_they_were_measured_at(tmp_path):
    board(tmp_path).add(replace(state(15), epoch_seconds=1.0))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    times = [point.wall_time for point in events.Reload().Scalars("train/loss")]
    assert np.diff(times) == pytest.approx([2.0, 2.0], abs=0.01)


LIVES = st.lists(
    st.tuples(
        st.lists(st.integers(1, 9), min_size=1, max_size=4),  # steps between checkpoints
        st.booleans(),  # killed between the last checkpoint and its event file?
        st.integers(0, 2),  # checkpoints that the next attempt steps back, the newest being damaged
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.slow
@given(LIVES)
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_however_often_it_is_killed_every_step_is_there_once(tmp_path_factory, lives):
    folder = tmp_path_factory.mktemp("run")
    saved = [0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "in_a_file", steps_alone)
        live(folder, lives, saved)
    files = sorted((folder / "tensorboard").iterdir())
    points = [step for path in files for step in json.loads(path.read_text())]
    assert points == [step for step in range(STEPS, 61, STEPS) for _ in TRAIN]


def steps_alone(events) -> bytes:
    """Return a file that is quickly written and read."""
    return json.dumps([event.step for event in events]).encode()


def live(folder: Path, lives: list, saved: list[int]) -> None:
    """Train to step 60 in several attempts, all but the last of which end somewhere."""
    for attempt, (gaps, killed, back) in enumerate(lives, 1):
        mine = board(folder, attempt)
        step = saved[-1]
        for number, gap in enumerate(gaps, 1):
            step = min(step + gap, 60)
            saved.append(step)
            if not (killed and number == len(gaps)):
                mine.add(state(step))
        saved = saved[: max(1, len(saved) - back)]
    board(folder, len(lives) + 1).add(state(60))


def test_what_cannot_be_written_is_said_once_and_comes_later(tmp_path, monkeypatch):
    stream = io.StringIO()
    mine = board(tmp_path, stream=stream)

    def full(*_):
        raise OutputError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", full)
        mine.add(state(5))
        mine.add(state(10))
    mine.add(state(15))
    [event] = map(json.loads, stream.getvalue().splitlines())
    assert (event["event"], event["level"], event["reason"]) == (
        "events_not_written", "warning", "no room",
    )  # fmt: skip
    assert len(scalars(tmp_path / "tensorboard")["train/loss"]) == 3


def test_a_folder_that_cannot_be_seen_is_not_an_empty_one(tmp_path, monkeypatch):
    """Or steps would be said twice."""
    stream = io.StringIO()
    mine = board(tmp_path, stream=stream)
    mine.add(state(5))

    def unseen(_):
        raise OutputError("it can't be seen")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "names", unseen)
        mine.add(state(10))
    assert len(scalars(tmp_path / "tensorboard")["train/loss"]) == 1
    assert stream.getvalue().count("events_not_written") == 1


def test_other_files_in_the_folder_tell_nothing(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    for name in ("0001-9999999999.tfevents.bak", "scores.tfevents", "x-0000000099.tfevents"):
        (tmp_path / "tensorboard" / name).write_text("")
    board(tmp_path).add(state(5))
    assert (tmp_path / "tensorboard" / "0001-0000000005.tfevents").exists()


def test_it_works_in_a_store_too(place, tmp_path):
    mine = Board(RunFolder(place), 1, STEPS, Progress("json"))
    mine.add(state(5))
    mine.add(state(12))
    for name in storage.names(place / "tensorboard"):
        (tmp_path / name).write_bytes(storage.read(place / "tensorboard" / name, 1 << 20))
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [5, 10]


# --- the end ------------------------------------------------------------------------------------


def train(command, output, small_mnist, *more):
    flags = ["--data", small_mnist, "--epochs", "4", "--output", output, "--run-id", "r"]
    return command("train", *flags, "--tensorboard", "--checkpoint-seconds", "0", *more)


def untimed(folder: Path) -> dict:
    return {tag: points for tag, points in scalars(folder).items() if "per_second" not in tag}


@pytest.mark.slow
def test_a_stopped_run_shows_what_an_unbroken_one_does(command, tmp_path, small_mnist, monkeypatch):
    assert train(command, tmp_path / "unbroken", small_mnist).code == 0
    told = Progress.event

    def event(self, name, **details):
        told(self, name, **details)
        if name == "epoch" and details["epoch"] in stops:
            stops.remove(details["epoch"])
            os.kill(os.getpid(), signal.SIGTERM)

    stops = {2}
    monkeypatch.setattr(Progress, "event", event)
    codes = [train(command, tmp_path / "stopped", small_mnist).code for _ in range(2)]
    assert codes == [143, 0]
    one, other = (tmp_path / name / "r" / "tensorboard" for name in ("unbroken", "stopped"))
    assert untimed(one) == untimed(other)
    steps = [step for step, _ in untimed(one)["train/loss"]]
    assert steps == [63, 126, 189, 252]
    assert {path.name[:4] for path in other.iterdir()} == {"0001", "0002", "scor"}
    check_the_end(one, tmp_path / "unbroken" / "r")


def check_the_end(folder: Path, run: Path) -> None:
    """See that scores, images and hyperparameters are there, and right."""
    metrics = json.loads((run / "metrics.json").read_text())
    found = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert scalars(folder)["test/accuracy"] == [(252, pytest.approx(metrics["test"]["accuracy"]))]
    assert set(found.Tags()["images"]) == {"test/confusion", "test/mistakes"}
    for tag in found.Tags()["images"]:
        [image] = found.Images(tag)
        picture = Image.open(io.BytesIO(image.encoded_image_string))
        assert (image.step, picture.size) == (252, (image.width, image.height))
    content = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["learning_rate"].number_value == metrics["config"]["learning_rate"]
    assert hparams["model"].string_value == "mlp"


def test_scores_are_written_once(trained, mnist):
    folder = RunFolder(parse(str(trained)))
    document = json.loads((trained / "metrics.json").read_text())
    stream = io.StringIO()
    try:
        for _ in range(2):
            tensorboard.add_scores(folder, document, mnist.x_test[:505], Progress("json", stream))
            content = (trained / "tensorboard" / "scores.tfevents").read_bytes()
    finally:
        (trained / "tensorboard" / "scores.tfevents").unlink()
        (trained / "tensorboard").rmdir()
    assert content
    assert stream.getvalue() == ""


def test_scores_of_a_run_without_predictions_are_one_warning(tmp_path, mnist):
    stream = io.StringIO()
    folder = RunFolder(Place.of(tmp_path))
    tensorboard.add_scores(folder, {"test": {}}, mnist.x_test, Progress("json", stream))
    [event] = map(json.loads, stream.getvalue().splitlines())
    assert event["event"] == "events_not_written"


@pytest.mark.parametrize("classes", [2, 10, 40, 1000])
def test_a_confusion_matrix_is_drawn_of_any_number_of_classes(classes):
    counts = np.eye(classes, dtype=int) * 90
    counts[0, 1] = 10
    picture = np.asarray(Image.open(io.BytesIO(summary_images.confusion(counts.tolist()))))
    assert max(picture.shape) < 1100
    red, blue = (picture[..., band].astype(int) for band in (0, 2))
    assert ((red - blue) > 50).any()  # the one that is off the diagonal


def test_the_surest_mistakes_come_first_and_none_is_none(mnist):
    logits = np.zeros((3, 10), np.float32)
    labels = np.array([1, 2, 3], np.int32)
    logits[np.arange(3), [1, 7, 8]] = [9, 2, 5]
    shown = []
    original = summary_images.gallery.draw_sheet

    def draw(images, captions, correct, *, of):
        shown.extend(captions)
        return original(images, captions, correct, of=of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary_images.gallery, "draw_sheet", draw)
        png = summary_images.mistakes(Predictions(logits, labels), mnist.x_test[:3], 25)
    assert png
    assert [caption[1] for caption in shown] == ["true 3", "true 2"]
    right = Predictions(logits, np.array([1, 7, 8], np.int32))
    assert summary_images.mistakes(right, mnist.x_test[:3], 25) is None


# --- asked for and missing ----------------------------------------------------------------------


def test_the_missing_extra_is_told_before_anything_is_done(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    for words in (("train",), ("retrain",)):
        ended = command(*words, "--tensorboard", "--output", tmp_path / "runs")
        assert ended.code == 78
        assert "mnist-job[cpu,tensorboard]" in ended.err
        assert len(ended.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_nothing_of_it_is_imported_unless_asked_for():
    asked = "import sys, job.run, job.cli; print(*sys.modules)"
    known = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"tensorboardX", "prometheus_client", "urllib.request", "http.client", "tensorflow"}
    assert not heavy & set(known)
    assert not {"job.report.mlflow", "job.report.pushgateway", "job.process.outgoing"} & set(known)


# --- really killed ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_shows_what_an_unbroken_one_does(tmp_path, small_mnist):
    def start(output):
        flags = ["--data", small_mnist, "--epochs", "60", "--output", str(output)]
        flags += ["--run-id", "r", "--tensorboard", "--checkpoint-seconds", "0", "--log", "json"]
        command = [sys.executable, "-m", "job", "train", *flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    for kill_after in (1, 3, None):
        saves = 0
        with start(tmp_path / "killed") as process:
            for line in process.stdout:
                saves += json.loads(line)["event"] == "checkpoint_saved"
                if saves == kill_after:
                    process.kill()
        assert process.returncode == (0 if kill_after is None else -signal.SIGKILL)
    with start(tmp_path / "unbroken") as unbroken:
        unbroken.communicate()
    assert unbroken.returncode == 0
    one, other = (tmp_path / name / "r" / "tensorboard" for name in ("unbroken", "killed"))
    assert untimed(one) == untimed(other)
    assert [step for step, _ in untimed(other)["train/loss"]] == list(range(63, 61 * 63, 63))
