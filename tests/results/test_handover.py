"""What a run published, copied to a folder that knows nothing of runs."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest

from job import storage
from job.config import RunConfig
from job.errors import ConflictError, DataError, OutputError
from job.process.progress import Progress
from job.results.handover import Recipient
from job.results.publishing import RunFolder, read_json
from job.storage import Place


@pytest.fixture
def run(trained, tmp_path):
    """Return a run of one's own, with a page."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text("a page")
    return RunFolder(Place.of(tmp_path / "run"))


def take(recipient: Recipient, run: RunFolder) -> list[dict]:
    stream = io.StringIO()
    recipient.take(run, read_json(run.metrics), Progress("json", stream))
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def recipient(anywhere):
    return Recipient(anywhere)


def test_the_copy_is_as_good_as_the_run(run, recipient):
    [told] = take(recipient, run)
    to = recipient.place
    names = ["model_weights.h5", "model.keras", "predictions.safetensors"]
    assert told["files"] == [*names, "report.html", "metrics.json"]
    assert storage.names(to) == sorted(told["files"])
    for name in told["files"]:
        assert storage.read(to / name, 1 << 24) == storage.read(run.place / name, 1 << 24)
    [again] = take(recipient, run)  # which finds its own
    assert again["files"] == told["files"]


def test_commands_take_it_for_a_run(run, tmp_path, command):
    to = Recipient(Place.of(tmp_path / "model"))
    take(to, run)
    assert command("predict", "--weights", tmp_path / "model", "--num-images", 1).code == 0


def test_what_readers_trust_comes_last(run, tmp_path, monkeypatch):
    written = []
    create = storage.create
    monkeypatch.setattr(
        storage, "create", lambda place, data: written.append(place.name) or create(place, data)
    )
    take(Recipient(Place.of(tmp_path / "model")), run)
    assert written[-1] == "metrics.json"


def test_a_damaged_file_is_not_handed_on(run, tmp_path):
    path = run.weights.path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"model_weights.h5 is damaged"):
        take(Recipient(Place.of(tmp_path / "model")), run)
    assert not (tmp_path / "model" / "metrics.json").exists()


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.keras").write_text("another's")
    with pytest.raises(ConflictError, match=r"model.keras already exists"):
        take(Recipient(Place.of(tmp_path / "model")), run)
    assert not (tmp_path / "model" / "metrics.json").exists()


def test_of_several_workers_the_chief_hands_over(run, tmp_path):
    others = Recipient.named(str(tmp_path / "model"), is_chief=False)
    assert take(others, run) == []
    assert take(Recipient.named(None, is_chief=True), run) == []
    assert not (tmp_path / "model").exists()


def test_a_run_that_is_complete_hands_over_as_well(command, small_mnist, trained, tmp_path):
    """One that was ended between publishing and this."""
    run = ["--output", trained.parent, "--run-id", trained.name]
    flags = ["--data", small_mnist, "--epochs", "2", *run]
    again = command("train", *flags, "--model-dir", tmp_path / "model")
    assert again.code == 0
    events = [json.loads(line)["event"] for line in again.out.splitlines()]
    assert events[-2:] == ["already_complete", "model_copied"]
    assert (tmp_path / "model" / "metrics.json").exists()


def test_a_page_that_was_drawn_anew_is_no_conflict(run, recipient):
    take(recipient, run)
    (run.place.path / "report.html").write_text("another page")
    [again] = take(recipient, run)
    assert again["files"][-2:] == ["report.html", "metrics.json"]
    assert storage.read(recipient.place / "report.html", 100) == b"a page"


def config_of(output, run_id="r"):
    return RunConfig(output=str(output), run_id=run_id)


def test_another_runs_model_is_found_before_anything_is_computed(run, recipient, tmp_path):
    recipient.check_free(config_of(tmp_path))
    take(recipient, run)
    with pytest.raises(ConflictError, match=r"holds the metrics.json of another run"):
        recipient.check_free(config_of(tmp_path))


def test_a_twin_that_copies_meanwhile_is_no_other_run(run, tmp_path, monkeypatch):
    """It completes the run after this process looked for that, and copies at once."""
    recipient = Recipient(Place.of(tmp_path / "model"))
    exists = storage.exists

    def meanwhile(place):
        monkeypatch.setattr(storage, "exists", exists)
        take(recipient, run)
        monkeypatch.setattr(RunFolder, "finished", lambda *_: read_json(run.metrics))
        return exists(place)

    monkeypatch.setattr(storage, "exists", meanwhile)
    recipient.check_free(config_of(tmp_path))


@pytest.mark.parametrize("inside", ["file/model", "locked/model", "locked"])
def test_a_folder_that_may_not_be_written_is_refused_at_the_door(tmp_path, monkeypatch, inside):
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode)
    )  # which root may
    with pytest.raises(OutputError, match=r"can't be written: .*nothing was trained"):
        Recipient(Place.of(tmp_path / inside)).check_free(config_of(tmp_path))
