"""MLflow's protocol, against a small server of it; a real one stands in test_mlflow_server.py."""

import base64
import io
import json
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import listening
import pytest
from samples import RUN

from job.process.progress import Progress
from job.report import mlflow
from job.report.mlflow import Record, Server

SECRET = "T0K3N"
ME = base64.b64encode(f"me:{SECRET}".encode()).decode()
EPOCH = {"loss": 0.5, "accuracy": 0.9, "learning_rate": 0.001, "images_per_second": 9e4}
DOCUMENT: dict[str, Any] = {
    **RUN,
    "config": {"data": "mnist", "model": "mlp", "seed": 0, "base": None},
    "train": {
        "epochs": 2,
        "history": [{"epoch": number, "seconds": 3.0, **EPOCH} for number in (1, 2)],
    },
    "test": {
        **RUN["test"],
        "per_class": [{"label": 0, "recall": 0.9}, {"label": 1, "recall": None}],
    },
}
URI = "s3://bucket/runs/r1"


class Fake:
    """As much of MLflow's REST API as the job uses, with its limits."""

    def __init__(self):
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.refuses = lambda _: None
        self.asked: list[str] = []

    def __call__(self, handler, asked):
        path = urlsplit(asked.path)
        what = path.path.removeprefix("/api/2.0/mlflow/")
        self.asked.append(what)
        if (refusal := self.refuses(what)) is not None:
            return refusal(handler, asked)
        given = json.loads(asked.body) if asked.body else parse_qs(path.query)
        code, answer = getattr(self, what.replace("/", "_").replace("-", "_"))(given)
        return listening.status(code, body=json.dumps(answer).encode())(handler, asked)

    def experiments_get_by_name(self, given):
        [name] = given["experiment_name"]
        if name not in self.experiments:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": SECRET}
        return 200, {"experiment": {"experiment_id": self.experiments[name]}}

    def experiments_create(self, given):
        if given["name"] in self.experiments:
            return 400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": SECRET}
        self.experiments[given["name"]] = str(len(self.experiments) + 1)
        return 200, {"experiment_id": self.experiments[given["name"]]}

    def runs_search(self, given):
        [key] = [given["filter"].removeprefix("tags.`mnist_job.key` = '").removesuffix("'")]
        found = [
            {"info": {"run_id": name, "status": run["status"]}}
            for name, run in self.runs.items()
            if run["tags"].get("mnist_job.key") == key
            and run["experiment"] in given["experiment_ids"]
        ]
        return 200, {"runs": found} if found else {}

    def runs_create(self, given):
        name = f"run{len(self.runs)}"
        self.runs[name] = {
            "experiment": given["experiment_id"], "name": given["run_name"], "status": "RUNNING",
            "tags": {tag["key"]: tag["value"] for tag in given["tags"]},
            "params": {}, "metrics": set(),
        }  # fmt: skip
        return 200, {"run": {"info": {"run_id": name, "status": "RUNNING"}}}

    def runs_log_batch(self, given):
        sizes = [len(given.get(kind, [])) for kind in ("metrics", "params", "tags")]
        assert sizes[0] <= 1000
        assert sizes[1] <= 100
        assert sizes[2] <= 100
        assert sum(sizes) <= 1000
        run = self.runs[given["run_id"]]
        for kind in ("params", "tags"):
            run[kind] |= {each["key"]: each["value"] for each in given.get(kind, [])}
        run["metrics"] |= {tuple(sorted(each.items())) for each in given.get("metrics", [])}
        return 200, {}

    def runs_update(self, given):
        self.runs[given["run_id"]]["status"] = given["status"]
        return 200, {}

    def history(self, run, key):
        points = [dict(point) for point in self.runs[run]["metrics"]]
        return sorted((each["step"], each["value"]) for each in points if each["key"] == key)


def log(url, document=DOCUMENT, more=None, **environment):
    """Log a run, and return the one event that tells of it."""
    stream = io.StringIO()
    progress = Progress("json", stream)
    names = {"MLFLOW_TRACKING_URI": url, **environment}
    server = Server.from_environment(names, progress)
    if server is not None:
        assert SECRET not in repr(server)
        server.log(URI, document, progress, more)
    assert SECRET not in stream.getvalue()
    return json.loads(stream.getvalue())


def test_a_run_is_logged_whole():
    with listening.server(fake := Fake()) as (url, _):
        event = log(url, more={"mnist_job.night": "n-1", "mnist_job.verdict": None})
    assert (event["event"], event["experiment"]) == ("logged_to_mlflow", "mnist-job")
    run = fake.runs[event["mlflow_run"]]
    assert (run["name"], run["status"]) == ("r1", "FINISHED")
    assert run["params"] == {"data": "mnist", "model": "mlp", "seed": "0", "parameters": "109386"}
    assert run["tags"]["mnist_job.uri"] == URI
    assert run["tags"]["mnist_job.weights_sha256"] == "a" * 64
    assert run["tags"]["mnist_job.night"] == "n-1"
    assert "mnist_job.verdict" not in run["tags"]
    assert fake.history("run0", "train_loss") == [(1, 0.5), (2, 0.5)]
    assert fake.history("run0", "test_accuracy") == [(2, 0.9862)]
    assert fake.history("run0", "test_recall_0") == [(2, 0.9)]
    assert fake.history("run0", "test_recall_1") == []


