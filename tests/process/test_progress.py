"""What a run says: sentences for a person, one JSON object a line for everyone else."""

import ast
import contextlib
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import job
from job.process.liveness import Liveness
from job.process.progress import _SENTENCES, Progress

COMPLETE = {
    "run": "runs/r1",
    "accuracy": 0.98765,
    "accuracy_interval_95": [0.98531, 0.98962],
    "examples": 10_000,
    "loss": 0.06371,
    "calibration_error": 0.02394,
    "mistakes": 124,
    "most_confused": [
        {"true": 4, "predicted": 9, "examples": 12},
        {"true": 7, "predicted": 2, "examples": 9},
    ],
    "total_seconds": 12.345,
    "train_seconds": 6.78,
    "attempt_train_seconds": 6.78,
    "attempts": 1,
    "images_per_second": 1e5,
    "files": ["model_weights.h5", "model.keras", "metrics.json"],
}
COMPLETE_TEXT = """
accuracy   0.9877 on 10,000 test images (95 % interval 0.9853 to 0.9896)
loss       0.0637, calibration error 0.0239
mistakes   124, most often 4 as 9 (12), 7 as 2 (9)
time       12.3 s, 6.8 s of them in the training loop
files      runs/r1/
             model_weights.h5
             model.keras
             metrics.json"""
EPOCH = {
    "epoch": 3,
    "epochs": 10,
    "loss": 0.25,
    "accuracy": 0.9512,
    "learning_rate": 0.001,
    "seconds": 0.6,
    "images_per_second": 99_999.6,
}
LOADED = {
    "uri": "mnist",
    "fingerprint": "ab" * 32,
    "train_examples": 60_000,
    "test_examples": 10_000,
    "image_shape": [28, 28],
    "classes": 10,
}

