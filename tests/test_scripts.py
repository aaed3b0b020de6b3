"""The two entry points of the original project, typed as its users type them; and the image's."""

import os
import subprocess
import sys
from pathlib import Path

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
    assert len(lines) == 2 + 1 + 10  # two scores, the table's head, ten images

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
