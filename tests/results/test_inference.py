"""Predictions: of test images, of a person's own pictures, as a table and as a figure."""

import io
import json

import numpy as np
import PIL.Image
import pytest
from conftest import schema

from job.results import inference
from job.results.scores import score


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[1:]]


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


@pytest.mark.slow
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


def picked(command, trained, *words) -> list[dict]:
    done = command("predict", "--weights", trained, "--json", "--num-images", 505, *words)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.fixture
def computes_nothing(monkeypatch):
    """See that neither data nor TensorFlow are loaded."""
    monkeypatch.setattr(inference, "load", lambda *_: pytest.fail("data were loaded"))
    monkeypatch.setattr(inference, "rebuilt", lambda *_: pytest.fail("it was computed"))


@pytest.mark.usefixtures("computes_nothing")
def test_what_a_run_has_published_is_not_computed_again(command, trained):
    found = picked(command, trained)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert len(found) == 505
    assert sum(each["right"] for each in found) == metrics["test"]["correct"]
    wrong = picked(command, trained, "--only", "mistakes", "--sort", "confidence")
    assert [each["right"] for each in wrong] == [False] * (505 - metrics["test"]["correct"])
    sure = [each["confidence"] for each in wrong]
    assert sure == sorted(sure, reverse=True)
    sevens = picked(command, trained, "--digit", 7, "--sort", "confidence", "--start", 100)
    assert {each["true"] for each in sevens} == {7}
    assert min(each["image"] for each in sevens) >= 100
    unsure = [each["confidence"] for each in sevens]
    assert unsure == sorted(unsure)
    table = command("predict", "--weights", trained, "--only", "hits", "--num-images", 2).out
    assert table.endswith(f"2 of the {metrics['test']['correct']} images that match\n")


def without_predictions(trained, tmp_path):
    """Return a copy of the run as one of before predictions were published."""
    run = tmp_path / "old"
    run.mkdir()
    for name in ("metrics.json", "model_weights.h5"):
        (run / name).write_bytes((trained / name).read_bytes())
    return run


