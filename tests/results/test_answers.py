"""Predictions to show: which of them, in which order, as a table, JSON, CSV and sheets."""

import csv
import io
import json

import numpy as np
import pytest

from job import storage
from job.errors import ConflictError, UsageError
from job.results import answers
from job.results.answers import Choice, Prediction, Shown
from job.storage import Place, parse


def prediction(image, predicted, confidence, true) -> Prediction:
    probabilities = [(1 - confidence) / 9] * 10
    probabilities[predicted] = confidence
    return Prediction(image, true, tuple(probabilities), predicted)


THREE = [
    prediction(9, 7, 0.99951, 7),
    prediction(10, 2, 0.5, 3),
    prediction(parse("my/five.png"), 5, 1.0, None),
]


def shown(predictions, matching=None, images=None) -> Shown:
    return Shown(list(predictions), matching, images)


# --- which ------------------------------------------------------------------------------------


LABELS = np.array([7, 2, 7, 1, 7, 2], np.int32)


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (Choice(count=6), [0, 1, 2, 3, 4, 5]),
        (Choice(start=2, count=4), [2, 3, 4, 5]),
        (Choice(digit=7), [0, 2, 4]),
        (Choice(digit=7, start=1), [2, 4]),
        (Choice(digit=0), []),
        (Choice(only="hits", start=5), [5]),
        (Choice(sort="confidence", count=100), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_images_come_into_question_by_index_and_label(choice, found):
    assert choice.candidates(LABELS, 8, "mnist").tolist() == found


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(start=6, count=1), "reach beyond the 6 test images of mnist: give at most 0"),
        (Choice(start=2, count=5), "give at most 4"),
        (Choice(start=6, digit=7), "reach beyond"),
        (Choice(digit=8), "--digit 8 is no label of mnist: it has those from 0 to 7"),
    ],
)
def test_what_the_test_set_does_not_have_is_refused(choice, said):
    with pytest.raises(UsageError, match=said):
        choice.candidates(LABELS, 8, "mnist")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"count": 0}, "--num-images must be from 1 to 100,000, not 0"),
        ({"count": 100_001}, "--num-images"),
        ({"start": -1}, "--start"),
        ({"digit": -1}, "--digit"),
    ],
)
def test_what_no_test_set_has_is_refused_at_the_door(facts, said):
    with pytest.raises(UsageError, match=said):
        Choice(**facts)


RIGHT = np.array([True, False, True, False, True])
CONFIDENCE = np.array([0.9, 0.8, 0.3, 0.99, 0.9])


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (Choice(only="mistakes"), [1, 3]),
        (Choice(only="hits"), [0, 2, 4]),
        (Choice(only="mistakes", sort="confidence"), [3, 1]),
        (Choice(only="hits", sort="confidence"), [2, 0, 4]),
        (Choice(sort="confidence"), [2, 1, 0, 4, 3]),
        (Choice(), [0, 1, 2, 3, 4]),
    ],
)
def test_images_are_picked_out_and_sorted_by_what_the_model_says(choice, found):
    assert choice.picked(RIGHT, CONFIDENCE).tolist() == found


def test_of_equal_logits_the_first_counts():
    logits = np.array([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0]], np.float32)
    found = Prediction.all_of([0, 1], [2, 0], logits)
    assert [each.predicted for each in found] == [1, 0]
    assert [each.right for each in found] == [False, True]
    assert sum(found[0].probabilities) == pytest.approx(1)


# --- in which form ----------------------------------------------------------------------------


def test_table_marks_what_is_wrong():
    assert answers.table(shown(THREE)) == (
        "      image  predicted  confidence  true\n"
        "          9          7     100.0%      7\n"
        "         10          2      50.0%      3   <- wrong\n"
        "my/five.png          5     100.0%      -"
    )


def test_table_says_how_many_match():
    assert answers.table(shown(THREE[:1], 1234)).endswith("\n1 of the 1,234 images that match")
    assert answers.table(shown([], 0)) == (
        "image  predicted  confidence  true\n0 of the 0 images that match"
    )