NIGHT = {
    "night": "n-1",
    "verdict": "refused",
    "why": "43 lost",
    "exit_code": 0,
    "stale": False,
    "champion": "night-1",
    "champion_accuracy": 0.9862,
    "champion_age_seconds": 172_800,
}
OVER = {
    "trial": 3,
    "fresh_seed": 0,
    "state": "complete",
    "why": None,
    "epochs": 8,
    "seconds": 4.23,
    "validation_accuracy": 0.99,
    "validation_loss": 0.2,
}
FINALIST = {
    "trial": 1,
    "values": {"dropout": 0.1},
    "trial_accuracy": 0.991,
    "accuracy": 0.99,
    "spread": 0.001,
    "loss": 0.2,
    "seconds": 4.23,
    "parameters": 29_290,
    "p": 0.2,
    "is_apart": False,
}
EVENTS: list[tuple[str, dict[str, Any], str]] = [
    ("started", {"version": "0.1.0", "run": "runs/r1"}, "start      mnist-job 0.1.0"),
    (
        "platform",
        {
            "platform": "sagemaker",
            "because": "/opt/ml/input/config is there",
            "flags": {"run-id": "job-1", "leak-allow": ["a", "b"]},
            "sources": {"run-id": "TRAINING_JOB_NAME", "leak-allow": "/opt/x.json"},
            "ignored": ["sagemaker_program"],
        },
        (
            "platform   sagemaker: /opt/ml/input/config is there\n"
            "             --run-id job-1, from TRAINING_JOB_NAME\n"
            "             --leak-allow a + b, from /opt/x.json\n"
            "             not read: sagemaker_program"
        ),
    ),
    (
        "platform",
        {"platform": "v", "because": "x is set", "flags": {}, "sources": {}, "ignored": []},
        "platform   v: x is set",
    ),
    (
        "model_copied",
        {"to": "/opt/ml/model", "files": ["model.keras"]},
        "model      copied to /opt/ml/model/",
    ),
    (
        "data_loaded",
        LOADED,
        "data       mnist: 60,000 training and 10,000 test images, 28 x 28 pixels, 10 classes",
    ),
    (
        "data_loaded",
        LOADED | {"uri": "a.npz", "image_shape": [32, 32, 3], "classes": 2},
        "data       a.npz: 60,000 training and 10,000 test images, 32 x 32 x 3 pixels, 2 classes",
    ),
    (
        "report_written",
        {"page": "runs/r1/report.html", "seconds": 0.9},
        "report     runs/r1/report.html",
    ),
    (
        "report_not_written",
        {"page": "a.html", "reason": "no answer in time"},
        "warning    a.html is not written, and mnist-job report makes it later: no answer in time",
    ),
    ("attempt_started", {"run": "runs/r1", "attempt": 1}, "run        runs/r1"),
    (
        "night_started",
        {"night": "n-1", "data": "shards", "files": 3},
        "night      n-1, of 3 files at shards",
    ),
    (
        "night_over",
        NIGHT,
        "night      refused: 43 lost\nchampion   night-1, 98.62%, for 2.0 days",
    ),
    (
        "night_over",
        NIGHT | {"stale": True},
        "night      refused: 43 lost\nchampion   night-1, 98.62%, for 2.0 days  STALE",
    ),
    (
        "night_over",
        NIGHT | {"verdict": "bad_data", "exit_code": 65, "champion": None},
        "night      bad_data",
    ),
    (
        "night_over_already",
        NIGHT,
        (
            "night      n-1 is over already; nothing was done\nnight      refused: 43 lost\n"
            "champion   night-1, 98.62%, for 2.0 days"
        ),
    ),
    (
        "judged",
        {"passed": True, "why": "", "decided_before": 3},
        "gate       passed; this test set has decided 3 times before",
    ),
    (
        "judged",
        {"passed": False, "why": "", "decided_before": 0},
        "gate       not passed; this test set has decided 0 times before",
    ),
    ("promoted", {"run": "night-1", "number": 2}, "promoted   night-1, entry 2 of the log"),
    (
        "overtaken",
        {"night": "n-1"},
        "warning    another night or a person was faster in the log of champions: deciding anew",
    ),
    (
        "champion_stale",
        {"champion": "night-1", "age_seconds": 691_200},
        "warning    the champion night-1 is 8.0 days old, older than --stale-after",
    ),
    (
        "champion_unknown",
        {"reason": "entry 7 is damaged"},
        "warning    which run is champion is not shown: entry 7 is damaged",
    ),
    (
        "fetched_incomplete",
        {"run": "s3://b/r", "state": True},
        "warning    s3://b/r is not complete: its checkpoint and records come, and no model",
    ),
    (
        "fetched_incomplete",
        {"run": "s3://b/r", "state": False},
        "warning    s3://b/r is not complete: its records come, and no model",
    ),
    (
        "drawn_otherwise",
        {"file": "home/a/report.html"},
        "warning    home/a/report.html stays as it is: what was drawn of the run there is another",
    ),
    (
        "no_shards",
        {"data": "shards", "base": "mnist"},
        "warning    shards holds no shard yet: only mnist is used",
    ),
    (
        "not_a_shard",
        {"file": "shards/a.npz"},
        "warning    shards/a.npz is ignored: shards are called train-*.npz and test-*.npz",
    ),
    (
        "shard_skipped",
        {"shard": "train-a.npz", "reason": "it is damaged"},
        "warning    the shard train-a.npz is left out: it is damaged",
    ),
    (
        "shards_gone",
        {"names": ["train-a.npz", "train-b.npz"]},
        "warning    nights before had train-a.npz, train-b.npz, which are not there any more",
    ),
    ("attempt_started", {"run": "runs/r1", "attempt": 2}, "run        runs/r1, attempt 2"),
    ("device_chosen", {"devices": ["CPU"], "threads": 2}, "device     CPU (2 threads)"),
    ("device_chosen", {"devices": ["a", "b"], "threads": 64}, "device     a, b (64 threads)"),
    (
        "compiled",
        {"model": "mlp", "parameters": 109_386, "seconds": 1.26},
        "model      mlp, 109,386 parameters, compiled in 1.3 s",
    ),
    ("epoch", EPOCH, "epoch  3/10   loss 0.2500   accuracy 0.9512     100,000 images/s"),
    (
        "epoch",
        EPOCH | {"epoch": 1, "epochs": 1, "images_per_second": 7},
        "epoch 1/1   loss 0.2500   accuracy 0.9512           7 images/s",
    ),
    (
        "resumed",
        {"step": 9_375, "threads": 2},
        "resumed    after step 9,375, with 2 threads as before",
    ),
    (
        "resumed_differently",
        {
            "changes": {
                "tensorflow": ["2.20", "2.21"],
                "devices": [["CPU"], ["NVIDIA H100", "NVIDIA H100"]],
                "threads": [None, [2]],
            }
        },
        (
            "warning    resumed with changes: tensorflow 2.20 -> 2.21, devices CPU -> NVIDIA H100 "
            "+ NVIDIA H100, threads unknown -> 2; the result may differ in its last bits"
        ),
    ),
    (
        "threads_differ",
        {"worker": 1, "threads": 4, "chief_threads": 2},
        (
            "warning    worker 1 computes with 4 threads, the chief with 2: give all workers the "
            "same cores, or set TF_NUM_INTRAOP_THREADS, for results that can be repeated to the bit"
        ),
    ),
    (
        "trial_started",
        {"trial": 3, "fresh_seed": 0, "values": {"learning_rate": 0.01, "model": "cnn"}},
        "trial      3: learning-rate 0.01, model cnn",
    ),
    (
        "trial_started",
        {"trial": 3, "fresh_seed": 2, "values": {"dropout": 0.1}},
        "trial      3: dropout 0.1, fresh seed 2",
    ),
    (
        "rung_decided",
        {"epoch": 3, "kept": False, "rank": 4, "seen": 6, "places": 2},
        "rung       after epoch 3: halted, rank 4 of the 6 so far, of which 2 may",
    ),
    ("trial_over", OVER, "trial      3: complete, 8 epochs in 4.2 s, held out: 0.2000, 0.9900"),
    (
        "trial_over",
        OVER
        | {"state": "failed", "why": "it diverged", "fresh_seed": 1}
        | {"validation_accuracy": None, "validation_loss": None},
        "trial      3, fresh seed 1: failed (it diverged), 8 epochs in 4.2 s",
    ),
    (
        "study_over",
        {"study": "runs/studies/s", "trials": 3, "complete": 1, "halted": 2, "failed": 0}
        | {"best": {"trial": 2, "validation_accuracy": 0.99, "values": {"dropout": 0.1}}},
        (
            "study      runs/studies/s: 3 trials, 1 complete, 2 halted, 0 failed\n"
            "first      trial 2, 0.9900 of the held-out images: dropout 0.1"
        ),
    ),
    ("study_drawn", {"at": "s.html", "trials": 16}, "drawn      s.html, 16 trials"),
    (
        "chosen",
        {
            "seeds": 5,
            "trial": 7,
            "command": "mnist-job train --dropout 0.1",
            "finalists": [FINALIST, FINALIST | {"trial": 7}, FINALIST | {"is_apart": True}],
            "failed": [{"trial": 9, "fresh_seed": 2, "why": "it diverged"}],
        },
        (
            "\ntrial     was  is now  spread      p  seconds  parameters  mean of 5 fresh seeds\n"
            "    1  0.9910  0.9900  0.0010  0.200      4.2      29,290  the first: dropout 0.1\n"
            "    7  0.9910  0.9900  0.0010  0.200      4.2      29,290  can't be told apart: "
            "dropout 0.1\n"
            "    1  0.9910  0.9900  0.0010  0.200      4.2      29,290  worse: dropout 0.1\n"
            "    9  failed with fresh seed 2: it diverged\n\n"
            "chosen     trial 7, the cheapest of those that can't be told apart\n"
            "command    mnist-job train --dropout 0.1"
        ),
    ),
    (
        "stopped_early",
        {"epoch": 7, "patience": 3},
        "stopped    after epoch 7: no better loss on the held-out images in 3",
    ),
    (
        "exchange_timed",
        {"workers": 2, "seconds": 0.00091},
        "exchange   0.91 ms a step among 2 workers",
    ),
    (
        "mostly_waits",
        {"step_seconds": 0.0012, "exchange_seconds": 0.00091},
        (
            "warning    0.91 of the 1.2 ms of a step pass in exchanges with other workers: a "
            "larger --batch-size, or fewer workers, may be faster"
        ),
    ),
    ("worker_done", {"worker": 2}, "worker 2 is done, and the chief has published"),
    ("begins_with", {"weights": "/runs/a"}, "weights    those of /runs/a, to begin with"),
    ("member_begins", {"run": "e-2", "member": 2, "members": 3}, "member     e-2"),
    (
        "members_missing",
        {"runs": ["e-1", "e-3"]},
        "ensemble   waits for e-1, e-3: whoever ends last publishes it",
    ),
    (
        "nothing_saved_before",
        {"attempts": 2},
        (
            "warning    no attempt before this one (there were 2) has saved anything: beginning at "
            "step 0"
        ),
    ),
    (
        "records_missing",
        {"step": 9_375},
        (
            "warning    step 9,375 is saved, but no attempt before this one has its record: going "
            "on from that step"
        ),
    ),
    (
        "checkpoint_failed",
        {"step": 1, "reason": "no space left on device"},
        "warning    no checkpoint: no space left on device",
    ),
    (
        "checkpoint_passed_by",
        {"uri": "runs/r1/checkpoints/x", "reason": "x is damaged"},
        "warning    x is damaged; going further back",
    ),
    (
        "checkpoint_kept",
        {"uri": "s3://bucket/r1/checkpoints/x", "reason": "removing x failed"},
        "warning    an old checkpoint stays: removing x failed",
    ),
    (
        "storage_retry",
        {
            "request": "PUT s3://bucket/key",
            "reason": "503 SlowDown",
            "attempt": 2,
            "attempts": 4,
            "wait_seconds": 0.62,
        },
        "warning    PUT s3://bucket/key: 503 SlowDown; try 2 of 4 in 0.6 s",
    ),
    (
        "other_data",
        {"weights": "runs/r1/model_weights.h5", "data": "mnist"},
        "warning    runs/r1/model_weights.h5 were trained on other data than mnist holds",
    ),
    (
        "data_not_compared",
        {"reason": "a.npz does not exist"},
        "warning    whether the data are still those of the run is not known: a.npz does not exist",
    ),
    (
        "end_not_recorded",
        {"reason": "no answer in time"},
        "warning    how this attempt ended is not written beside the run: no answer in time",
    ),
    (
        "unknown_variable",
        {"variable": "MNIST_JOB_EPOCH", "nearest": "MNIST_JOB_EPOCHS"},
        (
            "warning    the variable MNIST_JOB_EPOCH means nothing to this job and was ignored: "
            "did you mean MNIST_JOB_EPOCHS?"
        ),
    ),
    (
        "unknown_variable",
        {"variable": "MNIST_JOB_X", "nearest": None},
        "warning    the variable MNIST_JOB_X means nothing to this job and was ignored",
    ),
    (
        "waiting_for_workers",
        {
            "missing": ["worker 1 (a:2222): connection refused", "worker 2 (b:2222): no answer"],
            "waited_seconds": 31.2,
            "timeout_seconds": 45.0,
        },
        (
            "waiting    31 of 45 s for worker 1 (a:2222): connection refused; worker 2 (b:2222): "
            "no answer"
        ),
    ),
    (
        "watcher_silent",
        {"seconds": 15.0},
        (
            "warning    this worker's watcher was silent for 15 s: it was told to go on, and is "
            "killed if it doesn't"
        ),
    ),
    (
        "stopping",
        {},
        "stopping   the work is being saved; a second Ctrl-C ends at once, and loses what is not",
    ),
    (
        "log_not_written",
        {"reason": "no space left on device"},
        "warning    the log can't be written, the run goes on: no space left on device",
    ),
    (
        "liveness_not_shown",
        {"reason": "--liveness-file x cannot be touched any more"},
        "warning    --liveness-file x cannot be touched any more; the run goes on",
    ),
    ("notified", {"to": "https://x.example"}, "notified   https://x.example"),
    (
        "not_notified",
        {"to": "https://x.example", "reason": "the answer was 500"},
        "warning    nobody was told at https://x.example: the answer was 500",
    ),
    (
        "metrics_not_exposed",
        {"uri": "runs/r1/metrics.prom", "reason": "no room"},
        "warning    runs/r1/metrics.prom is not written, all else is published: no room",
    ),
    (
        "events_not_written",
        {"uri": "runs/r1/tensorboard", "reason": "no room"},
        "warning    no event file for TensorBoard at runs/r1/tensorboard: no room",
    ),
    (
        "pushed",
        {"to": "https://x.example", "job": "nightly"},
        "pushed     to https://x.example, as job nightly",
    ),
    (
        "not_pushed",
        {"to": "https://x.example", "reason": "the answer was 500"},
        "warning    nothing was pushed to https://x.example: the answer was 500",
    ),
    (
        "progress_posted",
        {"to": "https://x.example"},
        "posted     how far it is, to https://x.example",
    ),
    (
        "progress_not_posted",
        {"to": "https://x.example", "reason": "the answer was 500"},
        "warning    how far it is could not be posted to https://x.example: the answer was 500",
    ),
    (
        "logged_to_mlflow",
        {"to": "https://x.example", "experiment": "mnist-job", "mlflow_run": "ab12"},
        "logged     to https://x.example, experiment mnist-job, run ab12",
    ),
    (
        "not_logged_to_mlflow",
        {"to": "https://x.example", "reason": "the answer was 500"},
        "warning    MLflow at https://x.example was not told: the answer was 500",
    ),
    (
        "verdict_not_written",
        {"reason": "no room"},
        "mnist-job: warning: no room",
    ),
    (
        "failed",
        {"error": "--epochs must be more", "code": 64},
        "mnist-job: error: --epochs must be more (exit 64)",
    ),
    ("complete", COMPLETE, COMPLETE_TEXT),
    (
        "complete",
        COMPLETE | {"attempts": 3, "attempt_train_seconds": 2.25, "train_seconds": 70.8},
        COMPLETE_TEXT.replace(
            "12.3 s, 6.8 s of them in the training loop",
            "12.3 s for attempt 3, 2.2 s of them in the training loop; all attempts together "
            "trained for 70.8 s",
        ),
    ),
    (
        "already_complete",
        COMPLETE | {"attempts": 2, "attempt_train_seconds": None, "train_seconds": 70.8},
        "run        runs/r1 is complete already; nothing was done\n"
        + COMPLETE_TEXT.replace(
            "12.3 s, 6.8 s of them in the training loop",
            "12.3 s for attempt 2; all attempts together trained for 70.8 s",
        ),
    ),
    (
        "already_complete",
        COMPLETE,
        f"run        runs/r1 is complete already; nothing was done\n{COMPLETE_TEXT}",
    ),
]


