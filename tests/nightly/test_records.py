"""What is kept of nights: names that answer, twins that agree, and shards that changed."""

from pathlib import Path

import pytest

from job.data.shards import Part
from job.errors import ConflictError
from job.nightly.records import Records
from job.storage import Place, parse

KEY, OTHER = "a" * 64, "b" * 64
TEST = "c" * 64


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(Place.of(tmp_path))


def part(name: str, digest: str) -> Part:
    return Part(name, 10, digest * 64)


def test_a_night_is_kept_once_and_the_first_word_stands(records):
    assert records.night("n-1") is None
    assert records.keep("n-1", {"verdict": "promoted"}) == {"verdict": "promoted"}
    assert records.keep("n-1", {"verdict": "refused"}) == {"verdict": "promoted"}
    assert records.night("n-1") == {"verdict": "promoted"}


def test_the_last_verdict_on_a_key_is_found_by_its_number(records):
    assert records.last_verdict(KEY) is None
    for number in (1, 2, 10):
        records.keep_verdict(KEY, number, TEST, {"n": number})
    records.keep_verdict(OTHER, 11, TEST, {"n": 11})
    assert records.last_verdict(KEY) == (10, {"n": 10})
    with pytest.raises(ConflictError):
        records.keep_verdict(KEY, 10, TEST, {"n": "another"})


def test_a_test_sets_verdicts_are_counted_over_all_keys(records):
    for key in (KEY, OTHER):
        records.keep_verdict(key, 1, TEST, {})
    records.keep_verdict(KEY, 2, "d" * 64, {})
    assert records.verdicts_on(TEST) == 2
    assert records.verdicts_on("e" * 64) == 0


def test_verdicts_on_one_key_come_to_an_end(records):
    with pytest.raises(ConflictError, match="99 verdicts"):
        records.keep_verdict(KEY, 100, TEST, {})


def test_a_shard_with_other_bytes_is_known_as_changed(records):
    records.shards(parse("s3://bucket/uri"), "n-1").accept(
        [part("train-a.npz", "1"), part("train-b.npz", "2")]
    )
    seen = records.shards(parse("s3://bucket/uri"), "n-2")
    now = [part("train-a.npz", "1"), part("train-b.npz", "3"), part("train-c.npz", "4")]
    assert [each.name for each in seen.new(now)] == ["train-b.npz", "train-c.npz"]
    assert [each.name for each in seen.changed(now)] == ["train-b.npz"]
    assert seen.gone([part("train-a.npz", "1")]) == ["train-b.npz"]
    # Once accepted it is not changed any more, and neither is what it was before.
    seen.accept(now)
    later = records.shards(parse("s3://bucket/uri"), "n-3")
    assert later.new([*now, part("train-b.npz", "2")]) == []


def test_a_night_that_is_begun_again_sees_what_it_saw(records):
    now = [part("train-a.npz", "1")]
    for _ in range(2):
        seen = records.shards(parse("s3://bucket/uri"), "n-1")
        assert seen.new(now) == now
        seen.accept(now)
    assert records.shards(parse("s3://bucket/uri"), "n-2").new(now) == []


def test_shards_of_another_source_are_others(records):
    records.shards(parse("s3://bucket/uri"), "n-1").accept([part("train-a.npz", "1")])
    assert (
        records.shards(parse("s3://bucket/other"), "n-2").changed([part("train-a.npz", "2")]) == []
    )


@pytest.mark.parametrize("name", ["train-a@b.npz", "train-@.npz", "train-1.2@3.npz"])
def test_odd_names_of_shards_are_told_apart(records, name):
    records.shards(parse("s3://bucket/uri"), "n@1".replace("@", "-")).accept([part(name, "1")])
    assert records.shards(parse("s3://bucket/uri"), "n-2").changed([part(name, "2")]) == [
        part(name, "2")
    ]
