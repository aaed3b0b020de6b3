"""The wheel holds all that it needs, runs from its own files, and says which extra is missing."""

import email
import email.message
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import uv_build
from conftest import REPOSITORY
from PIL import Image

import job
from job.errors import ClusterError

# As Python raises where there is none; a name that can't be found is the same to who imports it.
NO_TENSORFLOW = "raise ModuleNotFoundError(\"No module named 'tensorflow'\", name='tensorflow')\n"


def build(folder: Path) -> Path:
    """Build the wheel as `make wheel` does, with what does so in .venv."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        # It looks for its program on PATH alone, where .venv need not be.
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        return folder / uv_build.build_wheel(str(folder))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_whole_job_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        data = archive.read("job/assets/mnist.npz")
    about = {name for name in names if ".dist-info/" in name}
    ours = REPOSITORY / "job"
    files = {str(path.relative_to(REPOSITORY)) for path in ours.rglob("*") if path.is_file()}
    assert names - about == {name for name in files if "__pycache__" not in name}
    assert data == (ours / "assets" / "mnist.npz").read_bytes()
    licences = {name.partition("/licenses/")[2] for name in about} - {""}
    assert licences == {"LICENSE", "job/assets/ATTRIBUTION.md"}


def test_the_same_files_make_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert build(tmp_path).read_bytes() == wheel.read_bytes()


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    assert metadata["Version"] == job.__version__
    assert metadata["License-Expression"] == "MIT AND CC-BY-SA-3.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {"cpu", "gpu", "tensorboard"}
    text = metadata.get_payload()
    assert isinstance(text, str)
    assert text.startswith("# mnist-job\n")
    # Where it is shown there are no files beside it that a link could lead to.
    assert [link for link in re.findall(r"\]\(([^)]*)\)", text) if "://" not in link] == []


# --- without TensorFlow -----------------------------------------------------------------------

MISSING = "tensorflow is not installed: install mnist-job[cpu]"
IN_ONE_PROCESS = """
import contextlib, io, json, sys
from job.cli import main

found = []
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    found.append([code, said.getvalue()])
print(json.dumps(found))
"""


def without_tensorflow(tmp_path: Path, commands: list[list[str]]) -> list[tuple[int, str]]:
    """Run commands where there is no TensorFlow; return what each ended with and said of it."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "tensorflow.py").write_text(NO_TENSORFLOW)
    ended = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(commands)],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "hidden")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [(code, said) for code, said in json.loads(ended.stdout)]


def assert_names_the_extra(ended: list[tuple[int, str]], commands: list[list[str]]) -> None:
    for (code, said), words in zip(ended, commands, strict=True):
        assert code == ClusterError.exit_code, (words, said)
        assert MISSING in said, words
        assert len(said.splitlines()) == 1, (words, said)


def test_without_tensorflow_a_command_that_needs_it_names_the_extra(
    tmp_path: Path, trained: Path, small_mnist: str
) -> None:
    drawn = Image.new("L", (28, 28))
    drawn.paste(255, (12, 4, 16, 24))
    drawn.save(tmp_path / "one.png")
    data = ["--data", small_mnist]
    commands = [
        ["train", *data],
        ["train", *data, "--ensemble", "2"],
        ["evaluate", "--weights", str(trained)],
        ["predict", "--weights", str(trained), "--image", str(tmp_path / "one.png")],
        ["retrain", *data, "--output", "nights"],
        ["verify", "trained", "--output", str(trained.parent)],
    ]
    assert_names_the_extra(without_tensorflow(tmp_path, commands), commands)


def test_without_tensorflow_what_was_published_can_be_looked_at(
    tmp_path: Path, trained: Path
) -> None:
    commands = [
        ["predict", "--weights", str(trained)],
        ["runs", "--output", str(trained.parent)],
        ["compare", str(trained), str(trained)],
    ]
    assert without_tensorflow(tmp_path, commands) == [(0, "")] * len(commands)


@pytest.mark.slow
def test_without_tensorflow_a_command_that_starts_others_names_the_extra(
    tmp_path: Path, small_mnist: str
) -> None:
    vary = ["--study", "s", "--trials", "1", "--vary", "dropout=0..0.5"]
    commands = [["drill", "--data", small_mnist], ["tune", "--data", small_mnist, *vary]]
    drill, tune = without_tensorflow(tmp_path, commands)
    assert_names_the_extra([drill], commands[:1])
    assert tune == (ClusterError.exit_code, "")  # the trial has told it, to the same terminal


# --- from the wheel ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_runs_from_the_files_of_the_wheel(
    wheel: Path, small_mnist: str, tmp_path: Path
) -> None:
    """In an environment of its own, which has of this one the libraries and not the job."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps"]
    subprocess.run([*install, "--python", python, wheel], check=True, timeout=60)
    [packages] = home.glob("lib/python3*/site-packages")
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    # A .pth file of a folder that is named by one counts for nothing: this checkout stays unseen.
    (packages / "libraries.pth").write_text(f"{libraries}\n")
    where = subprocess.run(
        [python, "-c", "import job, numpy; print(job.__file__, numpy.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.split()[0] == str(packages / "job" / "__init__.py")
    words = ["train", "--data", small_mnist, "--epochs", "1", "--run-id", "a", "--log", "json"]
    ended = subprocess.run(
        [home / "bin" / "mnist-job", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    metrics = json.loads((tmp_path / "runs" / "a" / "metrics.json").read_text())
    assert metrics["environment"]["git_commit"] is None  # not even of the checkout around
    assert metrics["test"]["examples"] == 505