NO_NEWS: list[tuple[str, dict[str, Any]]] = [
    ("checkpoint_saved", {"step": 1, "uri": "runs/r1/checkpoints/x"}),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(log_format: str, name: str, details: dict[str, Any]) -> str:
    stream = io.StringIO()
    Progress(log_format, stream).event(name, **details)
    return stream.getvalue()


@pytest.mark.parametrize(("name", "details", "text"), EVENTS)
def test_a_person_reads_a_sentence(name: str, details: dict[str, Any], text: str) -> None:
    assert told("text", name, details) == text + "\n"


@pytest.mark.parametrize(("name", "details"), NO_NEWS)
def test_a_person_is_spared_what_is_no_news(name: str, details: dict[str, Any]) -> None:
    assert told("text", name, details) == ""
    assert json.loads(told("json", name, details))["event"] == name


@pytest.mark.parametrize(("name", "details", "text"), EVENTS)
def test_a_collector_reads_one_json_object_a_line(
    name: str, details: dict[str, Any], text: str
) -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)  # which the time is cut to
    line = told("json", name, details)
    assert text not in line
    assert line.endswith("\n")
    assert len(line.splitlines()) == 1
    document = json.loads(line)
    moment = datetime.fromisoformat(document.pop("time"))
    assert before <= moment <= datetime.now(UTC)
    assert moment.utcoffset() == timedelta(0)
    level = next((word for word in ("warning", "error") if word in text.split(": ", 2)[:2]), "info")
    level = "warning" if text.startswith("warning") else level
    assert document == {"level": level, "event": name, **details}


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_each_event_is_a_sign_of_life(tmp_path: Path, log_format: str) -> None:
    file = tmp_path / "alive"
    progress = Progress(log_format, io.StringIO(), Liveness(str(file)))
    for show in (progress.beat, lambda: progress.event("checkpoint_saved", step=1, uri="x")):
        os.utime(file, (0, 0))
        show()
        assert file.stat().st_mtime > 0


