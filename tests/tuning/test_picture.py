"""The picture of a study: one file, well-formed, and every trial in it, failed ones too."""

from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from studies import make_study

from job.tuning import picture


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


def test_every_trial_is_in_each_drawing_and_in_the_table(html):
    over_trials, coordinates = drawings(html)
    for drawing in (over_trials, coordinates):
        titles = [title.text for title in drawing.iter("title")]
        assert [title.split(",")[0] for title in titles] == [f"trial {n}" for n in range(4)]
    assert len(list(over_trials.iter("circle"))) == 3
    crosses = [text for text in over_trials.iter("text") if text.text == "x"]
    assert len(crosses) == 1  # the failed one
    assert len(list(coordinates.iter("polyline"))) == 4
    table = html.partition("<table>")[2]
    assert [row.split("</td>")[1] for row in table.split("<tr><td>")[1:]] == [
        "<td>3",
        "<td>0",
        "<td>1",
        "<td>2",
    ]  # fmt: skip  the complete ones first, by rank


def test_lines_lead_to_their_values(html):
    lines = list(drawings(html)[1].iter("polyline"))
    ys = [[float(pair.split(",")[1]) for pair in line.get("points").split()] for line in lines]
    bottom, top = 270.0, 30.0
    assert ys[2][0] == top  # the highest rate
    assert ys[0][0] == pytest.approx((top + bottom) / 2)  # 0.01 is the middle of 0.001 to 0.1
    ends = [bottom - (bottom - top) * 0.45 / 0.49, bottom, bottom, top]
    assert [each[-1] for each in ys] == pytest.approx(ends, abs=0.06)


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