@pytest.mark.parametrize(
    "words", [[], ["--only", "mistakes", "--sort", "confidence"], ["--digit", 3, "--only", "hits"]]
)
def test_what_is_computed_is_what_was_published(command, trained, tmp_path, words):
    old = without_predictions(trained, tmp_path)
    published, computed = (picked(command, run, *words) for run in (trained, old))
    assert [each["image"] for each in published] == [each["image"] for each in computed]
    assert [each["predicted"] for each in published] == [each["predicted"] for each in computed]
    for one, other in zip(published, computed, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


def test_only_what_is_asked_for_is_computed(command, trained, tmp_path, monkeypatch):
    from job.results import evaluation

    seen, predict = [], evaluation.predict_logits
    monkeypatch.setattr(
        evaluation,
        "predict_logits",
        lambda model, images: seen.append(len(images)) or predict(model, images),
    )
    old = without_predictions(trained, tmp_path)
    assert command("predict", "--weights", old, "--digit", 7, "--num-images", 3).code == 0
    assert command("predict", "--weights", old, "--start", 9).code == 0
    nothing = command("predict", "--weights", old, "--start", 504, "--digit", 9)
    assert nothing.out.endswith("0 of the 0 images that match\n")
    assert seen == [3, 10]


def test_predictions_of_other_images_are_not_taken_for_these(command, trained, mnist, tmp_path):
    """The run's own test set may be asked for by its place, and be another one now."""
    same, other = tmp_path / "same.npz", tmp_path / "other.npz"
    part = {"x_train": mnist.x_train[:20], "y_train": mnist.y_train[:20]}
    np.savez(same, **part, x_test=mnist.x_test[:505], y_test=mnist.y_test[:505])
    np.savez(other, **part, x_test=mnist.x_test[505:1010], y_test=mnist.y_test[505:1010])
    mine = picked(command, trained)
    assert picked(command, trained, "--data", same) == mine
    theirs = picked(command, trained, "--data", other)
    assert [each["true"] for each in theirs] == mnist.y_test[505:1010].tolist()
    metrics = json.loads((trained / "metrics.json").read_text())
    metrics["config"]["data"] = str(other)
    run = tmp_path / "moved"
    run.mkdir()
    for name in ("model_weights.h5", "predictions.safetensors"):
        (run / name).write_bytes((trained / name).read_bytes())
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert picked(command, run) == mine  # of its own test set, wherever that is now
    drawn = command("predict", "--weights", run, "--json", "--figure", tmp_path / "f.png")
    assert [each["true"] for each in json.loads(drawn.out)] == mnist.y_test[505:515].tolist()
    assert "were trained on other data" in drawn.err


def test_another_model_is_computed(command, trained, monkeypatch):
    monkeypatch.setattr(inference, "rebuilt", lambda *given: pytest.fail(f"as {given[2]}"))
    with pytest.raises(pytest.fail.Exception, match="as cnn"):
        command("predict", "--weights", trained, "--model", "cnn")


def test_damaged_predictions_are_noticed(command, trained, tmp_path):
    run = without_predictions(trained, tmp_path)
    (run / "predictions.safetensors").write_bytes(b"x" * 100)
    failed = command("predict", "--weights", run)
    assert failed.code == 65
    assert "predictions.safetensors is damaged" in failed.err


def test_own_pictures_need_no_data_set(command, trained, tmp_path, monkeypatch):
    picture = tmp_path / "seven.png"
    PIL.Image.new("L", (40, 60), 255).save(picture)
    drawing = PIL.Image.open(picture)
    drawing.paste(0, (18, 5, 23, 55))
    drawing.save(picture)
    monkeypatch.setattr(inference, "load", lambda *_: pytest.fail("data were loaded"))
    done = command("predict", "--weights", trained, "--image", picture, "--json")
    [told] = json.loads(done.out)
    assert (told["image"], told["true"], told["right"]) == (str(picture), None, None)
    assert len(told["probabilities"]) == 10


@pytest.mark.parametrize("data", [None, {"image_shape": [28, -28], "classes": 10}, {"classes": 10},
                                  {"image_shape": [28, 28], "classes": True}])  # fmt: skip
def test_where_the_run_does_not_tell_the_data_set_does(
    command, trained, small_mnist, tmp_path, data
):
    run = without_predictions(trained, tmp_path)
    (run / "metrics.json").write_text(json.dumps({"data": data}))
    picture = tmp_path / "one.png"
    drawing = PIL.Image.new("L", (40, 60), 255)
    drawing.paste(0, (18, 5, 23, 55))
    drawing.save(picture)
    words = ["predict", "--weights", run, "--data", small_mnist, "--image", picture]
    assert command(*words).code == 0


def test_csv_goes_to_a_file_or_in_place_of_the_table(command, trained, tmp_path):
    words = ["predict", "--weights", trained, "--num-images", 3]
    told = command(*words, "--csv", tmp_path / "p.csv")
    assert told.out.endswith(f"\nwritten to {tmp_path}/p.csv\n")
    printed = command(*words, "--csv", "-")
    assert printed.out == (tmp_path / "p.csv").read_text()
    assert printed.out.startswith("image,true,predicted,right,confidence,probability_0,")
    both = command(*words, "--json", "--csv", tmp_path / "p.csv")
    assert len(json.loads(both.out)) == 3


def test_evaluation_as_json_is_what_a_report_holds(command, trained, small_mnist, tmp_path):
    words = ["evaluate", "--weights", trained, "--data", small_mnist]
    done = command(*words, "--json", "--report", tmp_path / "r.json")
    told = json.loads(done.out)
    schema("evaluation").validate(told)
    assert told == json.loads((tmp_path / "r.json").read_text())


def test_evaluation_shows_how_each_class_fared(command, trained, small_mnist):
    done = command("evaluate", "--weights", trained, "--data", small_mnist)
    test = json.loads((trained / "metrics.json").read_text())["test"]
    lines = [line.split() for line in done.out.partition("\n\n")[2].splitlines()]
    assert len(lines) == 11
    for row, each in zip(lines[1:], test["per_class"], strict=True):
        assert row[:2] == [str(each["label"]), str(each["support"])]
        assert float(row[2]) == pytest.approx(100 * each["recall"], abs=0.006)
        assert float(row[6]) == pytest.approx(100 * each["precision"], abs=0.006)
        assert float(row[3]) <= float(row[2]) <= float(row[5])


def test_of_many_classes_the_worst_are_shown():
    logits = np.eye(40, dtype=np.float64)
    logits[[3, 5]] = logits[[4, 6]]  # never right
    labels = np.arange(40, dtype=np.int32)
    labels[39] = 38  # a class without images
    text = inference.class_table(score(logits, labels))
    rows = [line.split() for line in text.splitlines()]
    assert text.endswith("\nthe 30 of 40 classes with the lowest recall")
    assert len(rows) == 32
    shown = {row[0]: row for row in rows[1:-1]}
    assert shown["3"][-2:] == ["4", "(1)"]
    assert "39" not in shown
    few = inference.class_table(score(logits[:, :10][:5] + 1, labels[:5]))
    assert few.splitlines()[-1].split() == ["9", "0", "-", "-", "-", "-"]


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
