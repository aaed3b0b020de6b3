"""One trial: scored and not published, killed anywhere and the same in the end, or failed."""

import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from studies import make_study, run, stand_in

from job import storage
from job.errors import ClusterError, ConflictError, StoppedError, UsageError
from job.results import provenance
from job.storage import Place
from job.training import checkpoint
from job.tuning import trial
from job.tuning.study import Study

TRIALS = 16


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path)


class Killed(BaseException):
    """What nothing in the job takes for an error."""


@contextmanager
def killed_at(write: int) -> Iterator[None]:
    """Die at the given write from now on, counted from 0: before it, or else right after it."""
    create, count = storage.create, 0

    def counting(place, data):
        nonlocal count
        count += 1
        if count - 1 == write // 2:
            if write % 2:
                create(place, data)
            raise Killed
        create(place, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "create", counting)
        yield


def run_all(study: Study) -> None:
    for number in range(TRIALS):
        run(study, number)


def files_of(study: Study) -> dict[str, bytes]:
    folder = Path(study.place.key)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json")}


def test_a_study_killed_between_any_two_writes_ends_with_the_same_bytes(tmp_path, monkeypatch):
    """With a stand-in for the training, whose seconds are always the same."""
    stand_in(monkeypatch)
    unbroken = make_study(tmp_path / "unbroken")
    run_all(unbroken)
    results = unbroken.results()
    assert {result["state"] for result in results} == {"complete", "halted"}
    draw = random.Random(0)
    killed = 0
    for number in range(4):
        study = make_study(tmp_path / f"{number}")
        for _ in range(1000):
            # Seldom far, so that each trial is killed several times.
            try:
                with killed_at(draw.randrange(draw.choice([8, 16, 40]))):
                    run_all(study)
                break
            except Killed:
                killed += 1
        assert files_of(study) == files_of(unbroken)
        assert study.ranked(study.results())[0] == unbroken.ranked(results)[0]
    assert killed > 100


def test_a_trial_that_is_over_is_left_alone(study, monkeypatch):
    began = stand_in(monkeypatch)
    first = run(study, 3)
    assert run(study, 3) == first
    assert len(began) == 1


def test_a_halted_trial_tells_its_rank_and_stops_there(study, monkeypatch):
    stand_in(monkeypatch)
    results = [run(study, number) for number in range(6)]
    halted = [result for result in results if result["state"] == "halted"]
    assert halted
    for result in halted:
        assert result["epochs"] in study.rungs
        assert "rank" in result["why"]
    for result in results:
        epochs = result["epochs"] if result["state"] == "halted" else 9
        assert result["epochs"] == epochs


def test_a_final_is_never_halted_and_has_another_seed(study, monkeypatch):
    began = stand_in(monkeypatch)
    for number in range(6):
        run(study, number)
    worst = next(each for each in study.results() if each["state"] == "halted")
    final = run(study, worst["trial"], fresh_seed=2)
    assert (final["state"], final["epochs"], final["fresh_seed"]) == ("complete", 9, 2)
    assert (began[-1].seed, final["values"]) == (2, worst["values"])
    assert len(study.results()) == 6  # a final is no trial


def test_a_training_that_diverges_is_a_failed_trial_and_the_study_goes_on(study, monkeypatch):
    stand_in(monkeypatch)

    def diverge(*_, **__):
        raise UsageError("the loss became nan in epoch 1: --learning-rate 9 is too high")

    with monkeypatch.context() as patch:
        patch.setattr(trial, "train_run", diverge)
        result = run(study, 0)
    assert (result["state"], result["epochs"]) == ("failed", 0)
    assert "--learning-rate 9 is too high" in result["why"]
    assert result["validation_accuracy"] is None
    assert run(study, 0) == result  # shown, and not tried again
    run(study, 1)
    summary = study.summary()
    assert (summary["failed"], summary["complete"], summary["best"]["trial"]) == (1, 1, 1)


def test_a_study_of_failed_trials_alone_is_wrong(study, monkeypatch):
    def diverge(*_, **__):
        raise UsageError("it diverged")

    stand_in(monkeypatch)
    monkeypatch.setattr(trial, "train_run", diverge)
    run(study, 0)
    with pytest.raises(UsageError, match=r"all 1 trials failed.*it diverged"):
        study.summary()


