"""Vertex AI's contract: an environment as it documents, a bucket, and the real command."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from conftest import free_ports

from job import run, storage
from job.config import RunConfig
from job.errors import ClusterError, UsageError
from job.platforms import Surroundings, find, vertex
from job.results.publishing import RunFolder, read_json
from job.storage import Place, parse

JOB = "4521830749382746112"
FLAGS = frozenset({"output", "run-id", "model-dir", "tensorboard-dir", "peer-timeout", "data"})


def variables(base: str, trial: str = "") -> dict[str, str]:
    """Return what Vertex AI sets for a job with a base output directory, and for its trials."""
    below = f"{base}/{trial}" if trial else base
    spec = {
        "cluster": {"workerpool0": ["cmle-training-workerpool0-0e3d-0:2222"]},
        "environment": "cloud",
        "task": {"type": "workerpool0", "index": 0, "trial": trial},
    }
    return {
        "CLOUD_ML_JOB_ID": JOB,
        "AIP_MODEL_DIR": f"{below}/model/",
        "AIP_CHECKPOINT_DIR": f"{below}/checkpoints/",
        "AIP_TENSORBOARD_LOG_DIR": f"{below}/logs/",
        "CLUSTER_SPEC": json.dumps(spec),
        **({"CLOUD_ML_TRIAL_ID": trial} if trial else {}),
    }


@pytest.fixture
def base(stores: dict[str, servers.Server], monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Return a base output directory in the bucket that this process is led to."""
    server = stores["gs"]
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return parse(f"{server.root}/{secrets.token_hex(8)}")


