"""The top few again: who can't be told apart, by a test as SciPy's, who is cheap, which command."""

import math
import shlex
from pathlib import Path

import pytest
import typer
from scipy import stats
from studies import make_study, run, scored, stand_in

from job import cli
from job.commands import tunes
from job.config import RunConfig
from job.errors import MissingInputError, UsageError
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.results import publishing
from job.tuning import finals, tuner
from job.tuning.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ([0.99, 0.98, 0.97, 0.99, 0.98], [0.97, 0.98, 0.95, 0.98, 0.96]),
        ([0.9, 0.8, 0.7], [0.7, 0.9, 0.8]),
        ([0.5, 0.6], [0.4, 0.45]),
    ],
)
def test_the_p_value_is_that_of_a_paired_t_test(better, worse):
    expected = stats.ttest_rel(better, worse, alternative="greater").pvalue
    assert finals.paired_p(better, worse) == pytest.approx(expected, abs=1e-12)


def test_differences_without_a_spread_are_none_or_certain():
    assert finals.paired_p([0.5, 0.5], [0.5, 0.5]) == 1.0
    assert finals.paired_p([0.5, 0.5], [0.25, 0.25]) == 0.0


def leave(study: Study, trial: int, accuracies, seconds: float, was: float = 0.5) -> None:
    """Leave what a trial came to, and its finals."""
    figures = {"validation_loss": 0.1, "parameters": 7, "epochs": 9, "why": None}
    result = {"trial": trial, "state": "complete", "values": {"dropout": trial / 10}, **figures}
    put(study.trial(trial), result | {"validation_accuracy": was, "seconds": 1.0})
    for fresh_seed, accuracy in enumerate(accuracies, 1):
        state, why = ("failed", "it diverged") if accuracy is None else ("complete", None)
        final = result | {"state": state, "why": why, "fresh_seed": fresh_seed}
        final |= {"validation_accuracy": accuracy, "seconds": seconds}
        put(study.final(trial, fresh_seed), final)


