"""The platform that is named, or seen; and the one that isn't there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def another_user() -> Iterator[None]:
    """Let this process be uid 65534 for a while; a test that isn't root's is skipped."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Return a root whose /opt/ml is there, with all in it, and its owner's alone."""
    for folder in ("input/config", "output", "checkpoints"):
        (tmp_path / "opt" / "ml" / folder).mkdir(parents=True)
    (tmp_path / "opt" / "ml").chmod(0o700)
    return tmp_path


def test_a_folder_that_may_not_be_searched_is_not_there(private: Path) -> None:
    here = Surroundings({}, FLAGS, root=private)
    assert find("auto", here).name == "sagemaker"  # its owner's
    with another_user():
        assert find("auto", here) is None
        assert failure_file("auto", here) is None
        assert failure_file("sagemaker", here) is None
        with pytest.raises(ClusterError, match="nothing here is sagemaker's"):
            find("sagemaker", here)


@pytest.mark.parametrize("command_name", ["train", "retrain"])
def test_a_command_beside_a_folder_that_may_not_be_searched_says_what_it_would_elsewhere(
    command, private: Path, monkeypatch: pytest.MonkeyPatch, command_name: str
) -> None:
    monkeypatch.setenv("MNIST_JOB_INTERNAL_ROOT", str(private))
    with another_user():
        ended = command(command_name, "--epochs", "0", "--data", "mnist")
    assert (ended.code, ended.out) == (64, "")
    assert "--epochs must be " in ended.err
    assert "Traceback" not in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("platform", PLATFORMS, ids=NAMES)
def test_the_readme_has_each_row_of_the_table(platform) -> None:
    readme = (Path(__file__).parents[2] / "job" / "platforms" / "README.md").read_text()
    for row in platform.rows:
        [line] = [line for line in readme.splitlines() if line.startswith(f"| `--{row.flag}`")]
        column = line.split("|")[2 + NAMES.index(platform.name)]
        named = [source for source in row.source.split(" or ") if source.startswith("AIP_")]
        assert all(source in column for source in named)
        assert column.strip()
