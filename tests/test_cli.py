"""The command line: every flag, every bad value, one line and the right code."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import typer
from conftest import REPOSITORY, schema

from job import __version__, cli, run, storage
from job.config import PRESETS
from job.errors import CredentialsError, StoppedError, TemporaryError
from job.nightly import gate
from job.process import preemption, runtime
from job.results import inference

TRAIN_FLAGS = [
    "data", "base", "output", "run-id", "model", "epochs", "batch-size", "learning-rate",
    "preset", "schedule", "seed", "weight-decay", "label-smoothing", "augment", "augment-strength",
    "dropout", "validation", "validation-seed", "early-stopping", "init-weights", "ensemble",
    "export", "strategy", "require-gpu",
    "peer-timeout", "precision", "exchange", "checkpoint-seconds", "time-limit", "no-report", "log",
    "quiet", "storage-timeout", "anonymous", "termination-log", "liveness-file",
    "tensorboard", "tensorboard-dir", "pushgateway", "model-dir", "failure-file", "platform",
]  # fmt: skip
OF_ONE_RUN = {"run-id", "model-dir", "tensorboard-dir"}
OF_PLATFORMS = {"failure-file", "platform"}
OF_SEVERAL = {"peer-timeout", "exchange", "ensemble"}
OF_PUBLISHED = {"no-report", "export", "tensorboard", "pushgateway"}
METRICS = {"test": {"accuracy": 0.5, "accuracy_interval_95": [0.4, 0.6], "examples": 9}}
STORAGE_FLAGS = ["output", "storage-timeout", "anonymous"]
FLAGS = {
    "train": TRAIN_FLAGS,
    "evaluate": ["weights", "data", "model", "report", "json", *STORAGE_FLAGS],
    "predict": ["weights", "data", "model", "num-images", "start", "only", "digit", "sort",
                "image", "figure", "json", "csv", *STORAGE_FLAGS],
    "runs": ["sort", "silent-after", "watch", "json", *STORAGE_FLAGS],
    "compare": ["compute", "json", *STORAGE_FLAGS],
    "fetch": STORAGE_FLAGS,
    "retrain": [*(set(TRAIN_FLAGS) - {*OF_ONE_RUN, *OF_SEVERAL}), "night", "promote", "gate-alpha",
                "gate-minimum", "skip-bad-shards", "accept-changed-shards",
                "leak-allow", "accept-drift", "stale-after", "notify", "again"],
    "tune": [*(set(TRAIN_FLAGS)
               - {"init-weights", *OF_ONE_RUN, *OF_SEVERAL, *OF_PUBLISHED, *OF_PLATFORMS}),
             "study", "trials",
             "trial", "vary", "space", "objective", "reduction", "first-rung", "best", "report"],
    "champion": ["json", *STORAGE_FLAGS],
    "promote": ["reason", *STORAGE_FLAGS],
    "rollback": ["reason", "to", *STORAGE_FLAGS],
    "hold": ["reason", *STORAGE_FLAGS],
    "unhold": ["reason", *STORAGE_FLAGS],
    "prune": ["keep", "keep-entries", "leftovers-after", "yes", *STORAGE_FLAGS],
    "verify": ["data", *STORAGE_FLAGS],
    "report": ["to", "data", *STORAGE_FLAGS],
    "tensorboard": ["print", "storage-timeout", "anonymous"],
    "data check": ["base", "leak-allow", "accept-drift", "skip-bad-shards", *STORAGE_FLAGS],
}  # fmt: skip


def assert_one_line(finished, code, *words, started=False):
    assert finished.code == code, finished
    assert finished.out.count("\n") == started  # the line that a training begins with
    assert ("start" in finished.out) is started
    assert finished.err.count("\n") == 1
    if finished.err.startswith("{"):  # in the form of the run's log
        said = json.loads(finished.err)
        assert (said["event"], said["level"], said["code"]) == ("failed", "error", code)
    else:
        assert finished.err.startswith("mnist-job: error: ")
        assert finished.err.endswith(f"(exit {code})\n")
    for word in words:
        assert word in finished.err


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--epochs 0", "--epochs"),
        ("--epochs -1", "-1"),
        ("--epochs 10001", "10001"),
        ("--epochs 1.5", "1.5"),
        ("--epochs nan", "nan"),
        ("--epochs ten", "ten"),
        ("--batch-size 0", "--batch-size"),
        ("--batch-size -32", "-32"),
        ("--batch-size 65537", "65537"),
        ("--batch-size 1e3", "1e3"),
        ("--learning-rate 0", "--learning-rate"),
        ("--learning-rate -0.1", "-0.1"),
        ("--learning-rate nan", "nan"),
        ("--learning-rate inf", "inf"),
        ("--learning-rate 11", "11"),
        ("--learning-rate fast", "fast"),
        ("--weight-decay -1", "--weight-decay"),
        ("--weight-decay nan", "nan"),
        ("--label-smoothing -0.1", "--label-smoothing"),
        ("--label-smoothing 1", "--label-smoothing"),
        ("--label-smoothing nan", "nan"),
        ("--checkpoint-seconds -1", "--checkpoint-seconds"),
        ("--checkpoint-seconds nan", "nan"),
        ("--peer-timeout 0", "--peer-timeout"),
        ("--require-gpu --strategy cpu", "--require-gpu"),
        ("--time-limit 0", "--time-limit"),
        ("--time-limit nan", "nan"),
        ("--seed -1", "--seed"),
        ("--seed 2147483648", "2147483648"),
        ("--seed x", "'x'"),
        ("--model resnet", "resnet"),
        ("--schedule step", "step"),
        ("--augment flip", "flip"),
        ("--strategy tpu", "tpu"),
        ("--precision float8", "float8"),
        ("--log loud", "loud"),
        ("--run-id a/b", "a/b"),
        ("--run-id ..", "--run-id"),
        ("--run-id champion", "champion"),
        ("--output http://somewhere/x", "http:"),
        ("--output file:relative", "file"),
        ("--data ftp://somewhere/x", "ftp:"),
        ("--data simplecache::x", "::"),
        ("--output s3://bucket", "--output"),
        ("--data gs://bucket/a/../b", "--data"),
        ("--storage-timeout 0", "--storage-timeout"),
        ("--storage-timeout nan", "nan"),
        ("--model-dir gs://bucket", "--model-dir"),
        ("--tensorboard-dir ftp://somewhere/x", "--tensorboard-dir"),
        ("--platform azure", "azure"),
        ("--no-such-flag", "--no-such-flag"),
        ("surplus", "surplus"),
    ],
)
def test_bad_training_flags(command, tmp_path, monkeypatch, flags, word):
    monkeypatch.chdir(tmp_path)
    assert_one_line(command("train", *flags.split()), 64, word)
    assert not list(tmp_path.iterdir())  # found out before anything was written


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["evaluate"], "--weights"),
        (["evaluate", "--weights", ""], "--weights"),
        (["evaluate", "--weights", "x", "--data", ""], "--data"),
        (["evaluate", "--weights", "x", "--report", "http://x/y"], "--report"),
        (["predict", "--weights", "x", "--num-images", "0"], "--num-images"),
        (["predict", "--weights", "x", "--num-images", "100001"], "100001"),
        (["predict", "--weights", "x", "--start", "-1"], "--start"),
        (["predict", "--weights", "x", "--figure", "http://x/y"], "--figure"),
        (["predict", "--weights", "x", "--image", "zip://x"], "--image"),
        (["predict", "--weights", "x", "--only", "errors"], "errors"),
        (["predict", "--weights", "x", "--digit", "-1"], "--digit"),
        (["predict", "--weights", "x", "--digit", "seven"], "seven"),
        (["predict", "--weights", "x", "--sort", "accuracy"], "accuracy"),
        (["predict", "--weights", "x", "--image", "x.png", "--only", "hits"], "--only"),
        (["predict", "--weights", "x", "--image", "x.png", "--sort", "confidence"], "--sort"),
        (["predict", "--weights", "x", "--csv", "http://x/y"], "--csv"),
        (["predict", "--weights", "x", "--csv", "-", "--json"], "--csv -"),
        (["runs", "--sort", "size"], "size"),
        (["runs", "--silent-after", "soon"], "--silent-after"),
        (["runs", "--watch", "--json"], "--watch"),
        (["runs", "--watch"], "terminal"),
        (["runs", "--output", "http://x/y"], "--output"),
        (["compare", "x"], "OTHER"),
        (["compare", "x", "http://x/y"], "RUN"),
        (["compare", "x", "nights"], "nights"),
        (["fetch", "x"], "DIR"),
        (["fetch", "x", "s3://bucket/key"], "a folder of this machine"),
        (["fetch", "x/-y", "z"], "-y"),
        (["publish"], "publish"),
        (["evaluate", "--weights", "x", "--output", "y"], "--output"),
        (["retrain", "--peer-timeout", "9"], "--peer-timeout"),
        (["retrain", "--accept-changed-shards=maybe"], "--accept-changed-shards"),
        (["tune"], "--study"),
        (["tune", "--study", "s"], "--vary"),
        (["tune", "--study", "a/b", "--vary", "dropout=0,1"], "--study"),
        (["tune", "--study", "s", "--vary", "dropout"], "--vary"),
        (["tune", "--study", "s", "--vary", "dropout=0..0.95"], "--dropout"),
        (["tune", "--study", "s", "--vary", "dropout=0..0.5", "--dropout", "0.1"], "--dropout"),
        (["tune", "--study", "s", "--vary", "epochs=1..5"], "--reduction"),
        (["tune", "--study", "s", "--vary", "dropout=0,0.5", "--validation", "0"], "--validation"),
        (["tune", "--study", "s", "--vary", "dropout=0,0.5", "--trials", "0"], "--trials"),
        (["tune", "--study", "s", "--vary", "dropout=0,0.5", "--trial", "16"], "--trial"),
        (["tune", "--study", "s", "--trial", "3", "--best"], "--trial"),
        (["tune", "--study", "s", "--trial", "3", "--report", "r.html"], "--trial"),
        (["tune", "--study", "s", "--vary", "dropout=0,0.5", "--reduction", "0"], "--reduction"),
        (["tune", "--study", "s", "--vary", "dropout=0,0.5", "--report", "http://x/y"], "--report"),
        (["tune", "--study", "s", "--vary", "x=0,1", "--strategy", "multiworker"], "workers"),
        (["champion", "surplus"], "surplus"),
        (["promote", "--reason", "x"], "RUN"),
        (["promote", "a/b", "--reason", "x"], "a/b"),
        (["promote", "x"], "--reason"),
        (["rollback"], "--reason"),
        (["rollback", "--reason", "x", "--to", "first"], "first"),
        (["hold"], "--reason"),
        (["unhold"], "--reason"),
        (["prune", "--keep", "0"], "--keep"),
        (["prune", "--keep-entries", "-1"], "--keep-entries"),
        (["prune", "--leftovers-after", "1m"], "--leftovers-after"),
        (["prune", "--leftovers-after", "soon"], "soon"),
        (["tensorboard"], "URI"),
        (["tensorboard", "http://x/y"], "URI"),
        (["verify"], "RUN"),
        (["verify", "a/b"], "a/b"),
        (["data", "look"], "look"),
        (["data", "check"], "URI"),
        (["data", "check", "ftp://x/y"], "ftp:"),
        (["data", "check", "mnist", "--base", "ftp://x/y"], "--base"),
        (["data", "check", "mnist", "--leak-allow", "x"], "--leak-allow"),
    ],
)
def test_bad_use_of_the_other_commands(command, words, word):
    assert_one_line(command(*words), 64, word)


def test_flag_from_the_environment_is_checked_as_well(command, monkeypatch):
    monkeypatch.setenv("MNIST_JOB_EPOCHS", "0")
    assert_one_line(command("train"), 64, "--epochs", "0")
    monkeypatch.setenv("MNIST_JOB_EPOCHS", "many")
    assert_one_line(command("train"), 64, "MNIST_JOB_EPOCHS", "many")


def test_every_command_is_listed_above():
    commands = typer.main.get_command(cli.app).commands
    looks = {f"data {name}" for name in commands["data"].commands}
    assert FLAGS.keys() == commands.keys() - {"data", "drill"} | looks


@pytest.mark.parametrize("name", ["", *sorted({name.partition(" ")[0] for name in FLAGS}), "drill"])
def test_help_lists_every_command_with_a_sentence(command, name):
    asked = command(*name.split(), "--help")
    assert asked.code == 0
    if name:
        assert re.search(rf"^  {name} +[A-Z].+", command("--help").out, re.MULTILINE)


@pytest.mark.parametrize(("name", "flags"), FLAGS.items())
def test_help_lists_every_flag_with_its_variable(command, name, flags):
    text = command(*name.split(), "--help").out
    listed = set(re.findall(r"^  --([a-z-]+) ", text, re.MULTILINE)) - {"help"}
    assert listed == set(flags)  # a new flag belongs into this test, and into the README
    variables = set(re.findall(r"env\s+var:\s+MNIST_JOB_([A-Z_]+)", text))
    assert variables == {flag.upper().replace("-", "_") for flag in flags}


@pytest.mark.parametrize("flag", sorted({flag for flags in FLAGS.values() for flag in flags}))
def test_readme_names_every_flag(flag):
    assert f"`--{flag}" in (REPOSITORY / "job" / "README.md").read_text()


def test_every_variable_reaches_the_config(command, monkeypatch):
    seen = []
    monkeypatch.setattr(run, "train_run", lambda config, *_: seen.append(config) or METRICS)
    values = {
        "data": "d.npz", "base": "b.npz", "output": "o", "run_id": "r", "model": "mlp", "epochs": 3,
        "batch_size": 5, "learning_rate": 0.5, "schedule": "cosine", "seed": 9,
        "weight_decay": 0.5, "label_smoothing": 0.25, "augment": "affine", "strategy": "cpu",
        "augment_strength": 0.25, "dropout": 0.375, "validation": 0.125, "validation_seed": 6,
        "early_stopping": 4, "require_gpu": False, "peer_timeout": 9.5,
        "precision": "mixed_bfloat16", "checkpoint_seconds": 7.5, "time_limit": 60.0,
        "tensorboard": True, "tensorboard_dir": "t",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"MNIST_JOB_{name.upper()}", str(value))
    assert command("train").code == 0
    assert {name: getattr(seen[0], name) for name in values} == values


@pytest.mark.parametrize(("preset", "fields"), PRESETS.items())
def test_a_preset_gives_what_nobody_gave(command, monkeypatch, preset, fields):
    seen = []
    monkeypatch.setattr(run, "train_run", lambda config, *_: seen.append(config) or METRICS)
    assert command("train", "--preset", preset).code == 0
    assert {name: getattr(seen[0], name) for name in fields} == fields
    monkeypatch.setenv("MNIST_JOB_EPOCHS", "7")
    given = {"learning_rate": 0.5, "augment": "none"}
    flags = ["--preset", preset, "--learning-rate", "0.5", "--augment", "none"]
    assert command("train", *flags).code == 0
    wanted = fields | given | {"epochs": 7, "augment_strength": None}
    assert {name: getattr(seen[1], name) for name in wanted} == wanted
    text = " ".join(command("train", "--help").out.split())
    for name, value in fields.items():
        option = text.partition(f" --{name.replace('_', '-')} ")[2].partition(" --")[0]
        assert f"{preset} {value}" in option, name


def test_every_variable_of_a_night_reaches_it(command, monkeypatch):
    seen = []

    def stop(plan, config, *_):
        seen.append((plan, config))
        raise TemporaryError("far enough")

    monkeypatch.setattr("job.nightly.night.retrain", stop)
    monkeypatch.setattr("job.nightly.notice.post", lambda url, *_: seen.append(url))
    given = {
        "data": "d", "base": "mnist", "output": "o", "model": "cnn", "epochs": 3, "batch_size": 5,
        "learning_rate": 0.5, "schedule": "cosine", "seed": 9, "weight_decay": 0.5,
        "label_smoothing": 0.25, "augment": "affine", "augment_strength": 0.25, "dropout": 0.375,
        "validation": 0.125, "validation_seed": 6, "early_stopping": 4, "strategy": "cpu",
        "precision": "mixed_bfloat16", "checkpoint_seconds": 7.5, "time_limit": 60.0,
    }  # fmt: skip
    leak = "0" * 32
    planned = {
        "night": "n", "promote": "better", "gate_alpha": 0.01, "gate_minimum": 0.5,
        "skip_bad_shards": True, "accept_changed_shards": True, "leak_allow": leak,
        "accept_drift": "train-a.npz", "stale_after": "2h", "again": True, "notify": "http://x/y",
    }  # fmt: skip
    for name, value in (given | planned).items():
        monkeypatch.setenv(f"MNIST_JOB_{name.upper()}", str(value))
    assert command("retrain").code == 75
    (plan, config), url = seen
    assert {name: getattr(config, name) for name in given} == given
    assert vars(plan) == {
        "night": "n",
        "rules": gate.Rules(alpha=0.01, minimum=0.5, promote="better"),
        "skip_bad_shards": True,
        "accept_changed_shards": True,
        "leak_allow": (leak,),
        "accept_drift": ("train-a.npz",),
        "stale_after_seconds": 7200.0,
        "again": True,
    }
    assert url == "http://x/y"


def test_a_pod_of_an_indexed_job_runs_the_trial_of_its_index(command, monkeypatch, tmp_path):
    ran = []

    def stop(_, trial, *__, fresh_seed):
        ran.append((trial, fresh_seed))
        raise TemporaryError("far enough")

    monkeypatch.setattr("job.tuning.trial.run_trial", stop)
    monkeypatch.setattr("job.tuning.tuner.run_trials", lambda *_: pytest.fail("not all of them"))
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    words = ["tune", "--study", "s", "--output", tmp_path, "--vary", "dropout=0..0.5"]
    assert command(*words).code == 75
    assert command(*words, "--trial", "5").code == 75
    assert ran == [(3, 0), (5, 0)]
    assert_one_line(command(*words, "--trials", "3"), 78, "JOB_COMPLETION_INDEX is 3")
    # The end is the study's, whichever pod looks at it.
    for asked, said in ((["--best"], "no complete trial"), (["--report", "r"], "no trial yet")):
        failed = command(*words, *asked)
        assert (failed.code, failed.err.count("\n")) == (66, 1)
        assert said in failed.err
    assert len(ran) == 2


def test_every_variable_of_a_study_reaches_it(command, monkeypatch, tmp_path):
    seen = []

    def stop(study, trial, *_, fresh_seed):
        seen.append((study, trial, fresh_seed))
        raise TemporaryError("far enough")

    monkeypatch.setattr("job.tuning.trial.run_trial", stop)
    (tmp_path / "space").write_text("weight-decay=0.01..0.5:log  # more\n")
    fixed = {
        "data": "d", "base": "mnist", "model": "cnn", "epochs": 30, "batch_size": 5,
        "schedule": "cosine", "seed": 9, "label_smoothing": 0.25, "augment": "affine",
        "augment_strength": 0.5, "dropout": 0.1, "validation": 0.25, "validation_seed": 3,
        "early_stopping": 4, "precision": "mixed_bfloat16",
    }  # fmt: skip
    machine = {"strategy": "cpu", "require_gpu": False, "checkpoint_seconds": 7.5,
               "time_limit": 60.0}  # fmt: skip
    rules = {"objective": "loss", "reduction": 2, "first_rung": 3}
    own = {"study": "s", "output": str(tmp_path), "trials": 9, "trial": 8, "vary":
           "learning-rate=0.1..0.2", "space": str(tmp_path / "space")}  # fmt: skip
    for name, value in (fixed | machine | rules | own).items():
        monkeypatch.setenv(f"MNIST_JOB_{name.upper()}", str(value))
    assert command("tune").code == 75
    [(study, trial, fresh_seed)] = seen
    assert (study.name, trial, fresh_seed) == ("s", 8, 0)
    assert (study.fixed, study.machine) == (fixed, machine)
    assert {name: getattr(study, name) for name in rules} == rules
    assert study.space.texts == ["learning-rate=0.1..0.2", "weight-decay=0.01..0.5:log"]
    assert study.rungs == (3, 6, 12, 24)


@pytest.mark.parametrize(
    "words",
    [
        "train", "evaluate --weights x", "predict --weights x", "retrain", "champion",
        "tune --study s",
        "promote r --reason x", "rollback --reason x", "hold --reason x", "unhold --reason x",
        "prune", "verify champion", "data check mnist",
    ],
)  # fmt: skip
def test_every_variable_of_storage_reaches_it(command, monkeypatch, words):
    class Seen(Exception):  # noqa: N818
        pass

    seen = []

    def configure(settings):
        seen.append(settings)
        raise Seen

    monkeypatch.setenv("MNIST_JOB_STORAGE_TIMEOUT", "7.5")
    monkeypatch.setenv("MNIST_JOB_ANONYMOUS", "1")
    with monkeypatch.context() as patch:  # undone before the fixtures use it
        patch.setattr(storage, "configure", configure)
        command(*words.split())
    assert (seen[0].timeout_seconds, seen[0].anonymous) == (7.5, True)


def test_run_is_named_after_the_kubernetes_job(command, monkeypatch):
    seen = []
    monkeypatch.setattr(run, "train_run", lambda config, *_: seen.append(config.run_id) or METRICS)
    command("train")
    monkeypatch.setenv("K8S_JOB_NAME", "train-28412345")
    command("train")
    command("train", "--run-id", "mine")
    assert re.fullmatch(r"mlp-\d{8}-\d{6}-[0-9a-f]{4}", seen[0])
    assert seen[1:] == ["train-28412345", "mine"]


def test_version(command):
    assert command("--version").out == "mnist-job 0.1.0\n"


def test_without_a_command_shows_the_help(command):
    assert "train" in command().out


def test_completion_script_is_there():
    environment = os.environ | {"_MNIST_JOB_COMPLETE": "source_bash"}
    asked = subprocess.run(
        [sys.executable, "-m", "job"], env=environment, capture_output=True, text=True, check=False
    )
    assert "_MNIST_JOB_COMPLETE=complete_bash" in asked.stdout


@pytest.mark.parametrize(
    ("raised", "code", "last_line"),
    [(ZeroDivisionError(), 70, "bug"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_what_nobody_foresaw(command, monkeypatch, raised, code, last_line):
    def fail(*_):
        raise raised

    monkeypatch.setattr(run, "train_run", fail)
    failed = command("train")
    assert failed.code == code
    assert last_line in failed.err.splitlines()[-1]
    assert ("Traceback" in failed.err) == (code == 70)


def test_reader_that_leaves_early_is_no_error(trained, small_mnist):
    words = f"predict --weights {trained} --data {small_mnist} --num-images 505"
    piped = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m job {words} | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (piped.returncode, piped.stderr) == (0, "")


@pytest.mark.parametrize(
    ("where", "reason"),
    [("> /dev/full", "no space left on device"), (">&-", "bad file descriptor")],
)
@pytest.mark.parametrize("words", ["predict --weights {} --data {}", "--version", "train --help"])
def test_a_result_that_cannot_be_printed_is_a_failure(trained, small_mnist, words, where, reason):
    """Unlike a training's log, it is all that the command was called for."""
    words = words.format(trained, small_mnist)
    ended = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m job {words} {where}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 74
    assert f"standard output cannot be written ({reason})" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"])
