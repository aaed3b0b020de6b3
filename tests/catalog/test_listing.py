"""The runs below an output: each status by what a run left, on every kind of storage."""

import json
import time
from datetime import UTC, datetime, timedelta

import fake_runs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job import storage
from job.catalog import listing
from job.catalog.listing import Run, Runs
from job.config import MOST_MEMBERS, PRESETS, RESERVED_RUN_IDS, RunConfig
from job.errors import MissingInputError, OutputError
from job.process.progress import Progress
from job.results.publishing import RunFolder
from job.storage import Place, parse

MINUTE = timedelta(minutes=1)


@pytest.fixture
def output(anywhere) -> Place:
    return anywhere


class Told(Progress):
    """Keeps the events that were reported."""

    def __init__(self):
        super().__init__("json")
        self.events = []

    def event(self, name, **details):
        self.events.append((name, details))


def look(output: Place, later: timedelta = 0 * MINUTE) -> dict[str, Run]:
    """Return the runs by their names, as they look now or some time later."""
    return {run.run: run for run in Runs(output, Told()).look(datetime.now(UTC) + later)}


def statuses(output: Place, later: timedelta = 0 * MINUTE) -> dict[str, str]:
    return {name: run.status for name, run in look(output, later).items()}


def put(output: Place, path: str, content: bytes) -> None:
    storage.create(output / path, content)


def test_every_run_has_the_status_that_its_folder_shows(output):
    now = datetime.now(UTC)
    fake_runs.complete(output, "complete")
    fake_runs.attempt(output, "begun", began=now)
    fake_runs.attempt(output, "saving", began=now - timedelta(days=3))
    fake_runs.checkpoint(output, "saving")
    fake_runs.attempt(output, "killed", began=now - 11 * MINUTE)
    stopped = {"status": "stopped", "code": 143, "error": "stopped by SIGTERM", "seconds": 7.5}
    fake_runs.attempt(output, "stopped", end=stopped)
    fake_runs.attempt(output, "retry", end=stopped | {"status": "retry", "code": 75})
    fake_runs.attempt(output, "failed", end={"status": "failed", "code": 65, "error": "bad data"})
    fake_runs.attempt(output, "again", end={"status": "failed", "code": 70})
    fake_runs.attempt(output, "again", 2, began=now)
    put(output, "damaged/metrics.json", b'{"run_id": "dam')
    put(output, "foreign/metrics.json", b'["somebody else\'s"]')
    put(output, "other/metrics.json", b'{"test": {"correct": 9, "examples": 3}}')
    fake_runs.attempt(output, "half-removed", began=now)
    put(output, "half-removed/pruned.json", b"{}")
    put(output, "data/train.npz", b"no run")
    put(output, "index.html", b"no folder")
    for name in RESERVED_RUN_IDS:
        put(output, f"{name}/metrics.json", b"{}")
    fake_runs.champion(output, "complete")

    found = look(output)
    assert {name: run.status for name, run in found.items()} == {
        "complete": "complete",
        "begun": "running?",
        "saving": "running?",
        "killed": "silent",
        "stopped": "stopped",
        "retry": "stopped",
        "failed": "failed",
        "again": "running?",
        "damaged": "unknown",
        "foreign": "unknown",
        "other": "unknown",
        "half-removed": "half removed",
    }
    assert [run.run for run in found.values() if run.champion] == ["complete"]
    whole = found["complete"]
    assert (whole.accuracy, whole.model, whole.preset) == (0.975, "mlp", "reference")
    assert whole.accuracy_interval_95[0] < 0.975 < whole.accuracy_interval_95[1]
    assert whole.time == fake_runs.NOW - 59 * MINUTE
    assert (found["stopped"].code, found["stopped"].seconds) == (143, 7.5)
    assert found["failed"].why == "bad data"
    assert found["again"].attempts == 2
    assert "not the JSON" in found["damaged"].why
    later = statuses(output, 11 * MINUTE)
    assert {later[name] for name in ("begun", "saving", "again")} == {"silent"}
    assert later["stopped"] == "stopped"


def test_where_nothing_lies_there_are_no_runs(tmp_path):
    assert look(parse(f"{tmp_path}/nothing")) == {}


def test_a_run_below_a_name_that_no_run_may_have_is_shown_too(tmp_path):
    output = parse(str(tmp_path))
    for name in ("<script>", "a\x1b[31m\nb", "-rf", "x" * 200):
        fake_runs.complete(output, name)
    assert set(look(output)) == {"<script>", "a\x1b[31m\nb", "-rf", "x" * 200}


