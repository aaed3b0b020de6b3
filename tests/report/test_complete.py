"""The page of a complete run: all of it, of any data set, and of metrics that are anybody's."""

import copy
import functools
import html
import json
import shlex

import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import epochs, make_run, place, weights_file, write_data
from pages import Page

from job import cli
from job.config import RunConfig
from job.report import complete, figures, material
from job.results import publishing
from job.storage import parse

ALL = {
    "training", "confusion", "mistakes", "close", "classes", "reliability", "weights", "time",
    "data", "again",
}  # fmt: skip


def page_of(folder, **changes) -> Page:
    """Return the page of a run, its metrics changed as told."""
    found = publishing.read_json(folder.metrics) | changes
    return Page(complete.page_of(material.of_complete(folder, found)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "d.npz")


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Return a complete run that nobody changes."""
    return make_run(tmp_path_factory.mktemp("runs"), data, epochs=3)


def test_a_real_run_shows_all_of_it(trained):
    folder = place(trained)
    found = page_of(folder)
    assert found.headings == ALL
    metrics = json.loads((trained / "metrics.json").read_text())
    test = metrics["test"]
    assert f"{100 * test['accuracy']:.1f} % of 505 test images right" in found.words
    assert f"all but {test['examples'] - test['correct']}" in found.words
    low, high = (f"{100 * end:.1f} %" for end in test["accuracy_interval_95"])
    assert f"95 % interval: {low} to {high}" in found.words
    assert len(found.named("svg")) == 5  # loss, accuracy, learning rate, classes, reliability
    wrong = min(40, test["examples"] - test["correct"])
    assert len(found.classed("tile")) == wrong + 20 + 10
    assert "mnist-job train \\ --data" in found.words
    assert "--epochs 2" in found.words
    assert "mnist-job verify trained proves it" in found.words


def test_the_same_run_is_the_same_bytes(made):
    metrics = publishing.read_json(made.metrics)
    pages = {complete.page_of(material.of_complete(made, metrics)) for _ in range(2)}
    # Of what a process has just published, too.
    files = {at: at.path.read_bytes() for at in (made.weights, made.predictions)}
    pages.add(complete.page_of(material.of_complete(made, metrics, files=files)))
    assert len(pages) == 1


def test_confused_pairs_come_by_their_number(made):
    found = page_of(made)
    test = publishing.read_json(made.metrics)["test"]
    pairs = sorted(
        (row[at] for is_, row in enumerate(test["confusion"]) for at in range(4) if at != is_),
        reverse=True,
    )
    table = found.content.decode().partition("The most frequent of")[2].partition("</table>")[0]
    told = [int(row.split("</td><td>")[1]) for row in table.split("<tr><th")[1:]]
    assert told == [count for count in pairs if count][:12]
    assert sum(pairs) == test["examples"] - test["correct"]


@pytest.mark.parametrize(
    ("shape", "classes"), [((20, 26, 3), 2), ((8, 8), 25), ((12, 10), 100), ((8, 8, 2), 3)]
)
def test_any_data_set_has_a_page(tmp_path, shape, classes):
    data = write_data(tmp_path / "d.npz", shape, classes)
    found = page_of(make_run(tmp_path, data, epochs=2))
    assert found.headings == ALL
    assert f"Shape {' x '.join(map(str, shape))}" in found.words
    assert bool(found.classed("matrix")) is (classes <= 20)
    assert len(found.content) < 800_000


@pytest.mark.slow
def test_a_thousand_classes_and_ten_thousand_epochs_stay_small(tmp_path):
    data = write_data(tmp_path / "d.npz", (6, 6), 1_000)
    found = page_of(make_run(tmp_path, data, epochs=10_000, history=epochs(10_000)))
    assert found.headings == ALL
    assert "the first 100 of 1000 classes" in found.words
    assert "the 100 classes with the least recall of 1000" in found.words


def test_a_run_without_a_mistake_says_so(tmp_path, data):
    folder = make_run(tmp_path, data, epochs=2)
    metrics = publishing.read_json(folder.metrics)
    test, confusion = metrics["test"], np.diag([15] * 4).tolist()
    found = page_of(folder, test=test | {"confusion": confusion, "correct": 60})
    assert "It made no mistake." in found.words


def test_validation_and_early_stopping_are_told(tmp_path, data):
    found = page_of(
        make_run(
            tmp_path, data, epochs=9, validation=0.25, early_stopping=2,
            history=epochs(4, held_out=True),
        )
    )  # fmt: skip
    assert "held out" in found.text
    assert "those of the held-out images are of its end" in found.words
    assert "Held out of training 25.0 %" in found.words


def test_an_ensemble_shows_its_members_and_no_curves(tmp_path, data):
    found = page_of(make_run(tmp_path, data, "e", members=3, ensemble=3))
    assert found.headings == ALL - {"training", "weights"} | {"members"}
    assert "e-2 2 90.0 %" in found.words
    assert "missing" not in found.headings
    assert "3 x mlp" in found.words


def test_earlier_attempts_and_given_weights_are_told(tmp_path, data):
    folder = make_run(tmp_path, data, attempts=3)
    origin = {"uri": "s3://b/<x>", "sha256": "a" * 64}
    found = page_of(folder, init_weights=origin)
    assert "Began with s3://b/<x> (aaaaaaaaaaaa)" in found.words
    assert found.words.count("stopped (exit code 143): stopped by SIGTERM") == 2


def test_the_command_gives_the_same_weights(tmp_path):
    """Every field that is no default is a flag, quoted for a shell, and nothing else is."""
    strange = tmp_path / "it's a $(folder)"
    strange.mkdir()
    there = write_data(strange / "d.npz")
    folder = make_run(
        tmp_path, there, model="cnn", epochs=7, batch_size=16, learning_rate=0.1 + 0.2, seed=5,
        schedule="cosine", augment="affine", augment_strength=0.4, dropout=0.125, validation=0.5,
        precision="mixed_bfloat16",
    )  # fmt: skip
    content = page_of(folder).content.decode()
    shown = content.partition('<pre class="command"')[2].partition("<code>")[2]
    text = html.unescape(shown.partition("</code>")[0])
    program, verb, *words = shlex.split(text.replace("\\\n", " "))
    assert (program, verb) == ("mnist-job", "train")
    given = typer.main.get_command(cli.app).commands["train"].make_context("train", words).params
    metrics = publishing.read_json(folder.metrics)
    config = RunConfig(
        run_id="r",
        **{
            name: given[name]
            for name in RunConfig.__dataclass_fields__
            if name in given and name not in {"run_id", "output"}
        },
    )
    assert config.digest == metrics["config_sha256"]
    assert "--seed 5" in text
    assert "--weight-decay" not in text


# --- what is missing --------------------------------------------------------------------------


def missing(found: Page) -> str:
    return found.words.partition("What is missing here")[2]


def test_of_a_run_of_before_pictures_and_reliability_are_missing(tmp_path, data):
    folder = make_run(tmp_path, data)
    folder.predictions.path.unlink()
    found = page_of(folder)
    assert found.headings == ALL - {"mistakes", "close", "reliability"} | {"missing"}
    assert "Mistakes, close calls and reliability" in missing(found)
    assert "predictions.safetensors does not exist" in missing(found)


def test_data_that_are_gone_or_others_take_their_pictures_with_them(tmp_path):
    data = write_data(tmp_path / "d.npz")
    folder = make_run(tmp_path, data)
    write_data(data, (8, 8), 5)
    found = page_of(folder)
    left = ALL - {"mistakes", "close", "data"} | {"missing"}
    assert found.headings == left
    assert "holds other data than those of the run" in missing(found)
    data.unlink()
    found = page_of(folder)
    assert found.headings == left
    assert "does not exist" in missing(found)
    elsewhere = parse(str(write_data(tmp_path / "elsewhere.npz")))
    gathered = material.of_complete(folder, publishing.read_json(folder.metrics), data=elsewhere)
    assert Page(complete.page_of(gathered)).headings == ALL


def test_weights_that_are_damaged_or_of_another_shape_are_missing(tmp_path, data):
    folder = make_run(tmp_path, data)
    path = folder.weights.path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    found = page_of(folder)
    assert found.headings == ALL - {"weights"} | {"missing"}
    assert "is damaged" in missing(found)
    path.write_bytes(weights_file(np.zeros((7, 7), np.float32)))
    found = page_of(folder, artifacts=[])
    assert "Weights of the first layer" in missing(found)


def test_predictions_of_other_images_are_no_pictures(tmp_path, data):
    folder = make_run(tmp_path, data)
    found = material.of_complete(folder, publishing.read_json(folder.metrics))
    assert found.predictions is not None
    found.predictions.labels[:] = 0
    told = Page(complete.page_of(found))
    assert told.headings == ALL - {"mistakes", "close"} | {"missing"}
    assert "are of other labels than the test images" in missing(told)


# --- metrics that are anybody's ---------------------------------------------------------------

ODD = st.sampled_from(
    [None, True, -1, 10**400, float("nan"), float("inf"), "", "<b>", [], {}, [[]], {"a": {}}, 0.5]
)


@functools.cache
def _paths(text: str) -> list[tuple[object, ...]]:
    """Return the path of each member of a JSON document."""

    def below(value, path):
        yield path
        if isinstance(value, dict | list):
            for name, each in value.items() if isinstance(value, dict) else enumerate(value):
                yield from below(each, (*path, name))

    return [path for path in below(json.loads(text), ()) if path]


def changed(document: dict, path: tuple, value: object) -> dict:
    document = copy.deepcopy(document)
    at = document
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return document


def is_drawn_whatever(made, draw):
    metrics = publishing.read_json(made.metrics)
    path = draw(st.sampled_from(_paths(json.dumps(metrics))))
    odd = changed(metrics, path, draw(ODD))
    Page(complete.page_of(material.of_complete(made, odd)))


@given(draw=st.data())
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_page_is_made_of_metrics_with_anything_odd_in_them(made, monkeypatch, draw):
    """But for the drawing itself, which takes its time: the slow test has that."""
    monkeypatch.setattr(figures.Drawing, "svg", lambda _: "")
    is_drawn_whatever(made, draw.draw)


@pytest.mark.slow
@pytest.mark.longest
@given(draw=st.data())
@settings(max_examples=600, deadline=None)
def test_a_page_is_made_of_metrics_with_anything_odd_in_them_at_length(made, draw):
    is_drawn_whatever(made, draw.draw)


@pytest.mark.parametrize("metrics", [{}, {"test": 3, "config": []}, {"run_id": "x", "data": {}}])
def test_a_page_is_made_of_metrics_that_are_none(made, metrics):
    found = Page(complete.page_of(material.of_complete(made, metrics)))
    assert "missing" in found.headings
