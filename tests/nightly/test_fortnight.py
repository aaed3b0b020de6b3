"""A fortnight of nights on each kind of storage: what comes, what is refused, and what people do.

Each night is what a CronJob would start. Verdicts, exit codes, the log and the records must be,
after each of them, exactly what they should be.
"""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import schema

from job import storage
from job.storage import Place

pytestmark = [pytest.mark.slow, pytest.mark.longest]

FLAGS = ("--epochs", "3", "--batch-size", "64", "--gate-minimum", "0.5", "--log", "json")


@dataclass
class Calendar:
    """The nights of one output, over data that a test changes between them."""

    command: Any
    mnist: Any
    data: Place
    output: Place
    scratch: Path
    night: int = 0
    champions: list[str] = field(default_factory=list)
    """Run of each entry of the log, as it should be."""

    # Data.

    def shard(self, name: str, rows: slice, labels: Any = None, images: Any = None) -> None:
        """Put a shard of MNIST's images where the nights look."""
        x_train = self.mnist.x_train[rows] if images is None else images
        y_train = self.mnist.y_train[rows] if labels is None else labels
        self.put(f"train-{name}.npz", packed(x_train=x_train, y_train=y_train))

    def put(self, name: str, content: bytes) -> None:
        """Put a file there, over another: others may do what the job never does."""
        self.take_away(name)
        storage.create(self.data / name, content)

    def take_away(self, name: str) -> None:
        storage.remove(self.data / name)

    # Nights.

    def words(self, *more: str, name: str | None = None) -> list[str]:
        """Return the command of a night."""
        name = name or f"night-{self.night:02}"
        flags = ["--data", str(self.data), "--output", str(self.output), "--night", name]
        return ["retrain", *flags, *FLAGS, *more]

    def happens(self, verdict: str, *more: str, code: int = 0) -> dict[str, Any]:
        """Let the next night happen, and check all that it should have left."""
        self.night += 1
        finished = self.command(*self.words(*more))
        assert finished.code == code, finished.err
        record = self.record()
        assert (record["verdict"], record["exit_code"]) == (verdict, code), record["why"]
        grown = self.log()[len(self.champions) :]  # it may have been killed after it had promoted
        assert len(grown) == (verdict == "promoted")
        if grown:
            assert grown[0]["night"] == record["night"]
            assert grown[0]["to"] == record["run"]
            self.champions.append(record["run"])
        self.check()
        # The same night again is over, says so, and does nothing.
        again = self.command(*self.words(*more))
        assert again.code == code
        assert "night_over_already" in again.out
        assert self.record() == record
        self.check()
        return record

    def record(self, name: str | None = None) -> dict[str, Any]:
        place = self.output / f"nights/{name or f'night-{self.night:02}'}.json"
        record = json.loads(storage.read(place, 2**24))
        schema("night").validate(record)
        return record

    def log(self) -> list[dict[str, Any]]:
        names = storage.names(self.output / "champion")
        entries = [
            json.loads(storage.read(self.output / f"champion/{name}", 2**24)) for name in names
        ]
        assert names == [f"{number:06}.json" for number in range(1, len(entries) + 1)]
        for before, entry in zip([None, *entries], entries, strict=False):
            schema("champion").validate(entry)
            assert entry["from"] == (before and before["to"])
        return entries

    def check(self) -> None:
        """See that the log is what it should be, and that its champion is whole."""
        log = self.log()
        assert [entry["to"] for entry in log] == self.champions
        if log:
            published = json.loads(
                storage.read(self.output / f"{log[-1]['to']}/metrics.json", 2**24)
            )
            weights = {each["path"]: each["sha256"] for each in published["artifacts"]}
            assert weights["model_weights.h5"] == log[-1]["champion"]["weights_sha256"]

    def person(self, act: str, *words: str) -> None:
        """Let a person write in the log."""
        arguments = (*words, "--output", str(self.output), "--reason", f"{act} because")
        assert self.command(act, *arguments).code == 0

    def process(self, *more: str, name: str | None = None) -> "subprocess.Popen[bytes]":
        """Start a night in a process of its own."""
        words = [sys.executable, "-m", "job", *self.words(*more, name=name)]
        with (self.scratch / f"night-{self.night}-{name}.txt").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, env=dict(os.environ))


