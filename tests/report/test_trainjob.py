"""What Kubeflow's Trainer is told: as its contract has it, and at nobody's cost."""

import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import authority
import listening
import pytest

from job.commands import console
from job.errors import DataError, StoppedError, TemporaryError
from job.process.progress import Moment, Progress
from job.report import trainjob
from job.report.trainjob import TrainJob
from job.report.watchers import Watchers
from job.storage import parse
from job.workers.cluster import Cluster, Workers

PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/default/trainjobs/t/status"
SECRET = "eyJhbGciOi.secret.token"
YES = listening.status(200, body=b"{}")


@pytest.fixture(scope="module")
def pod(tmp_path_factory) -> Path:
    """Return the folder that the Trainer mounts into a pod: ca.crt and token."""
    folder = tmp_path_factory.mktemp("pod")
    authority.certificates(folder)
    (folder / "authority.pem").rename(folder / "ca.crt")
    (folder / "token").write_text(SECRET)
    return folder


def variables(url: str, pod: Path) -> dict[str, str]:
    return {
        "KUBEFLOW_TRAINER_SERVER_URL": url,
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": str(pod / "ca.crt"),
        "KUBEFLOW_TRAINER_SERVER_TOKEN": str(pod / "token"),
    }


def server(pod: Path, answer=YES):
    return listening.server(answer, PATH, pod / "server.pem")


class Told:
    """One that posts, and what it has said in the log."""

    def __init__(self, url: str, pod: Path, **others: str) -> None:
        self.log = io.StringIO()
        self.progress = Progress("json", self.log)
        self.trainjob = TrainJob(variables(url, pod) | others, self.progress)
        self.progress.followed_by(self.trainjob)

    def moves(self, step: int, steps: int = 100, **more: float) -> None:
        given = {"epoch": 1, "epochs": 2, "loss": 0.5, "accuracy": 0.75, "batch_size": 32, **more}
        self.progress.moved(lambda: Moment(step=step, steps=steps, **given))

    @property
    def events(self) -> list[dict]:
        assert SECRET not in self.log.getvalue()
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


def statuses(requests) -> list[dict]:
    return [json.loads(asked.body)["trainerStatus"] for asked in requests]


