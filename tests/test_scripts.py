"""The two entry points of the original project, as its users type them; setup's and the image's."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_train_then_evaluate_and_predict(tmp_path, small_mnist, monkeypatch, capfd):
    flags = {"MNIST_JOB_DATA": small_mnist, "MNIST_JOB_EPOCHS": "2"}
    trained = run(tmp_path, str(SCRIPTS / "train_model.py"), **flags)
    assert trained.returncode == 0, trained.stderr
    [published] = tmp_path.glob("runs/*/model_weights.h5")
    saved = tmp_path / "model_weights.h5"
    assert saved.read_bytes() == published.read_bytes()
    assert not list(tmp_path.glob(".*"))

    processed = run(tmp_path, str(SCRIPTS / "processes.py"), **flags)
    assert processed.returncode == 0, processed.stderr
    lines = processed.stdout.splitlines()
    assert lines[0].startswith("test accuracy: 0.")
    assert len(lines) == 2 + 1 + 11 + 11  # two scores; ten classes and ten images, each with a head

    # Others import them; here, where TensorFlow is imported already.
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.chdir(tmp_path)
    for name, value in (flags | {"MNIST_JOB_SEED": "1"}).items():
        monkeypatch.setenv(name, value)
    import processes
    import train_model

    capfd.readouterr()
    assert processes.predict_images(num_images=3) == 0
    assert len(capfd.readouterr().out.splitlines()) == 1 + 3
    assert train_model.train_model() == 0  # training anew replaces the file, as it always did
    assert saved.read_bytes() != published.read_bytes()


def test_processes_without_weights_says_what_is_missing(tmp_path):
    missing = run(tmp_path, str(SCRIPTS / "processes.py"))
    assert missing.returncode == 66
    assert "model_weights.h5 does not exist" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1


def test_train_model_leaves_old_weights_when_it_fails(tmp_path):
    (tmp_path / "model_weights.h5").write_bytes(b"old")
    failed = run(tmp_path, str(SCRIPTS / "train_model.py"), MNIST_JOB_EPOCHS="0")
    assert failed.returncode == 64
    assert (tmp_path / "model_weights.h5").read_bytes() == b"old"


def test_a_bundle_that_is_not_there_is_told_at_once(tmp_path):
    ended = subprocess.run(
        ["make", "--no-print-directory", "image", f"CA={tmp_path}/none.pem"],
        cwd=REPOSITORY,
        env=os.environ | {"TOOL": "true"},  # which would build anything
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert ended.stdout == ""
    said = f"CA must be a readable file of certificates, not '{tmp_path}/none.pem'"
    assert said in ended.stderr


def image(tmp_path, **variables):
    """Run `make image` with a tool that prints what it was called with, a word a line."""
    (tmp_path / "tool").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "tool").chmod(0o755)
    proxies = {f"{name}_proxy" for name in ("http", "https", "no")}
    proxies |= {name.upper() for name in proxies}
    given = [f"{name}={value}" for name, value in variables.items() if name not in proxies]
    return subprocess.run(
        ["make", "--no-print-directory", "image", *given],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name not in proxies}
        | {name: value for name, value in variables.items() if name in proxies}
        | {"TOOL": str(tmp_path / "tool")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_build_is_given_index_proxy_and_secrets_and_no_value_of_theirs(tmp_path):
    netrc = tmp_path / "a netrc"
    netrc.write_text("machine pip.example login a password b\n")
    index = "https://pip.example/simple"
    built = image(tmp_path, INDEX=index, NETRC=netrc, HTTPS_PROXY="http://me:pw@proxy:1")
    words = built.stdout.splitlines()
    assert (built.returncode, built.stderr) == (0, "")
    assert f"--secret=id=netrc,src={netrc}" in words
    assert words[words.index(f"INDEX={index}") - 1] == "--build-arg"
    assert words[words.index("HTTPS_PROXY") - 1] == "--build-arg"  # the tool knows its value
    assert "pw" not in built.stdout
    plain = image(tmp_path).stdout
    assert not any(word in plain for word in ("secret", "INDEX", "PROXY"))


def test_a_password_in_the_index_is_refused_since_the_image_would_keep_it(tmp_path):
    refused = image(tmp_path, INDEX="https://me:pw@pip.example/simple")
    assert (refused.returncode, refused.stdout) == (2, "")  # make's own code
    assert "NETRC" in refused.stderr
    assert "pw" not in refused.stderr


# --- setup ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python_with_pip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ensurepip", reason="this Python has no pip to give: install python3-venv")
    folder = tmp_path_factory.mktemp("pip") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return what setup needs of the repository, and an index of one package: a uv of our own.

    It has the pinned version, and tells that it was run by the file `ran` and the code 3.
    """
    lock = (REPOSITORY / "requirements.lock").read_text()
    version = re.search(r"^uv==(\S+)", lock, re.MULTILINE)
    assert version is not None
    name = f"uv-{version[1]}"
    for part in ("scripts", "index", "bin"):
        (tmp_path / part).mkdir()
    with zipfile.ZipFile(tmp_path / "index" / f"{name}-py3-none-any.whl", "w") as wheel:
        about = f"Metadata-Version: 2.1\nName: uv\nVersion: {version[1]}\n"
        wheel.writestr(f"{name}.dist-info/METADATA", about)
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{name}.dist-info/WHEEL", tags)
        wheel.writestr(f"{name}.dist-info/RECORD", "")
        program = zipfile.ZipInfo(f"{name}.data/scripts/uv")
        program.external_attr = 0o100755 << 16  # to be run
        wheel.writestr(program, f"#!/bin/sh\n: > {tmp_path}/ran\nexit 3\n")
    for tool in ("sh", "sed", "grep", "mktemp", "rm", "cp", "dirname", "uname"):  # and no uv
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    shutil.copy(SCRIPTS / "setup", tmp_path / "scripts")
    (tmp_path / "requirements.lock").write_text(lock)
    return tmp_path


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("venv", [True, False])
def test_setup_starts_with_the_uv_whose_hash_is_pinned_and_no_other(
    checkout: Path, python_with_pip: Path, venv: bool, pinned: bool
) -> None:
    """With Python's venv, and with pip alone, as Debian's python3 may be."""
    if pinned:
        [wheel] = (checkout / "index").iterdir()
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lock = checkout / "requirements.lock"
        ours = rf"\g<0>    --hash=sha256:{digest} \\\n"
        lock.write_text(re.sub(r"^uv==.*\n", ours, lock.read_text(), flags=re.MULTILINE))
    python = checkout / "bin" / "python3"
    make = f'exec cp -R "{python_with_pip}" "$3"' if venv else "exit 1"
    python.write_text(
        f'#!/bin/sh\n[ "$1 $2" != "-m venv" ] || {make}\nexec {python_with_pip}/bin/python "$@"\n'
    )
    python.chmod(0o755)
    ended = subprocess.run(
        ["sh", checkout / "scripts" / "setup"],
        env={
            "PATH": str(checkout / "bin"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(checkout / "index"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checkout / "ran").exists() == pinned, ended.stderr
    assert ended.returncode == (3 if pinned else 1), ended.stderr
    assert ("DO NOT MATCH THE HASHES" in ended.stderr) != pinned, ended.stderr


# --- what must pass before anything lands -----------------------------------------------------


def ci_run(folder: Path, programs: dict[str, str]) -> list[str]:
    """Run `.ci/run` on a machine that has these programs alone, and return the lines it said."""
    for name, does in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    dirname = shutil.which("dirname")
    assert dirname is not None
    (folder / "dirname").symlink_to(dirname)
    bash = shutil.which("bash")
    assert bash is not None
    ended = subprocess.run(
        [bash, REPOSITORY / ".ci" / "run"],
        env={"PATH": str(folder), "CI_DEADLINE": "set"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.parametrize(
    ("uid", "without", "required"),
    [("0", "", True), ("0", "buildah", False), ("0", "unshare", False), ("1000", "", False)],
)
def test_the_image_must_be_tested_where_its_tools_are(
    tmp_path: Path, uid: str, without: str, required: bool
) -> None:
    """The machine is made of programs that only say yes, or no, and a make that tells its words."""
    programs = dict.fromkeys(("buildah", "debootstrap", "openssl", "unshare"), "exit 0")
    programs |= {"make": 'echo "$* ${IMAGE_TEST-}"', "id": f"echo {uid}", "apt-get": "exit 1"}
    if without == "unshare":
        programs[without] = "exit 1"
    else:
        programs.pop(without, None)
    lines = ci_run(tmp_path, programs)
    assert f"image-test ARGS=-rs {'required' if required else ''}" in lines
    assert ("THE IMAGE IS NOT TESTED HERE" in "".join(lines)) == bool(without)
    assert lines[-1].startswith("test ")


@pytest.mark.parametrize("there", [True, False])
def test_reports_must_be_opened_where_there_is_a_browser(tmp_path: Path, there: bool) -> None:
    programs = {"make": 'echo "$* ${WEB_TEST-}"', "id": "echo 1000"}
    lines = ci_run(tmp_path, programs | ({"chromium": "exit 0"} if there else {}))
    assert f"test-web ARGS=-rs {'required' if there else ''}" in lines
    assert ("NO CHROMIUM HERE" in "".join(lines)) is not there
    assert lines[-1].startswith("test ")


def test_every_mutant_is_where_its_list_says():
    """A list that fell behind the code would end `make mutants` before it begins."""
    program = "import run, pathlib; print(len(run.listed(pathlib.Path('mutants.txt'))))"
    counted = run(SCRIPTS / "mutants", "-c", program)
    assert counted.returncode == 0, counted.stderr
    assert int(counted.stdout) > 100
