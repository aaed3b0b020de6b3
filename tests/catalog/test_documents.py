"""Values out of anybody's JSON: as they should be, or None."""

from datetime import UTC, datetime

import pytest

from job.catalog import documents


@pytest.mark.parametrize(
    "value", [None, True, -1, -0.5, float("nan"), float("inf"), 10**400, 1e300, "7", [7], {}]
)
def test_what_is_no_number_is_none(value):
    assert documents.number_at({"x": value}, "x") is None
    assert documents.count_at({"x": value}, "x") is None


def test_numbers_are_taken_as_they_are():
    assert documents.number_at({"a": {"b": 0.25}}, "a", "b") == 0.25
    assert documents.count_at({"a": {"b": 7}}, "a", "b") == 7
    assert documents.count_at({"a": 7.0}, "a") is None


@pytest.mark.parametrize("document", [None, [], "text", {"a": []}, {"a": None}, {}])
def test_a_path_that_ends_before_its_end_leads_nowhere(document):
    assert documents.at(document, "a", "b") is None
    assert documents.text_at(document, "a", "b") is None
    assert documents.time_at(document, "a", "b") is None


@pytest.mark.parametrize(
    "text", ["", "now", "2026-11-26", "2026-11-26T12:00:00", "0001-01-01T00:00:00+14:00"]
)
def test_what_is_no_time_in_a_zone_is_none(text):
    assert documents.time_at({"x": text}, "x") is None


def test_times_are_in_one_zone():
    noon = datetime(2026, 11, 26, 12, tzinfo=UTC)
    assert documents.time_at({"x": "2026-11-26T13:00:00+01:00"}, "x") == noon
    assert documents.time_at({"x": "2026-11-26T12:00:00.000Z"}, "x") == noon