def test_members_count_with_their_ensemble(tmp_path):
    output = parse(str(tmp_path))
    now = datetime.now(UTC)
    fake_runs.complete(output, "whole", ensemble=2)
    for number in (1, 2, 3):  # the third is a run of its own
        fake_runs.complete(output, f"whole-{number}")
    fake_runs.attempt(output, "under-way", began=now - timedelta(hours=9), ensemble=3)
    fake_runs.complete(output, "under-way-1")
    fake_runs.attempt(output, "under-way-2", began=now - timedelta(hours=8))
    fake_runs.checkpoint(output, "under-way-2")
    ended = {"status": "stopped", "code": 143, "error": "by SIGTERM", "seconds": 3.0}
    fake_runs.attempt(output, "told", began=now - timedelta(hours=9), ensemble=2)
    fake_runs.attempt(output, "told-1", began=now - timedelta(hours=8), end=ended)
    found = look(output)
    assert {name: run.status for name, run in found.items()} == {
        "whole": "complete",
        "whole-3": "complete",
        "under-way": "running?",
        "told": "stopped",
    }
    assert found["whole"].members == 2
    assert found["told"].code == 143
    assert statuses(output, 11 * MINUTE)["under-way"] == "silent"
    fake_runs.attempt(output, "told", 2, began=datetime.now(UTC) + MINUTE, ensemble=2)
    assert statuses(output)["told"] == "running?"  # it was begun again since


def test_a_foreign_ensemble_hides_no_more_runs_than_there_may_be_members(tmp_path):
    output = parse(str(tmp_path))
    document = fake_runs.metrics("all")
    document["config"]["ensemble"] = 10**12
    put(output, "all/metrics.json", json.dumps(document).encode())
    fake_runs.complete(output, f"all-{MOST_MEMBERS + 1}")
    assert set(look(output)) == {"all", f"all-{MOST_MEMBERS + 1}"}


def test_what_is_complete_is_read_once(tmp_path, monkeypatch):
    output = parse(str(tmp_path))
    fake_runs.complete(output, "a")
    fake_runs.attempt(output, "b", began=datetime.now(UTC))
    runs = Runs(output, Told())
    first = runs.look(datetime.now(UTC))
    reads, read = [], storage.read
    monkeypatch.setattr(
        storage, "read", lambda place, limit: reads.append(str(place)) or read(place, limit)
    )
    assert runs.look(datetime.now(UTC)) == first
    assert reads
    assert not [place for place in reads if "/a/" in place]
    fake_runs.champion(output, "a")
    assert runs.look(datetime.now(UTC))[0].champion
    assert not first[0].champion


def test_a_run_that_is_gone_is_not_shown_again(tmp_path):
    output = parse(str(tmp_path))
    fake_runs.complete(output, "a")
    runs = Runs(output, Told())
    assert len(runs.look(datetime.now(UTC))) == 1
    (tmp_path / "a").rename(tmp_path.parent / f"{tmp_path.name}-away")
    assert runs.look(datetime.now(UTC)) == []


def test_a_log_of_champions_that_nobody_understands_ends_nothing(tmp_path):
    output, told = parse(str(tmp_path)), Told()
    fake_runs.complete(output, "a")
    put(output, "champion/000001.json", b"{}")
    runs = Runs(output, told)
    for _ in range(2):
        assert not runs.look(datetime.now(UTC))[0].champion
    assert [name for name, _ in told.events] == ["champion_unknown"]


def test_one_run_that_cannot_be_seen_hides_no_other(tmp_path, monkeypatch):
    output = parse(str(tmp_path))
    fake_runs.complete(output, "a")
    fake_runs.complete(output, "b")
    read = storage.read

    def refuse(place, limit):
        if "/a/" in str(place):
            raise OutputError("a device that fails")
        return read(place, limit)

    monkeypatch.setattr(storage, "read", refuse)
    found = look(output)
    assert (found["a"].status, found["a"].why) == ("unknown", "a device that fails")
    assert found["b"].status == "complete"


def test_metrics_that_may_not_be_read_are_not_missing(tmp_path, monkeypatch):
    output = parse(str(tmp_path))
    fake_runs.complete(output, "a")
    read = storage.read

    def refuse(place, limit):
        if place.name == "metrics.json":
            raise MissingInputError("it may not be read") from PermissionError()
        return read(place, limit)

    monkeypatch.setattr(storage, "read", refuse)
    assert (look(output)["a"].status, look(output)["a"].why) == ("unknown", "it may not be read")


def test_a_clock_that_is_behind_the_store_makes_no_run_silent(tmp_path):
    output = parse(str(tmp_path))
    fake_runs.attempt(output, "ahead", began=datetime.now(UTC) + timedelta(days=1))
    assert statuses(output) == {"ahead": "running?"}


