"""The platform that is named, or seen; and the one that isn't there."""

from pathlib import Path
from typing import get_args

import pytest

from job.commands import flags
from job.errors import ClusterError
from job.platforms import NAMES, Surroundings, failure_file, find
from job.platforms.choosing import PLATFORMS

FLAGS = frozenset({"output", "run-id"})


def test_elsewhere_there_is_none(tmp_path: Path) -> None:
    """TRAINING_JOB_NAME alone may be anybody's."""
    here = Surroundings({"TRAINING_JOB_NAME": "x"}, FLAGS, root=tmp_path)
    assert find("auto", here) is None
    assert failure_file("auto", here) is None


@pytest.mark.parametrize("name", ["none", "", "nonsense"])
def test_any_other_name_finds_none(name: str) -> None:
    assert find(name, Surroundings({"CLOUD_ML_JOB_ID": "1"}, FLAGS)) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_platform_that_is_named_must_show(command, tmp_path: Path, name: str) -> None:
    here = Surroundings({}, FLAGS, root=tmp_path)
    with pytest.raises(ClusterError, match=f"--platform {name}: nothing here is {name}'s"):
        find(name, here)
    assert failure_file(name, here) is None
    ended = command("train", "--platform", name)
    assert (ended.code, ended.out) == (78, "")
    assert ended.err.count("\n") == 1


def test_the_flag_knows_the_table(command) -> None:
    assert get_args(get_args(flags.Platform)[0]) == ("auto", "none", *NAMES)
    refused = command("train", "--platform", "azure")
    assert (refused.code, refused.out) == (64, "")
    assert "azure" in refused.err


def test_a_platform_that_is_named_is_taken_though_another_is_seen(tmp_path: Path) -> None:
    (tmp_path / "opt/ml/input/config").mkdir(parents=True)
    environment = {"AIP_MODEL_DIR": "gs://bucket/base/model/"}
    here = Surroundings(environment, FLAGS, root=tmp_path)
    assert find("auto", here).name == "sagemaker"  # the first of the table
    assert find("vertex", here).name == "vertex"
    assert failure_file("vertex", here) is None
    assert failure_file("auto", here) is None
    (tmp_path / "opt/ml/output").mkdir()
    assert failure_file("auto", here) == str(tmp_path / "opt/ml/output/failure")


@pytest.mark.parametrize("platform", PLATFORMS, ids=NAMES)
def test_the_readme_has_each_row_of_the_table(platform) -> None:
    readme = (Path(__file__).parents[2] / "job" / "platforms" / "README.md").read_text()
    for row in platform.rows:
        [line] = [line for line in readme.splitlines() if line.startswith(f"| `--{row.flag}`")]
        column = line.split("|")[2 + NAMES.index(platform.name)]
        named = [source for source in row.source.split(" or ") if source.startswith("AIP_")]
        assert all(source in column for source in named)
        assert column.strip()
