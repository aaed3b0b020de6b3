"""What the chaos scripts make of what they saw."""

import importlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import REPOSITORY


def test_figures_add_up_and_the_slowest_stays(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts" / "chaos")

    @dataclass
    class Report(importlib.import_module("tally").Tally):
        runs: int = 0
        slowest_seconds: float = 0.0
        codes: Counter[int] = field(default_factory=Counter)
        problems: list[str] = field(default_factory=list)

    total = Report()
    total.add(Report(2, 3.0, Counter([75, 75]), ["late"]))
    total.add(Report(1, 2.0, Counter([75, 0]), ["torn"]))
    assert total == Report(3, 3.0, Counter({75: 3, 0: 1}), ["late", "torn"])


@pytest.fixture
def race(monkeypatch, tmp_path):
    """Return what judges a race, and a function that writes what one left."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts" / "chaos")
    nights = importlib.import_module("nights")

    def left(entries: list[tuple[int, str | None, str, str]], verdicts: dict[str, str]) -> Path:
        for folder in ("champion", "nights"):
            (tmp_path / folder).mkdir()
        for number, before, to, night in entries:
            entry = {"number": number, "from": before, "to": to, "night": night}
            (tmp_path / f"champion/{number:06}.json").write_text(json.dumps(entry))
        for night, verdict in verdicts.items():
            (tmp_path / f"nights/{night}.json").write_text(json.dumps({"verdict": verdict}))
        return tmp_path

    return nights.consistent, left


FIRST, SECOND, THIRD = (1, None, "a", "n"), (2, "a", "b", "racer-1"), (3, "b", "c", "racer-2")
BOTH = {"racer-1": "promoted", "racer-2": "promoted"}


@pytest.mark.parametrize(
    ("entries", "verdicts", "codes", "said"),
    [
        ([FIRST, SECOND, THIRD], BOTH, [0, 0], "one log"),
        ([FIRST, SECOND], BOTH | {"racer-2": "refused"}, [0, 0], "one log"),
        ([FIRST, SECOND, THIRD], BOTH, [0, 75], "exit codes"),
        ([FIRST, THIRD], BOTH | {"racer-1": "refused"}, [0, 0], "a gap"),
        ([FIRST, SECOND, (3, "a", "c", "racer-2")], BOTH, [0, 0], "does not follow"),
        ([FIRST, SECOND], BOTH, [0, 0], "racer-2 says promoted"),
        ([FIRST, SECOND, THIRD], BOTH | {"racer-2": "refused"}, [0, 0], "racer-2 says refused"),
    ],
)
def test_a_race_is_judged_by_what_it_left(race, entries, verdicts, codes, said):
    consistent, left = race
    assert said in consistent(left(entries, verdicts), codes)
