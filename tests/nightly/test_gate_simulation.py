"""The simulation of the gate: what it assumes, that the gate decides in it, and what it prints."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import REPOSITORY

from job.nightly import gate

FOLDER = REPOSITORY / "scripts" / "gate"
README = (FOLDER / "README.md").read_text()


@pytest.fixture
def simulate(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import simulate

    return simulate


def printed(*words: str) -> str:
    ended = subprocess.run(
        [sys.executable, str(FOLDER / "simulate.py"), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == ""
    return ended.stdout


def tables(text: str) -> list[str]:
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


def test_two_models_differ_as_much_as_is_said(simulate):
    world = simulate.World()
    chance = np.random.default_rng(0)
    weakness = world.weakness(simulate.ACCURACY)
    one, other = np.array([world.draw(np.full(2, weakness), chance) for _ in range(100)]).swapaxes(
        0, 1
    )
    assert one.mean() == pytest.approx(0.015, abs=0.0003)
    assert (one != other).sum(axis=1).mean() == pytest.approx(100, abs=4)
    assert world.weakness(0.98) > weakness  # more weakness, less accuracy


def test_the_gate_decides(simulate, monkeypatch):
    world = simulate.World()
    wrong = world.draw(np.full(61, world.weakness(0.985)), np.random.default_rng(0))
    judged = gate.judge

    def generous(*arguments):
        return replace(judged(*arguments), promotes=True)

    rules, anchored = simulate.GATES["champion and anchor"]
    assert 10 < len(set(simulate.champions(wrong, rules, anchored))) < 61
    monkeypatch.setattr(gate, "judge", generous)
    assert list(simulate.champions(wrong, rules, anchored)) == list(range(61))


def test_images_left_out_change_no_verdict(simulate):
    """Only those that one of the models gets wrong are judged: ten times faster."""
    world = simulate.World()
    wrong = world.draw(np.full(3, world.weakness(0.985)), np.random.default_rng(5))
    rules, _ = simulate.GATES["champion and anchor"]
    labels = np.arange(simulate.IMAGES) % simulate.CLASSES
    hard = np.flatnonzero(wrong.any(axis=0))
    some, all_of_them = (
        gate.judge(
            labels[which],
            *((labels[which] + wrong[model, which]) % simulate.CLASSES for model in range(3)),
            rules,
            simulate.CLASSES,
        ).document["rules"]
        for which in (hard, np.arange(simulate.IMAGES))
    )
    for name in ("champion", "anchor"):
        assert some[name] == all_of_them[name]
    for one, other in zip(
        some["classes"]["classes"], all_of_them["classes"]["classes"], strict=True
    ):
        assert one | {"examples": 0} == other | {"examples": 0}


@pytest.mark.slow
def test_both_tables_are_printed_the_same_each_time():
    text = printed("--repetitions", "3")
    assert text == printed("--repetitions", "3")
    first, second = (table.splitlines() for table in tables(text))
    assert [len(first), len(second)] == [2 + 9, 2 + 15]
    theirs = tables(README)
    assert [line.splitlines()[0] for line in theirs] == [first[0], second[0]]
    assert (
        len({line.count("|") for line in first}) == len({line.count("|") for line in second}) == 1
    )
    lost = {
        tuple(line.split(" | ")[:2]): float(line.split(" | ")[5].split()[0]) for line in first[2:]
    }
    assert lost["| falls by 0.02 a night", "champion only"] < -0.5
    assert lost["| falls by 0.02 a night", "champion and anchor"] > -0.35
    assert lost["| rises by 0.02 a night", "champion and anchor"] > 1


@pytest.mark.slow
@pytest.mark.longest
def test_the_readme_has_what_is_printed():
    assert tables(printed()) == tables(README)
