"""What the chaos scripts make of what they saw."""

import importlib
from collections import Counter
from dataclasses import dataclass, field

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
