"""The page of a run that isn't complete: what became of it, and what to do."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import FACTS, epochs, facts_of, place, write_data
from pages import Page

from job import errors
from job.config import RunConfig
from job.errors import MissingInputError
from job.process import verdict
from job.process.preemption import EXIT_INTERRUPTED
from job.process.progress import Progress
from job.report import material, origins, unfinished
from job.results.publishing import RunFolder, to_json
from job.storage import Place, parse
from job.training.checkpoint import Checkpoints, State

KINDS = [errors.JobError, *errors.JobError.__subclasses__()]


def begun(output: Path, *, attempts: int = 1, run_id: str = "r", **fields) -> RunFolder:
    """Begin a run so many times, as `train` does."""
    output.mkdir(exist_ok=True)
    data = write_data(output / "d.npz")
    config = RunConfig(output=str(output), run_id=run_id, data=str(data), **fields)
    folder = RunFolder(config.place)
    for number in range(1, attempts + 1):
        folder.claim(config, "f" * 64, facts_of(number))
    return folder


def end(folder: RunFolder, number: int, error: BaseException) -> None:
    folder.attempt_end(number).path.write_bytes(to_json(verdict.of_error(error)))


def saved(folder: RunFolder, count: int, step: int = 77) -> Place:
    """Save a checkpoint after so many epochs, and return where it lies."""
    checkpoints = Checkpoints(folder.checkpoints, 0, Progress("json", io.StringIO()))
    state = State({"config": "c"}, 2, step=step, history=epochs(count))
    checkpoints.save(state.holding({"w": np.zeros(3, np.float32)}))
    [*_, newest] = sorted(folder.checkpoints.path.iterdir())
    return folder.checkpoints / newest.name


def page_of(folder: RunFolder) -> Page:
    return Page(unfinished.page_of(material.of_unfinished(folder)))


def test_a_run_that_failed_tells_the_error_its_code_and_what_to_do(tmp_path):
    folder = begun(tmp_path, epochs=7, seed=3)
    end(folder, 1, errors.DataError("x_train[3] of <d.npz> is bad: mend it"))
    saved(folder, 2)
    found = page_of(folder)
    assert "failed (exit code 65)" in found.words
    assert "x_train[3] of <d.npz> is bad: mend it" in found.words
    assert "Data, weights or a checkpoint are bad" in found.words
    assert found.headings == {"training", "attempts", "config"}
    assert "2 of 7" in found.words
    assert "Saved at step 77" in found.words
    assert f"--output {tmp_path} \\ --run-id r" in found.words
    assert "--seed 3" in found.words
    assert len(found.named("svg")) == 3


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_exit_code_has_its_advice(tmp_path, kind):
    folder = begun(tmp_path)
    end(folder, 1, kind("what went wrong"))
    found = page_of(folder)
    assert f"(exit code {kind.exit_code})" in found.words
    assert unfinished._ADVICE[kind.exit_code] in found.words
    assert found.classed("bad" if kind.exit_code not in {75, 143} else "waiting")


def test_advice_is_given_for_every_code_and_no_other():
    codes = {kind.exit_code for kind in KINDS}
    assert set(unfinished._ADVICE) == codes | {EXIT_INTERRUPTED, 0}


def test_a_run_that_says_nothing_is_running_or_was_killed(tmp_path):
    found = page_of(begun(tmp_path))
    assert "running, or killed without a word" in found.words
    assert "(137)" in found.words
    assert "training" not in found.headings


def test_each_attempt_says_how_it_ended(tmp_path):
    folder = begun(tmp_path, attempts=3)
    end(folder, 2, KeyboardInterrupt())
    found = page_of(folder)
    table = found.words.partition("Attempts: each start")[2]
    first, second, third = (table.partition(f" {n} 2026-11-26 10:0{n}:00")[2] for n in (1, 2, 3))
    assert first.partition(" 2 2026")[0].endswith("killed without a word")
    assert "stopped (exit code 130): interrupted" in second
    assert third.partition("What was")[0].strip().endswith("running, or killed without a word")


def test_a_trial_of_a_study_was_halted_on_purpose(tmp_path):
    folder = begun(tmp_path)
    folder.attempt_end(1).path.write_bytes(to_json({"status": "halted", "code": 0, "epochs": 1}))
    found = page_of(folder)
    assert "halted: a trial of a study" in found.words
    assert "Nothing is to be done" in found.words


def test_of_many_attempts_the_newest_are_shown(tmp_path):
    folder = begun(tmp_path, attempts=35)
    found = page_of(folder)
    assert "each start of the run, the newest of 35" in found.words
    fields = len(origins.in_full(RunConfig(run_id="r").identity))
    assert len(found.named("tr")) == 1 + 30 + 1 + fields  # attempts and config with their heads


def test_a_damaged_checkpoint_is_passed_by_and_if_none_is_whole_that_is_told(tmp_path):
    folder = begun(tmp_path)
    older, newer = saved(folder, 1, 10), saved(folder, 2, 20)
    newer.path.write_bytes(b"torn")
    assert "Saved at step 10" in page_of(folder).words
    older.path.write_bytes(b"torn")
    found = page_of(folder)
    assert "training" not in found.headings
    assert "Curves so far" in found.words.partition("What is missing here")[2]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"{}", b'{"config": 3, "attempt": "x"}'])
def test_damaged_records_are_left_out(tmp_path, content):
    folder = begun(tmp_path)
    folder.attempt(1).path.write_bytes(content)
    folder.attempt_end(1).path.write_bytes(content)
    page_of(folder)


RECORD = json.loads(json.dumps({**FACTS, "config": {"data": "mnist", "epochs": 3}}))
ODD = st.sampled_from([None, True, -1, 10**400, float("nan"), "", "<b>\x00", [], {}, [[]], 0.5])


@given(st.sampled_from(sorted(RECORD)), ODD, ODD, ODD)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_page_is_made_of_records_with_anything_odd_in_them(name, value, status, code):
    attempts = material.Attempts(
        ({"attempt": 1} | RECORD | {name: value},),
        {1: {"status": status, "code": code, "error": value}},
    )
    run = material.Unfinished(place(Path("/x/r")).place, attempts, (), None)
    Page(unfinished.page_of(run))


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(MissingInputError, match="holds no run"):
        material.of_unfinished(place(tmp_path))
    with pytest.raises(MissingInputError, match="holds no run"):
        material.of_unfinished(place(tmp_path / "nothing"))
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts" / "0001.txt").write_text("no record")
    with pytest.raises(MissingInputError, match="holds no run"):
        material.of_unfinished(place(tmp_path))


@pytest.mark.parametrize(
    ("text", "output"),
    [("runs/r", "runs"), ("r", "."), ("./r", "."), ("/r", "/"), ("s3://bucket/k/r", "s3://bucket/k"),
     ("a b/r", "'a b'")],
)  # fmt: skip
def test_the_command_to_go_on_names_the_folder_above(text, output):
    record = {"attempt": 1, "config": {"data": "mnist"}, "strategy": "cpu"}
    run = material.Unfinished(parse(text), material.Attempts((record,), {}), (), None)
    found = Page(unfinished.page_of(run))
    wanted = f"--output {output} " if output != "runs" else ""
    assert wanted in found.words
    assert "--run-id r" in found.words
    assert "--strategy cpu" in found.words