def test_lines_come_in_the_order_of_events() -> None:
    stream = io.StringIO()
    progress = Progress("json", stream)
    for name, details, _ in EVENTS:
        progress.event(name, **details)
    names = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert names == [name for name, _, _ in EVENTS]


@pytest.mark.parametrize(
    "text", ["two\nlines", "a\u2028b", "é", '"', "\\", "\x1b[31m", "\0", "\udcff"], ids=ascii
)
def test_odd_text_keeps_a_json_line_one_line_of_ascii(text: str) -> None:
    line = told("json", "attempt_started", {"run": text, "attempt": 1})
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert json.loads(line)["run"] == text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_is_not_written_as_if_it_were_json(number: float) -> None:
    """As for `publishing.to_json`: Python would write NaN, which collectors refuse."""
    with pytest.raises(ValueError, match="JSON"):
        told("json", "epoch", EPOCH | {"loss": number})


@pytest.mark.parametrize(
    ("encoding", "uri"),
    [("ascii", "/data/é.npz"), ("latin-1", "/data/日本.npz"), ("utf-8", "/data/\udcff.npz")],
)
def test_a_name_that_the_terminal_cannot_show_does_not_stop_the_run(
    encoding: str, uri: str
) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    Progress("text", stream).event("data_loaded", **(LOADED | {"uri": uri}))
    assert written.getvalue().startswith(b"data       /data/")
    assert b"60,000 training" in written.getvalue()


