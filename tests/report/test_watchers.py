"""Who is told of nights and of several workers, and that nobody else is."""

import io
import json

import listening
import pytest
from prometheus_client.parser import text_string_to_metric_families
from samples import NIGHT, RUN
from test_mlflow import DOCUMENT, Fake

from job import storage
from job.commands import console
from job.errors import OutputError, StoppedError
from job.process.progress import Progress
from job.report.watchers import Watchers
from job.results import publishing
from job.storage import parse
from job.workers.cluster import Cluster, Workers

NIGHTS_JOB = "mnist-nightly-29408910"


def told(asked) -> dict[tuple, float]:
    """Return the samples of a push, by name and labels."""
    return {
        (sample.name.removeprefix("mnist_job_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(asked.body.decode())
        for sample in family.samples
    }


def watchers(gateway=None, server=None, job=NIGHTS_JOB) -> Watchers:
    environment = {} if server is None else {"MLFLOW_TRACKING_URI": server}
    return Watchers.named(gateway, job, environment, Progress("json", io.StringIO()))


@pytest.fixture
def output(tmp_path):
    """Return an output with the run that the night of the samples trained."""
    place = parse(str(tmp_path / "runs"))
    document = {**DOCUMENT, "run_id": NIGHT["run"]}
    storage.create(place / NIGHT["run"] / "metrics.json", publishing.to_json(document))
    return place


def test_of_a_night_its_record_and_its_run_are_pushed(output):
    with listening.server(listening.status(200)) as (url, requests):
        watchers(url).night_over(output, "n-1", NIGHT, 0)
    found = told(requests[0])
    assert requests[0].path == "/metrics/job/mnist-nightly"
    assert found["night_verdict", "refused"] == 1
    assert found["night_verdict", "promoted"] == 0
    assert found["champion_stale",] == 1
    assert found["test_accuracy_ratio",] == RUN["test"]["accuracy"]
    assert found["last_success_timestamp_seconds",] > 1.7e9  # now, not when the record says


def test_of_a_night_that_left_no_record_the_verdict_before_goes(output):
    """Or a refusal would seem to go on."""
    with listening.server(listening.status(200)) as (url, requests):
        watchers(url).night_over(output, "n-2", None, 75)
    found = told(requests[0])
    assert found["exit_code",] == 75
    assert {value for key, value in found.items() if key[0] == "night_verdict"} == {0}
    assert not any(key[0].startswith(("champion", "test", "last_success")) for key in found)


def test_mlflow_hears_of_the_night_that_trained(output):
    with listening.server(fake := Fake()) as (url, _):
        watchers(None, url).night_over(output, "n-1", NIGHT, 0)
        watchers(None, url).night_over(output, "n-2", {"verdict": "unchanged"}, 0)
    [run] = fake.runs.values()
    assert (run["tags"]["mnist_job.night"], run["tags"]["mnist_job.verdict"]) == ("n-1", "refused")
    assert run["tags"]["mnist_job.uri"] == str(output / NIGHT["run"])


def test_metrics_that_cannot_be_read_keep_nothing_else_back(output, monkeypatch):
    def unread(_):
        raise OutputError("it can't be seen")

    monkeypatch.setattr(publishing, "read_json", unread)
    with listening.server(listening.status(200)) as (url, requests):
        watchers(url).night_over(output, "n-1", NIGHT, 0)
    assert told(requests[0])["night_verdict", "refused"] == 1


def test_without_watchers_nothing_is_read_and_nobody_asked(output, monkeypatch):
    monkeypatch.setattr(publishing, "read_json", lambda _: pytest.fail("read"))
    nobody = watchers()
    nobody.night_over(output, "n-1", NIGHT, 0)
    nobody.run_over(output / "r", DOCUMENT)
    nobody.failed(70)


@pytest.mark.parametrize(
    ("code", "pushes"), [(0, 0), (143, 0), (130, 0), (64, 1), (75, 1), (70, 1)]
)
def test_what_is_to_be_continued_is_no_failure(code, pushes):
    with listening.server(listening.status(200)) as (url, requests):
        watchers(url).failed(code)
    assert len(requests) == pushes


@pytest.mark.parametrize(
    ("error", "code"),
    [(OutputError("x"), 74), (ValueError("a bug"), 70), (StoppedError("x"), None)],
)
def test_what_ends_a_run_is_pushed_and_goes_on(error, code):
    with (
        listening.server(listening.status(200)) as (url, requests),
        pytest.raises(type(error)),
        watchers(url).telling_failures(),
    ):
        raise error
    assert [told(asked)["exit_code",] for asked in requests] == ([code] if code else [])


@pytest.mark.parametrize("index", [0, 1])
def test_of_several_workers_the_chief_tells(index):
    cluster = Cluster(workers=Workers(("a:1", "b:1"), index))
    found = console.watchers("https://x.example", cluster, Progress("json", io.StringIO()))
    assert (found.gateway is not None) == (index == 0)


def test_a_refused_night_tells_what_its_record_says(command, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train-bad.npz").write_bytes(b"no shard")
    words = ["--data", data, "--base", "mnist", "--output", tmp_path / "runs", "--night", "n-1"]
    with listening.server(listening.status(200)) as (url, requests):
        first, again = (command("retrain", *words, "--pushgateway", url) for _ in range(2))
    assert (first.code, again.code) == (65, 65)
    for asked in requests:
        assert told(asked)["night_verdict", "bad_data"] == 1
        assert told(asked)["exit_code",] == 65
    assert len(requests) == 2
    text = (tmp_path / "runs" / "nights" / "n-1.prom").read_text()
    assert 'mnist_job_night_verdict{verdict="bad_data"} 1.0\n' in text
    record = json.loads((tmp_path / "runs" / "nights" / "n-1.json").read_text())
    assert record["verdict"] == "bad_data"


def test_a_night_that_was_killed_before_it_was_shown_is_shown_when_it_is_begun_again(
    command, tmp_path
):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train-bad.npz").write_bytes(b"no shard")
    words = ["--data", data, "--base", "mnist", "--output", tmp_path / "runs", "--night", "n-1"]
    command("retrain", *words)
    shown = tmp_path / "runs" / "nights" / "n-1.prom"
    before = shown.read_bytes()
    shown.unlink()
    command("retrain", *words)
    assert shown.read_bytes() == before
