"""Pushes against servers that look at what comes, answer badly, slowly or not at all."""

import base64
import io
import json
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import debian
import listening
import pytest
from conftest import free_ports
from prometheus_client.parser import text_string_to_metric_families

from job.errors import StoppedError
from job.process import runtime
from job.process.progress import Progress
from job.report import openmetrics, pushgateway
from job.report.pushgateway import Gateway

SECRET = "T0K3N"
GAUGES = openmetrics.of_end(0, 1e9)


@pytest.fixture(autouse=True)
def _nothing_secret_is_printed(capfd, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert SECRET not in "".join(capfd.readouterr())


def push(url, gauges=GAUGES, job=None):
    """Push, and return the one event that tells of it."""
    stream = io.StringIO()
    Gateway.of(url, job).push(gauges, Progress("json", stream))
    assert SECRET not in stream.getvalue()
    return json.loads(stream.getvalue())


# --- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "group"),
    [
        (None, "mnist-job"),
        ("mnist-train", "mnist-train"),
        ("mnist-nightly-29408910", "mnist-nightly"),  # a CronJob's, at half past two on a Sunday
        ("run-2026", "run-2026"),
    ],
)
def test_the_group_is_the_job_without_its_night_and_has_no_instance(job, group):
    gateway = Gateway.of("https://x.example", job)
    assert (gateway.job, gateway.labels) == (group, ())


@pytest.mark.parametrize(
    ("path", "job", "labels"),
    [
        ("/metrics/job/digits", "digits", ()),
        ("/metrics/job/digits/namespace/prod", "digits", (("namespace", "prod"),)),
        ("/below/metrics/job/a%20b/", "a b", ()),
    ],
)
def test_a_url_may_name_its_own_group(path, job, labels):
    gateway = Gateway.of(f"https://x.example{path}", "mnist-train")
    assert (gateway.job, gateway.labels) == (job, labels)
    assert gateway.url == f"https://x.example{path.partition('/metrics')[0]}"


BAD = [
    *(f"{scheme}://x.example/{SECRET}" for scheme in ("ftp", "file", "s3")),
    *(SECRET, f"https:///{SECRET}", "", f"https://x.example:{SECRET}/"),
    *(f"https://x.example/?{SECRET}", f"https://x.example/#{SECRET}"),
    f"https://x.example/metrics/job/{SECRET}/odd",
    f"https://x.example/metrics/job/{SECRET}/0bad/label",
    "https://x.example/metrics/job/",
]


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_gateway_is_refused_at_the_door_and_not_shown(url, command, tmp_path):
    ended = command("train", "--pushgateway", url, "--output", tmp_path / "runs")
    assert ended.code == 64
    assert "--pushgateway" in ended.err
    assert SECRET not in ended.err
    assert not list(tmp_path.iterdir())


def test_a_url_may_lie_in_a_file_as_a_secret_does(tmp_path):
    path = tmp_path / "url"
    assert Gateway.of(str(path), None) is None
    path.write_text(f"https://user:{SECRET}@x.example/\n")
    assert SECRET not in repr(Gateway.of(str(path), None))


# --- what comes there -------------------------------------------------------------------------


def test_it_is_added_to_the_group_as_text():
    with listening.server(listening.status(200)) as (url, requests):
        event = push(f"{url}/metrics/job/digits/namespace/a b".replace(" ", "%20"))
    assert (event["event"], event["job"]) == ("pushed", "digits")
    [asked] = requests
    encoded = base64.urlsafe_b64encode(b"a b").decode()
    assert asked.method == "POST"  # PUT would take away what a failure doesn't know
    assert asked.path == f"/metrics/job/digits/namespace@base64/{encoded}"
    assert asked.headers["Content-Type"].startswith("text/plain")
    assert "Authorization" not in asked.headers
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(asked.body.decode())
        for sample in family.samples
    }
    assert found == {
        "mnist_job_exit_code": 0,
        "mnist_job_last_completion_timestamp_seconds": 1e9,
        "mnist_job_last_success_timestamp_seconds": 1e9,
    }


def test_a_password_is_sent_as_a_header_and_shown_nowhere():
    with listening.server(listening.status(202)) as (url, requests):
        event = push(url.replace("http://", f"http://me:{SECRET}%21@"))
    assert event["to"] == "http://127.0.0.1"
    wanted = base64.b64encode(f"me:{SECRET}!".encode()).decode()
    assert requests[0].headers["Authorization"] == f"Basic {wanted}"


@pytest.mark.parametrize("code", [400, 401, 404, 500, 503])
def test_an_answer_that_is_no_yes_is_one_warning(code):
    with listening.server(listening.status(code, SECRET)) as (url, requests):
        event = push(url)
    assert len(requests) == 1
    assert (event["event"], event["level"]) == ("not_pushed", "warning")
    assert event["reason"] == f"the answer was {code}"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_gets_neither_metrics_nor_password(code):
    with listening.server(listening.status(200)) as (elsewhere, theirs):
        with listening.server(listening.status(code, Location=elsewhere)) as (url, _):
            event = push(url.replace("http://", f"http://me:{SECRET}@"))
        assert event["event"] == "not_pushed"
    assert theirs == []


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert push(f"http://127.0.0.1:{port}")["reason"] == "Connection refused"


