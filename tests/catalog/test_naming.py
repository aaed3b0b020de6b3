"""What a person calls a run, and the folder that is meant."""

import fake_runs
import pytest

from job.catalog.naming import Output, folder_of, run_or_output
from job.errors import MissingInputError, UsageError
from job.storage import Place


def test_a_word_is_a_run_below_the_output(tmp_path):
    assert str(folder_of("mlp-1", str(tmp_path))) == f"{tmp_path}/mlp-1"
    assert str(folder_of("mlp-1", "s3://bucket/runs")) == "s3://bucket/runs/mlp-1"


@pytest.mark.parametrize(
    "name",
    ["./mlp-1", "/data/runs/a", "file:///data/a", "s3://bucket/runs/a", "gs://bucket/runs/a"],
)
def test_what_has_a_slash_is_a_folder(name):
    assert str(folder_of(name, "s3://bucket/elsewhere")) == name


@pytest.mark.parametrize(
    "name", ["", "-rf", "nights", "x" * 64, "http://x/y", "s3://bucket", "a\nb", "s3://k:s@b/r"]
)
def test_what_can_name_no_run_is_refused(name):
    with pytest.raises(UsageError):
        folder_of(name, "runs")


def test_the_champion_is_the_run_that_the_log_names(tmp_path):
    output = Place.of(tmp_path)
    with pytest.raises(MissingInputError, match="no model was ever promoted"):
        folder_of("champion", str(output))
    fake_runs.champion(output, "a")
    fake_runs.champion(output, "b", 2)
    assert folder_of("champion", str(output)) == output / "b"


def test_what_is_no_run_is_an_output(tmp_path):
    output = Place.of(tmp_path)
    fake_runs.complete(output, "a")
    fake_runs.attempt(output, "begun")
    for name in (None, str(output), f"{output}/"):
        assert run_or_output(name, str(output)) == Output(output)
    for name in ("a", "begun", "nothing"):
        assert run_or_output(name, str(output)) == output / name
    for name in ("a", "begun"):
        assert run_or_output(f"{output}/{name}", "runs") == output / name
    assert run_or_output(str(output), "runs") == Output(output)
    assert run_or_output(f"{output}/nothing", "runs") == Output(output / "nothing")
    assert run_or_output("runs", "runs") == Output(Place.of("runs"))