def start(base: Place, *flags: str, **more: str) -> subprocess.Popen[str]:
    """Start the container's command."""
    return subprocess.Popen(
        [sys.executable, "-m", "job", "train", *flags],
        env=os.environ | variables(str(base)) | {"MNIST_JOB_INTERNAL_OUTPUT": "/runs"} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def test_a_custom_job_leaves_all_below_its_base_output_directory(
    base: Place, small_mnist: str
) -> None:
    first, second, *_ = ended(start(base, "--data", small_mnist, "--epochs", "1"))
    assert (first["event"], second["event"]) == ("platform", "started")
    assert (first["platform"], first["because"]) == ("vertex", "CLOUD_ML_JOB_ID is set")
    assert first["flags"] == {
        "run-id": JOB,
        "output": f"{base}/checkpoints/",
        "model-dir": f"{base}/model/",
        "tensorboard-dir": f"{base}/logs/",
    }
    run, model = RunFolder(base / "checkpoints" / JOB), RunFolder(base / "model")
    metrics = read_json(run.metrics)
    copied = {artifact["path"] for artifact in metrics["artifacts"]} | {"metrics.json"}
    assert set(storage.names(model.place)) == copied
    assert read_json(model.metrics) == metrics
    # In one folder that is named after the run, as TensorBoard takes runs, and nowhere else.
    [name] = storage.folders(base / "logs")
    assert name.startswith(f"{JOB}-")
    events = storage.names(base / "logs" / name)
    assert "scores.tfevents" in events
    assert len(events) > 1
    assert storage.names(run.events) == []


@pytest.mark.slow
def test_a_replica_that_is_restarted_goes_on(base: Place, small_mnist: str) -> None:
    flags = ["--data", small_mnist, "--epochs", "30", "--checkpoint-seconds", "0"]
    process = start(base, *flags)
    for line in process.stdout:
        if json.loads(line)["event"] == "checkpoint_saved":
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    events = {event["event"]: event for event in ended(start(base, *flags))}
    assert events["attempt_started"]["attempt"] == 2
    assert events["resumed"]["step"] > 0
    assert storage.exists(base / "model" / "metrics.json")


@pytest.mark.slow
def test_two_pools_train_one_model(base: Place, small_mnist: str) -> None:
    """Of the two replicas, which both have all variables, the primary one publishes."""
    chief, worker = (f"127.0.0.1:{port}" for port in free_ports(2))
    pools = {"workerpool0": [chief], "workerpool1": [worker]}
    flags = ["--data", small_mnist, "--epochs", "1", "--batch-size", "500"]
    processes = []
    for pool in pools:
        spec = {"cluster": pools, "environment": "cloud", "task": {"type": pool, "index": 0}}
        processes.append(start(base, *flags, CLUSTER_SPEC=json.dumps(spec)))
    logs = [ended(process) for process in processes]
    assert all(events[0]["flags"]["peer-timeout"] == "600" for events in logs)
    names = [{event["event"] for event in events} for events in logs]
    assert ["model_copied" in each for each in names] == [True, False]
    metrics = read_json(base / "model" / "metrics.json")
    assert metrics["environment"]["replicas"] == 2


# --- what is read ---------------------------------------------------------------------------


def found(environment: dict[str, str], flags: frozenset[str] = FLAGS) -> dict[str, object]:
    seen = find("auto", Surroundings(environment, flags))
    assert seen is not None
    assert seen.name == "vertex"
    return {flag: default.value for flag, default in seen.defaults.items()}


def test_a_trial_is_a_run_of_its_own() -> None:
    assert found(variables("gs://bucket/base", "3")) == {
        "run-id": f"{JOB}-3",
        "output": "gs://bucket/base/3/checkpoints/",
        "model-dir": "gs://bucket/base/3/model/",
        "tensorboard-dir": "gs://bucket/base/3/logs/",
    }


@pytest.mark.parametrize("model", ["gs://bucket/base/model/", "gs://bucket/base/model"])
def test_runs_lie_beside_the_model_where_no_other_folder_is_named(model: str) -> None:
    assert found({"AIP_MODEL_DIR": model}) == {"model-dir": model, "output": "gs://bucket/base"}


@pytest.mark.parametrize("name", vertex.SIGNS)
def test_each_of_its_variables_shows_it_unless_it_is_empty(name: str) -> None:
    assert find("auto", Surroundings({name: ""}, FLAGS)) is None
    given = frozenset({"output"})
    seen = find("auto", Surroundings({name: "gs://bucket/base/x/"}, FLAGS, given))
    assert (seen.name, seen.because) == ("vertex", f"{name} is set")


@pytest.mark.parametrize("more", [{}, {"AIP_TENSORBOARD_LOG_DIR": "gs://bucket/logs/"}])
def test_a_job_without_a_base_output_directory_is_refused(
    command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: dict[str, str]
) -> None:
    """The image's own output lies in the container, and would be lost with the model in it."""
    image = {"CLOUD_ML_JOB_ID": JOB, "MNIST_JOB_INTERNAL_OUTPUT": str(tmp_path / "runs")}
    for name, value in (image | more).items():
        monkeypatch.setenv(name, value)
    refused = command("train", "--epochs", "1")
    assert (refused.code, refused.out) == (64, "")
    assert "--output is missing: " in refused.err
    assert "baseOutputDirectory, or --output gs://" in refused.err
    assert refused.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("given", ["flag", "variable"])
def test_a_job_without_a_base_output_directory_may_be_given_an_output(
    command, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    seen: list[RunConfig] = []
    monkeypatch.setattr(run, "train_run", lambda config, *_: seen.append(config))
    monkeypatch.setenv("CLOUD_ML_JOB_ID", JOB)
    monkeypatch.setenv("MNIST_JOB_OUTPUT", "gs://bucket/key" if given == "variable" else "")
    flags = ["--output", "gs://bucket/key"] if given == "flag" else []
    assert command("train", *flags).code == 0
    assert (seen[0].output, seen[0].run_id) == ("gs://bucket/key", JOB)


def test_without_what_writes_event_files_none_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "tensorboard-dir" not in found(variables("gs://bucket/base"))
    seen = find("auto", Surroundings(variables("gs://bucket/base"), FLAGS))
    assert seen.ignored == ["AIP_TENSORBOARD_LOG_DIR"]


def test_data_of_a_managed_set_are_told_as_not_read() -> None:
    uris = {"AIP_TRAINING_DATA_URI": "gs://bucket/training-*", "AIP_DATA_FORMAT": "csv"}
    seen = find("auto", Surroundings(variables("gs://bucket/base") | uris, FLAGS))
    assert seen.ignored == ["AIP_TRAINING_DATA_URI"]


def test_a_night_needs_a_folder_that_stays() -> None:
    """In the folder of one job, each night would be the first."""
    flags = frozenset({"night", "output", "data"})
    here = Surroundings(variables("gs://bucket/base"), flags)
    with pytest.raises(UsageError, match=r"--output is missing: .* nights share"):
        find("auto", here)
    given = Surroundings(here.environment, flags, frozenset({"output"}))
    assert find("auto", given).defaults.keys() == {"night"}


def test_pools_that_cannot_be_understood_are_refused() -> None:
    with pytest.raises(ClusterError, match="CLUSTER_SPEC"):
        found(variables("gs://bucket/base") | {"CLUSTER_SPEC": "{"})