def test_json_has_all_probabilities():
    told = json.loads(answers.to_json(THREE))
    assert [each["image"] for each in told] == [9, 10, "my/five.png"]
    assert [each["right"] for each in told] == [True, False, None]
    assert told[1]["true"] == 3
    assert told[1]["confidence"] == told[1]["probabilities"][2] == 0.5
    assert len(told[0]["probabilities"]) == 10
    assert json.loads(answers.to_json([])) == []


def test_csv_has_the_same():
    hostile = prediction(parse('a,"b".png'), 1, 0.75, None)
    rows = list(csv.DictReader(io.StringIO(answers.to_csv([*THREE, hostile]))))
    assert [row["image"] for row in rows] == ["9", "10", "my/five.png", 'a,"b".png']
    assert [row["right"] for row in rows] == ["true", "false", "", ""]
    assert [row["true"] for row in rows] == ["7", "3", "", ""]
    assert float(rows[1]["probability_2"]) == float(rows[1]["confidence"]) == 0.5
    assert len(rows[0]) == 15
    assert answers.to_csv([]).splitlines() == ["image,true,predicted,right,confidence"]


# --- to files ---------------------------------------------------------------------------------


def many(count) -> Shown:
    predictions = [prediction(index, index % 10, 0.9, index % 7) for index in range(count)]
    return shown(predictions, None, np.zeros((count, 4, 4), np.uint8))


def test_one_sheet_has_the_name_that_was_given(tmp_path):
    figure = parse(f"{tmp_path}/deep/ten.png")
    assert answers.write(many(10), None, figure) == [f"figure written to {figure}"]
    assert figure.path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("all.png", "all-002.png"),
        ("all", "all-002"),
        (".png", ".png-002"),
        ("a.b.png", "a.b-002.png"),
    ],
)
def test_several_sheets_are_numbered(tmp_path, name, second):
    lines = answers.write(many(401), None, parse(f"{tmp_path}/{name}"))
    assert len(lines) == 2
    assert lines[1] == f"figure written to {tmp_path}/{second}"
    assert (tmp_path / second).exists()


def test_sheets_lie_where_the_uri_says(tmp_path):
    figure = parse(f"{tmp_path.as_uri()}/my%20figure.png")
    answers.write(many(401), None, figure)
    assert (tmp_path / "my figure-001.png").exists()


def test_csv_and_figure_are_not_written_over_others(tmp_path):
    table, figure = (Place.of(tmp_path / name) for name in ("t.csv", "f.png"))
    for _ in range(2):  # the same again is no conflict
        answers.write(many(3), table, figure)
    with pytest.raises(ConflictError, match="choose another --csv"):
        answers.write(many(4), table, None)
    with pytest.raises(ConflictError, match="choose another --figure"):
        answers.write(many(4), None, figure)
    assert storage.read(table, 10_000).decode() == answers.to_csv(many(3).predictions)


def test_nothing_is_drawn_of_nothing(tmp_path):
    figure = Place.of(tmp_path / "f.png")
    assert answers.write(shown([], 0), None, figure) == ["no figure: there is no image to draw"]
    assert not figure.path.exists()


def test_own_pictures_are_named_by_their_files(tmp_path):
    drawn = {}
    for number, name in enumerate(
        ("drawings/my seven.png", "others/my seven.png", "file:///my%20seven.png", "eight.png")
    ):
        place = Place.of(tmp_path / f"{number}.png")
        one = prediction(parse(name), 7, 0.9, None)
        answers.write(shown([one], None, np.zeros((1, 28, 28), np.uint8)), None, place)
        drawn[name] = storage.read(place, 2**20)
    assert drawn["drawings/my seven.png"] == drawn["others/my seven.png"]
    assert drawn["drawings/my seven.png"] == drawn["file:///my%20seven.png"]
    assert drawn["drawings/my seven.png"] != drawn["eight.png"]
