"""Where pages of runs come from: the run itself, an attempt that ends, and `mnist-job report`."""

import io
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from made import make_run, write_data
from pages import Page
from test_unfinished import begun, end, saved

from job import run as running
from job import storage
from job.errors import DataError, OutputError, StoppedError
from job.process.progress import Progress
from job.report import complete, runs
from job.results.publishing import RunFolder, read_json
from job.run import Attempt, leaving_a_verdict
from job.storage import parse


@pytest.fixture(autouse=True)
def _with_pages(_own_environment, monkeypatch):
    """Let runs leave pages, as they do unless told otherwise."""
    monkeypatch.delenv("MNIST_JOB_NO_REPORT")


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "d.npz")


def logged(log: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


# --- the run itself ---------------------------------------------------------------------------


def test_a_run_leaves_its_page_and_says_so(trained):
    found = Page((trained / "report.html").read_bytes())
    assert "complete" in found.words
    assert "missing" not in found.headings


def test_the_page_of_a_run_is_the_one_that_is_made_again(trained, command, tmp_path):
    again = command("report", trained, "--to", tmp_path / "again.html")
    assert again.code == 0, again.err
    assert (tmp_path / "again.html").read_bytes() == (trained / "report.html").read_bytes()


def test_a_missing_page_is_made_by_the_same_command_again(tmp_path, data, command):
    folder = make_run(tmp_path, data, epochs=1)
    words = ["train", "--output", tmp_path, "--run-id", "r", "--data", data, "--epochs", "1"]
    assert command(*words, "--no-report").code == 0
    assert not folder.report.path.exists()
    done = command(*words)
    assert done.code == 0, done.err
    assert [json.loads(line)["event"] for line in done.out.splitlines()] == [
        "started", "report_written", "already_complete",
    ]  # fmt: skip
    before = folder.report.path.stat().st_mtime_ns
    done = command(*words)
    assert "report_written" not in done.out
    assert folder.report.path.stat().st_mtime_ns == before


def test_a_page_that_cannot_be_made_is_a_warning_and_no_error(tmp_path, data, monkeypatch):
    folder = make_run(tmp_path, data)

    def fail(_: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(complete, "page_of", fail)
    log = io.StringIO()
    runs.leave(folder, read_json(folder.metrics), None, Progress("json", log))
    [said] = logged(log)
    assert (said["event"], said["level"]) == ("report_not_written", "warning")
    assert not folder.report.path.exists()


def test_who_is_stopped_while_the_page_is_drawn_has_published_all_the_same(
    tmp_path, data, monkeypatch
):
    folder = make_run(tmp_path, data)

    def stop(_: object) -> bytes:
        raise StoppedError("stopped by SIGTERM")

    monkeypatch.setattr(complete, "page_of", stop)
    log = io.StringIO()
    runs.leave(folder, read_json(folder.metrics), None, Progress("json", log))
    assert [each["event"] for each in logged(log)] == ["report_not_written"]


# --- an attempt that ends ---------------------------------------------------------------------


def leave(folder: RunFolder, error: BaseException, *, report: bool = True) -> list[dict]:
    """Let an attempt end with `error`, and return what was said."""
    log = io.StringIO()
    with (
        pytest.raises(type(error)),
        leaving_a_verdict(Attempt(folder, 1, {}), Progress("json", log), report=report),
    ):
        raise error
    return logged(log)


def test_an_attempt_that_fails_leaves_a_page(tmp_path):
    folder = begun(tmp_path)
    saved(folder, 1)
    [said] = leave(folder, DataError("the data are bad"))
    assert (said["event"], said["page"]) == ("report_written", str(folder.attempt_page(1)))
    found = Page(folder.attempt_page(1).path.read_bytes())
    assert "the data are bad" in found.words
    assert "training" in found.headings


def test_no_page_is_left_where_none_is_wanted(tmp_path):
    folder = begun(tmp_path)
    assert leave(folder, DataError("the data are bad"), report=False) == []
    assert folder.attempt_end(1).path.exists()
    assert not folder.attempt_page(1).path.exists()


def test_an_attempt_ends_in_time_where_a_store_does_not_answer(tmp_path, monkeypatch):
    """SIGKILL follows SIGTERM: the record of the end comes first, and the page if there is time."""
    folder, over = begun(tmp_path), threading.Event()
    real = storage.names

    def hang(place: storage.Place) -> list[str]:
        over.wait(20)
        return real(place)

    monkeypatch.setattr(storage, "names", hang)
    monkeypatch.setattr(running, "END_SECONDS", 3.0)
    began = time.monotonic()
    said = leave(folder, StoppedError("stopped by SIGTERM, the work is saved"))
    over.set()
    assert time.monotonic() - began < 15  # 0.5 where the machine has nothing else to do
    assert [each["event"] for each in said] == ["report_not_written"]
    assert said[0]["reason"] == "no answer in time"
    assert folder.attempt_end(1).path.exists()


def test_a_page_that_cannot_be_written_hides_no_error(tmp_path, monkeypatch):
    folder = begun(tmp_path)
    real = storage.create

    def refuse(place: storage.Place, data: bytes) -> None:
        if place.name.endswith(".html"):
            raise OutputError("no room")
        real(place, data)

    monkeypatch.setattr(storage, "create", refuse)
    [said] = leave(folder, DataError("the data are bad"))
    assert (said["event"], said["reason"]) == ("report_not_written", "no room")


def test_a_training_that_is_stopped_leaves_a_page_with_its_curves(small_mnist, tmp_path, command):
    done = command(
        "train", "--data", small_mnist, "--epochs", "4000", "--output", tmp_path, "--run-id", "r",
        "--time-limit", "6", "--batch-size", "500",
    )  # fmt: skip
    assert done.code == 75
    said = [json.loads(line)["event"] for line in done.out.splitlines()]
    pages = list((tmp_path / "r" / "attempts").glob("*.html"))
    if "report_not_written" in said:  # a machine with much else to do
        assert pages == []
        return
    [page] = pages
    found = Page(page.read_bytes())
    assert "to be run again (exit code 75)" in found.words
    assert "--time-limit 6 reached, the work is saved" in found.words


# --- mnist-job report -------------------------------------------------------------------------


def test_without_a_place_the_page_goes_where_it_belongs(tmp_path, data, command, monkeypatch):
    folder = make_run(tmp_path, data, "the-run")
    monkeypatch.chdir(tmp_path)
    done = command("report", "./the-run")
    assert (done.code, done.out) == (0, "written to ./the-run/report.html\n")
    assert folder.report.path.exists()
    assert command("report", "./the-run").out == "written to ./the-run/report.html\n"
    data.unlink()  # what is there was made when more was known
    assert command("report", "./the-run").out == "written to ./the-run.html\n"
    assert "missing" in Page((tmp_path / "the-run.html").read_bytes()).headings


def test_a_run_is_named_as_for_the_other_commands(tmp_path, data, command):
    folder = make_run(tmp_path, data, "the-run")
    done = command("report", "the-run", "--output", tmp_path)
    assert (done.code, done.out) == (0, f"written to {folder.report}\n"), done.err


def test_a_run_that_goes_on_is_looked_at_again_and_again(tmp_path, command, monkeypatch):
    folder = begun(tmp_path, run_id="r1")
    monkeypatch.chdir(tmp_path)
    assert command("report", folder.place).out == "written to ./r1.html\n"
    saved(folder, 1)
    told = command("report", folder.place).out
    assert told == "written to ./r1.html, in place of an older page\n"
    end(folder, 1, DataError("bad"))
    assert command("report", folder.place).code == 0
    assert "failed" in Page((tmp_path / "r1.html").read_bytes()).words
    assert {path.name for path in folder.place.path.iterdir()} == {"attempts", "checkpoints"}


def test_nothing_of_somebody_else_is_overwritten(tmp_path, data, command):
    folder = make_run(tmp_path, data)
    (tmp_path / "mine.html").write_text("mine")
    done = command("report", folder.place, "--to", tmp_path / "mine.html")
    assert done.code == 73
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_data_that_have_moved_can_be_named(tmp_path, data, command):
    folder = make_run(tmp_path, data)
    moved = shutil.move(data, tmp_path / "moved.npz")
    words = ["report", folder.place, "--to", tmp_path / "a.html"]
    assert command(*words).code == 0
    assert "missing" in Page((tmp_path / "a.html").read_bytes()).headings
    assert command(*words, "--data", moved).code == 0
    assert "missing" not in Page((tmp_path / "a.html").read_bytes()).headings


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nothing"], 66, "runs/nothing holds no run"),
        (["nothing.json"], 66, "runs/nothing.json holds no run"),
        (["champion"], 66, "no model was ever promoted"),
        (["nights/nothing.json"], 66, "nothing.json"),
        (["ftp://x/y"], 64, "RUN"),
        (["./"], 66, "no run and no night lies below"),
        (["a b"], 66, "holds no run"),
    ],
)
def test_what_cannot_be_shown_is_one_line(command, tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    done = command("report", *words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_metrics_that_are_no_json_are_told(tmp_path, command):
    (tmp_path / "metrics.json").write_text("{")
    assert command("report", tmp_path).code == 65


def test_a_run_in_a_store_is_shown_where_it_lies(place, data, command, tmp_path, monkeypatch):
    """Contract of S3 and GCS: complete, going on, and what may not be seen."""
    monkeypatch.chdir(tmp_path)
    local = make_run(tmp_path / "made", data)
    for path in local.place.path.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(local.place.path))
            storage.create(place / f"r/{name}", path.read_bytes())
    done = command("report", place / "r")
    assert (done.code, done.out) == (0, f"written to {place}/r/report.html\n"), done.err
    page = storage.read(place / "r/report.html", 2**22)
    assert Page(page).headings >= {"mistakes", "data", "weights"}
    assert command("report", place / "r", "--to", place / "elsewhere.html").code == 0
    assert storage.read(place / "elsewhere.html", 2**22) == page

    going = begun(tmp_path / "going")
    saved(going, 1)
    for path in going.place.path.rglob("*.*"):
        name = str(path.relative_to(going.place.path))
        storage.create(place / f"going/{name}", path.read_bytes())
    assert command("report", place / "going").out == "written to ./going.html\n"
    assert "training" in Page((tmp_path / "going.html").read_bytes()).headings
    assert command("report", place / "nothing").code == 66


def test_a_page_is_made_without_tensorflow(tmp_path, data):
    folder = make_run(tmp_path, data)
    program = (
        "import sys; from job.cli import main; code = main(); "
        "sys.exit(code or 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    words = ["report", str(folder.place), "--to", str(tmp_path / "a.html")]
    subprocess.run([sys.executable, "-c", program, *words], check=True, timeout=120)


def test_what_draws_is_loaded_by_who_draws():
    program = (
        "import sys, job.run, job.ensemble, job.commands.looks, job.nightly.night; "
        "rooms = 'complete', 'material', 'unfinished', 'nights'; "
        "drawing = {'matplotlib', 'jinja2', *(f'job.report.{room}' for room in rooms)}; "
        "print(*drawing & set(sys.modules))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout.split() == []


def test_places_are_those_of_the_folder():
    folder = RunFolder(parse("s3://bucket/k/r"))
    assert str(folder.report) == "s3://bucket/k/r/report.html"
    assert str(folder.attempt_page(3)) == "s3://bucket/k/r/attempts/0003.html"
    assert Path(folder.attempts.key).name == "attempts"


def test_a_page_that_cannot_even_be_begun_changes_no_ending(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "job.report.unfinished", None)
    monkeypatch.delattr("job.report.unfinished", raising=False)
    attempt = Attempt(begun(tmp_path / "r"), 1, {})
    log = io.StringIO()
    with (
        pytest.raises(StoppedError),
        leaving_a_verdict(attempt, Progress("json", log), report=True),
    ):
        raise StoppedError("stopped by SIGTERM")
    [told] = map(json.loads, log.getvalue().splitlines())
    assert told["event"] == "report_not_written"
    assert told["page"].endswith("attempts/0001.html")