def test_a_run_that_was_moved_says_so(tmp_path):
    output = parse(str(tmp_path))
    put(output, "new-name/metrics.json", json.dumps(fake_runs.metrics("old-name")).encode())
    run = look(output)["new-name"]
    assert (run.status, run.why) == ("complete", "made as old-name")


@pytest.mark.parametrize(("preset", "fields"), PRESETS.items())
def test_a_preset_is_known_by_its_values(preset, fields):
    identity = RunConfig(run_id="x", seed=9, validation=0.1, **fields).identity
    assert listing.preset_of(identity) == preset
    assert listing.preset_of(identity | {"epochs": 77}) is None
    assert listing.preset_of(identity | {"dropout": 0.3}) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
NAMES = ("test", "config", "timing", "started", "run_id", "data", "attempts", "correct",
         "examples", "ensemble", "model", "total_seconds", "test_fingerprint")  # fmt: skip


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(st.sampled_from(NAMES), JSON | st.dictionaries(st.sampled_from(NAMES), JSON))
)
def test_whatever_metrics_hold_is_a_row(tmp_path_factory, document):
    folder = tmp_path_factory.mktemp("any")
    (folder / "run").mkdir()
    (folder / "run" / "metrics.json").write_text(json.dumps(document))
    (folder / "run-2").mkdir()
    (folder / "run-2" / "metrics.json").write_text(json.dumps(fake_runs.metrics("x") | document))
    found = Runs(Place.of(folder), Told()).look(datetime.now(UTC))
    assert [run.run for run in found][:1] == ["run"]
    for by in ("time", "accuracy", "seconds", "run", "status"):
        assert len(listing.ordered(found, by)) == len(found)
    json.dumps([listing.document(run) for run in found], allow_nan=False)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(JSON, JSON)
def test_whatever_the_record_of_an_attempt_holds_is_a_row(tmp_path_factory, record, end):
    attempts = tmp_path_factory.mktemp("any") / "run" / "attempts"
    attempts.mkdir(parents=True)
    (attempts / "0001.json").write_text(json.dumps(record))
    (attempts / "0001-end.json").write_text(json.dumps(end))
    [run] = Runs(Place.of(attempts.parent.parent), Told()).look(datetime.now(UTC))
    assert run.status in {"failed", "stopped", "unknown"}


def run(name, **facts) -> Run:
    return Run(run=name, place=parse("x"), **{"status": "complete"} | facts)


def test_runs_are_sorted_as_somebody_asks():
    at = [fake_runs.NOW + number * MINUTE for number in range(3)]
    runs = [
        run("a", time=at[1], correct=90, examples=100, seconds=3.0),
        run("b", time=at[2], correct=91, examples=100, seconds=2.0),
        run("c", time=at[0], status="failed", seconds=1.0),
        run("d", status="running?"),
        run("e", status="running?"),
    ]
    orders = {
        by: "".join(each.run for each in listing.ordered(runs, by))
        for by in ("time", "accuracy", "seconds", "run", "status")
    }
    assert orders == {
        "time": "bacde",
        "accuracy": "bacde",
        "seconds": "cbade",
        "run": "abcde",
        "status": "decab",
    }


def listed_in_seconds(output: Place) -> float:
    """Return the CPU seconds of listing a thousand runs: those of a clock are others' as well."""
    fake_runs.many(output, 1000)
    storage.configure(storage.Settings())  # as another process finds them
    began = time.process_time()
    assert len(look(output)) == 1000
    return time.process_time() - began


def test_a_thousand_runs_are_one_listing_and_as_many_reads(tmp_path, monkeypatch):
    asked = []
    for verb in ("read", "names", "exists", "folders", "written", "is_folder"):
        done = getattr(storage, verb)
        monkeypatch.setattr(
            storage, verb, lambda *given, verb=verb, done=done: asked.append(verb) or done(*given)
        )
    assert listed_in_seconds(parse(str(tmp_path))) < 5
    of_champions = {"names": 1}
    assert {verb: asked.count(verb) for verb in asked} == {
        "folders": 1,
        "read": 1000,
    } | of_champions


@pytest.mark.slow
def test_a_thousand_runs_are_listed_in_five_seconds_everywhere(output):
    assert listed_in_seconds(output) < 5


def test_of_an_attempt_that_began_the_folder_tells_where_it_lies(tmp_path):
    folder = RunFolder(parse(str(tmp_path)))
    assert str(folder.attempt(3)) == f"{tmp_path}/attempts/0003.json"
    assert str(folder.attempt_end(3)) == f"{tmp_path}/attempts/0003-end.json"
