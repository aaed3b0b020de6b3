"""A run brought home: checked, never over another, and to be gone on with."""

import json

import fake_runs
import pytest

from job import storage
from job.catalog import fetching
from job.catalog.listing import Runs
from job.errors import ConflictError, DataError, MissingInputError, TemporaryError, UsageError
from job.process.progress import Progress
from job.results.publishing import RunFolder
from job.storage import Place, parse


@pytest.fixture
def output(anywhere) -> Place:
    return anywhere


class Told(Progress):
    """Keeps the events that were reported."""

    def __init__(self):
        super().__init__("json")
        self.events = []

    def event(self, name, **_):
        self.events.append(name)


def fetch(run: Place, home: Place, told: Told | None = None) -> fetching.Fetched:
    return fetching.fetch(run, home, lambda _: None, told or Told())


def files_of(folder: Place) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder.path)): path.read_bytes()
        for path in folder.path.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def home(tmp_path) -> Place:
    return parse(str(tmp_path / "at home"))


def test_a_complete_run_comes_whole_and_once(output, home, monkeypatch):
    run = fake_runs.complete(output, "a")
    storage.create(run / "report.html", b"<html>")
    storage.create(run / "attempts/0001-end.json", b"{}")
    storage.create(run / "somebody's.txt", b"not of the run")
    told = []
    fetched = fetching.fetch(run, home, told.append, Told())
    assert fetched.complete
    assert fetched.place == home / "a"
    files = files_of(home / "a")
    wanted = ["metrics.json", "model_weights.h5", "predictions.safetensors", "report.html"]
    wanted += ["attempts/0001.json", "attempts/0001-end.json"]
    assert sorted(files) == sorted(wanted)
    for path, content in files.items():
        assert storage.read(run / path, 10**6) == content
    assert told[-1].path == "metrics.json"  # which says that all the rest is there
    assert sorted(file.path for file in told) == sorted(wanted)
    assert all(file.fetched for file in told)

    read, reads = storage.read, []
    monkeypatch.setattr(
        storage, "read", lambda place, most: reads.append(place) or read(place, most)
    )
    again = fetch(run, home)
    assert not any(file.fetched for file in again.files)
    assert run / "model_weights.h5" not in reads
    assert files_of(home / "a") == files


def test_a_fetch_that_was_killed_goes_on(tmp_path, home):
    output = parse(str(tmp_path / "runs"))
    run = fake_runs.complete(output, "a")
    storage.create(home / "a/model_weights.h5", storage.read(run / "model_weights.h5", 1000))
    fetched = fetch(run, home)
    before = [file.path for file in fetched.files if not file.fetched]
    assert before == ["model_weights.h5"]


def test_a_run_that_was_fetched_is_a_run(tmp_path, home):
    output = parse(str(tmp_path / "runs"))
    fetch(fake_runs.complete(output, "a"), home)
    [run] = Runs(home, Told()).look(fake_runs.NOW)
    assert (run.run, run.status, run.accuracy) == ("a", "complete", 0.975)


@pytest.mark.parametrize("path", ["model_weights.h5", "metrics.json", "attempts/0001.json"])
def test_nothing_is_overwritten(tmp_path, home, path):
    run = fake_runs.complete(parse(str(tmp_path / "runs")), "a")
    storage.create(home / "a" / path, b"{}")
    with pytest.raises(ConflictError, match="give another DIR"):
        fetch(run, home)
    assert storage.read(home / "a" / path, 10) == b"{}"
    if path == "metrics.json":  # which is looked at first
        assert not storage.exists(home / "a/predictions.safetensors")


def test_another_drawing_stays(tmp_path, home):
    run = fake_runs.complete(parse(str(tmp_path / "runs")), "a")
    storage.create(run / "metrics.prom", b"new")
    storage.create(home / "a/metrics.prom", b"of before")
    told = Told()
    assert fetch(run, home, told).complete
    assert told.events == ["drawn_otherwise"]
    assert storage.read(home / "a/metrics.prom", 100) == b"of before"


def test_a_file_that_is_not_as_published_is_refused(output, home):
    run = fake_runs.complete(output, "a")
    weights = RunFolder(run).weights
    storage.remove(weights)
    with pytest.raises(MissingInputError, match="model_weights"):
        fetch(run, home)
    storage.create(weights, b"something else")
    wanted = DataError if run.kind == "file" else TemporaryError
    with pytest.raises(wanted, match="is damaged"):
        fetch(run, home)
    assert not storage.exists(home / "a/metrics.json")


