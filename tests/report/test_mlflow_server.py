"""A real MLflow server is told, as `make test-mlflow` runs it, and asked what it has understood."""

import contextlib
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, free_ports
from test_mlflow import DOCUMENT, EPOCH, log

pytestmark = pytest.mark.mlflow

PROGRAM = REPOSITORY / ".venv-mlflow" / "bin" / "mlflow"
START_SECONDS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """Return the URL of a server with a database of its own."""
    assert PROGRAM.exists(), f"{PROGRAM} is missing: `make test-mlflow` installs it"
    folder = tmp_path_factory.mktemp("mlflow")
    [port] = free_ports(1)
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    words += ["--default-artifact-root", str(folder / "artifacts")]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    # A session of its own: the program starts others, which end with it.
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            [str(PROGRAM), *words],
            stdout=output,
            stderr=output,
            env=os.environ | quiet,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_SECONDS
            while True:
                assert process.poll() is None, Path(output.name).read_text()
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/health", timeout=5).close()
                    break
                assert time.monotonic() < deadline, Path(output.name).read_text()
                time.sleep(0.3)
            yield url
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def ask(url: str, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/{what}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def history(url: str, run: str, key: str) -> list[tuple[int, float]]:
    found = ask(url, f"metrics/get-history?run_id={run}&metric_key={key}&max_results=5000")
    return [(int(each.get("step", 0)), each["value"]) for each in found["metrics"]]


def runs_of(url: str, experiment: str) -> list[dict[str, Any]]:
    found = ask(url, f"experiments/get-by-name?experiment_name={experiment}")
    identity = found["experiment"]["experiment_id"]
    return ask(url, "runs/search", {"experiment_ids": [identity]}).get("runs", [])


def test_a_run_is_understood(server):
    event = log(server, more={"mnist_job.night": "n-1"}, MLFLOW_EXPERIMENT_NAME="whole")
    assert event["event"] == "logged_to_mlflow", event
    [run] = runs_of(server, "whole")
    assert run["info"]["run_id"] == event["mlflow_run"]
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FINISHED", "r1")
    assert run["info"]["end_time"] - run["info"]["start_time"] == 6000
    params = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert params == {"data": "mnist", "model": "mlp", "seed": "0", "parameters": "109386"}
    tags = {each["key"]: each["value"] for each in run["data"]["tags"]}
    assert tags["mnist_job.weights_sha256"] == "a" * 64
    assert tags["mnist_job.night"] == "n-1"
    assert history(server, event["mlflow_run"], "train_loss") == [(1, 0.5), (2, 0.5)]
    metrics = {each["key"]: each["value"] for each in run["data"]["metrics"]}
    assert metrics["test_accuracy"] == 0.9862


def test_the_same_run_is_logged_once_and_one_that_was_broken_off_is_ended(server):
    first = log(server, MLFLOW_EXPERIMENT_NAME="once")
    # As if the pod had been killed before its last request.
    ask(server, "runs/update", {"run_id": first["mlflow_run"], "status": "RUNNING"})
    again = log(server, MLFLOW_EXPERIMENT_NAME="once")
    assert again["mlflow_run"] == first["mlflow_run"]
    [run] = runs_of(server, "once")
    assert run["info"]["status"] == "FINISHED"
    assert history(server, first["mlflow_run"], "train_loss") == [(1, 0.5), (2, 0.5)]
    log(server, {**DOCUMENT, "config_sha256": "e" * 64}, MLFLOW_EXPERIMENT_NAME="once")
    assert len(runs_of(server, "once")) == 2


def test_its_limits_hold_for_long_histories_and_long_texts(server):
    epochs = [{"epoch": number, "seconds": 1.0, **EPOCH} for number in range(1, 601)]
    document = {
        **DOCUMENT,
        "config": {f"flag{number}": "x" * 9_999 for number in range(150)},
        "train": {"epochs": 600, "history": epochs},
    }
    event = log(server, document, MLFLOW_EXPERIMENT_NAME="a/b c")
    assert event["event"] == "logged_to_mlflow", event
    assert len(history(server, event["mlflow_run"], "train_loss")) == 600


def test_train_logs_to_it(server, command, trained, small_mnist, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "train")
    words = ["--data", small_mnist, "--epochs", "2", "--output", trained.parent]
    for _ in range(2):
        ended = command("train", *words, "--run-id", trained.name, "--log", "json")
        last = json.loads(ended.out.splitlines()[-1])
        assert (ended.code, last["event"]) == (0, "logged_to_mlflow"), ended.out
    [run] = runs_of(server, "train")
    metrics = json.loads((trained / "metrics.json").read_text())
    losses = [(each["epoch"], each["loss"]) for each in metrics["train"]["history"]]
    assert history(server, run["info"]["run_id"], "train_loss") == losses


def test_the_time_it_takes_is_far_from_its_limit(server):
    began = time.monotonic()
    log(server, MLFLOW_EXPERIMENT_NAME="time")
    assert time.monotonic() - began < 10
