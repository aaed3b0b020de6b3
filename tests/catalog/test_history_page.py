"""The page of an output: champions, nights and runs, whatever lies there."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import fake_runs
import pytest
from fake_runs import NOW
from pages import Page
from test_history import night

from job import storage
from job.catalog import history, history_page, listing
from job.errors import ConflictError, MissingInputError
from job.nightly import champions
from job.nightly.champions import Log, Model
from job.process.progress import Progress
from job.results.publishing import RunFolder
from job.storage import Place


@pytest.fixture
def output(tmp_path) -> Place:
    return Place.of(tmp_path)


def draw(output: Place) -> Page:
    """Draw the history of an output into it, and return the page."""
    history_page.draw(output, None, Progress("json"), NOW)
    return Page(storage.read(output / "index.html", 2_000_000))


def promote(output: Place, run: str, correct: int, test_set: str = fake_runs.TEST_SET) -> None:
    """Let a run be champion from now on; each one a day after the one before."""
    log = Log(output)
    model = Model(run, "mlp", "a" * 64, "b" * 64, test_set, correct, 10_000)
    entry = champions.promotion(log.newest(), model, None, why=f"better than before {run}")
    since = (NOW - timedelta(days=30 - entry.number)).isoformat()
    log.append(replace(entry, time=since, since=since, night=run))


def links(page: Page) -> dict[str, int]:
    return {str(each["href"]): 1 for each in page.named("a")}


def test_champions_nights_and_runs_are_told_the_newest_first(output):
    promote(output, "n1", 9_700)
    promote(output, "n2", 9_812)
    for at, (name, verdict) in enumerate(
        {"n1": "promoted", "n2": "promoted", "n3": "refused", "n4": "bad_data"}.items()
    ):
        night(
            output,
            name,
            verdict=verdict,
            why=f"why of {name}",
            ended=(NOW + timedelta(days=at)).isoformat(),
            run=None if verdict == "bad_data" else name,
            gate=None
            if verdict == "bad_data"
            else {"examples": 10_000, "scores": {"challenger": {"correct": 9_650 + at}}},
        )
    fake_runs.complete(output, "n1")
    fake_runs.complete(output, "n2")
    end = {"status": "failed", "code": 66, "error": "no data there", "seconds": 2.0}
    fake_runs.attempt(output, "broken", end=end)
    page = draw(output)
    assert page.headings == {"champions", "refused", "nights", "runs"}
    words = page.words
    assert "98.12 % of 10,000 test images right: the champion, n2, since" in words
    assert "95 % interval: 97.83 to 98.37 %" in words
    order = [words.index(f"better than before {run}") for run in ("n2", "n1")]
    assert order == sorted(order)
    refusals = words[words.index("Nights without a new champion") : words.index("Nights and their")]
    assert refusals.index("why of n4") < refusals.index("why of n3")
    assert "why of n2" not in refusals
    assert "96.52 % (96.14 to 96.86)" in words
    assert "broken failed" in words
    assert "no data there" in words
    assert "61,000" in words
    assert "of them bad data 1" in words
    svg = [str(each["aria-label"]) for each in page.named("svg")]
    assert svg[0].startswith(
        "Accuracy over time of 2 champions, the first 97.00 %, the last 98.12 %"
    )
    assert svg[1] == "Images over time: from 61,000 to 61,000 to train on."
    assert "missing" not in page.headings


def test_a_link_leads_to_a_page_that_is_there(output):
    night(output, "with")
    night(output, "without")
    storage.create(output / "nights/with.html", b"a page")
    for run in ("shown", "bare"):
        fake_runs.complete(output, run)
    storage.create(RunFolder(output / "shown").report, b"a page")
    end = {"status": "stopped", "code": 143, "error": None, "seconds": 2.0}
    fake_runs.attempt(output, "stopped", 3, end=end)
    storage.create(RunFolder(output / "stopped").attempt_page(3), b"a page")
    found = links(draw(output))
    assert set(found) == {"nights/with.html", "shown/report.html", "stopped/attempts/0003.html"}
    assert all(storage.exists(output / path) for path in found)


@pytest.mark.parametrize("name", ["javascript:alert(1)", "<b>&", "a b", "ü", "%2e%2e", "'\"", "#"])
def test_names_of_anybody_stay_names(output, name):
    fake_runs.complete(output, name)
    storage.create(RunFolder(output / name).report, b"a page")
    night(output, name, why=f"because of {name}", run=name)
    storage.create(output / f"nights/{name}.html", b"a page")
    page = draw(output)
    assert f"because of {name}" in page.words
    assert len(links(page)) == 2
    assert page.named("b") == []


def test_a_new_test_set_is_marked_and_nothing_is_joined_across_it(output, monkeypatch):
    for run, correct, test_set in (("a", 9_700, "7"), ("b", 9_800, "7"), ("c", 9_500, "8")):
        promote(output, run, correct, test_set * 64)
    drawn = []
    monkeypatch.setattr(
        history_page.figures, "reigns", lambda *given: drawn.append(given) or "drawn"
    )
    draw(output)
    _, _, reigns, others = drawn[0]
    assert [each.joins for each in reigns] == [False, True, False]
    assert [each.share for each in reigns] == [0.97, 0.98, 0.95]
    assert [each.ended for each in reigns[:2]] == [each.began for each in reigns[1:]]
    assert reigns[-1].ended == NOW
    assert all(each.low < each.share < each.high for each in reigns)
    assert others == []


def test_acts_of_people_are_told_but_make_no_champion(output):
    promote(output, "a", 9_700)
    log = Log(output)
    log.append(champions.holding(log.newest(), "we look <first>"))
    page = draw(output)
    assert "Promotions are held: we look <first>" in page.words
    assert "promotions held" in page.words
    assert "Accuracy over time of 1 champion," in str(page.named("svg")[0]["aria-label"])


def test_what_nobody_understands_is_told_and_hides_nothing(output):
    night(output, "good")
    storage.create(output / "nights/torn.json", b"{")
    fake_runs.complete(output, "a")
    storage.create(output / "odd/metrics.json", b"[]")
    page = draw(output)
    assert {"nights", "runs", "missing"} <= page.headings
    assert "torn.json" in page.words
    assert "odd unknown" in page.words


def test_an_older_page_makes_room_and_nothing_else_does(output):
    fake_runs.complete(output, "a")
    first = history_page.draw(output, None, Progress("json"), NOW)
    assert first == f"written to {output}/index.html"
    again = history_page.draw(output, None, Progress("json"), NOW + timedelta(days=1))
    assert again.endswith("in place of an older page")
    assert "2026-11-27 12:00" in Page(storage.read(output / "index.html", 2_000_000)).words
    Path(str(output / "index.html")).write_text("<p>mine</p>")
    with pytest.raises(ConflictError):
        history_page.draw(output, None, Progress("json"), NOW)
    assert Path(str(output / "index.html")).read_text() == "<p>mine</p>"


def test_where_nothing_lies_no_page_is_made(output):
    with pytest.raises(MissingInputError, match="no run and no night lies below"):
        history_page.draw(output, None, Progress("json"), NOW)
    assert storage.names(output) == []


def test_one_night_alone_and_one_run_alone_have_a_page(tmp_path):
    for name, make in {
        "night": lambda place: night(place, "n"),
        "run": lambda place: fake_runs.complete(place, "a"),
        "begun": lambda place: fake_runs.attempt(place, "a"),
    }.items():
        place = Place.of(tmp_path / name)
        make(place)
        assert draw(place).headings == {"night": {"refused", "nights"}}.get(name, {"runs"})


def test_a_thousand_of_each_fit_on_a_page(output):
    fake_runs.many(output, 1_001)
    runs = listing.Runs(output, Progress("json")).look(NOW)
    fake_runs.champion(output, "run-0001")
    [entry] = history.read(output).entries
    night(output, "n", why="x" * 500)
    [one] = history.read(output).nights
    found = history.History((one,) * 1_001, (entry,) * 1_001, ())
    page = Page(history_page.page_of(output, found, runs, {}, NOW))
    assert page.words.count("the newest 1,000 of 1,001") == 4
    assert len(page.named("tr")) == 4 * 1_001


def test_the_same_moment_is_the_same_bytes(output):
    promote(output, "a", 9_700)
    fake_runs.complete(output, "a")
    pages = set()
    for _ in range(2):
        draw(output)
        pages.add(storage.read(output / "index.html", 2_000_000))
    assert len(pages) == 1


def test_of_many_runs_the_newest_have_links(output, monkeypatch):
    monkeypatch.setattr(history_page, "MOST_LINKED", 2)
    for run in ("a", "b", "c"):
        fake_runs.complete(output, run)
        storage.create(RunFolder(output / run).report, b"a page")
    page = draw(output)
    assert set(links(page)) == {"a/report.html", "b/report.html"}  # of one time, by their names
    assert "the newest 2 have links" in page.words


@pytest.mark.parametrize(
    "odd", [{"who": ["x"]}, {"why": None}, {"time": "0001-01-01T00:00:00+14:00"}, {"held": [3]}]
)
def test_an_entry_with_anything_odd_in_it_ends_nothing(output, odd):
    promote(output, "a", 9_700)
    fake_runs.complete(output, "a")
    entry = Path(str(output / "champion/000001.json"))
    entry.write_text(json.dumps(json.loads(entry.read_text()) | odd))
    page = draw(output)
    assert "runs" in page.headings
    assert "97.00 %" in page.words


def test_a_torn_log_is_told_in_the_page(output):
    fake_runs.complete(output, "a")
    storage.create(output / "champion/000001.json", json.dumps({"champion": 3}).encode())
    page = draw(output)
    assert "champions" not in page.headings
    assert "000001.json" in page.words