@pytest.mark.parametrize(
    ("log_format", "stream", "is_text"),
    [
        ("auto", Terminal(), True),
        ("auto", io.StringIO(), False),
        ("text", Terminal(), True),
        ("text", io.StringIO(), True),
        ("json", Terminal(), False),
        ("json", io.StringIO(), False),
    ],
)
def test_auto_means_text_on_a_terminal_only(
    log_format: str, stream: io.StringIO, is_text: bool
) -> None:
    Progress(log_format, stream).event("attempt_started", run="r", attempt=1)
    assert stream.getvalue().startswith("run " if is_text else "{")


def test_auto_on_standard_output_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().event("attempt_started", run="r", attempt=1)
    assert json.loads(capsys.readouterr().out)["run"] == "r"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_every_event_is_flushed_at_once(log_format: str) -> None:
    """A killed process must not take its last words with it."""
    written = io.BytesIO()
    stream = io.TextIOWrapper(io.BufferedWriter(_Raw(written)), encoding="utf-8")
    Progress(log_format, stream).event("attempt_started", run="r1", attempt=1)
    assert b"r1" in written.getvalue()


class _Raw(io.RawIOBase):
    def __init__(self, target: io.BytesIO) -> None:
        self._target = target

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._target.write(bytes(data))


def test_an_event_without_a_sentence_is_a_bug_in_text() -> None:
    with pytest.raises(KeyError, match="tea_time"):
        told("text", "tea_time", {})
    assert json.loads(told("json", "tea_time", {"cups": 2}))["cups"] == 2


