"""The page of a night: what decided, and the images that tell champion and challenger apart."""

import copy
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import write_data
from pages import Page

from job.config import DataSource
from job.data import source
from job.nightly import gate
from job.nightly.judging import disagreements
from job.process.progress import Progress
from job.report import figures, nights
from job.results.publishing import to_json
from job.storage import parse

MODEL = {
    "architecture": "mlp", "weights_sha256": "a" * 64, "data_fingerprint": "b" * 64,
    "test_fingerprint": "c" * 64, "test_correct": 50, "test_examples": 60,
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = write_data(tmp_path_factory.mktemp("data") / "d.npz")
    return source.load(DataSource(parse(str(path))))


def probabilities(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return what a model says that is right about most images."""
    logits = np.random.default_rng(seed).normal(0, 1, (len(labels), 4))
    logits[np.arange(len(labels)), labels] += 1.5
    shares = np.exp(logits)
    return shares / shares.sum(axis=1, keepdims=True)


def verdict_of(dataset) -> dict:
    """Return the gate's verdict on two models, as its file has it."""
    challenger, champion = (probabilities(dataset.y_test, seed) for seed in (1, 2))
    rules = gate.Rules(minimum=0.25)
    judged = gate.judge(
        dataset.y_test, challenger.argmax(axis=1), champion.argmax(axis=1), None, rules, 4
    )
    return json.loads(
        to_json(
            {
                "schema_version": 1, "night": "n", "time": "2026-11-26T01:00:00+00:00",
                "test_set_decided_before": 3,
                "challenger": MODEL | {"run": "night-2"}, "champion": MODEL | {"run": "night-1"},
                "anchor": None,
                "settings": {"alpha": 0.05, "minimum": 0.25, "promote": "no-worse"},
                **judged.document,
                "newest": None,
                "probabilities": challenger[:2].tolist(),
                "disagreements": disagreements(dataset.y_test, challenger, champion),
            }
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def record(dataset):
    """Return the record of a night that judged."""
    told = {
        k: v for k, v in verdict_of(dataset).items() if k not in {"probabilities", "disagreements"}
    }
    return {
        "schema_version": 1, "night": "n", "verdict": "refused", "why": "worse: 3 < 4 & <b>",
        "exit_code": 0, "began": "2026-11-26T00:59:00+00:00", "ended": "2026-11-26T01:00:01+00:00",
        "who": {"job": "nightly", "pod": None, "machine": "m", "process": 7},
        "code": {"job_version": "0.1.0", "git_commit": None, "keras": "3.15.1"},
        "config_sha256": "d" * 64,
        "config": {"data": dataset.uri, "model": "mlp", "epochs": 2},
        "data": {"files": [{"name": "base.npz", "size": 9, "sha256": "e" * 64}], **dataset.facts()},
        "champion": {
            "number": 2, "run": "night-1", "weights_sha256": "a" * 64, "accuracy": 0.9,
            "since": "2026-11-20T00:00:00+00:00", "age_seconds": 86_400.0, "stale": True,
            "held": None,
        },
        "run": "night-2",
        "gate": {"path": f"gates/{'1' * 16}.{'2' * 16}.01.json", **told},
    }  # fmt: skip


@pytest.fixture
def output(tmp_path, dataset, record):
    """Return a folder with the verdict that the record names."""
    (tmp_path / "gates").mkdir()
    (tmp_path / record["gate"]["path"]).write_text(json.dumps(verdict_of(dataset)))
    return parse(str(tmp_path))


def page_of(output, record, dataset=None, **more) -> Page:
    return Page(nights.page_of(output, record, dataset, **more))


def test_images_they_disagree_on_come_first_and_then_the_numbers(output, record, dataset):
    found = page_of(output, record, dataset)
    text = found.content.decode()
    order = [text.index(f'id="{name}"') for name in ("differ", "results", "gate", "data", "again")]
    assert order == sorted(order)
    assert "refused: the champion stays" in found.words
    assert "worse: 3 < 4 & <b>" in found.words
    decided = record["gate"]["rules"]["champion"]
    assert f"Lost: the champion is right ({decided['lost']})" in found.words
    assert f"Won: the challenger is right ({decided['won']})" in found.words
    told = verdict_of(dataset)["disagreements"]
    assert len(found.classed("tile")) == len(told["images"]) == told["count"]
    assert f"a net loss of {decided['caught_net_loss']} would have been caught" in found.words
    assert "1.0 days, stale" in found.words
    assert "mnist-job retrain" in found.words
    assert "--gate-minimum 0.25" in found.words
    assert "missing" not in found.headings


def test_every_tile_shows_its_image_and_says_what_both_said(output, record, dataset):
    content = nights.page_of(output, record, dataset).decode()
    for row in verdict_of(dataset)["disagreements"]["images"]:
        said = [
            f"the champion said {row['champion']['predicted']}, ",
            f"the challenger {row['challenger']['predicted']}, ",
        ]
        spoken = f"Test image {row['index']}, labelled {row['label']}; {said[0]}"
        assert spoken in content
        assert said[1] in content.partition(spoken)[2].partition('"')[0]


def test_the_same_night_is_the_same_bytes_whoever_has_the_data(output, record, dataset):
    pages = {nights.page_of(output, record, each) for each in (dataset, dataset, None)}
    assert len(pages) == 1


def test_where_the_test_images_are_others_now_their_numbers_are_shown(output, record, dataset):
    changed = record | {"data": record["data"] | {"test_fingerprint": "f" * 64}}
    found = page_of(output, changed)
    assert found.classed("tile") == []
    assert "champion said" in found.words
    assert "has other test images now" in found.words
    assert "missing" in found.headings
    del dataset


def test_where_the_verdict_is_gone_the_record_tells(tmp_path, record, dataset):
    found = page_of(parse(str(tmp_path)), record, dataset)
    assert "differ" not in found.headings
    assert {"results", "gate", "missing"} <= found.headings


@pytest.mark.parametrize("path", ["../x.json", "gates/../x.json", "/etc/passwd", "gates/..", 3])
def test_a_record_leads_to_no_file_that_is_no_verdict(output, record, dataset, path):
    changed = record | {"gate": record["gate"] | {"path": path}}
    found = page_of(output, changed, dataset)
    assert "differ" not in found.headings
    assert "which lies elsewhere" in found.words


@pytest.mark.parametrize("verdict", [*nights.VERDICTS, "<odd>", None])
def test_every_verdict_has_its_words(output, record, verdict):
    told = {k: v for k, v in record.items() if k not in {"run", "gate"}}
    found = page_of(output, told | {"verdict": verdict})
    words = nights.VERDICTS.get(verdict, ("", str(verdict)))[1]
    assert words in found.words
    assert found.headings == {"data", "again"}


def test_refused_data_are_told_with_what_was_measured(output, record):
    finding = {
        "shard": "train-<a>.npz", "what": "pixel_mean", "value": 36.351, "bound": 1.0812,
        "sentence": "too bright", "digests": [], "against": "",
    }  # fmt: skip
    told = {k: v for k, v in record.items() if k not in {"run", "gate"}}
    found = page_of(
        output,
        told
        | {"verdict": "bad_data", "exit_code": 65, "findings": [finding], "new": ["train-<a>.npz"]}
        | {"changed": [], "gone": ["train-b.npz"], "skipped": {"base.npz": "unreadable"}},
    )
    assert "data refused" in found.words
    assert "train-<a>.npz pixel mean 36.4 1.08" in found.words
    assert "left out: unreadable" in found.words
    assert "Gone train-b.npz" in found.words


ODD = st.sampled_from([None, True, -1, 10**400, float("nan"), "", "<b>\x00", [], {}, [[]], 0.5])


def spoiled(document: dict, draw) -> dict:
    """Return a copy of a document with one member of it odd."""
    odd = copy.deepcopy(document)
    at, names = odd, list(odd)
    while True:
        name = draw(st.sampled_from(names))
        below = at[name]
        if not isinstance(below, dict | list) or not below or draw(st.booleans()):
            break
        at, names = below, list(below) if isinstance(below, dict) else range(len(below))
    at[name] = draw(ODD)
    return odd


@given(draw=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_page_is_made_of_records_with_anything_odd_in_them(record, tmp_path_factory, draw):
    odd = spoiled(record, draw.draw)
    Page(nights.page_of(parse(str(tmp_path_factory.getbasetemp())), odd))


@given(draw=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_page_is_made_of_verdicts_with_anything_odd_in_them(record, dataset, draw):
    verdict = {"disagreements": verdict_of(dataset)["disagreements"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nights, "_whole", lambda *_: spoiled(verdict, draw.draw))
        place = parse("/nowhere")
        Page(nights.page_of(place, record, dataset))


def test_a_page_is_left_once_and_a_failure_is_a_warning(output, record, dataset, monkeypatch):
    log = io.StringIO()
    page = output / "nights/n.html"
    for _ in range(2):
        nights.leave(page, output, record, dataset, Progress("json", log))
    [said] = log.getvalue().splitlines()
    assert json.loads(said)["event"] == "report_written"
    assert Page(page.path.read_bytes()).headings >= {"differ"}

    def fail(*_: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(nights, "page_of", fail)
    nights.leave(output / "nights/other.html", output, record, dataset, Progress("json", log))
    assert json.loads(log.getvalue().splitlines()[-1])["event"] == "report_not_written"


def test_no_night_waits_for_what_draws(output, record, dataset, monkeypatch):
    """Not even for matplotlib: a night with nothing new ends in half a second."""
    monkeypatch.setattr(figures, "Drawing", None)
    page_of(output, record, dataset)


def test_a_night_is_shown_by_its_record(output, record, dataset, command):
    path = output.path / "nights" / "n.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record))
    done = command("report", path)
    assert (done.code, done.out) == (0, f"written to {path.with_suffix('.html')}\n"), done.err
    page = path.with_suffix(".html").read_bytes()
    assert page == nights.page_of(output, record, dataset)
    assert len(Page(page).classed("tile")) > 10


def test_of_many_disagreements_those_come_first_that_somebody_was_sure_of():
    labels = np.zeros(500, np.int32)
    challenger, champion = np.full((500, 3), 0.1), np.full((500, 3), 0.1)
    champion[:, 0] = 0.8
    champion[400:, 0], champion[400:, 2] = 0.05, 0.9  # wrong as well, so nobody wins
    challenger[:, 1] = np.linspace(0.4, 0.8, 500)
    challenger[0, 1] = 0.05  # agrees: the first of equal ones counts
    found = disagreements(labels, challenger, champion)
    assert found["count"] == 499
    assert len(found["images"]) == 200
    assert [row["index"] for row in found["images"]] == list(range(399, 199, -1))
    sure = found["images"][0]
    assert sure["challenger"]["predicted"] == 1
    assert sure["champion"] == {"predicted": 0, "confidence": 0.8}
    assert all(isinstance(value, int | dict) for value in sure.values())
    to_json(found)
