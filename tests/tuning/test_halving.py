"""Halving: the top share of those who came so far goes on, decided once for each."""

import json
import math
import shutil
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import make_study

from job import storage
from job.tuning import halving


def score(accuracy: float, loss: float = 0.5) -> dict:
    return {"validation_accuracy": accuracy, "validation_loss": loss, "seconds": 1.0}


@settings(max_examples=15, deadline=None)
@given(
    accuracies=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    reduction=st.integers(2, 4),
)
def test_kept_is_who_is_in_the_top_share_of_those_so_far(tmp_path_factory, accuracies, reduction):
    study = make_study(tmp_path_factory.mktemp("s"), reduction=reduction)
    for trial, accuracy in enumerate(accuracies):
        taken = halving.decide(study, trial, 1, score(accuracy / 10))
        so_far = sorted(accuracies[: trial + 1], reverse=True)
        worst_kept = so_far[math.ceil(len(so_far) / reduction) - 1]
        assert taken["kept"] == (accuracy >= worst_kept)
        assert [each["trial"] for each in taken["seen"]] == list(range(trial + 1))


def test_equal_accuracies_are_told_apart_by_the_loss(tmp_path):
    study = make_study(tmp_path)
    assert halving.decide(study, 0, 1, score(0.9, 0.2))["kept"]
    assert not halving.decide(study, 1, 1, score(0.9, 0.3))["kept"]
    assert halving.decide(study, 2, 1, score(0.9, 0.1))["kept"]


def test_a_decision_is_never_taken_twice(tmp_path):
    """A trial that was killed after it reads what was decided, whoever has come since."""
    study = make_study(tmp_path)
    first = halving.decide(study, 0, 1, score(0.5))
    assert first["kept"]
    for trial, accuracy in enumerate((0.6, 0.7, 0.8), 1):
        halving.decide(study, trial, 1, score(accuracy))
    assert halving.decide(study, 0, 1, score(0.5)) == first
    assert json.loads((tmp_path / "studies/s/decisions/1/000000.json").read_text()) == first
    shutil.rmtree(tmp_path / "studies/s/rungs")  # nothing else is asked, nor said anew
    assert halving.decide(study, 0, 1, score(0.5)) == first
    assert not (tmp_path / "studies/s/rungs").exists()


def test_a_score_that_was_written_before_the_kill_stands(tmp_path):
    """Killed between the score and the decision; and a machine that computes another last bit."""
    study = make_study(tmp_path)
    mine = {"trial": 0, "epoch": 1, "validation_loss": 0.5, "validation_accuracy": 0.25}
    storage.create(study.rung(1, 0), json.dumps(mine).encode())
    taken = halving.decide(study, 0, 1, score(0.26))
    assert taken["seen"] == [mine]
    assert taken["validation_accuracy"] == 0.25


def test_rungs_are_apart(tmp_path):
    study = make_study(tmp_path)
    halving.decide(study, 0, 1, score(0.9))
    assert len(halving.decide(study, 1, 3, score(0.1))["seen"]) == 1


def test_twins_of_a_trial_agree(tmp_path):
    """The same index twice, at the same time as others: one decision, and both follow it."""
    study = make_study(tmp_path)
    taken: dict[int, list] = {trial: [] for trial in range(6)}

    def decide(trial):
        taken[trial].append(halving.decide(study, trial, 1, score(trial / 10)))

    pods = [threading.Thread(target=decide, args=(trial,)) for trial in taken for _ in range(2)]
    for pod in pods:
        pod.start()
    for pod in pods:
        pod.join()
    for one, other in taken.values():
        assert one == other
    last = max((each[0] for each in taken.values()), key=lambda each: len(each["seen"]))
    assert len(last["seen"]) == 6
    assert taken[5][0]["kept"]  # the best is, in whatever order they came


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_decisions_are_created_once_in_stores_as_well(kind, stores, monkeypatch, tmp_path):
    server = stores[kind]
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    study = make_study(f"{server.root}/{tmp_path.name}/{id(tmp_path)}")
    first = halving.decide(study, 0, 1, score(0.5))
    assert halving.decide(study, 1, 1, score(0.6))["kept"]
    assert halving.decide(study, 0, 1, score(0.5)) == first