def packed(**arrays: Any) -> bytes:
    """Return an .npz of `arrays`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def fortnight(nights: Calendar) -> None:  # noqa: PLR0915  a story, in its order
    mnist = nights.mnist
    base = {"x_train": mnist.x_train[:3000], "y_train": mnist.y_train[:3000]}
    nights.put("base.npz", packed(**base, x_test=mnist.x_test[:2000], y_test=mnist.y_test[:2000]))

    # 1: the first champion. 2: nothing new.
    first = nights.happens("promoted")
    assert first["gate"]["champion"] is None
    second = nights.happens("unchanged")
    assert "night-01" in second["why"]

    # 3: twice the data make a better model.
    nights.shard("a", slice(3000, 8000))
    third = nights.happens("promoted")
    assert third["new"] == ["train-a.npz"]
    assert third["gate"]["newest"]["champion"]["examples"] > 300
    assert third["champion"]["stale"] is False

    # 4: a shard that is half written refuses the night by name; 5: mended, it is taken.
    whole = packed(x_train=mnist.x_train[8000:9000], y_train=mnist.y_train[8000:9000])
    nights.put("train-b.npz", whole[: len(whole) // 2])
    assert "train-b.npz" in nights.happens("bad_data", code=65)["why"]
    skipped = nights.happens(
        "promoted", "--skip-bad-shards", "--seed", "1", "--gate-alpha", "0.001"
    )
    assert list(skipped["skipped"]) == ["train-b.npz"]
    nights.put("train-b.npz", whole)
    nights.shard("b", slice(8000, 14000))

    # 6: labels that somebody flipped.
    nights.shard("c", slice(14000, 15000), labels=9 - mnist.y_train[14000:15000])
    flipped = nights.happens("bad_data", code=65)
    assert "train-c.npz" in flipped["why"]
    nights.take_away("train-c.npz")

    # 7: test images among the training data.
    leaked = np.concatenate([mnist.x_train[14000:14500], mnist.x_test[:5]])
    labels = np.concatenate([mnist.y_train[14000:14500], mnist.y_test[:5]])
    nights.shard("d", slice(0), images=leaked, labels=labels)
    assert "train-d.npz" in nights.happens("bad_data", code=65)["why"]
    nights.take_away("train-d.npz")

    # 8: a config that learns nearly nothing: the gate refuses, and the champion stays.
    worse = nights.happens("refused", "--learning-rate", "0.00002", "--gate-minimum", "0")
    assert worse["gate"]["passed"] is False
    assert "would have been caught" in worse["why"]

    # 9: killed at five random moments, then let go on.
    nights.shard("e", slice(14000, 20000))
    nights.night += 1
    draw = random.Random(9)
    for _ in range(5):
        night = nights.process()
        time.sleep(draw.uniform(0.5, 8))
        night.send_signal(signal.SIGKILL)
        night.wait()
    nights.night -= 1
    nights.happens("promoted")

    # 10: two at once, as when someone starts one by hand.
    nights.shard("f", slice(20000, 30000))
    nights.night += 1
    pair = [nights.process(name=name) for name in ("by-hand", "by-clock")]
    assert [each.wait(120) for each in pair] == [0, 0]
    records = [nights.record(name) for name in ("by-hand", "by-clock")]
    assert sorted(record["verdict"] for record in records) == ["promoted", "unchanged"]
    nights.champions.append(records[0].get("run") or records[1]["run"])
    nights.check()

    # 11: it is rolled back, and neither that night nor one that is forced brings it back.
    before = nights.champions[-2]
    nights.person("rollback")
    nights.champions.append(before)
    nights.happens("unchanged")
    nights.happens("barred", "--again")

    # 13: new data while promotions are held, and again after that.
    nights.shard("g", slice(30000, 40000))
    nights.person("hold")
    nights.champions.append(before)
    held = nights.happens("held")
    assert held["champion"]["held"] == "hold because"
    nights.happens("unchanged")
    nights.person("unhold")
    nights.champions.append(before)
    nights.happens("promoted")

    # 16: a shard that changed under its name.
    nights.shard("g", slice(30000, 39999))
    assert "train-g.npz" in nights.happens("bad_data", code=65)["why"]
    accepted = nights.happens("promoted", "--accept-changed-shards", "--promote", "no-worse")
    assert accepted["changed"] == ["train-g.npz"]

    # 18: by hand.
    nights.shard("h", slice(40000, 50000))
    waits = nights.happens("awaiting", "--promote", "manual")
    nights.person("promote", waits["run"])
    nights.champions.append(waits["run"])
    nights.check()
    last = nights.log()[-1]
    assert last["night"] is None
    assert last["why"] == "promote because"


def test_a_fortnight_on_this_machine(command, mnist, tmp_path):
    places = (Place.of(tmp_path / "data"), Place.of(tmp_path / "output"))
    fortnight(Calendar(command, mnist, *places, scratch=tmp_path))


def test_a_fortnight_in_a_store(command, mnist, place, tmp_path):
    fortnight(Calendar(command, mnist, place / "data", place / "output", scratch=tmp_path))