def put(place, document) -> None:
    path = Path(place.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(publishing.to_json(document))


def test_the_cheapest_of_those_that_cannot_be_told_apart_is_taken(study):
    leave(study, 0, [0.980, 0.981, 0.979, 0.980, 0.982], seconds=60, was=0.99)  # was lucky
    leave(study, 1, [0.985, 0.983, 0.984, 0.986, 0.984], seconds=90, was=0.985)  # the best
    leave(study, 2, [0.984, 0.985, 0.983, 0.985, 0.983], seconds=40, was=0.98)  # as good
    leave(study, 3, [0.984, 0.983, 0.985, 0.986, 0.983], seconds=50, was=0.97)  # as good
    compared = finals.finalists(study)
    assert [(each.trial, each.is_apart) for each in compared] == [
        (1, False), (3, False), (2, False), (0, True)
    ]  # fmt: skip
    assert finals.cheapest(compared).trial == 2
    expected = stats.ttest_rel(
        compared[0].accuracies, compared[3].accuracies, alternative="greater"
    ).pvalue
    assert compared[3].p == pytest.approx(3 * expected)  # of three comparisons


def test_of_equal_seconds_fewer_parameters_are_cheaper():
    def finalist(trial: int, parameters: int) -> finals.Finalist:
        return finals.Finalist(trial, {}, 0.9, (0.9, 0.8), (0.1, 0.2), 5.0, parameters)

    assert finals.cheapest([finalist(0, 9), finalist(1, 8)]).trial == 1


def test_the_loss_decides_where_it_is_the_objective(tmp_path):
    study = make_study(tmp_path, objective="loss")
    for trial, loss in ((0, 0.2), (1, 0.1)):
        leave(study, trial, [0.9] * 5, seconds=1)
        for seed in range(1, 6):
            final = publishing.read_json(study.final(trial, seed))
            put(study.final(trial, seed), final | {"validation_loss": loss + seed / 1000})
    compared = finals.finalists(study)
    assert [(each.trial, each.is_apart) for each in compared] == [(1, False), (0, True)]


def test_one_that_fails_with_another_seed_is_no_finalist_and_told_of(study, monkeypatch, capsys):
    leave(study, 0, [0.9, 0.9, None, 0.9, 0.9], seconds=1)
    failed = [{"trial": 0, "fresh_seed": 3, "why": "it diverged"}]
    assert (finals.finalists(study), finals.failures(study)) == ([], failed)
    monkeypatch.setattr(tuner, "run_one", lambda *_: pytest.fail("all of them are over"))
    with pytest.raises(UsageError, match=r"failed with another seed.*it diverged"):
        tunes._best(study, [], Preemption(), Progress("text"))
    leave(study, 1, [0.8] * 5, seconds=1)
    assert [each.trial for each in finals.finalists(study)] == [1]
    chosen = tunes._best(study, [], Preemption(), Progress("text"))["chosen"]
    assert chosen["trial"] == 1
    told = capsys.readouterr().out
    assert "0  failed with fresh seed 3: it diverged" in told
    assert "1  0.5000  0.8000  0.0000  1.000" in told
    assert f"command    {chosen['command']}" in told


def test_finals_are_over_when_each_has_come_to_something(study):
    assert not finals.are_over(study)  # there are none
    leave(study, 0, [0.9] * 4, seconds=1)
    assert not finals.are_over(study)
    leave(study, 0, [0.9] * 4 + [None], seconds=1)
    assert finals.are_over(study)


def test_without_a_complete_trial_there_is_nothing_to_run_again(study):
    with pytest.raises(MissingInputError, match="no complete trial"):
        finals.run(study, [], Preemption())


def test_the_top_four_of_different_values_run_again_and_only_what_is_missing(study, monkeypatch):
    for trial in range(6):
        leave(study, trial, [], seconds=1, was=0.9 + trial / 100)
    again = publishing.read_json(study.trial(5)) | {"trial": 6}
    put(study.trial(6), again)  # the values of the best, drawn twice
    put(study.final(5, 3), {})
    began = []
    monkeypatch.setattr(tuner, "run_one", lambda _, *which: began.append(which[:2]) or 0)
    assert finals.run(study, [], Preemption()) == 0
    wanted = [(trial, seed) for trial in (5, 4, 3, 2) for seed in range(1, 6)]
    assert began == [each for each in wanted if each != (5, 3)]
    monkeypatch.setattr(tuner, "run_one", lambda *_: 75)
    assert finals.run(study, [], Preemption()) == 75


def test_finals_are_scored_anew_with_seeds_that_no_trial_had(tmp_path, monkeypatch):
    stand_in(monkeypatch)
    study = make_study(tmp_path, epochs=2)
    for number in range(9):
        run(study, number)
    monkeypatch.setattr(
        tuner, "run_one", lambda _, trial, seed, __: run(study, trial, fresh_seed=seed) and 0
    )
    assert finals.run(study, [], Preemption()) == 0
    compared = finals.finalists(study)
    assert len(compared) >= 2
    for each in compared:
        fresh = [
            scored(study.config(each.trial, each.values, seed), 2)["validation_accuracy"]
            for seed in range(1, 6)
        ]
        assert list(each.accuracies) == fresh
    chosen = finals.cheapest(compared)
    assert math.isfinite(chosen.p)


@pytest.mark.parametrize("early_stopping", [None, 3])
def test_the_command_trains_the_very_config(tmp_path, early_stopping):
    study = make_study(
        tmp_path, "learning-rate=0.001..0.1:log", "augment=none,affine", "augment-strength=0..1",
        "batch-size=16..128", data="a folder/x.npz", model="cnn", early_stopping=early_stopping,
        validation_seed=4, seed=2,
    )  # fmt: skip
    values = {"learning_rate": 0.01234, "augment": "affine", "augment_strength": 0.5679,
              "batch_size": 77}  # fmt: skip
    wanted = study.config(0, values)
    chosen = finals.Finalist(0, values, 0.9, (0.9, 0.8), (0.1, 0.2), 5.0, 7)
    program, name, *flags = shlex.split(finals.command(study, chosen))
    assert (program, name) == ("mnist-job", "train")
    command = typer.main.get_command(cli.app).commands["train"]
    given = command.make_context("train", flags).params
    own = {name: given[name] for name in RunConfig.__dataclass_fields__ if name in given}
    found = RunConfig(**own | {"run_id": "r"}).identity
    held_out = {"validation": wanted.validation, "validation_seed": 4}
    if early_stopping is None:  # nothing needs them: the final model may have all images
        assert "--validation" not in flags
        found |= held_out
    assert found == wanted.identity
    assert given["output"] == study.output