def test_an_error_that_cannot_be_told_changes_no_exit_code(where):
    words = ["bash", "-c", f"{sys.executable} -m job train --epochs 0 {where}"]
    assert subprocess.run(words, check=False).returncode == 64


@pytest.mark.parametrize("where", ["<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(where, tmp_path):
    """TensorFlow prints to these numbers: it would print into a checkpoint."""
    program = (
        "import os\n"
        "from job.process.progress import hold_streams\n"
        "hold_streams()\n"
        f"os.symlink(str(os.open({os.devnull!r}, os.O_RDWR)), {str(tmp_path / 'number')!r})\n"
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    subprocess.run(["bash", "-c", f"{sys.executable} {script} {where}"], check=True)
    assert int((tmp_path / "number").readlink().name) > 2


def test_training_off_a_terminal_logs_one_json_object_a_line(small_mnist, tmp_path):
    flags = ["--data", small_mnist, "--output", tmp_path, "--epochs", "2", "--run-id", "logged"]
    logged = subprocess.run(
        [sys.executable, "-m", "job", "train", *flags], capture_output=True, text=True, check=True
    )
    events = [json.loads(line) for line in logged.stdout.splitlines()]
    assert [event["event"] for event in events] == [
        "started", "data_loaded", "attempt_started", "device_chosen", "compiled", "epoch", "epoch",
        "checkpoint_saved", "complete",
    ]  # fmt: skip
    assert all({"time", "level"} <= event.keys() for event in events)
    assert events[-1]["run"] == str(tmp_path / "logged")
    assert logged.stderr == ""  # TensorFlow's own chatter is kept out


def test_training_says_what_a_person_wants_to_know(small_mnist, tmp_path, command):
    flags = ["--data", small_mnist, "--output", tmp_path, "--epochs", 1, "--run-id", "told"]
    told = command("train", *flags, "--log", "text").out
    published = json.loads((tmp_path / "told" / "metrics.json").read_text())
    assert f"accuracy   {published['test']['accuracy']:.4f} on 505 test images" in told
    assert f"files      {tmp_path}/told/" in told
    assert "model_weights.h5" in told
    assert re.search(r"^time +\d+\.\d s", told, re.MULTILINE)


def bad_inputs(tmp_path):
    """Return words to append to a command, by the code they must lead to."""
    file = tmp_path / "file"
    file.write_bytes(b"<!DOCTYPE html><title>404</title>")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    return {
        65: [["--data", file], ["--data", empty], ["--weights", file], ["--weights", empty],
             ["--image", file], ["--image", empty]],
        66: [["--data", tmp_path / "nowhere.npz"], ["--data", tmp_path],
             ["--weights", tmp_path / "nowhere.h5"], ["--weights", tmp_path],
             ["--image", tmp_path / "nowhere.png"], ["--image", tmp_path]],
    }  # fmt: skip


@pytest.mark.parametrize("code", [65, 66])
def test_bad_inputs_from_end_to_end(command, tmp_path, trained, small_mnist, code):
    """The loaders' own tests know every kind of damage; this one sees that codes come through."""
    for words in bad_inputs(tmp_path)[code]:
        name = "train" if words[0] == "--data" else "predict"
        good = ["--output", tmp_path / "out"] if name == "train" else ["--data", small_mnist]
        if words[0] == "--image":
            good += ["--weights", trained]
        failed = command(name, *good, *words)
        assert_one_line(failed, code, str(words[1]), started=name == "train")
    assert not (tmp_path / "out").exists()


def test_batch_larger_than_the_data(command, small_mnist, tmp_path):
    flags = ["--data", small_mnist, "--output", tmp_path / "out", "--batch-size", 2001]
    failed = command("train", *flags, "--log", "text")
    assert_one_line(failed, 64, "2,001", "2,000", started=True)
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(command, small_mnist, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    flags = ["--data", small_mnist, "--log", "text", "--run-id", "x"]
    failed = command("train", *flags, "--output", blocked)
    assert failed.code == 74
    assert str(blocked) in failed.err
    assert failed.err.count("\n") == 1
    assert blocked.read_text() == "in the way"


def test_gpu_that_is_not_there(command, small_mnist, tmp_path):
    flags = ["--data", small_mnist, "--output", tmp_path, "--log", "text"]
    for asked in (["--strategy", "gpu"], ["--require-gpu"]):
        failed = command("train", *flags, *asked)
        assert failed.code == 78
        assert failed.err.count("\n") == 1
        assert asked[0] in failed.err


def test_workers_must_agree_on_a_run_id(command, monkeypatch):
    task = {"type": "worker", "index": 0}
    config = {"cluster": {"worker": ["a:2222", "b:2222"]}, "task": task}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert_one_line(command("train"), 64, "--run-id")


@pytest.mark.parametrize("count", ["", "1"])
def test_workers_that_are_not_there(command, small_mnist, tmp_path, monkeypatch, count):
    monkeypatch.setenv("K8S_WORKERS", count)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    monkeypatch.setattr(runtime, "import_tensorflow", lambda: pytest.fail("took seconds"))
    flags = ["--data", small_mnist, "--output", tmp_path, "--log", "text"]
    failed = command("train", *flags, "--strategy", "multiworker")
    assert failed.code == 78
    assert "--strategy multiworker: fewer than two workers are named" in failed.err


def test_codes_of_the_command_line_are_named_once():
    assert cli.EXIT_BUG == 70
    assert preemption.EXIT_INTERRUPTED == 130


def test_evaluate_prints_four_digits_and_writes_a_report(command, trained, small_mnist, tmp_path):
    published = json.loads((trained / "metrics.json").read_text())["test"]
    report = tmp_path / "deep" / "report.json"
    words = ["--weights", trained / "model_weights.h5", "--data", small_mnist]
    done = command("evaluate", *words, "--report", report)
    assert done.out.startswith(f"test accuracy: {published['accuracy']:.4f}")
    assert f"test loss: {published['loss']:.4f}\n" in done.out
    schema("evaluation").validate(json.loads(report.read_text()))
    assert json.loads(report.read_text())["test"] == published
    into_folder = command("evaluate", *words, "--report", tmp_path)
    assert f"{tmp_path}/{inference.REPORT}" in into_folder.out
    assert command("evaluate", *words, "--report", report).code == 0  # it says the same
    report.write_text(report.read_text().replace('"correct"', '"wrong"'))
    again = command("evaluate", *words, "--report", report)
    assert again.code == 73  # an evaluation is not overwritten either
    assert "choose another --report" in again.err
    assert "--run-id" not in again.err


@pytest.mark.slow
def test_evaluate_and_predict_take_model_and_data_from_the_run(command, small_mnist, tmp_path):
    flags = ["--data", small_mnist, "--epochs", 1, "--model", "cnn", "--batch-size", 200]
    assert command("train", *flags, "--output", tmp_path, "--run-id", "cnn").code == 0
    published = json.loads((tmp_path / "cnn" / "metrics.json").read_text())["test"]
    scored = command("evaluate", "--weights", tmp_path / "cnn")
    assert scored.code == 0
    assert f"{published['correct']:,} of 505" in scored.out
    assert scored.err == ""
    shown = command("predict", "--weights", tmp_path / "cnn", "--num-images", 505)
    rows = [line.split() for line in shown.out.splitlines()[1:]]
    assert sum(row[1] == row[3] for row in rows) == published["correct"]
    assert command("predict", "--weights", tmp_path / "cnn", "--start", 505).code == 64


def test_other_data_than_the_runs_are_told(command, mnist, trained, tmp_path):
    other = tmp_path / "other.npz"
    part = {"x_train": mnist.x_train[:20], "y_train": mnist.y_train[:20]}
    np.savez(other, **part, x_test=mnist.x_test[:30], y_test=mnist.y_test[:30])
    scored = command("evaluate", "--weights", trained, "--data", other)
    assert scored.code == 0
    assert "of 30;" in scored.out
    assert "were trained on other data" in scored.err


def test_a_run_of_a_model_that_nobody_knows(command, trained, tmp_path):
    metrics = json.loads((trained / "metrics.json").read_text())
    metrics["config"]["model"] = "resnet"
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "model_weights.h5").write_bytes((trained / "model_weights.h5").read_bytes())
    assert_one_line(command("evaluate", "--weights", tmp_path), 65, "'resnet'", "--model")


@pytest.mark.parametrize("config", [None, [], {"model": 7, "data": 8}, {"data": "mnist"}])
def test_metrics_of_somebody_else_are_no_bug(command, trained, small_mnist, tmp_path, config):
    (tmp_path / "metrics.json").write_text(json.dumps({"config": config, "data": "x"}))
    (tmp_path / "model_weights.h5").write_bytes((trained / "model_weights.h5").read_bytes())
    assert command("evaluate", "--weights", tmp_path, "--data", small_mnist).code == 0


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (StoppedError("stopped"), 143, "stopped"),
        (TemporaryError("--time-limit 3 reached"), 75, "--time-limit 3 reached"),
        (CredentialsError("refused"), 77, "refused"),
        (KeyboardInterrupt(), 130, "interrupted, the work is saved"),
    ],
)
@pytest.mark.parametrize("named", [[], ["--run-id", "mine"], ["--run-id=mine"]])
def test_every_stop_gives_the_command_that_goes_on(monkeypatch, capfd, raised, code, said, named):
    """Without the fresh run id, the same words would begin another run."""
    seen = []

    def stop(config, *_):
        seen.append(config.run_id)
        raise raised

    monkeypatch.setattr(run, "train_run", stop)
    words = ["train", "--output", "an output", "--log", "text", *named]
    monkeypatch.setattr(sys, "argv", ["scripts/train_model.py"])  # which gives words of its own
    assert cli.main(words) == code
    error = capfd.readouterr().err
    assert error.startswith(f"mnist-job: error: {said}; go on with: mnist-job train ")
    command = shlex.split(error.partition("go on with: ")[2].rpartition(" (exit")[0])
    assert command[: len(words) + 1] == ["mnist-job", *words]
    assert cli.main(command[1:]) == code
    assert len(set(seen)) == 1


def test_an_unknown_variable_is_told_with_the_nearest_known_one(command, monkeypatch):
    monkeypatch.setattr(run, "train_run", lambda *_: METRICS)
    monkeypatch.setenv("MNIST_JOB_EPOCH", "3")
    monkeypatch.setenv("MNIST_JOB_ZZZZZZ", "3")
    monkeypatch.setenv("MNIST_JOB_WEIGHTS", "a variable of another command")
    done = command("train")
    assert done.code == 0
    started, *told = [json.loads(line) for line in done.out.splitlines()]
    assert started["event"] == "started"
    assert [(line["event"], line["variable"], line["nearest"]) for line in told] == [
        ("unknown_variable", "MNIST_JOB_EPOCH", "MNIST_JOB_EPOCHS"),
        ("unknown_variable", "MNIST_JOB_ZZZZZZ", None),
    ]


@pytest.mark.parametrize("words", [("--cache", "none"), ("--cache=none",)])
def test_a_flag_that_is_gone_says_why(command, words):
    done = command("train", "--log", "text", *words)
    assert done.err == (
        "mnist-job: error: --cache is gone: the job no longer keeps copies of data sets: "
        "leave it out (exit 64)\n"
    )


def test_the_failure_has_the_form_of_the_log(command):
    """A collector that reads JSON reads the failure too; a person reads a sentence."""
    failed = json.loads(command("train", "--epochs", 0, "--log", "json").err)
    assert (failed["level"], failed["event"], failed["code"]) == ("error", "failed", 64)
    text = command("train", "--epochs", 0, "--log", "text").err
    assert text == f"mnist-job: error: {failed['error']} (exit 64)\n"


def test_a_signal_hurries_storage_in_time_for_the_shortest_grace(command, monkeypatch):
    seconds = []
    monkeypatch.setattr(storage, "hurry", seconds.append)
    monkeypatch.setattr(run, "train_run", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert command("train").code == 143
    assert seconds == [cli.HURRY_SECONDS]
    [grace] = {
        int(found)
        for path in (REPOSITORY / "k8s" / "components" / "spot").glob("*job.yaml")
        for found in re.findall(r"terminationGracePeriodSeconds: (\d+)", path.read_text())
    }
    assert grace - 5 >= cli.HURRY_SECONDS + run.END_SECONDS


@pytest.mark.parametrize("supervised", [False, True])
def test_a_worker_leaves_the_second_ctrl_c_to_its_watcher(command, monkeypatch, supervised):
    """Which repeats the first to it."""
    seen = {}

    class Seen(preemption.Preemption):
        def __init__(self, *values, **named):
            seen.update(named)
            super().__init__(*values, **named)

    monkeypatch.setattr(cli, "Preemption", Seen)
    monkeypatch.setattr(cli.watchdog, "is_supervised", lambda: supervised)
    monkeypatch.setattr(run, "train_run", lambda *_: METRICS)
    assert command("train").code == 0
    assert (seen["when_interrupted"] is None) is supervised


SLOW_SAVE = """
import time
from job.training import checkpoint
save = checkpoint.Checkpoints.save
def slow_save(*arguments):
    time.sleep(60)
    save(*arguments)
checkpoint.Checkpoints.save = slow_save
"""


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_a_training_that_saves_for_too_long(small_mnist, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW_SAVE)
    words = ["--data", small_mnist, "--output", tmp_path, "--run-id", "r", "--epochs", "10000"]
    with subprocess.Popen(
        [sys.executable, "-m", "job", "train", *words],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as training:
        events = (json.loads(line)["event"] for line in training.stdout)
        assert "epoch" in events
        training.send_signal(signal.SIGINT)
        assert "stopping" in events
        training.send_signal(signal.SIGINT)
        assert training.wait(timeout=10) == 130
        assert training.stderr.read() == ""


# As TensorFlow's import does with what is raised inside.
SWALLOWING = """
import sys, time
from job.process import runtime
def swallow():
    print("importing", flush=True)
    try:
        time.sleep(60)
    except BaseException:
        raise ImportError("optree")
runtime.import_tensorflow = swallow
"""


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_ctrl_c_while_tensorflow_is_imported_is_no_bug(trained, small_mnist, tmp_path, name):
    bare = shutil.copy(trained / "model_weights.h5", tmp_path)
    (tmp_path / "sitecustomize.py").write_text(SWALLOWING)
    with subprocess.Popen(
        # Of the weights alone no predictions are kept.
        [sys.executable, "-m", "job", name, "--weights", bare, "--data", small_mnist],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert process.stderr.read() == "mnist-job: error: interrupted (exit 130)\n"


LATE = """
import atexit, sys
from job import cli
from job.process.preemption import Preemption

def main():
    preemption = Preemption()
    preemption.install()
    return 0

def wait():
    print("ending", flush=True)
    sys.stdin.readline()

atexit.register(wait)
cli.main = main
cli.entry_point()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_commands_end_changes_nothing(number):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", LATE], **pipes, text=True) as process:
        assert process.stdout.readline() == "ending\n"
        process.send_signal(number)
        _, errors = process.communicate("go on\n", timeout=60)  # it waits for this line
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_amid_the_last_words_has_its_own_code(number, code):
    program = f"""
import os, signal
from job import cli
from job.process.preemption import Preemption

def main():
    Preemption().install()
    os.kill(os.getpid(), signal.{number})

cli.main = main
cli.entry_point()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (code, "")


HEAVY = (
    "tensorflow",
    "keras",
    "numpy",
    "PIL",
    "h5py",
    "asyncio",
    "fsspec",
    "aiohttp",
    "botocore",
    "google",
    "urllib.request",
)


def test_importing_the_command_line_is_cheap_and_quiet() -> None:
    program = f"""
import json, os, signal, sys, threading
environment, handlers = dict(os.environ), [signal.getsignal(n) for n in signal.valid_signals()]
import job.cli
print(json.dumps({{
    "heavy": [name for name in {HEAVY!r} if name in sys.modules],
    "environment": dict(os.environ) == environment,
    "handlers": [signal.getsignal(n) for n in signal.valid_signals()] == handlers,
    "threads": threading.active_count(),
}}))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"]},  # ours is that of a process that imported the job
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr == ""
    assert json.loads(ended.stdout) == {
        "heavy": [],
        "environment": True,
        "handlers": True,
        "threads": 1,
    }


@pytest.mark.parametrize(
    "room",
    [
        "api",
        "run",
        "platforms",
        "results.handover",
        "commands.invocation",
        "commands.drill",
        "results.inference",
        "workers.supervision",
        "commands.nights",
        "nightly.night",
        "nightly.contest",
        "nightly.guard",
        "nightly.gate",
        "nightly.champions",
        "nightly.proof",
        "nightly.pruning",
        "nightly.servable",
        "commands.looks",
        "catalog.comparing",
        "catalog.fetching",
        "catalog.history",
        "catalog.tables",
        "commands.tunes",
        "tuning.trial",
        "tuning.tuner",
        "tuning.finals",
        "tuning.picture",
    ],
)
def test_rooms_of_the_command_line_import_tensorflow_late(room):
    program = (
        f"import sys, job.{room}; print(*sorted({{'tensorflow', 'keras'}} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split() == []


@pytest.mark.parametrize("large", ["numpy", "tensorflow"])
def test_who_is_killed_while_something_large_is_imported_has_said_its_first_line(tmp_path, large):
    """Out of memory there, a pod shows how far it came; without a line its message is empty."""
    fatal = tmp_path / large / "__init__.py"
    fatal.parent.mkdir()
    fatal.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    ended = subprocess.run(
        [sys.executable, "-m", "job", "train", "--output", tmp_path, "--run-id", "r"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    [line] = ended.stdout.splitlines()
    said = json.loads(line)
    assert (said["event"], said["run"]) == ("started", f"{tmp_path}/r")
    assert said["version"] == __version__