def test_of_a_run_that_is_not_complete_comes_what_goes_on_with_it(output, home):
    fake_runs.attempt(output, "a")
    told = Told()
    fetched = fetch(output / "a", home, told)
    assert not fetched.complete
    assert [file.path for file in fetched.files] == ["attempts/0001.json"]
    fake_runs.checkpoint(output, "a", 100, b"old")
    newest = fake_runs.checkpoint(output, "a", 200, b"new")
    storage.create(output / "a/init_weights.json", b"{}")
    fetched = fetch(output / "a", home, told)
    assert [file.path for file in fetched.files if file.fetched] == [
        f"checkpoints/{newest}",
        "init_weights.json",
    ]
    assert told.events == ["fetched_incomplete"] * 2
    assert storage.read(home / f"a/checkpoints/{newest}", 10) == b"new"


def test_a_damaged_checkpoint_is_passed_by(tmp_path, home):
    output = parse(str(tmp_path / "runs"))
    fake_runs.attempt(output, "a")
    whole = fake_runs.checkpoint(output, "a", 100)
    damaged = fake_runs.checkpoint(output, "a", 200, b"other")
    (output / "a/checkpoints" / damaged).path.write_bytes(b"torn")
    told = Told()
    paths = [file.path for file in fetch(output / "a", home, told).files]
    assert paths == [f"checkpoints/{whole}", "attempts/0001.json"]
    assert told.events == ["checkpoint_passed_by", "fetched_incomplete"]
    (output / "a/checkpoints" / whole).path.write_bytes(b"torn")
    with pytest.raises(DataError, match="none is intact"):
        fetch(output / "a", parse(str(tmp_path / "elsewhere")))


def test_a_checkpoint_that_is_gone_before_it_is_read_is_looked_for_anew(
    tmp_path, home, monkeypatch
):
    output = parse(str(tmp_path / "runs"))
    fake_runs.attempt(output, "a")
    old = fake_runs.checkpoint(output, "a", 100)
    read, new = storage.read, []

    def train_meanwhile(place, most):
        if place.name == old and not new:
            new.append(fake_runs.checkpoint(output, "a", 200, b"later"))
            storage.remove(place)
        return read(place, most)

    monkeypatch.setattr(storage, "read", train_meanwhile)
    assert fetch(output / "a", home).files[0].path == f"checkpoints/{new[0]}"


def test_where_no_run_lies_nothing_is_fetched(tmp_path, home):
    output = parse(str(tmp_path / "runs"))
    storage.create(output / "data/train.npz", b"no run")
    for name in ("data", "nothing"):
        with pytest.raises(MissingInputError, match="is no run"):
            fetch(output / name, home)
    assert not home.path.exists()


@pytest.mark.parametrize(
    "path", ["../b", "/etc/passwd", "a/../../b", "a//b", "", ".", "x\ny", "a\\b", "metrics.json", 7]
)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path, home, path):
    run = parse(str(tmp_path / "runs/a"))
    document = fake_runs.metrics("a")
    document["artifacts"] = [{"path": path, "size": 1, "sha256": "0" * 64}]
    storage.create(run / "metrics.json", json.dumps(document).encode())
    with pytest.raises(DataError, match="nothing was fetched"):
        fetch(run, home)
    assert not home.path.exists()


@pytest.mark.parametrize("artifacts", [None, [], {}, [None], [{"path": "a", "sha256": "x"}]])
def test_metrics_that_name_no_files_are_refused(tmp_path, home, artifacts):
    run = parse(str(tmp_path / "runs/a"))
    document = fake_runs.metrics("a") | {"artifacts": artifacts}
    storage.create(run / "metrics.json", json.dumps(document).encode())
    with pytest.raises(DataError):
        fetch(run, home)


def test_a_run_that_is_being_removed_is_left_alone(tmp_path, home):
    run = fake_runs.complete(parse(str(tmp_path / "runs")), "a")
    storage.create(run / "pruned.json", b"{}")
    with pytest.raises(ConflictError, match="is being removed"):
        fetch(run, home)


def test_a_run_comes_to_this_machine_only(tmp_path):
    run = fake_runs.complete(parse(str(tmp_path)), "a")
    with pytest.raises(UsageError, match="a folder of this machine"):
        fetch(run, parse("s3://bucket/runs"))
    with pytest.raises(UsageError, match="--run-id"):
        fetch(parse("/"), parse(str(tmp_path)))


def test_each_file_and_the_end_are_told():
    there = fetching.Arrived("model_weights.h5", 3 * 2**20, fetched=False)
    new = fetching.Arrived("metrics.json", 5120, fetched=True)
    assert fetching.line(there) == "model_weights.h5  3.0 MiB  was there"
    assert fetching.line(new) == "metrics.json  5.0 KiB"
    fetched = fetching.Fetched(parse("runs/a"), complete=True, files=(there, new))
    assert fetching.summary(fetched) == "runs/a: 1 of 2 files fetched, 5.0 KiB; complete"
