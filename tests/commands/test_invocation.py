"""What flags are where nobody gives them: the image's, the platform's, and who wins."""

import json

import pytest
import typer

from job import cli, run
from job.commands.invocation import Invocation, failure_file
from job.workers.cluster import Workers

PROGRAM = typer.main.get_command(cli.app)
ON_VERTEX = {"CLOUD_ML_JOB_ID": "17", "AIP_CHECKPOINT_DIR": "gs://bucket/base/checkpoints/"}
IMAGE = {"MNIST_JOB_INTERNAL_OUTPUT": "/runs"}


@pytest.fixture
def on_sagemaker(tmp_path, monkeypatch):
    """Return a function that lets this process be on SageMaker, with hyperparameters."""

    def be(**hyperparameters: str) -> None:
        config = tmp_path / "opt" / "ml" / "input" / "config"
        config.mkdir(parents=True)
        (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
        hosts = {"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}
        (config / "resourceconfig.json").write_text(json.dumps(hosts))
        monkeypatch.setenv("MNIST_JOB_INTERNAL_ROOT", str(tmp_path))
        monkeypatch.setenv("TRAINING_JOB_NAME", "job-1")

    return be


@pytest.fixture
def configs(monkeypatch):
    """Return the configs that train was called for, which does nothing else."""
    seen = []
    monkeypatch.setattr(run, "train_run", lambda config, *_: seen.append(config))
    return seen


def of(words: str, environment: dict[str, str]) -> Invocation:
    return Invocation.of(words.split(), PROGRAM, environment)


def test_the_image_has_an_output_for_every_command_that_has_one():
    defaults = of("runs", IMAGE).defaults
    for name, command in PROGRAM.commands.items():
        if any("--output" in parameter.opts for parameter in getattr(command, "params", ())):
            assert defaults[name] == {"output": "/runs"}
    assert defaults["data"] == {"check": {"output": "/runs"}}
    assert "tensorboard" not in defaults
    assert of("runs", {}).defaults == {}


@pytest.mark.parametrize(
    ("environment", "flags", "wanted"),
    [
        ({}, "", "runs"),
        (IMAGE, "", "/runs"),
        (IMAGE | ON_VERTEX, "", "gs://bucket/base/checkpoints/"),
        (IMAGE | ON_VERTEX, "--platform none", "/runs"),
        (IMAGE | ON_VERTEX | {"MNIST_JOB_PLATFORM": "none"}, "", "/runs"),
        (IMAGE | ON_VERTEX | {"MNIST_JOB_OUTPUT": "variable"}, "", "variable"),
        (IMAGE | ON_VERTEX | {"MNIST_JOB_OUTPUT": "variable"}, "--output flag", "flag"),
        (IMAGE | ON_VERTEX | {"MNIST_JOB_OUTPUT": "variable"}, "--output=flag", "flag"),
    ],
)
def test_flag_beats_variable_beats_platform_beats_image_beats_code(
    command, configs, monkeypatch, environment, flags, wanted
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended = command("train", *flags.split())
    assert ended.code == 0, ended.err
    assert configs[0].output == wanted


def test_what_a_platform_gives_beats_the_preset(command, configs, on_sagemaker, tmp_path):
    on_sagemaker(epochs="3", preset="fast", strategy="cpu", data="mnist")
    assert command("train").code == 0
    [config] = configs
    assert (config.epochs, config.model, config.batch_size) == (3, "cnn", 128)
    assert config.output == str(tmp_path / "opt/ml/output/data")


def test_a_person_reads_what_was_taken_and_from_where_but_no_secret(command, configs, on_sagemaker):
    on_sagemaker(strategy="cpu", data="mnist", pushgateway="http://secret.example:9091", epochs="3")
    ended = command("train", "--log", "text")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].startswith("platform   sagemaker: ")
    assert any(line.startswith("             --epochs 3, from ") for line in lines)
    assert any(line.startswith("             --pushgateway (not shown), from ") for line in lines)
    assert "secret" not in ended.out
    assert configs


def test_workers_of_the_files_are_those_unless_the_environment_names_others(on_sagemaker, tmp_path):
    on_sagemaker()
    here = {"MNIST_JOB_INTERNAL_ROOT": str(tmp_path)}
    invocation = of("train", here)
    told = Workers(("algo-1:2222", "algo-2:2222"), 1)
    assert invocation.cluster({}, together=True).workers == told
    assert invocation.cluster({}, together=False).workers == Workers()
    config = {"cluster": {"worker": ["x:1", "y:1"]}, "task": {"type": "worker", "index": 0}}
    named = {"TF_CONFIG": json.dumps(config)}
    assert invocation.cluster(named, together=True).workers == Workers(("x:1", "y:1"), 0)


SPEC = {
    "cluster": {"workerpool0": ["a:1"], "workerpool1": ["b:1"]},
    "task": {"type": "workerpool1", "index": 0},
}


@pytest.mark.parametrize("text", [json.dumps(SPEC), '{"cluster": {"ps": ["x:1"]}}', "of another"])
@pytest.mark.parametrize(
    ("environment", "flags"), [({}, ""), ({}, "--platform none"), (ON_VERTEX, "--platform none")]
)
def test_a_cluster_spec_is_left_alone_where_it_is_no_platforms(
    command, configs, monkeypatch, environment, flags, text
):
    for name, value in (environment | {"CLUSTER_SPEC": text}).items():
        monkeypatch.setenv(name, value)
    ended = command("train", *flags.split())
    assert ended.code == 0, ended.err
    assert configs


def test_a_cluster_spec_is_left_alone_on_another_platform(on_sagemaker, tmp_path):
    on_sagemaker()
    here = {"MNIST_JOB_INTERNAL_ROOT": str(tmp_path), "CLUSTER_SPEC": "of another"}
    invocation = of("train", here)
    assert invocation.platform.defaults["peer-timeout"].value == "600"
    assert invocation.cluster(here, together=True).workers.addresses == (
        "algo-1:2222",
        "algo-2:2222",
    )


def test_the_pools_of_vertex_train_together(command, monkeypatch):
    here = ON_VERTEX | {"CLUSTER_SPEC": json.dumps(SPEC)}
    workers = of("train", here).cluster(here, together=True).workers
    assert workers == Workers(("a:1", "b:1"), 1)
    for name, value in (ON_VERTEX | {"CLUSTER_SPEC": "of another"}).items():
        monkeypatch.setenv(name, value)
    refused = command("train")
    assert (refused.code, refused.out) == (78, "")
    assert "CLUSTER_SPEC 'of another' is not understood" in refused.err


def test_a_command_without_the_flag_is_on_no_platform(on_sagemaker, command, tmp_path):
    on_sagemaker(nonsense="1")
    assert command("train").code == 64
    assert command("runs", "--output", tmp_path).code == 0
    assert command("train", "--help").code == 0
    assert of("", ON_VERTEX).platform is None
    assert of("nonsense", ON_VERTEX).platform is None


def test_the_reason_of_a_failure_goes_where_somebody_says(command, on_sagemaker, tmp_path):
    on_sagemaker()
    (tmp_path / "opt/ml/output").mkdir()
    mine = tmp_path / "mine"
    assert command("train", "--epochs", "0", "--failure-file", mine).code == 64
    assert mine.read_text().startswith("exit 64: --epochs must be ")
    assert not (tmp_path / "opt/ml/output/failure").exists()
    assert failure_file(["train"], {"MNIST_JOB_FAILURE_FILE": "x"}) == "x"
    assert failure_file(["train"], {}) is None
    refused = command("train", "--failure-file", tmp_path / "no" / "folder")
    assert refused.code == 64
    assert "--failure-file" in refused.err


@pytest.mark.parametrize("command_name", ["train", "retrain"])
def test_a_failure_is_told_as_the_platform_asks(command, on_sagemaker, tmp_path, command_name):
    """Its hyperparameters `log` and `termination-log` are heeded at the end, too."""
    log, mine = tmp_path / "log", tmp_path / "mine"
    on_sagemaker(log="text", termination_log=str(log), epochs="0")
    (tmp_path / "opt/ml/checkpoints").mkdir()
    ended = command(command_name, "--data", "mnist")
    assert ended.code == 64
    assert ended.err.startswith("mnist-job: error: ")
    verdict = json.loads(log.read_text())
    assert (verdict["status"], verdict["code"]) == ("failed", 64)
    log.unlink()
    ended = command(command_name, "--data", "mnist", "--log", "json", "--termination-log", mine)
    assert json.loads(ended.err)["event"] == "failed"
    assert mine.exists()
    assert not log.exists()


def test_a_night_is_on_a_platform_too(command, on_sagemaker, tmp_path):
    on_sagemaker(promote="best")
    for folder in ("output", "checkpoints"):
        (tmp_path / "opt/ml" / folder).mkdir()
    ended = command("retrain")
    assert ended.code == 64
    assert "--promote is from " in ended.err
    assert (tmp_path / "opt/ml/output/failure").read_text().startswith("exit 64: ")


@pytest.mark.parametrize(
    ("flags", "variable", "written"),
    [
        ("", "", False),
        ("--tensorboard", "", True),
        ("--tensorboard-dir t", "", True),
        ("--tensorboard-dir t", "false", False),
        ("--tensorboard-dir t", "true", True),
    ],
)
def test_a_folder_for_event_files_asks_for_them(
    command, configs, monkeypatch, flags, variable, written
):
    monkeypatch.setenv("MNIST_JOB_TENSORBOARD", variable)
    assert command("train", *flags.split()).code == 0
    assert configs[0].tensorboard is written
