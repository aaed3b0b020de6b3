"""Single nights, as a person or a CronJob starts them: what each comes to, and what it leaves."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import schema

from job.cli import main
from job.data.card import Card
from job.nightly.contest import Contender
from job.process import runtime

FLAGS = ("--epochs", "2", "--batch-size", "64", "--gate-minimum", "0.5", "--log", "json")


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """Return the one folder that all nights here happen in: its path is part of what they are."""
    return tmp_path_factory.mktemp("nights")


@pytest.fixture
def tmp_path(stage):
    """Return the folder, emptied."""
    return emptied(stage)


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


@pytest.fixture
def data(mnist, tmp_path):
    """Return a folder with a base set of 1,500 and 500 images."""
    return write_data(tmp_path, mnist)


def write_data(folder: Path, mnist: Any) -> Path:
    place = folder / "data"
    place.mkdir()
    train = {"x_train": mnist.x_train[:1500], "y_train": mnist.y_train[:1500]}
    np.savez(place / "base.npz", **train, x_test=mnist.x_test[:500], y_test=mnist.y_test[:500])
    return place


@pytest.fixture
def night(command, data, tmp_path):
    """Return a function that lets a night happen and returns how it ended and what it left."""

    def happen(name: str, *more: object) -> tuple[Any, dict[str, Any]]:
        words = ("--data", data, "--output", tmp_path / "runs", "--night", name)
        done = command("retrain", *words, *FLAGS, *more)
        place = tmp_path / f"runs/nights/{name}.json"
        if not place.exists():
            return done, {}
        record = json.loads(place.read_bytes())
        schema("night").validate(record)
        if gate := record.get("gate"):
            schema("gate").validate(json.loads((tmp_path / "runs" / gate["path"]).read_bytes()))
        return done, record

    return happen


@pytest.fixture(scope="session")
def first_night(stage, mnist, tmp_path_factory):
    """Return a copy of what a first night left, which many tests go on from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("job.nightly.servable.check", lambda *_, **__: None)
        places = ("--data", str(write_data(emptied(stage), mnist)), "--output", str(stage / "runs"))
        assert main(["retrain", *places, "--night", "first", *FLAGS]) == 0
    kept = tmp_path_factory.mktemp("first") / "runs"
    shutil.copytree(stage / "runs", kept)
    return kept


@pytest.fixture
def promoted(first_night, data, tmp_path, monkeypatch):
    """Let a first night have promoted its model; plain Keras is asked elsewhere."""
    del data
    monkeypatch.setattr("job.nightly.servable.check", lambda *_, **__: None)
    shutil.copytree(first_night, tmp_path / "runs")
    record = json.loads((tmp_path / "runs/nights/first.json").read_bytes())
    assert record["verdict"] == "promoted"
    return record


def shard(data: Path, name: str, images: Any, labels: Any) -> None:
    np.savez(data / f"train-{name}.npz", x_train=images, y_train=labels)


def log(tmp_path: Path) -> list[dict[str, Any]]:
    paths = sorted((tmp_path / "runs/champion").iterdir())
    entries = [json.loads(path.read_bytes()) for path in paths]
    for entry in entries:
        schema("champion").validate(entry)
    return entries


def test_the_first_night_makes_the_first_champion(night, tmp_path):
    done, record = night("first")
    assert done.code == 0, done.err
    (entry,) = log(tmp_path)
    run = json.loads((tmp_path / f"runs/{record['run']}/metrics.json").read_bytes())
    assert entry["to"] == record["run"]
    assert entry["from"] is None
    assert entry["night"] == "first"
    assert entry["champion"]["weights_sha256"] == run["artifacts"][0]["sha256"]
    assert entry["champion"]["data_fingerprint"] == run["data"]["fingerprint"]
    assert entry["card"]["examples"] == 1500
    assert record["gate"]["test_set_decided_before"] == 0
    assert record["champion"]["run"] == record["run"]
    gate = json.loads((tmp_path / "runs" / record["gate"]["path"]).read_bytes())
    assert np.shape(gate["probabilities"]) == (100, 10)


