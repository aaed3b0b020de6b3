"""What nights and people made of an output, on every kind of storage."""

import json
from datetime import timedelta

import fake_runs
import pytest

from job import storage
from job.catalog import history
from job.storage import Place, parse


@pytest.fixture
def output(anywhere) -> Place:
    return anywhere


def night(output: Place, name: str, **facts: object) -> None:
    record = {
        "schema_version": 1,
        "night": name,
        "verdict": "refused",
        "why": "significantly worse",
        "exit_code": 0,
        "began": (fake_runs.NOW - timedelta(minutes=1)).isoformat(),
        "ended": fake_runs.NOW.isoformat(),
        "data": {
            "uri": "shards",
            "fingerprint": "1" * 64,
            "files": [{"name": "base.npz", "size": 70, "sha256": "2" * 64},
                      {"name": "train-1.npz", "size": 30, "sha256": "3" * 64}],
            "train_examples": 61_000,
            "test_examples": 10_000,
            "shards": [{"name": "train-1.npz"}],
            "test_fingerprint": fake_runs.TEST_SET,
        },
        "champion": {"run": "a", "accuracy": 0.98, "age_seconds": 60.0, "stale": True, "held": "x"},
        "run": f"night-of-{name}",
        "gate": {"examples": 10_000, "scores": {"challenger": {"correct": 9_800}}},
        "new": ["train-1.npz"],
    }  # fmt: skip
    storage.create(output / f"nights/{name}.json", json.dumps(record | facts).encode())


def test_an_output_without_nights_has_an_empty_history(tmp_path):
    assert history.read(Place.of(tmp_path)) == history.History((), (), ())


def test_nights_and_entries_come_in_their_order(output):
    night(output, "a-second")
    night(output, "b-first", ended=(fake_runs.NOW - timedelta(days=1)).isoformat())
    fake_runs.champion(output, "a")
    fake_runs.champion(output, "b", 2, correct=199)
    found = history.read(output)
    assert [each.night for each in found.nights] == ["b-first", "a-second"]
    assert [entry.champion.run for entry in found.entries] == ["a", "b"]
    assert found.unreadable == ()
    assert found.nights[1] == history.Night(
        night="a-second",
        verdict="refused",
        why="significantly worse",
        exit_code=0,
        began=fake_runs.NOW - timedelta(minutes=1),
        ended=fake_runs.NOW,
        run="night-of-a-second",
        correct=9_800,
        examples=10_000,
        test_fingerprint=fake_runs.TEST_SET,
        data="shards",
        train_examples=61_000,
        test_examples=10_000,
        files=2,
        size=100,
        shards=1,
        new=1,
        champion="a",
        champion_accuracy=0.98,
        champion_age_seconds=60.0,
        stale=True,
        held=True,
    )


def test_a_night_that_came_to_little_tells_little(tmp_path):
    output = parse(str(tmp_path))
    record = {"verdict": "bad_data", "ended": fake_runs.NOW.isoformat(), "champion": None}
    storage.create(output / "nights/a.json", json.dumps(record).encode())
    [found] = history.read(output).nights
    assert (found.verdict, found.run, found.files, found.held) == ("bad_data", None, None, False)


def test_what_nobody_understands_hides_nothing_else(tmp_path):
    output = parse(str(tmp_path))
    night(output, "good")
    for name, content in (("torn", b"{"), ("other", b"{}"), ("list", b"[]")):
        storage.create(output / f"nights/{name}.json", content)
    storage.create(output / "nights/notes.txt", b"not ours")
    fake_runs.champion(output, "a")
    storage.create(output / "champion/000007.json", b"{}")
    found = history.read(output)
    assert [each.night for each in found.nights] == ["good"]
    assert [entry.number for entry in found.entries] == [1]
    names = [place.name for place, _ in found.unreadable]
    assert names == ["list.json", "other.json", "torn.json", "000007.json"]


def test_many_nights_are_one_listing_and_as_many_reads(tmp_path, monkeypatch):
    output = parse(str(tmp_path))
    for number in range(50):
        night(output, f"n-{number:03}")
    fake_runs.champion(output, "a")
    asked = []
    for verb in ("read", "names", "exists", "folders"):
        done = getattr(storage, verb)
        monkeypatch.setattr(
            storage, verb, lambda *given, verb=verb, done=done: asked.append(verb) or done(*given)
        )
    assert len(history.read(output).nights) == 50
    assert {verb: asked.count(verb) for verb in asked} == {"names": 2, "read": 51}