@pytest.mark.parametrize("error", [StoppedError("stopped"), ClusterError("out of memory")])
def test_what_is_no_fault_of_the_values_ends_the_process(study, monkeypatch, error):
    def stop(*_, **__):
        raise error

    stand_in(monkeypatch)
    monkeypatch.setattr(trial, "train_run", stop)
    with pytest.raises(type(error)):
        run(study, 0)
    assert study.results() == []


def test_a_trial_of_another_study_or_other_code_is_refused(tmp_path, monkeypatch):
    began = stand_in(monkeypatch)
    run(make_study(tmp_path), 0)
    with pytest.raises(ConflictError, match="another study"):
        run(make_study(tmp_path, epochs=8), 1)
    monkeypatch.setattr(provenance, "code_version", lambda: {"git_commit": "another"})
    with pytest.raises(ClusterError, match="other code"):
        run(make_study(tmp_path), 1)
    assert len(began) == 1


# --- with the real training -------------------------------------------------------------------


@pytest.fixture
def tiny(mnist, tmp_path) -> str:
    path = tmp_path / "tiny.npz"
    parts = {"x_train": mnist.x_train[:240], "y_train": mnist.y_train[:240]}
    np.savez(path, **parts, x_test=mnist.x_test[:50], y_test=mnist.y_test[:50])
    return str(path)


def real(tiny: str, folder: Path, monkeypatch, *, killed: bool) -> tuple[dict, Path]:
    """Run a real trial that is halted, and may be killed once that is decided and not yet heeded.

    Returns:
        What it came to, and its only checkpoint.
    """
    looks = "job.results.evaluation.predict_logits"
    monkeypatch.setattr(looks, lambda *_: pytest.fail("a trial looked at the test set"))
    study = make_study(folder, data=tiny, epochs=4, first_rung=2)
    better = {"trial": 1, "epoch": 2, "validation_loss": 0.0, "validation_accuracy": 1.0}
    storage.create(study.rung(2, 1), json.dumps(better).encode())
    create = storage.create

    def die_after_the_decision(place, data):
        create(place, data)
        if "decisions" in str(place):
            raise Killed

    if killed:
        with monkeypatch.context() as patch:
            patch.setattr(storage, "create", die_after_the_decision)
            with pytest.raises(Killed):
                run(study, 0)
        assert study.results() == []
    result = run(study, 0)
    assert (result["state"], result["epochs"]) == ("halted", 2)
    assert not storage.exists(study.run(0) / "metrics.json")
    # The last attempt's: `Killed` is an exception, so the one before has left its end as well.
    *_, end = sorted(Path(study.run(0).key, "attempts").glob("*-end.json"))
    assert json.loads(end.read_text())["status"] == "halted"
    [state] = Path(study.run(0).key, "checkpoints").iterdir()
    return {**files_of(study), "result": result | {"seconds": 0}}, state


@pytest.mark.slow
def test_a_real_trial_is_halted_without_a_look_at_the_test_set(tiny, tmp_path, monkeypatch):
    real(tiny, tmp_path, monkeypatch, killed=False)


@pytest.mark.slow
def test_a_real_trial_goes_on_after_a_kill_to_the_same_bits(tiny, tmp_path, monkeypatch):
    (one, state), (other, others_state) = (
        real(tiny, tmp_path / f"{killed}", monkeypatch, killed=killed) for killed in (False, True)
    )
    for name in ("result", "rungs/2/000000.json", "decisions/2/000000.json"):
        assert one[name] == other[name]
    mine, theirs = (checkpoint.read(Place.of(path)) for path in (state, others_state))
    assert (mine.step, mine.arrays.keys()) == (theirs.step, theirs.arrays.keys())
    assert all(np.array_equal(mine.arrays[name], theirs.arrays[name]) for name in mine.arrays)


def test_a_trial_that_ends_early_by_itself_is_complete(tmp_path, monkeypatch):
    """Early stopping ends the loop: the test set must not be looked at then either."""
    stand_in(monkeypatch)
    room = sys.modules["job.training.train"]
    monkeypatch.setattr(room, "stopped_early", lambda _, history: len(history) == 5)
    result = run(make_study(tmp_path, early_stopping=2, reduction=1), 0)
    assert (result["state"], result["epochs"]) == ("complete", 5)
