"""Predictions: of test images, of a person's own pictures, as a table and as a figure."""

import io
import json

import numpy as np
import PIL.Image
import pytest

from job import storage
from job.results import inference
from job.results.inference import Prediction
from job.storage import Place, parse


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[1:]]


def test_table_marks_what_is_wrong():
    assert inference.table(
        [
            Prediction(9, 7, 0.99951, 7),
            Prediction(10, 2, 0.5, 3),
            Prediction(parse("my/five.png"), 5, 1.0, None),
        ]
    ) == (
        "      image  predicted  confidence  true\n"
        "          9          7     100.0%      7\n"
        "         10          2      50.0%      3   <- wrong\n"
        "my/five.png          5     100.0%      -"
    )


def test_predicts_the_images_asked_for(command, trained, small_mnist, mnist):
    words = ["predict", "--weights", trained, "--data", small_mnist]
    table = rows(command(*words, "--start", 500, "--num-images", 5).out)
    assert [row[0] for row in table] == ["500", "501", "502", "503", "504"]
    assert [row[3] for row in table] == [str(label) for label in mnist.y_test[500:505]]
    assert len(rows(command(*words).out)) == 10


def test_predictions_agree_with_the_published_accuracy(command, trained, small_mnist):
    words = ["predict", "--weights", trained, "--data", small_mnist, "--num-images", 505]
    right = sum(row[1] == row[3] for row in rows(command(*words).out))
    assert right == json.loads((trained / "metrics.json").read_text())["test"]["correct"]


@pytest.mark.parametrize(("start", "count"), [(0, 506), (500, 6), (505, 1), (10_000, 1)])
def test_images_beyond_the_test_set_are_refused(command, trained, small_mnist, start, count):
    words = ["--weights", trained, "--data", small_mnist, "--start", start, "--num-images", count]
    failed = command("predict", *words)
    assert failed.code == 64
    assert "505 test images" in failed.err


def test_own_pictures_are_recognised_as_their_originals(
    command, trained, small_mnist, mnist, tmp_path
):
    words = ["predict", "--weights", trained, "--data", small_mnist]
    originals = rows(command(*words, "--num-images", 100).out)
    images = []
    for index in range(100):
        path = tmp_path / f"{index}.png"
        large = PIL.Image.fromarray(255 - mnist.x_test[index]).resize((280, 280))
        large.save(path)  # dark on light, as on paper
        images += ["--image", path]
    own = rows(command(*words, *images).out)
    assert [row[0] for row in own] == [str(tmp_path / f"{index}.png") for index in range(100)]
    assert {row[3] for row in own} == {"-"}
    # The model is weak, after two epochs on 2,000 images: only where it is sure must both agree.
    sure = [index for index, row in enumerate(originals) if float(row[2].rstrip("%")) > 60]
    assert len(sure) >= 75
    assert [own[index][1] for index in sure] == [originals[index][1] for index in sure]


def test_figure_is_a_picture_of_the_predictions(command, trained, small_mnist, tmp_path):
    figure = tmp_path / "figures" / "ten.png"
    words = ["predict", "--weights", trained, "--data", small_mnist]
    drawn = command(*words, "--figure", figure)
    assert f"figure written to {figure}" in drawn.out
    picture = np.asarray(PIL.Image.open(io.BytesIO(figure.read_bytes())).convert("L"))
    assert min(picture.shape) > 50
    assert picture.min() < 50
    assert picture.max() > 200
    assert command(*words, "--figure", figure).code == 0  # the same picture again is no conflict
    assert command(*words, "--figure", figure, "--start", 10).code == 73


def test_figure_names_own_pictures_by_their_files(tmp_path):
    images = np.zeros((1, 28, 28), np.uint8)
    drawn = {}
    for number, name in enumerate(
        ("drawings/my seven.png", "others/my seven.png", "file:///my%20seven.png", "eight.png")
    ):
        place = Place.of(tmp_path / f"{number}.png")
        inference.write_gallery(place, [Prediction(parse(name), 7, 0.9, None)], images)
        drawn[name] = storage.read(place, 2**20)
    assert drawn["drawings/my seven.png"] == drawn["others/my seven.png"]
    assert drawn["drawings/my seven.png"] == drawn["file:///my%20seven.png"]
    assert drawn["drawings/my seven.png"] != drawn["eight.png"]


def test_damaged_weights_are_noticed(command, trained, small_mnist, tmp_path):
    content = bytearray((trained / "model_weights.h5").read_bytes())
    content[len(content) // 2] ^= 1  # one bit of one number: valid HDF5, another model
    run = tmp_path / "run"
    run.mkdir()
    (run / "model_weights.h5").write_bytes(content)
    (run / "metrics.json").write_bytes((trained / "metrics.json").read_bytes())
    words = ["evaluate", "--data", small_mnist, "--weights"]
    for weights in (run, run / "model_weights.h5"):
        refused = command(*words, weights)
        assert refused.code == 65
        assert "is damaged" in refused.err
    (run / "metrics.json").unlink()
    assert command(*words, run).code == 0  # with nothing to compare it to, it is a model


def test_weights_of_another_data_set_are_refused(command, trained, tmp_path):
    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    path = tmp_path / "eight.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    refused = command("evaluate", "--weights", trained, "--data", path)
    assert refused.code == 65
    assert "784x128" in refused.err
    assert "64x128" in refused.err