def test_the_same_run_is_logged_once():
    with listening.server(fake := Fake()) as (url, _):
        first, again = log(url), log(url)
        assert again == first | {"time": again["time"]}
        assert len(fake.runs) == 1
        asked = fake.asked[len(fake.asked) // 2 :]
        other = {**DOCUMENT, "config_sha256": "e" * 64}
        log(url, other)
        assert len(fake.runs) == 2
    assert asked[-2:] == ["experiments/get-by-name", "runs/search"]


@pytest.mark.parametrize("broken_off", ["runs/log-batch", "runs/update"])
def test_one_that_was_broken_off_goes_on_and_doubles_nothing(broken_off):
    with listening.server(fake := Fake()) as (url, _):
        fake.refuses = lambda what: listening.status(500) if what == broken_off else None
        assert log(url)["event"] == "not_logged_to_mlflow"
        fake.refuses = lambda _: None
        assert log(url)["event"] == "logged_to_mlflow"
    [run] = fake.runs.values()
    assert run["status"] == "FINISHED"
    assert fake.history("run0", "train_loss") == [(1, 0.5), (2, 0.5)]


def test_an_experiment_that_another_makes_meanwhile_is_taken():
    with listening.server(fake := Fake()) as (url, _):
        create = fake.experiments_create

        def race(given):
            create(given)
            return create(given)

        fake.experiments_create = race
        assert log(url, MLFLOW_EXPERIMENT_NAME="a/b c")["event"] == "logged_to_mlflow"
        assert list(fake.experiments) == ["a/b c"]


def test_long_histories_come_in_batches_that_mlflow_takes():
    history = [{"epoch": number, "seconds": 1.0, **EPOCH} for number in range(1, 601)]
    document = {**DOCUMENT, "train": {"epochs": 600, "history": history}}
    document["config"] = {f"flag{number}": "x" * 9_999 for number in range(150)}
    with listening.server(fake := Fake()) as (url, _):
        assert log(url, document)["event"] == "logged_to_mlflow"
    assert len(fake.history("run0", "train_accuracy")) == 600
    assert fake.asked.count("runs/log-batch") == 4
    assert all(len(value) <= 500 for value in fake.runs["run0"]["params"].values())


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({"USERNAME": "me", "PASSWORD": SECRET, "TOKEN": "other"}, f"Basic {ME}"),
        ({"TOKEN": SECRET}, f"Bearer {SECRET}"),
        ({}, None),
    ],
)  # fmt: skip
def test_credentials_are_those_of_mlflows_clients(variables, header):
    with listening.server(Fake()) as (url, requests):
        log(f"{url}/", **{f"MLFLOW_TRACKING_{name}": value for name, value in variables.items()})
    assert {asked.headers.get("Authorization") for asked in requests} == {header}
    assert all(asked.path.startswith("/api/2.0/mlflow/") for asked in requests)


def test_a_user_may_stand_in_the_uri():
    with listening.server(Fake()) as (url, requests):
        event = log(url.replace("http://", f"http://me:{SECRET}@"))
    assert event["to"] == "http://127.0.0.1"
    assert requests[0].headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    "uri", ["file:///mlruns", "sqlite:///mlflow.db", "databricks", "./mlruns", f"{SECRET}://x"]
)
def test_what_needs_mlflow_itself_is_one_warning(uri):
    event = log(uri)
    assert (event["event"], event["level"]) == ("not_logged_to_mlflow", "warning")
    assert "http:// or https://" in event["reason"]


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"null", b'"x"'])
def test_a_server_of_another_kind_is_one_warning(body):
    with listening.server(listening.status(200, body=body)) as (url, _):
        assert log(url)["reason"] == "the answer is not MLflow's"


@pytest.mark.parametrize(("code", "body"), [(401, b""), (500, b'{"error_code": "A\\nB"}')])
def test_a_refusal_is_one_warning(code, body):
    with listening.server(listening.status(code, SECRET, body)) as (url, requests):
        event = log(url)
    assert event["reason"].startswith(f"the answer was {code}")
    assert "\n" not in event["reason"]
    assert len(requests) == 1


def test_one_limit_holds_for_all_requests(monkeypatch):
    monkeypatch.setattr(mlflow, "LIMIT_SECONDS", 0.3)
    began = time.monotonic()
    with listening.server(lambda *_: time.sleep(2)) as (url, _):
        assert log(url)["reason"] == "it took over 0.3 s"
        assert time.monotonic() - began < 1.5


def test_metrics_that_lack_something_are_one_warning():
    with listening.server(Fake()) as (url, requests):
        assert log(url, {"run_id": "r1"})["event"] == "not_logged_to_mlflow"
    assert requests == []


def test_the_key_is_of_place_config_and_weights():
    keys = {
        Record.of(uri, {**DOCUMENT, "config_sha256": digest}, {}).key
        for uri in (URI, "runs/r1")
        for digest in ("1", "2")
    }
    assert len(keys) == 4
    assert all(len(key) == 64 for key in keys)


# --- by the commands ----------------------------------------------------------------------------


def test_train_logs_what_is_published_and_once(command, trained, small_mnist, monkeypatch):
    words = ["--data", small_mnist, "--epochs", "2", "--output", trained.parent]
    words += ["--run-id", trained.name]
    with listening.server(fake := Fake()) as (url, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        for _ in range(2):
            ended = command("train", *words, "--log", "json")
            events = [json.loads(line) for line in ended.out.splitlines()]
            assert (ended.code, events[-1]["event"]) == (0, "logged_to_mlflow")
    metrics = json.loads((trained / "metrics.json").read_text())
    [run] = fake.runs.values()
    assert run["tags"]["mnist_job.uri"] == str(trained)
    losses = [(each["epoch"], each["loss"]) for each in metrics["train"]["history"]]
    assert fake.history("run0", "train_loss") == losses
    assert fake.history("run0", "test_accuracy") == [(2, metrics["test"]["accuracy"])]