def test_one_limit_holds_for_all_of_it(monkeypatch):
    monkeypatch.setattr(pushgateway, "LIMIT_SECONDS", 0.3)
    began = time.monotonic()
    with listening.server(lambda *_: time.sleep(2)) as (url, _):
        assert push(url)["reason"] == "it took over 0.3 s"
        assert time.monotonic() - began < 1.5


def test_a_stop_is_heeded(monkeypatch):
    def stopped(_):
        raise StoppedError("stopped by SIGTERM")

    monkeypatch.setattr(runtime, "beside", stopped)
    with pytest.raises(StoppedError):
        push("https://x.example")


# --- by the commands ----------------------------------------------------------------------------


def told(asked) -> dict[str, float]:
    """Return the samples of a push whose labels don't matter here."""
    return {
        sample.name.removeprefix("mnist_job_"): sample.value
        for family in text_string_to_metric_families(asked.body.decode())
        for sample in family.samples
    }


@pytest.fixture
def train(command, trained, small_mnist):
    """Return a function that runs `train` for a run that is complete, which takes no time."""
    words = ["--data", small_mnist, "--epochs", "2", "--output", trained.parent]

    def run(url, *more):
        flags = [*words, "--run-id", trained.name, "--pushgateway", url, "--log", "json"]
        return command("train", *flags, *more)

    return run


def test_a_run_pushes_what_it_came_to_and_a_failure_its_code(train, trained):
    before = time.time()
    with listening.server(listening.status(200)) as (url, requests):
        assert train(url).code == 0
        assert train(url, "--seed", "7").code == 73
    done, failed = map(told, requests)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert done["test_accuracy_ratio"] == metrics["test"]["accuracy"]
    assert (done["exit_code"], failed["exit_code"]) == (0, 73)
    # The command ran, and did not fail, now: whenever the run was made.
    assert done["last_success_timestamp_seconds"] >= before - 1
    assert "last_success_timestamp_seconds" not in failed
    assert failed.keys() == {"exit_code", "last_completion_timestamp_seconds"}


def test_a_gateway_that_is_away_fails_no_run(train):
    with listening.server(listening.status(503)) as (url, _):
        ended = train(url)
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.code == 0
    assert [event["event"] for event in events][-2:] == ["already_complete", "not_pushed"]


def test_a_secret_that_is_left_out_is_one_warning(train, tmp_path):
    ended = train(tmp_path / "no" / "url")
    events = [json.loads(line) for line in ended.out.splitlines()]
    [event] = [event for event in events if event["event"] == "not_pushed"]
    assert (ended.code, event["reason"]) == (0, "there is no such file")


def test_a_drill_tells_nobody(command, monkeypatch):
    monkeypatch.setattr(
        "job.commands.drill.subprocess.Popen", lambda *_, env, **__: seen.update(env)
    )
    seen: dict[str, str] = {}
    monkeypatch.setenv("MNIST_JOB_PUSHGATEWAY", "https://x.example")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://x.example")
    command("drill")
    assert seen
    assert not {"MNIST_JOB_PUSHGATEWAY", "MLFLOW_TRACKING_URI"} & seen.keys()
    assert command("drill", "--pushgateway=https://x.example").code == 64


# --- the real one -------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path):
    """Return the URL of a real Pushgateway, where one is installed."""
    program = debian.program("prometheus-pushgateway", "pushgateway")
    [port] = free_ports(1)
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [program, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"{url}/-/ready").close()
                break
            except OSError:
                assert time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()
        log.close()


def test_a_real_pushgateway_takes_it_and_keeps_what_a_failure_does_not_know(real):
    metrics = {
        "run_id": 'r "1"\\', "test": {"accuracy": 0.98}, "started": "2026-11-22T02:30:10+00:00"
    }  # fmt: skip
    night = {"night": "n-1", "verdict": "promoted"}
    gauges = [*openmetrics.of_end(0, 1e9), *openmetrics.of_run(metrics)]
    assert push(f"{real}/metrics/job/digits/namespace/prod", gauges)["event"] == "pushed"
    push(f"{real}/metrics/job/digits/namespace/prod", openmetrics.of_night(night))
    assert push(f"{real}/metrics/job/digits/namespace/prod", openmetrics.of_end(65, 2e9))
    with urllib.request.urlopen(f"{real}/metrics") as answer:
        text = answer.read().decode()
    group = '{instance="",job="digits",namespace="prod"}'
    for sample in (
        f"exit_code{group} 65",
        f"last_success_timestamp_seconds{group} 1e+09",
        f"last_completion_timestamp_seconds{group} 2e+09",
        f"test_accuracy_ratio{group} 0.98",
    ):
        assert f"\nmnist_job_{sample}\n" in text
    assert 'verdict="promoted"} 1' in text