def test_nothing_new_is_said_within_seconds_and_without_tensorflow(promoted, data, tmp_path):
    del promoted
    program = (
        "import sys; from job.cli import main; code = main(); "
        "sys.exit(code or 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    words = ["--data", data, "--output", tmp_path / "runs", "--night", "second", *FLAGS]
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program, "retrain", *words], check=True)
    assert time.monotonic() - began < 30  # so many only where the machine is busy; README: 0.7
    record = json.loads((tmp_path / "runs/nights/second.json").read_bytes())
    assert record["verdict"] == "unchanged"
    assert "first has decided" in record["why"]
    assert len(log(tmp_path)) == 1


def test_another_config_or_gate_is_decided_anew(promoted, night):
    del promoted
    assert night("gate", "--gate-alpha", "0.01")[1]["verdict"] == "unchanged"  # the same weights
    _, record = night("config", "--learning-rate", "0.00001", "--gate-minimum", "0")
    assert record["verdict"] == "refused"
    assert "significantly worse than the champion" in record["why"]
    assert record["gate"]["test_set_decided_before"] == 1
    assert night("same", "--learning-rate", "0.00001", "--gate-minimum", "0")[1]["verdict"] == (
        "unchanged"
    )
    assert night("again", "--learning-rate", "0.00001", "--gate-minimum", "0", "--again")[1][
        "verdict"
    ] == ("refused")


def test_an_accuracy_below_the_minimum_is_not_promoted(night, tmp_path):
    done, record = night("first", "--gate-minimum", "0.999")
    assert done.code == 0
    assert record["verdict"] == "refused"
    assert record["champion"] is None
    assert not (tmp_path / "runs/champion").exists()


