"""Two runs side by side: what differs, the paired test against scipy, and what it could see."""

import json

import fake_runs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from job import storage
from job.catalog import comparing
from job.catalog.comparing import Paired, Side
from job.errors import DataError, MissingInputError
from job.results.predictions import Predictions
from job.results.publishing import RunFolder
from job.storage import Place, parse


@pytest.fixture
def output(anywhere) -> Place:
    return anywhere


def told(a: Side, b: Side) -> dict:
    found = comparing.paired(*(Predictions.read(RunFolder(side.place)) for side in (a, b)))
    document = comparing.document(a, b, found, None)
    return json.loads(json.dumps(document, allow_nan=False))


def test_two_runs_are_compared_image_by_image(output):
    one = fake_runs.complete(output, "one", fake_runs.predictions(range(10)))
    other = fake_runs.complete(output, "other", fake_runs.predictions(range(8, 11)), epochs=3)
    a, b = Side.read(one), Side.read(other)
    assert comparing.unpaired(a, b) is None
    said = told(a, b)
    assert said["config"] == {"epochs": [10, 3]}
    assert said["data"] == {}
    assert said["environment"] == {}  # pods have names of their own
    assert said["same_test_set"] is True
    assert [run["accuracy"] for run in said["runs"]] == [0.95, 0.985]
    paired = said["paired"]
    counts = ("both_right", "only_a_right", "only_b_right", "both_wrong")
    assert [paired[name] for name in counts] == [189, 1, 8, 2]
    assert paired["p"] == pytest.approx(binomtest(1, 9).pvalue)
    assert paired["significant"] is True
    assert paired["difference"] == pytest.approx(7 / 200)
    assert paired["classes"][0] == {"label": 0, "only_a_right": 1, "only_b_right": 1}
    text = comparing.table(said)
    assert "B is better than a, by 3.50%" in text
    assert "epochs" in text
    assert "data: the same" in text


def test_what_cannot_be_told_apart_is_said_with_what_could_have_been(tmp_path):
    output = parse(str(tmp_path))
    one = fake_runs.complete(output, "one", fake_runs.predictions(range(4)))
    other = fake_runs.complete(output, "other", fake_runs.predictions(range(3, 9)))
    said = told(Side.read(one), Side.read(other))
    assert said["paired"]["significant"] is False
    assert said["paired"]["least_images"] == 8  # of 8 that differ: at 7 : 1 p is 0.07
    text = comparing.table(said)
    assert "No difference that this test can tell from chance" in text
    assert "It would have seen a difference of 4.00%: 8 images tell the two apart" in text


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_the_test_is_mcnemars_and_sees_what_it_says(only_a, only_b):
    paired = Paired(0, only_a, only_b, 1, ())
    pairs = only_a + only_b
    assert paired.p == pytest.approx(binomtest(only_a, pairs).pvalue if pairs else 1.0, rel=1e-9)
    net = paired.least_difference
    used = max(pairs, net)
    seen = Paired(0, (used + net) // 2, (used - net) // 2, 0, ())
    missed = Paired(0, (used + net) // 2 - 1, (used - net) // 2 + 1, 0, ())
    assert seen.p <= comparing.ALPHA < missed.p


def test_scores_on_other_test_sets_are_no_pairs(tmp_path):
    output = parse(str(tmp_path))
    a = Side.read(fake_runs.complete(output, "a"))
    other = fake_runs.metrics("b")
    other["data"] |= {"test_fingerprint": "8" * 64, "test_examples": 100}
    storage.create(output / "b/metrics.json", json.dumps(other).encode())
    del other["data"]["test_fingerprint"]
    storage.create(output / "old/metrics.json", json.dumps(other).encode())
    b, old = (Side.read(output / name) for name in ("b", "old"))
    assert comparing.unpaired(a, b) == "they were scored on different test sets"
    assert "doesn't tell its test set" in comparing.unpaired(a, old)
    said = comparing.document(a, b, None, "they were scored on different test sets")
    assert said["same_test_set"] is False
    assert said["data"]["test_examples"] == [200, 100]
    assert "No test: they were scored on different test sets." in comparing.table(said)
    assert comparing.document(a, old, None, "x")["same_test_set"] is None


def test_predictions_for_other_images_are_refused():
    a = fake_runs.predictions()
    for other in (
        fake_runs.predictions(examples=100),
        Predictions(a.logits, (a.labels + 1) % 10),
    ):
        with pytest.raises(DataError, match="do not belong to one test set"):
            comparing.paired(a, other)


def test_only_complete_runs_are_compared(tmp_path):
    output = parse(str(tmp_path))
    fake_runs.attempt(output, "begun")
    with pytest.raises(MissingInputError, match="is no complete run"):
        Side.read(output / "begun")


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"test": {"correct": 9, "examples": 3}}'])
def test_metrics_of_somebody_else_are_refused(tmp_path, content):
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(DataError):
        Side.read(Place.of(tmp_path))


def test_anybodys_fields_are_shown_in_one_short_line(tmp_path):
    output = parse(str(tmp_path))
    hostile = fake_runs.metrics("a")
    hostile["config"] |= {"model": "a\x1b[31m\nb", "x" * 300: ["y" * 300] * 3, "list": []}
    hostile["environment"] = ["no", "object"]
    storage.create(output / "a/metrics.json", json.dumps(hostile).encode())
    fake_runs.complete(output, "b")
    a, b = (Side.read(output / name) for name in "ab")
    text = comparing.table(comparing.document(a, b, None, "none\x1b"))
    assert "\x1b" not in text
    assert "a\\x1b[31m b" in text
    assert max(map(len, text.splitlines())) < 300


def test_labels_that_differ_most_are_told():
    true = np.array([0, 0, 1, 1, 1, 2] * 10, np.int32)
    right = np.eye(3, dtype=np.float32)[true]
    wrong = right.copy()
    wrong[true == 1] = [1, 0, 0]
    found = comparing.paired(Predictions(right, true), Predictions(wrong, true))
    assert found.by_label == ((0, 0, 0), (1, 30, 0), (2, 0, 0))