def events_in_the_code() -> Iterator[str]:
    for path in Path(job.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr
                in {"event", "notify", "_notify", "_trouble"}  # storage is handed the first
            ):
                if isinstance(node.args[0], ast.Constant):
                    yield node.args[0].value
                else:  # what a data set remarks is passed on as it is
                    assert ast.unparse(node) == "progress.event(name, **details)", path.name
            elif isinstance(node, ast.FunctionDef) and node.name == "remarks":
                remarks = [each for each in ast.walk(node) if isinstance(each, ast.Yield)]
                yield from (remark.value.elts[0].value for remark in remarks)


def test_every_event_of_the_job_has_a_sentence_and_a_test() -> None:
    assert set(events_in_the_code()) == set(_SENTENCES)
    assert set(_SENTENCES) == {name for name, *_ in [*EVENTS, *NO_NEWS]}


# --- lines that can't be written ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("> /dev/full", "no space left on device"),
        (">&- 2> /dev/full", None),
        ("| head -1", None),
    ],
)
def test_a_log_that_cannot_be_written_ends_no_run(
    small_mnist: str, tmp_path: Path, where: str, said: str | None
) -> None:
    words = f"--data {small_mnist} --output {tmp_path} --run-id r --epochs 1"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m job train {words} {where}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "r" / "metrics.json").read_text())["test"]["examples"] == 505
    if said is None:
        assert ended.stderr == ""
    else:  # once, however many lines there are
        warning = json.loads(ended.stderr)
        assert (warning["event"], warning["reason"]) == ("log_not_written", said)


def test_lines_for_which_a_pipe_has_no_room_just_now_come_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "w") as stream:
        progress = Progress("json", stream)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"-" * 4096)
        progress.event("attempt_started", run="r", attempt=1)
        progress.event("attempt_started", run="r", attempt=2)
        assert capsys.readouterr().err.count("log_not_written") == 1
        os.read(reader, 1 << 20)
        progress.event("attempt_started", run="r", attempt=3)
        stream.close()
        lines = [json.loads(line) for line in read.read().splitlines()]
    assert [line["attempt"] for line in lines] == [1, 2, 3]


def test_a_liveness_file_that_cannot_be_touched_any_more_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    progress = Progress("text", io.StringIO(), Liveness(str(folder / "alive")))
    (folder / "alive").unlink()
    folder.rmdir()
    for _ in range(3):
        progress.beat()
        progress.event("attempt_started", run="r", attempt=1)
    told = capsys.readouterr().err
    assert told.count("cannot be touched any more") == 1
    assert str(folder / "alive") in told