def test_a_night_that_is_over_is_over(promoted, night, data, tmp_path, mnist):
    shard(data, "new", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    done, record = night("first")
    assert done.code == 0
    assert "night_over_already" in done.out
    assert record == promoted
    assert len(log(tmp_path)) == 1


def test_bad_data_end_the_night_by_name_and_stay_bad(promoted, night, data, mnist):
    del promoted
    shard(data, "half", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    path = data / "train-half.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    done, record = night("second")
    assert (done.code, record["verdict"], record["exit_code"]) == (65, "bad_data", 65)
    assert "train-half.npz" in done.err
    assert done.err.count("\n") == 1
    assert json.loads(done.err)["code"] == 65  # in the form of the log
    again, same = night("second")
    assert (again.code, same) == (65, record)
    third, other = night("third")  # nothing has changed, and that is no reason to be silent
    assert (third.code, other["verdict"]) == (65, "bad_data")


def test_a_flag_that_does_not_fit_the_data_ends_the_night(night):
    done, record = night("first", "--batch-size", "1501")
    assert (done.code, record["verdict"], record["exit_code"]) == (64, "failed", 64)
    assert night("first", "--batch-size", "1501")[0].code == 64  # and it is over
    assert night("first")[0].code == 73  # with another config it is another night's name


@pytest.mark.slow
def test_a_mended_shard_is_not_called_changed(promoted, night, data, mnist):
    del promoted
    shard(data, "a", mnist.x_train[1500:2000], 9 - mnist.y_train[1500:2000])
    done, record = night("second")
    assert done.code == 65
    assert {finding["what"] for finding in record["findings"]} >= {"accuracy"}
    shard(data, "a", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    done, record = night("third")
    assert done.code == 0, done.err
    assert (record["new"], record["changed"]) == (["train-a.npz"], [])


@pytest.mark.slow
def test_bad_shards_can_be_left_out_loudly(promoted, night, data, tmp_path, mnist):
    del promoted
    shard(data, "good", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    shard(data, "flipped", mnist.x_train[2000:2500], 9 - mnist.y_train[2000:2500])
    (data / "train-half.npz").write_bytes(b"PK half")
    done, record = night("second", "--skip-bad-shards")
    assert done.code == 0, done.err
    assert set(record["skipped"]) == {"train-flipped.npz", "train-half.npz"}
    assert [each["name"] for each in record["data"]["shards"]] == ["train-good.npz"]
    told = [json.loads(line) for line in done.out.splitlines() if '"shard_skipped"' in line]
    assert [each["shard"] for each in told] == ["train-half.npz", "train-flipped.npz"]
    run = json.loads((tmp_path / f"runs/{record['run']}/metrics.json").read_bytes())
    assert {each["name"] for each in run["data"]["skipped"]} == set(record["skipped"])


def test_new_test_images_that_are_trained_on_already_are_to_blame(promoted, night, data, mnist):
    del promoted
    shard(data, "a", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    assert night("second")[0].code == 0
    taken = {"x_test": mnist.x_train[1400:1600], "y_test": mnist.y_train[1400:1600]}
    np.savez(data / "test-b.npz", **taken)
    done, record = night("third")
    assert done.code == 65
    assert {each["against"] for each in record["findings"]} == {"test-b.npz"}
    _, record = night("fourth", "--skip-bad-shards")
    assert list(record["skipped"]) == ["test-b.npz"]  # and neither the base nor train-a.npz
    assert [each["name"] for each in record["data"]["shards"]] == ["train-a.npz"]


@pytest.mark.slow
def test_a_champion_without_a_card_is_compared_with_what_was_there(
    promoted, night, command, data, tmp_path, mnist, monkeypatch
):
    shard(data, "a", mnist.x_train[1500:2500], mnist.y_train[1500:2500])
    second = night("second", "--promote", "manual")[1]["run"]
    words = ("--output", tmp_path / "runs", "--reason", "looks good")
    assert command("promote", second, *words).code == 0  # by a person: the entry has no card
    seen = []
    monkeypatch.setattr("job.nightly.guard.check", lambda *given, **_: seen.append(given))
    shard(data, "b", mnist.x_train[2500:3000], mnist.y_train[2500:3000])
    assert night("third")[0].code == 70  # what `seen` was asked for
    (dataset, new, card) = seen[0]
    assert list(new) == ["train-b.npz"]
    known = len(dataset.x_train) - len(dataset.x_train[dataset.segments["train-b.npz"]])
    whole = Card.of(dataset.x_train[:known], dataset.y_train[:known], 10)
    assert promoted["run"] != second
    assert card.counts.tolist() == whole.counts.tolist()
    assert np.allclose(card.means, whole.means)
    assert np.allclose(card.deviations, whole.deviations)


def test_there_are_signs_of_life_while_models_classify(promoted, night, data, mnist, tmp_path):
    del promoted
    shard(data, "a", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    beats: list[str] = []

    def check(*given):
        beat = given[4]
        beats.append(beat.__self__.__class__.__name__)
        beat()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("job.nightly.servable.check", check)
        assert night("second", "--liveness-file", tmp_path / "alive")[0].code == 0
    assert beats == ["Progress"]


@pytest.mark.slow
def test_what_was_promoted_and_rolled_back_before_the_record_was_promoted(
    promoted, night, command, data, tmp_path, mnist
):
    del promoted
    shard(data, "a", mnist.x_train[1500:3000], mnist.y_train[1500:3000])
    whole = night("second")[1]
    assert whole["verdict"] == "promoted"
    (tmp_path / "runs/nights/second.json").unlink()  # as if it had been killed before
    output = ("--output", tmp_path / "runs")
    assert command("rollback", *output, "--reason", "fails").code == 0
    record = night("second")[1]
    assert (record["verdict"], record["run"]) == ("promoted", whole["run"])
    assert [entry["act"] for entry in log(tmp_path)] == ["promote", "promote", "rollback"]


def test_a_night_that_goes_on_computes_with_the_threads_that_it_began_with(
    promoted, night, data, tmp_path, mnist, monkeypatch
):
    """TensorFlow counts them when the guard asks the champion, before the run goes on."""
    del promoted
    shard(data, "a", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    monkeypatch.setattr(runtime, "_in_force", None)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "7")
    with monkeypatch.context() as killed:
        killed.setattr(
            "job.run._where_to_begin", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert night("second")[0].code == 130
    (attempt,) = [path for path in tmp_path.glob("runs/night-*/attempts/0001.json")
                  if not (path.parents[1] / "metrics.json").exists()]  # fmt: skip
    record = json.loads(attempt.read_bytes())
    attempt.chmod(0o644)
    attempt.unlink()
    attempt.write_text(json.dumps(record | {"cores": 7}))
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    monkeypatch.setattr(runtime, "_in_force", None)  # as in a new process
    classes, seen = Contender.classes, []

    def watched(*arguments):
        seen.append(os.environ.get("TF_NUM_INTRAOP_THREADS"))
        return classes(*arguments)

    monkeypatch.setattr(Contender, "classes", watched)
    assert night("second")[0].code == 0
    assert seen[0] == "7"


@pytest.mark.slow
def test_a_shard_that_changed_must_be_accepted(promoted, night, data, mnist):
    del promoted
    shard(data, "a", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    assert night("second")[0].code == 0
    shard(data, "a", mnist.x_train[1500:2001], mnist.y_train[1500:2001])
    done, record = night("third")
    assert done.code == 65
    assert record["changed"] == ["train-a.npz"]
    assert "--accept-changed-shards" in done.err
    assert night("fourth", "--accept-changed-shards")[0].code == 0


@pytest.mark.slow
def test_what_is_held_back_is_scored_and_never_trained_on(promoted, night, data, mnist):
    del promoted
    shard(data, "a", mnist.x_train[1500:2500], mnist.y_train[1500:2500])
    _, record = night("second")
    (seen,) = record["data"]["shards"]
    newest = record["gate"]["newest"]
    assert 50 < seen["held_out"] < 150
    assert record["data"]["train_examples"] == 2500 - seen["held_out"]
    assert {name: each["examples"] for name, each in newest.items()} == dict.fromkeys(
        ("challenger", "champion", "anchor"), seen["held_out"]
    )


@pytest.mark.slow
def test_what_people_decide_is_heeded(promoted, night, command, data, tmp_path, mnist):
    output = ("--output", tmp_path / "runs")
    shard(data, "a", mnist.x_train[1500:3000], mnist.y_train[1500:3000])
    waits = night("second", "--promote", "manual")[1]
    assert waits["verdict"] == "awaiting"
    assert command("promote", waits["run"], *output, "--reason", "looks good").code == 0
    assert command("hold", *output, "--reason", "audit").code == 0
    shard(data, "b", mnist.x_train[3000:4500], mnist.y_train[3000:4500])
    assert night("third")[1]["verdict"] == "held"
    assert night("fourth")[1]["verdict"] == "unchanged"
    assert command("promote", promoted["run"], *output, "--reason", "no").code == 64
    assert command("unhold", *output, "--reason", "done").code == 0
    fifth = night("fifth")[1]
    assert fifth["verdict"] == "promoted"
    assert command("rollback", *output, "--reason", "fails").code == 0
    assert log(tmp_path)[-1]["to"] == waits["run"]
    assert night("sixth")[1]["verdict"] == "unchanged"
    assert night("seventh", "--again")[1]["verdict"] == "barred"
    shown = command("champion", *output)
    assert shown.code == 0
    assert f"barred     {fifth['run']}: fails" in shown.out
    as_json = json.loads(command("champion", *output, "--json").out)
    assert [entry["act"] for entry in as_json] == [
        *("promote", "promote", "hold", "unhold", "promote", "rollback")
    ]


def test_a_model_that_plain_keras_cannot_use_is_not_promoted(night, monkeypatch, tmp_path):
    given = []

    def check(*words):
        given.extend(words)
        return "it gives other numbers"

    monkeypatch.setattr("job.nightly.servable.check", check)
    _, record = night("first", "--export", "savedmodel")
    assert record["verdict"] == "refused"
    assert "it gives other numbers" in record["why"]
    assert not (tmp_path / "runs/champion").exists()
    serving = tmp_path / "runs" / record["run"] / "serving"
    published = [path for path in serving.rglob("*") if path.is_file()]
    found = {str(path.relative_to(serving.parent)): path.read_bytes() for path in published}
    assert len(found) == 4
    assert given[-1] == found
    (serving / "1/saved_model.pb").write_bytes(b"somebody's program")
    given.clear()
    done, _ = night("second", "--export", "savedmodel", "--again")
    assert (done.code, given) == (65, [])
    assert "serving/1/saved_model.pb is not the file that metrics.json names" in done.err


def test_a_stale_champion_is_called_stale(promoted, night):
    del promoted
    time.sleep(1.1)
    done, record = night("second", "--stale-after", "1s")
    assert record["champion"]["stale"] is True
    assert done.code == 0
    assert "champion_stale" in done.out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--stale-after", "soon"), "--stale-after"),
        (("--gate-alpha", "0"), "--gate-alpha"),
        (("--gate-minimum", "2"), "--gate-minimum"),
        (("--promote", "always"), "--promote"),
        (("--night", "a/b"), "--night"),
        (("--notify", "ftp://x"), "--notify"),
        (("--strategy", "multiworker"), "one process"),
    ],
)
def test_what_is_wrong_is_said_at_the_door(command, tmp_path, words, part):
    done = command("retrain", "--output", tmp_path, *words)
    assert done.code == 64
    assert part in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_log_is_never_taken_for_no_champion(promoted, night, data, tmp_path, mnist):
    del promoted
    entry = tmp_path / "runs/champion/000001.json"
    entry.unlink()
    entry.write_text("{")
    shard(data, "a", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    done, record = night("second")
    assert done.code == 65
    assert "000001.json" in done.err
    assert record == {}


FINDING = {
    "shard": "s",
    "what": "leak",
    "value": 1,
    "bound": 0,
    "sentence": "s",
    "digests": [],
    "against": "",
}
# Member of a file that a night wrote, and a value that none writes there.
WRONG: list[tuple[str, str, object]] = [
    ("night", "verdict", "fine"),
    ("night", "verdict", "failed"),
    ("night", "verdict", "bad_data"),
    ("night", "exit_code", 65),
    ("night", "ended", "yesterday"),
    ("night", "ended", "2026-01-01T00:00:00"),
    ("night", "gate", None),
    ("night", "gate.probabilities", [[0.5, 0.5]]),
    ("night", "gate.path", "gates/1.json"),
    ("night", "champion", None),
    ("night", "champion.age_seconds", -1),
    ("night", "config.epochs", 0),
    ("night", "data.surplus", 1),
    ("night", "data.files", []),
    ("night", "data.fingerprint", None),
    ("night", "skipped", []),
    ("night", "who.process", 0),
    ("night", "findings", []),
    ("night", "findings", [FINDING]),
    ("gate", "probabilities.0.0", 1.5),
    ("gate", "challenger", None),
    ("gate", "challenger.surplus", 1),
    ("gate", "settings.alpha", 0),
    ("gate", "rules.minimum", None),
    ("gate", "rules.surplus", None),
    ("gate", "scores.challenger.accuracy", 1.01),
    ("gate", "newest", {}),
    ("champion", "number", 2),
    ("champion", "act", "crown"),
    ("champion", "act", "hold"),
    ("champion", "night", None),
    ("champion", "card", None),
    ("champion", "card.labels.0.count", -1),
    ("champion", "from", "run"),
    ("champion", "held", "audit"),
    ("champion", "barred", [{}]),
    ("champion", "champion.weights_sha256", "0"),
    ("champion", "scores.test.challenger", None),
]


def test_the_schemas_refuse_what_no_night_writes(promoted, tmp_path):
    """Each member is needed, no other is known, and values are those that there can be."""
    gate = json.loads((tmp_path / "runs" / promoted["gate"]["path"]).read_bytes())
    right = {"night": promoted, "gate": gate, "champion": log(tmp_path)[0]}
    wrong = [
        *((kind, name, {k: v for k, v in right[kind].items() if k != name})
          for kind in right for name in right[kind]),
        *((kind, "surplus", right[kind] | {"surplus": 1}) for kind in right),
        *((kind, place, changed(right[kind], place.split("."), value))
          for kind, place, value in WRONG),
    ]  # fmt: skip
    passed = [(kind, what) for kind, what, each in wrong if schema(kind).is_valid(each)]
    assert passed == []
    assert len(wrong) > 80


def changed(document: Any, place: list[str], value: object) -> Any:
    """Return a copy of `document` with another value at `place`."""
    copy = json.loads(json.dumps(document))
    inner = copy
    for part in place[:-1]:
        inner = inner[int(part) if part.isdigit() else part]
    inner[int(place[-1]) if place[-1].isdigit() else place[-1]] = value
    return copy


@pytest.fixture
def posts():
    """Return the URL of a server, and the list of what is posted to it."""
    found: list[dict[str, Any]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret", found
        server.shutdown()


def test_people_are_told_of_refused_data_as_the_record_has_it(
    promoted, night, data, posts, tmp_path
):
    url, found = posts
    (data / "train-half.npz").write_bytes(b"PK half")
    more = ("--notify", url, "--stale-after", "0s", "--termination-log", tmp_path / "ended")
    done, record = night("second", *more)
    assert done.code == 65
    (told,) = found
    ended = json.loads((tmp_path / "ended").read_bytes())
    for each in (told, ended):
        assert each["verdict"] == record["verdict"] == "bad_data"
        assert each["champion"] == promoted["run"]
        assert each["champion_age_seconds"] > 0
        assert each["stale"] is True
        assert each["code"] == 65
    assert told["text"].startswith("mnist-job night second: bad_data, and the champion is stale: ")
    assert "train-half.npz" in told["text"]


def test_a_secret_that_was_left_out_is_said_and_ends_no_night(promoted, night, tmp_path):
    del promoted
    done, record = night("second", "--notify", tmp_path / "url")
    assert (done.code, record["verdict"]) == (0, "unchanged")
    assert '"event": "not_notified"' in done.out
    assert "there is no such file" in done.out


def test_people_are_told_why_a_night_did_not_begin(promoted, night, data, posts, tmp_path):
    del promoted
    url, found = posts
    data.rename(tmp_path / "elsewhere")
    assert night("second", "--notify", url)[0].code == 66
    (told,) = found
    assert (told["verdict"], told["code"]) == ("failed", 66)
    assert f"{data} does not exist" in told["text"]


def test_a_shard_whose_name_is_refused_ends_the_night(promoted, night, data, mnist):
    del promoted
    shard(data, "a b", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    done, record = night("second")
    assert (done.code, record["verdict"]) == (65, "bad_data")
    assert "train-a b.npz" in record["why"]
    assert night("second")[1] == record


def test_a_base_with_other_bytes_is_measured_too(promoted, night, data, tmp_path, mnist):
    del promoted
    arrays = {name: each.copy() for name, each in np.load(data / "base.npz").items()}
    turned = {"y_train": 9 - arrays["y_train"], "y_test": 9 - arrays["y_test"]}
    np.savez(data / "base.npz", **{**arrays, **turned})
    assert night("second")[0].code == 65
    done, record = night("third", "--accept-changed-shards")
    assert (done.code, record["verdict"]) == (65, "bad_data")
    assert "(base): the champion agrees with" in record["why"]
    assert len(log(tmp_path)) == 1
    more = {"x_train": mnist.x_train[:2000], "y_train": mnist.y_train[:2000]}
    np.savez(data / "base.npz", **{**arrays, **more})
    assert night("fourth", "--accept-changed-shards")[0].code == 0


def test_another_set_in_one_piece_is_measured_too(promoted, command, data, tmp_path):
    del promoted
    arrays = dict(np.load(data / "base.npz"))
    turned = {"y_train": 9 - arrays["y_train"], "y_test": 9 - arrays["y_test"]}
    np.savez(tmp_path / "other.npz", **{**arrays, **turned})
    words = ("--data", tmp_path / "other.npz", "--output", tmp_path / "runs", *FLAGS)
    done = command("retrain", *words)
    assert done.code == 65
    assert "(base): the champion agrees with" in done.err
    assert len(log(tmp_path)) == 1


@pytest.mark.slow
def test_what_was_refused_is_decided_again_once_its_better_is_rolled_back(
    promoted, night, command, data, tmp_path, mnist
):
    weak = ("--learning-rate", "0.00001", "--gate-minimum", "0")
    shard(data, "a", mnist.x_train[1500:3000], mnist.y_train[1500:3000])
    better = night("second")[1]
    assert better["verdict"] == "promoted"
    (data / "train-a.npz").unlink()
    assert night("third", *weak)[1]["verdict"] == "refused"
    assert night("fourth", *weak)[1]["verdict"] == "unchanged"
    words = ("--output", tmp_path / "runs", "--reason", "fails")
    assert command("rollback", *words).code == 0
    again = night("fifth", *weak)[1]
    assert again["verdict"] == "refused"
    assert again["gate"]["champion"]["run"] == promoted["run"]
    assert night("sixth", *weak)[1]["verdict"] == "unchanged"  # and not for ever


def test_a_night_of_another_config_is_another_night(promoted, night):
    done, record = night("first", "--epochs", "3")
    assert done.code == 73
    assert "epochs 2 there, 3 here" in done.err
    assert record == promoted


@pytest.mark.parametrize("comes", ["whole", "bad"])
def test_a_night_that_promoted_before_it_was_killed_came_to_that(
    night, data, tmp_path, mnist, monkeypatch, comes
):
    monkeypatch.setattr("job.nightly.servable.check", lambda *_, **__: None)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr("job.nightly.records.Records.keep", die)
        assert night("first")[0].code == 130
    (entry,) = log(tmp_path)
    # What comes meanwhile is for the next night.
    name = "a" if comes == "whole" else "a b"
    shard(data, name, mnist.x_train[1500:3000], mnist.y_train[1500:3000])
    done, record = night("first")
    assert done.code == 0
    assert (record["verdict"], record["run"]) == ("promoted", entry["to"])
    assert record["data"]["fingerprint"] == entry["champion"]["data_fingerprint"]
    assert record["gate"] == entry["gate"]
    assert night("first")[1] == record
    assert len(log(tmp_path)) == 1


@pytest.mark.slow
def test_a_night_may_begin_with_the_champion(promoted, night, data, mnist, tmp_path, monkeypatch):
    """With the same one as well where it was killed once it had promoted another."""
    shard(data, "x", mnist.x_train[2000:2300], mnist.y_train[2000:2300])
    with monkeypatch.context() as killed:
        killed.setattr("job.nightly.records.Records.keep", lambda *_: 1 / 0)
        done, _ = night("second", "--init-weights", "champion")
        assert done.code == 70
    entry = log(tmp_path)[-1]
    assert (entry["night"], entry["from"]) == ("second", promoted["run"])
    done, record = night("second", "--init-weights", "champion")
    assert (done.code, record["verdict"]) == (0, "promoted")
    assert record["run"] == entry["to"]
    run = json.loads((tmp_path / f"runs/{record['run']}/metrics.json").read_bytes())
    assert run["init_weights"]["uri"] == str(tmp_path / "runs" / promoted["run"])
    assert record["config"]["init_weights"] == "champion"


def test_the_first_night_of_all_has_no_champion_to_begin_with(night, monkeypatch):
    monkeypatch.setattr("job.nightly.servable.check", lambda *_, **__: None)
    done, record = night("first", "--init-weights", "champion")
    assert (done.code, record["verdict"]) == (0, "promoted")


def test_a_damaged_champion_is_no_fault_of_the_data(promoted, night, data, tmp_path, mnist):
    weights = tmp_path / f"runs/{promoted['run']}/model_weights.h5"
    whole = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(whole[:-1])
    shard(data, "a", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    done, record = night("second")
    assert (done.code, record) == (65, {})
    assert "model_weights.h5" in done.err
    weights.write_bytes(whole)
    assert night("second")[0].code == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_nights_go_on_when_the_anchors_run_is_lost(
    promoted, night, command, data, tmp_path, mnist, how
):
    output = ("--output", tmp_path / "runs")
    shard(data, "a", mnist.x_train[1500:3000], mnist.y_train[1500:3000])
    better = night("second")[1]
    (data / "train-a.npz").unlink()
    assert command("promote", promoted["run"], *output, "--reason", "small").code == 0
    assert log(tmp_path)[-1]["anchor"]["run"] == better["run"]
    weights = tmp_path / f"runs/{better['run']}/model_weights.h5"
    weights.unlink()
    if how == "damaged":
        weights.write_bytes(b"nothing")
    done, _ = night("third", "--seed", "1")
    assert done.code == {"gone": 66, "damaged": 65}[how]
    assert f"the log of champions names {better['run']}" in done.err
    # What the message says: the champion is promoted by hand, and has another anchor beside it.
    assert command("promote", promoted["run"], *output, "--reason", "lost").code == 0
    assert log(tmp_path)[-1]["anchor"]["run"] == promoted["run"]
    assert log(tmp_path)[-1]["since"] == log(tmp_path)[-2]["since"]
    # Nobody is promoted by hand who is champion and has his anchor.
    assert command("promote", promoted["run"], *output, "--reason", "lost").code == 64
    assert night("third", "--seed", "1")[0].code == 0
    lost = command("rollback", "--to", "2", *output, "--reason", "why not")
    assert "by --to" in lost.err


@pytest.mark.slow
def test_a_rollback_finds_another_anchor_where_one_is_lost(
    promoted, night, command, data, tmp_path, mnist
):
    output = ("--output", tmp_path / "runs")
    shard(data, "a", mnist.x_train[1500:3000], mnist.y_train[1500:3000])
    lost = night("second")[1]["run"]
    assert command("promote", promoted["run"], *output, "--reason", "small").code == 0
    shard(data, "b", mnist.x_train[3000:4500], mnist.y_train[3000:4500])
    assert night("third")[1]["verdict"] == "promoted"
    (tmp_path / f"runs/{lost}/model_weights.h5").unlink()
    assert command("rollback", "--to", "3", *output, "--reason", "fails").code == 0
    assert log(tmp_path)[-1]["champion"]["run"] == promoted["run"]
    assert log(tmp_path)[-1]["anchor"]["run"] == promoted["run"]


@pytest.mark.slow
def test_a_source_is_the_same_however_it_is_written(
    promoted, night, command, data, tmp_path, mnist, monkeypatch
):
    del promoted
    shard(data, "a", mnist.x_train[1500:3000], mnist.y_train[1500:3000])
    assert night("second")[0].code == 0
    shard(data, "a", mnist.x_train[1500:2900], mnist.y_train[1500:2900])
    monkeypatch.chdir(tmp_path)
    for text in (f"{data}/", f"file://{data}", "data"):
        done = command("retrain", "--data", text, "--output", tmp_path / "runs", *FLAGS)
        assert done.code == 65
        assert "--accept-changed-shards" in done.err


def test_a_reason_takes_one_line_and_moves_no_cursor(promoted, command, tmp_path):
    del promoted
    words = ("--output", tmp_path / "runs")
    assert command("hold", *words, "--reason", "two\nlines \x1b[31m").code == 0
    shown = command("champion", *words).out
    assert "held       two lines \\x1b[31m\n" in shown
    assert "\x1b" not in shown
    assert "\nlines" not in shown


@pytest.mark.slow
def test_a_test_shard_that_was_copied_from_training_is_what_is_left_out(
    promoted, night, data, mnist
):
    del promoted
    shard(data, "a", mnist.x_train[1500:3000], mnist.y_train[1500:3000])
    assert night("second")[0].code == 0
    rows = slice(1300, 1600)  # of the base, and of the shard that was there
    np.savez(data / "test-b.npz", x_test=mnist.x_train[rows], y_test=mnist.y_train[rows])
    assert night("third")[0].code == 65
    done, record = night("fourth", "--skip-bad-shards")
    assert done.code == 0, done.err
    assert list(record["skipped"]) == ["test-b.npz"]
    # One to train on that was copied from what tests is left out itself.
    (data / "test-b.npz").unlink()
    shard(data, "c", mnist.x_test[:100], mnist.y_test[:100])
    assert list(night("fifth", "--skip-bad-shards")[1]["skipped"]) == ["train-c.npz"]
