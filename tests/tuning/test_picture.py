"""The picture of a study: one file, well-formed, and every trial in it, failed ones too."""

import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from studies import make_study

from job.tuning import picture
from job.tuning.study import keep


def result(trial: int, state: str, accuracy: float | None, **values) -> dict:
    named = {"learning_rate": 0.01, "batch_size": 32, "augment": "none", **values}
    return {
        "trial": trial, "state": state, "why": "<b>nan</b>" if state == "failed" else None,
        "values": named, "epochs": 3, "validation_loss": accuracy and 1 - accuracy,
        "validation_accuracy": accuracy, "seconds": 1.5,
    }  # fmt: skip


RESULTS = [
    result(0, "complete", 0.95), result(1, "halted", 0.5, batch_size=64),
    result(2, "failed", None, learning_rate=0.1), result(3, "complete", 0.99, augment="affine"),
]  # fmt: skip


@pytest.fixture
def html(tmp_path: Path) -> str:
    space = ("learning-rate=0.001..0.1:log", "batch-size=32,64", "augment=none,affine")
    return picture.draw(make_study(tmp_path, *space, name="a.b"), RESULTS)


def drawings(html: str) -> list[ET.Element]:
    parts = html.split("<svg")[1:]
    return [ET.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>") for part in parts]


def drawn(drawing: ET.Element) -> list[int]:
    """Return the trials of a drawing, in the order in which they are drawn."""
    return [int(title.text.split(",")[0].split()[1]) for title in drawing.iter("title")]


def test_every_trial_is_in_each_drawing_and_in_the_table(html):
    over_trials, coordinates = drawings(html)
    assert drawn(over_trials) == [0, 1, 2, 3]
    assert drawn(coordinates) == [2, 1, 0, 3]  # the best one over the others
    states = [circle.get("class") for circle in over_trials.iter("circle")]
    assert states == ["complete", "halted", "complete"]
    crosses = [path for path in over_trials.iter("path") if path.get("class") == "failed"]
    assert len(crosses) == 1
    states = [line.get("class") for line in coordinates.iter("polyline")]
    assert states == ["failed", "halted", "complete", "complete"]
    table = html.partition("<table>")[2]
    assert [row.split("</td>")[1] for row in table.split("<tr><td>")[1:]] == [
        "<td>3",
        "<td>0",
        "<td>1",
        "<td>2",
    ]  # fmt: skip  the complete ones first, by rank


def test_lines_lead_to_their_values(html):
    drawing = drawings(html)[1]
    lines = zip(drawn(drawing), drawing.iter("polyline"), strict=True)
    ys = {
        trial: [float(pair.split(",")[1]) for pair in line.get("points").split()]
        for trial, line in lines
    }
    bottom, top = 270.0, 30.0
    assert ys[2][0] == top  # the highest rate
    assert ys[0][0] == pytest.approx((top + bottom) / 2)  # 0.01 is the middle of 0.001 to 0.1
    # Where the logarithms of the errors 0.05, 0.5 and 0.01 are; the failed one at the bottom.
    share = math.log(0.5 / 0.05) / math.log(0.5 / 0.01)
    ends = [bottom - (bottom - top) * share, bottom, bottom, top]
    assert [ys[trial][-1] for trial in range(4)] == pytest.approx(ends, abs=0.06)


def test_accuracies_are_labelled_where_they_are_and_not_over_each_other(html):
    for drawing in drawings(html):
        labels = {}
        for text in drawing.iter("text"):
            if text.text.startswith("0.") and len(text.text) == 6:
                labels[float(text.text)] = float(text.get("y"))
        assert {0.99, 0.5, 0.8, 0.9}.issubset(labels)
        ys = sorted(labels.values())
        assert all(after - before >= 12 for before, after in pairwise(ys))
        assert ys[0] == labels[0.99] == 30


def test_finals_are_in_it_once_all_are_over(tmp_path):
    study = make_study(tmp_path, "learning-rate=0.001..0.1:log")
    for trial, accuracy in ((0, 0.95), (3, 0.99)):
        one = {**result(trial, "complete", accuracy), "parameters": 7}
        one["values"] = {"learning_rate": 0.01 + trial}
        keep(study.trial(trial), one)
        for seed in range(1, 6):
            assert "Finals" not in picture.draw(study, study.results())
            state, why = ("failed", "too <high>") if (trial, seed) == (3, 5) else ("complete", None)
            keep(study.final(trial, seed), one | {"state": state, "why": why, "fresh_seed": seed})
    html = picture.draw(study, study.results())
    finals = html.partition("Finals")[2].partition("<h2>Trials")[0]
    assert "<td>0</td><td>0.9500</td><td>0.9500</td><td>0.0000</td><td>1.000</td>" in finals
    assert "failed with fresh seed 5: too &lt;high&gt;" in finals
    assert "trial 0:</p><p><code>mnist-job train --" in finals


def test_nothing_beside_the_file_is_needed_and_foreign_text_is_only_text(html):
    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))

    Parser().feed(html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in found}
    assert "<b>nan" not in html
    assert "&lt;b&gt;nan" in html
    assert not any({"src", "href"} & attrs.keys() for _, attrs in found)


def test_a_study_of_failures_alone_or_of_one_trial_can_be_drawn(tmp_path):
    study = make_study(tmp_path, "dropout=0..0.5")
    for state, accuracy in (("failed", None), ("complete", 0.9), ("halted", 0.9)):
        one = {**result(0, state, accuracy), "values": {"dropout": 0.25}}
        assert len(drawings(picture.draw(study, [one]))) == 2


def test_of_labels_without_room_the_first_is_kept():
    assert picture._with_room([10.0, 20.0, 30.0, 12.0]) == [10.0, 30.0]
