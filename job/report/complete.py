"""The page of a complete run."""

import shlex
from collections.abc import Mapping
from typing import Any

from job.report import galleries, origins, scores, sprites
from job.report.material import Complete
from job.report.origins import dictionary, moment
from job.report.page import Parts, count, digits_of, percent, render, seconds, short, size

_COLUMNS = 16  # of weights


def page_of(run: Complete) -> bytes:
    """Return the page of a complete run."""
    metrics, parts = run.metrics, Parts()
    parts.missing += run.missing
    test, train, config = (dictionary(metrics.get(name)) for name in ("test", "train", "config"))
    history = train.get("history", [])
    return render(
        "run.html",
        name=run.name,
        headline=parts.of("Accuracy", lambda: _headline(test)),
        facts=parts.of("What it is", lambda: _facts(metrics)) or [],
        curves=parts.of("Curves", lambda: scores.curves(history)),
        members=parts.of("Members", lambda: _members(metrics)),
        confusion=parts.of("Confusion matrix", lambda: scores.confusion(test)),
        classes=parts.of("Class by class", lambda: scores.classes(test)),
        **_pictures(run, parts),
        reliability=(
            None
            if (predictions := run.predictions) is None
            else parts.of("Reliability", lambda: scores.reliability(predictions))
        ),
        calibration=parts.of(
            "Calibration error", lambda: percent(test["expected_calibration_error"])
        ),
        weights=parts.of("Weights of the first layer", lambda: _weights(run)),
        times=parts.of("Where the time went", lambda: scores.times(metrics["timing"])),
        times_told=_times_told(metrics),
        data_facts=parts.of("What the data are", lambda: _data_facts(metrics)) or [],
        command=parts.of("Command", lambda: origins.command(config)),
        command_told=_command_told(metrics),
        proof=_proof(run.name, metrics),
        config=parts.of("Config", lambda: origins.config(config)),
        digest=metrics.get("config_sha256"),
        attempts=parts.of("Attempts", lambda: _attempts_of_metrics(run)),
        earlier=0,
        files=parts.of("Files", lambda: _files(metrics)),
        missing=parts.missing,
    )


def _headline(test: Mapping[str, Any]) -> dict[str, Any]:
    examples, correct = int(test["examples"]), int(test["correct"])
    low, high = test["accuracy_interval_95"]
    digits = digits_of(examples)
    return {
        "accuracy": percent(correct / examples, digits),
        "low": percent(low, digits),
        "high": percent(high, digits),
        "examples": examples,
        "mistakes": examples - correct,
    }


def _facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, test, train, timing = (metrics[name] for name in ("model", "test", "train", "timing"))
    nets = f"{model['ensemble']} x " if "ensemble" in model else ""
    asked = metrics["config"]["epochs"]
    epochs = count(train["epochs"])
    if train["epochs"] < asked and "ensemble" not in model:
        epochs += f" of {count(asked)}, stopped early"
    return [
        ("Model", f"{nets}{model['name']}, {count(model['parameters'])} parameters"),
        ("Test loss", f"{float(test['loss']):.4f} nats"),
        ("Calibration error", percent(test["expected_calibration_error"])),
        ("Epochs", f"{epochs}, {count(train['steps'])} steps"),
        ("Start to published", seconds(timing["total_seconds"])),
        ("Training", f"{seconds(timing['train_seconds'])}, {_speed(timing)}"),
        ("Began (UTC)", moment(metrics["started"])),
        ("Attempts", count(metrics["attempts"])),
        ("Data", str(metrics["data"]["uri"])),
        ("On", origins.machine(metrics["environment"])),
        *_begun_with(metrics),
    ]


def _speed(timing: Mapping[str, Any]) -> str:
    return f"{float(timing['images_per_second']):,.0f} images/s"


def _begun_with(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    origin = metrics.get("init_weights")
    if not isinstance(origin, dict):
        return []
    digest = "digest unknown" if origin["sha256"] is None else short(origin["sha256"])
    return [("Began with", f"{origin['uri']} ({digest})")]


def _members(metrics: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    if "members" not in metrics:
        return None
    digits = digits_of(int(metrics["test"]["examples"]))
    return [
        {
            "run": str(member["run"]),
            "seed": int(member["seed"]),
            "accuracy": percent(member["accuracy"], digits),
        }
        for member in metrics["members"]
    ]


def _pictures(run: Complete, parts: Parts) -> dict[str, Any]:
    """Return what of the page shows images of the data set, and the sheet that they are on."""
    predictions, dataset, wall = run.predictions, run.dataset, galleries.Wall()
    mistakes = close_calls = data = None
    if dataset is not None and predictions is not None:
        mistakes = parts.of("Mistakes", lambda: galleries.mistakes(predictions, dataset, wall))
        close_calls = parts.of(
            "Close calls", lambda: galleries.close_calls(predictions, dataset, wall)
        )
    if dataset is not None:
        data = parts.of("Classes of the data", lambda: galleries.data(dataset, wall))
    return {
        "mistakes": mistakes,
        "close_calls": close_calls,
        "doubted": any(tile.doubt for tile in mistakes or ()),
        "data": data,
        "sheet": parts.of("Pictures", wall.sheet),
    }


def _weights(run: Complete) -> dict[str, Any] | None:
    if run.kernel is None:
        return None
    shape = tuple(map(int, run.metrics["data"]["image_shape"]))
    units = run.kernel.shape[1]
    picture = sprites.weights(run.kernel, shape, min(_COLUMNS, units))
    return {
        "uri": picture.uri,
        "width": 2 * picture.width,
        "height": 2 * picture.height,
        "units": units,
    }


def _times_told(metrics: Mapping[str, Any]) -> str:
    attempts = metrics.get("attempts", 1)
    of = "the attempt that completed the run" if attempts != 1 else "the run"
    return f"The time of {of}, from the start of the process to just before metrics.json"


def _data_facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    data = metrics["data"]
    facts = [
        ("Training images", count(data["train_examples"])),
        ("Test images", count(data["test_examples"])),
        ("Shape", " x ".join(str(int(side)) for side in data["image_shape"])),
        ("Classes", count(data["classes"])),
        ("Fingerprint", short(data["fingerprint"])),
    ]
    if share := metrics["config"].get("validation"):
        facts.append(("Held out of training", percent(share, 1)))
    if shards := data.get("shards"):
        facts.append(("Shards", count(len(shards))))
    if skipped := data.get("skipped"):
        names = ", ".join(str(each["name"]) for each in skipped)
        facts.append(("Shards left out", names))
    return facts


def _command_told(metrics: Mapping[str, Any]) -> str:
    told = (
        "Trains the same weights as a run of its own: to the bit on such a processor with as many "
        "threads and these versions"
    )
    shards = dictionary(metrics.get("data")).get("shards")
    return f"{told}, as long as the same shards lie there." if shards else f"{told}."


def _proof(name: str, metrics: Mapping[str, Any]) -> str | None:
    """Return the command that trains the run again and compares the bytes, where there is one."""
    workers = dictionary(metrics.get("environment")).get("workers")
    return shlex.join([origins.PROGRAM, "verify", name]) if workers == 1 else None


def _attempts_of_metrics(run: Complete) -> list[dict[str, Any]]:
    metrics = run.metrics
    last = int(metrics["attempts"])
    ends = {number: origins.ending(end) for number, end in run.ends.items()} | {last: "complete"}
    records = metrics["attempt_records"]
    return origins.attempts(records, ends)


def _files(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "path": str(each["path"]),
            "size": size(each["size"]),
            "sha256": short(each["sha256"]),
        }
        for each in metrics["artifacts"]
    ]
