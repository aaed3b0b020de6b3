"""Single nights, as a person or a CronJob starts them: what each comes to, and what it leaves."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import schema

FLAGS = ("--epochs", "2", "--batch-size", "64", "--gate-minimum", "0.5", "--log", "json")


@pytest.fixture
def data(mnist, tmp_path):
    """Return a folder with a base set of 1,500 and 500 images."""
    folder = tmp_path / "data"
    folder.mkdir()
    train = {"x_train": mnist.x_train[:1500], "y_train": mnist.y_train[:1500]}
    np.savez(folder / "base.npz", **train, x_test=mnist.x_test[:500], y_test=mnist.y_test[:500])
    return folder


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


@pytest.fixture
def promoted(night, monkeypatch):
    """Let a first night happen, whose model is the champion; plain Keras is asked elsewhere."""
    monkeypatch.setattr("job.nightly.servable.check", lambda *_, **__: None)
    done, record = night("first")
    assert done.code == 0, done.err
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
    assert "night first" in record["why"]
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
    again, same = night("second")
    assert (again.code, same) == (65, record)
    third, other = night("third")  # nothing has changed, and that is no reason to be silent
    assert (third.code, other["verdict"]) == (65, "bad_data")


def test_a_flag_that_does_not_fit_the_data_ends_the_night(night):
    done, record = night("first", "--batch-size", "1501")
    assert (done.code, record["verdict"], record["exit_code"]) == (64, "failed", 64)
    assert night("first", "--batch-size", "1501")[0].code == 64


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


def test_bad_shards_can_be_left_out_loudly(promoted, night, data, mnist):
    del promoted
    shard(data, "good", mnist.x_train[1500:2000], mnist.y_train[1500:2000])
    shard(data, "flipped", mnist.x_train[2000:2500], 9 - mnist.y_train[2000:2500])
    (data / "train-half.npz").write_bytes(b"PK half")
    done, record = night("second", "--skip-bad-shards")
    assert done.code == 0, done.err
    assert set(record["skipped"]) == {"train-flipped.npz", "train-half.npz"}
    assert [each["name"] for each in record["data"]["shards"]] == ["train-good.npz"]
    assert done.out.count('"shard_skipped"') >= 2


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
    monkeypatch.setattr("job.nightly.servable.check", lambda *_, **__: "it gives other numbers")
    _, record = night("first")
    assert record["verdict"] == "refused"
    assert "it gives other numbers" in record["why"]
    assert not (tmp_path / "runs/champion").exists()


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


FINDING = {"shard": "s", "what": "leak", "value": 1, "bound": 0, "sentence": "s", "digests": []}
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