def wait_for(requests, count: int, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while len(requests) < count:
        assert time.monotonic() < deadline, f"{len(requests)} of {count} posts"
        time.sleep(0.01)


# --- what comes there -------------------------------------------------------------------------


def test_a_post_is_what_the_contract_says(pod):
    with server(pod) as (url, requests):
        told = Told(url, pod)
        told.moves(25)
        wait_for(requests, 1)
        told.trainjob.over({"test": {"loss": 0.0625, "accuracy": 0.98}})
    first, last = requests
    assert (first.method, first.path) == ("POST", PATH)
    assert first.headers["Authorization"] == f"Bearer {SECRET}"
    assert first.headers["Content-Type"] == "application/json"
    status = json.loads(first.body)["trainerStatus"]
    moment = datetime.strptime(status.pop("lastUpdatedTime"), "%Y-%m-%dT%H:%M:%S%z")
    assert abs(moment.timestamp() - time.time()) < 10
    assert status == {
        "progressPercentage": 25,
        "metrics": [
            {"name": "currentEpoch", "value": "1"},
            {"name": "totalEpochs", "value": "2"},
            {"name": "loss", "value": "0.5"},
            {"name": "accuracy", "value": "0.75"},
        ],
    }
    status = json.loads(last.body)["trainerStatus"]
    assert (status["progressPercentage"], status["estimatedRemainingSeconds"]) == (100, 0)
    assert status["metrics"][-2:] == [
        {"name": "test_loss", "value": "0.0625"},
        {"name": "test_accuracy", "value": "0.98"},
    ]
    assert [event["event"] for event in told.events] == ["progress_posted"]


def test_the_rest_is_estimated_by_what_this_attempt_has_done(pod, monkeypatch):
    told = Told("https://x.example", pod)
    shown = []
    monkeypatch.setattr(told.trainjob, "_show", lambda *status: shown.append(status))
    now = 1000.0
    monkeypatch.setattr(trainjob.time, "monotonic", lambda: now)
    told.moves(50)  # it went on from there
    now += 10
    told.moves(60)  # one step a second
    assert shown == [(50, None), (60, pytest.approx(40))]
    told.moves(100)
    assert shown[-1][0] == 99  # it isn't published


def test_an_ensemble_never_falls_back(pod, monkeypatch):
    told = Told("https://x.example", pod)
    shown = []
    monkeypatch.setattr(told.trainjob, "_show", lambda *status: shown.append(status[0]))
    for member in (1, 2, 4):  # the third is complete already
        told.progress.event("member_begins", run=f"r-{member}", member=member, members=4)
        told.moves(50)
        told.moves(100)
    assert shown == [12, 25, 37, 50, 87, 99]


def test_held_out_images_are_told_of_too(pod):
    with server(pod) as (url, requests):
        told = Told(url, pod)
        told.progress.event("epoch", validation_loss=0.25, validation_accuracy=0.5)
        told.moves(1)
        wait_for(requests, 1)
    metrics = {one["name"]: one["value"] for one in statuses(requests)[0]["metrics"]}
    assert (metrics["validation_loss"], metrics["validation_accuracy"]) == ("0.25", "0.5")


def test_each_post_takes_the_token_as_it_is_then(pod, tmp_path, monkeypatch):
    monkeypatch.setattr(trainjob, "APART_SECONDS", 0.01)
    token = tmp_path / "token"
    token.write_text("first\n")
    with server(pod) as (url, requests):
        told = Told(url, pod, KUBEFLOW_TRAINER_SERVER_TOKEN=str(token))
        told.moves(1)
        wait_for(requests, 1)
        token.write_text("second\n")
        told.moves(2)
        wait_for(requests, 2)
    assert [asked.headers["Authorization"] for asked in requests] == [
        "Bearer first", "Bearer second"
    ]  # fmt: skip


def test_posts_are_apart(pod, monkeypatch):
    assert trainjob.APART_SECONDS >= 5  # as the Trainer's guide asks
    monkeypatch.setattr(trainjob, "APART_SECONDS", 0.4)
    times = []

    def answer(handler, asked):
        times.append(time.monotonic())
        YES(handler, asked)

    with server(pod, answer) as (url, requests):
        told = Told(url, pod)
        until = time.monotonic() + 1.1
        step = 0
        while time.monotonic() < until:
            told.moves(step := step + 1, 1000)
            time.sleep(0.01)
        told.trainjob.over(None)
    *gaps, _ = [after - before for before, after in itertools.pairwise(times)]
    assert 1 <= len(gaps) <= 2  # at 0, 0.4 and 0.8 s
    assert min(gaps) >= 0.4
    found = [status["progressPercentage"] for status in statuses(requests)]
    assert found[0] < found[1]  # the newest each time
    assert found[-1] == 100


def test_the_last_post_comes_at_once(pod, monkeypatch):
    monkeypatch.setattr(trainjob, "APART_SECONDS", 60)
    with server(pod) as (url, requests):
        told = Told(url, pod)
        told.moves(1)
        wait_for(requests, 1)
        told.trainjob.over(None)
        assert len(requests) == 2


# --- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [301, 307, 401, 403, 404, 422, 429, 503])
def test_an_answer_that_is_no_yes_is_one_warning_and_is_tried_again(pod, code, monkeypatch):
    monkeypatch.setattr(trainjob, "APART_SECONDS", 0.005)
    with listening.server(YES) as (elsewhere, theirs):
        no = listening.status(code, SECRET, SECRET.encode(), Location=elsewhere)
        with server(pod, no) as (url, requests):
            told = Told(url, pod)
            for step in (1, 2):
                told.moves(step)
                wait_for(requests, step)
            told.trainjob.failed()
    assert theirs == []
    assert len(requests) == 3
    [event] = told.events
    assert (event["event"], event["level"]) == ("progress_not_posted", "warning")
    assert event["to"] == "https://127.0.0.1"
    assert event["reason"] == f"the answer was {code}"


def test_while_nobody_answers_posts_come_less_often(pod, monkeypatch):
    monkeypatch.setattr(trainjob, "APART_SECONDS", 0.05)
    with server(pod, listening.status(503)) as (url, requests):
        told = Told(url, pod)
        until = time.monotonic() + 0.9
        while time.monotonic() < until:
            told.moves(1)
            time.sleep(0.01)
        posts = len(requests)
        told.trainjob.failed()  # or a post would meet the server's end
    assert 2 <= posts <= 4  # at 0, 0.1, 0.3 and 0.7 s


@pytest.mark.parametrize("drips", [False, True])
def test_a_slow_server_holds_up_neither_training_nor_end(pod, drips, monkeypatch):
    monkeypatch.setattr(trainjob, "LIMIT_SECONDS", 0.5)
    hangs = threading.Event()

    def answer(handler, _):
        while not hangs.wait(0.1 if drips else 20):  # no byte is late, and the answer never whole
            handler.wfile.write(b"X")

    with server(pod, answer) as (url, requests):
        told = Told(url, pod)
        began = time.monotonic()
        for step in range(1, 101):
            told.moves(step)
        assert time.monotonic() - began < 5  # of a hundred times half a second
        wait_for(requests, 1)
        began = time.monotonic()
        told.trainjob.over(None)
        assert time.monotonic() - began < 10
        hangs.set()
        told.trainjob._thread.join()  # or a post would meet the server's end
    assert "over 0.5 s" in told.events[0]["reason"]


def test_nobody_listens(pod):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = Told(f"https://127.0.0.1:{port}", pod)
    told.moves(1)
    told.trainjob.over(None)
    assert [event["reason"] for event in told.events] == ["Connection refused"]


def test_a_stranger_gets_no_token(pod, tmp_path):
    authority.certificates(tmp_path)
    with server(tmp_path) as (url, requests):
        told = Told(url, pod)
        told.moves(1)
        told.trainjob.over(None)
    assert requests == []
    assert "CERTIFICATE_VERIFY_FAILED" in told.events[0]["reason"]


def test_where_no_thread_can_be_had_the_training_goes_on(pod, monkeypatch):
    class Refused(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    rest = SimpleNamespace(Condition=threading.Condition, Thread=Refused)
    monkeypatch.setattr(trainjob, "threading", rest)
    told = Told("https://127.0.0.1:1", pod)
    told.moves(1)
    told.moves(2)
    told.trainjob.over(None)
    assert [event["reason"] for event in told.events] == ["can't start new thread"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("TOKEN", "/no/token", "/no/token cannot be read: No such file or directory"),
        ("TOKEN", "", "KUBEFLOW_TRAINER_SERVER_TOKEN is not set"),
        ("TOKEN", os.devnull, "/dev/null holds no token"),
        ("CA_CERT", "/no/ca.crt", "/no/ca.crt is of no use: No such file or directory"),
        ("CA_CERT", os.devnull, "/dev/null is of no use"),
        ("URL", "http://x.example/status", "is no https:// URL"),
        ("URL", "https://[", "must be an http:// or https:// URL"),
    ],
)
def test_what_a_pod_was_given_wrong_is_one_warning(pod, name, value, reason):
    told = Told("https://127.0.0.1:1", pod, **{f"KUBEFLOW_TRAINER_SERVER_{name}": value})
    told.moves(1)
    told.trainjob.over(None)
    [event] = told.events
    assert event["event"] == "progress_not_posted"
    assert reason in event["reason"]


def test_a_token_of_two_lines_is_none(pod, tmp_path):
    (tmp_path / "token").write_text(f"{SECRET}\nHost: elsewhere\n")
    told = Told("https://127.0.0.1:1", pod, KUBEFLOW_TRAINER_SERVER_TOKEN=str(tmp_path / "token"))
    told.moves(1)
    told.trainjob.over(None)
    assert "holds no token" in told.events[0]["reason"]


# --- by the commands --------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
def test_of_several_workers_the_chief_posts(index, pod, monkeypatch):
    for name, value in variables("https://x.example", pod).items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(workers=Workers(("a:1", "b:1"), index))
    found = console.watchers(None, cluster, Progress("json", io.StringIO()))
    assert (found.trainjob is not None) == (index == 0)


@pytest.fixture
def train(command, small_mnist, tmp_path, pod, monkeypatch):
    """Return a function that trains a little, and posts to a URL."""

    def run(url, *more):
        for name, value in variables(url, pod).items():
            monkeypatch.setenv(name, value)
        flags = ["--data", small_mnist, "--epochs", "2", "--output", tmp_path, "--run-id", "r"]
        ended = command("train", *flags, "--log", "json", *more)
        assert SECRET not in ended.out + ended.err
        return ended

    return run


def test_a_training_posts_where_it_is_and_what_it_came_to(train, pod, tmp_path):
    with server(pod) as (url, requests):
        assert train(url, "--validation", "0.1").code == 0
        first, last = statuses([requests[0], requests[-1]])
        assert 0 <= first["progressPercentage"] < 100
        metrics = {one["name"]: float(one["value"]) for one in last["metrics"]}
        published = json.loads((tmp_path / "r" / "metrics.json").read_text())
        assert last["progressPercentage"] == 100
        assert metrics["test_accuracy"] == pytest.approx(published["test"]["accuracy"])
        assert metrics["currentEpoch"] == metrics["totalEpochs"] == 2
        assert metrics["validation_loss"] == pytest.approx(
            published["train"]["history"][-1]["validation_loss"], rel=1e-5
        )
        requests.clear()
        assert train(url, "--validation", "0.1").code == 0  # complete already
        [again] = statuses(requests)
    assert again["progressPercentage"] == 100


def test_a_failure_leaves_how_far_it_came_and_no_promise(train, pod, monkeypatch):
    def broken(*_, **__):
        raise DataError("a bad disk")

    monkeypatch.setattr("job.results.evaluation.predict_logits", broken)
    with server(pod) as (url, requests):
        assert train(url).code == 65
    last = statuses(requests)[-1]
    assert last["progressPercentage"] == 99
    assert "estimatedRemainingSeconds" not in last


@pytest.mark.parametrize("error", [StoppedError, TemporaryError])
def test_what_is_to_be_continued_waits_for_no_post(pod, error):
    hangs = threading.Event()
    with server(pod, lambda *_: hangs.wait(20)) as (url, requests):
        told = Told(url, pod)
        told.moves(40)
        wait_for(requests, 1)
        began = time.monotonic()
        with (
            pytest.raises(error),
            Watchers(told.progress, trainjob=told.trainjob).following(),
        ):
            raise error("stopped by SIGTERM, or its store away")
        assert time.monotonic() - began < 3  # where it would be waited for, 5 s
        hangs.set()


@pytest.mark.parametrize(("code", "shown"), [(0, [40, 100]), (65, [40, 40]), (75, [40])])
def test_a_night_posts_how_it_ended(pod, tmp_path, code, shown):
    with server(pod) as (url, requests):
        told = Told(url, pod)
        told.moves(40)
        wait_for(requests, 1)
        watchers = Watchers(told.progress, trainjob=told.trainjob)
        watchers.night_over(parse(str(tmp_path)), "n-1", {"verdict": "unchanged"}, code)
    assert [status["progressPercentage"] for status in statuses(requests)] == shown


def test_a_drill_posts_nothing(command, monkeypatch):
    seen: dict[str, str] = {}
    monkeypatch.setattr(
        "job.commands.drill.subprocess.Popen", lambda *_, env, **__: seen.update(env)
    )
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://x.example")
    command("drill")
    assert seen
    assert "KUBEFLOW_TRAINER_SERVER_URL" not in seen


# --- processes of their own -------------------------------------------------------------------


def start(url: str, pod: Path, output: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "job", "train", "--output", str(output), "--run-id", "r"]
    return subprocess.Popen(
        [*command, "--log", "json", "--no-report", *flags],
        env=os.environ | variables(url, pod),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_whole_training_posts_from_a_process_of_its_own(pod, tmp_path):
    with server(pod) as (url, requests):
        process = start(url, pod, tmp_path, "--epochs", "12")
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
    assert SECRET not in out
    found = [status["progressPercentage"] for status in statuses(requests)]
    assert found == sorted(found)
    assert found[-1] == 100
    assert len(found) >= 2


@pytest.mark.slow
def test_a_stop_is_as_fast_where_the_server_hangs(pod, tmp_path):
    hangs = threading.Event()
    with server(pod, lambda *_: hangs.wait(60)) as (url, requests):
        process = start(url, pod, tmp_path, "--epochs", "1000")
        wait_for(requests, 1, 60)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        took = time.monotonic() - began
        hangs.set()
    assert process.returncode == 143, out
    assert took < 15, out
