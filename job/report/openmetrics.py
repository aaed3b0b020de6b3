"""What a run or a night came to, as OpenMetrics text: `metrics.prom`, and what is pushed.

    <output>/<run>/metrics.prom        made of metrics.json, after it
    <output>/nights/<night>.prom       made of the night's record, after it

All are gauges, also what OpenMetrics has types of its own for (info, state set): so the same file
is read by OpenMetrics' parsers and by those of Prometheus' older text, which the textfile collector
of node_exporter has and which knows no other types. The same document gives the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from job import storage
from job.errors import JobError, StoppedError, in_one_line
from job.process.progress import Progress
from job.storage import Place

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

PREFIX = "mnist_job_"
VERDICTS = (
    *("promoted", "refused", "awaiting", "held", "unchanged", "barred", "bad_data", "failed"),
)
"""All that a night can come to: see `job/assets/night.schema.json`."""
_MOST_SIGNS = 256  # of a label's value
_MEBIBYTE = 1024 * 1024

# Name without prefix: its unit, and what it is.
METRICS = {
    "run_info": ("", "Which run this is and what made it; always 1."),
    "run_attempts": ("", "How many times a process began the run."),
    "run_duration_seconds": ("seconds", "Life of the process that completed the run."),
    "run_cpu_seconds": ("seconds", "CPU time of that process."),
    "run_peak_memory_bytes": ("bytes", "The most memory that it had."),
    "stage_duration_seconds": ("seconds", "What each stage of the run's last attempt took."),
    "train_epochs": ("", "Passes over the training set."),
    "train_images_per_second": ("", "Images trained on in a second, median over the epochs."),
    "test_images": ("", "Images of the test set, all of which were scored."),
    "test_accuracy_ratio": ("ratio", "Share of the test images that were classified rightly."),
    "test_accuracy_bound_ratio": ("ratio", "Ends of the accuracy's 95 % interval (Wilson)."),
    "test_loss_nats": ("nats", "Mean cross-entropy on the test images."),
    "test_calibration_error_ratio": ("ratio", "Expected calibration error on the test images."),
    "night_info": ("", "Which night this was, and the run that it trained; always 1."),
    "night_verdict": ("", "What the night came to: 1 for that verdict, 0 for the others."),
    "night_duration_seconds": ("seconds", "From the night's beginning to its end."),
    "champion_info": ("", "Which model is the champion; always 1."),
    "champion_accuracy_ratio": ("ratio", "Its accuracy on the test set it was last judged on."),
    "champion_since_timestamp_seconds": ("seconds", "When it became champion, as Unix time."),
    "champion_age_seconds": ("seconds", "Its age when the night ended."),
    "champion_stale": ("", "Whether that was more than --stale-after."),
    "champion_held": ("", "Whether promotions are held."),
    "exit_code": ("", "Of the command that ended last; 0 is success."),
    "last_completion_timestamp_seconds": ("seconds", "When it ended, as Unix time."),
    "last_success_timestamp_seconds": ("seconds", "When one ended with 0, as Unix time."),
}


@dataclass(frozen=True)
class Gauge:
    """A value of one metric, with its labels."""

    name: str
    """As `METRICS` has it."""
    value: float
    labels: tuple[tuple[str, str], ...] = ()


Gauges = Sequence[Gauge]


def of_run(document: Mapping[str, Any]) -> list[Gauge]:
    """Return what the metrics `document` of a complete run tell; what is missing is left out.

    Args:
        document: of `metrics.json`, which may be anybody's file.
    """
    test, timing = _part(document, "test"), _part(document, "timing")
    environment, resources = _part(document, "environment"), _part(document, "resources")
    info = {
        "run_id": document.get("run_id"),
        "model": _part(document, "model").get("name"),
        "config_sha256": document.get("config_sha256"),
        "data_fingerprint": _part(document, "data").get("fingerprint"),
        "weights_sha256": _sha256_of(document, "model_weights.h5"),
        **{
            name: environment.get(name)
            for name in ("job_version", "git_commit", "python", "tensorflow", "keras")
        },
    }
    # One who published before it was told apart can only name the time of all attempts.
    train_seconds = timing.get("attempt_train_seconds", timing.get("train_seconds"))
    stages = {
        **{name: timing.get(f"{name}_seconds") for name in ("import", "load", "compile")},
        "train": train_seconds,
        **{name: timing.get(f"{name}_seconds") for name in ("evaluate", "publish")},
    }
    bounds = test.get("accuracy_interval_95")
    low, high = bounds if isinstance(bounds, list | tuple) and len(bounds) == 2 else (None, None)
    peak = _number(resources.get("peak_memory_mib"))
    ended = _ended_at(document, stages)
    return [
        _info("run_info", info),
        *_known(
            ("run_attempts", document.get("attempts")),
            ("run_duration_seconds", timing.get("total_seconds")),
            ("run_cpu_seconds", resources.get("cpu_seconds")),
            ("run_peak_memory_bytes", None if peak is None else peak * _MEBIBYTE),
        ),
        *_labelled("stage_duration_seconds", "stage", stages),
        *_known(
            ("train_epochs", _part(document, "train").get("epochs")),
            ("train_images_per_second", timing.get("images_per_second")),
            ("test_images", test.get("examples")),
            ("test_accuracy_ratio", test.get("accuracy")),
        ),
        *_labelled("test_accuracy_bound_ratio", "bound", {"lower": low, "upper": high}),
        *_known(
            ("test_loss_nats", test.get("loss")),
            ("test_calibration_error_ratio", test.get("expected_calibration_error")),
            ("last_success_timestamp_seconds", ended),
        ),
    ]


def of_night(record: Mapping[str, Any]) -> list[Gauge]:
    """Return what the record of a night tells, or what is told of one that left none."""
    verdict, began, ended = record.get("verdict"), _time(record, "began"), _time(record, "ended")
    info = {"night": record.get("night"), "run": record.get("run")}
    told = [
        _info("night_info", info),
        *_labelled("night_verdict", "verdict", {each: each == verdict for each in VERDICTS}),
        *_known(
            (
                "night_duration_seconds",
                None if began is None or ended is None else max(0.0, ended - began),
            )
        ),
    ]
    champion = _part(record, "champion")
    if champion:
        names = ("number", "run", "weights_sha256")
        told += [
            _info("champion_info", {name: champion.get(name) for name in names}),
            *_known(
                ("champion_accuracy_ratio", champion.get("accuracy")),
                ("champion_since_timestamp_seconds", _time(champion, "since")),
                ("champion_age_seconds", champion.get("age_seconds")),
                ("champion_stale", champion.get("stale") is True),
                ("champion_held", champion.get("held") is not None),
            ),
        ]
    if ended is not None:
        told += of_end(record.get("exit_code"), ended)
    return told


def of_end(code: Any, at: float) -> list[Gauge]:
    """Return what a command tells that ended with the exit code `code`, `at` as Unix time."""
    success = _known(("last_success_timestamp_seconds", at)) if code == 0 else []
    return [
        *_known(("exit_code", code), ("last_completion_timestamp_seconds", at)),
        *success,
    ]


def text(gauges: Gauges) -> bytes:
    """Return `gauges` as OpenMetrics text; the first of two that are the same metric counts."""
    from prometheus_client.openmetrics import exposition  # noqa: PLC0415

    content: bytes = exposition.generate_latest(Collected(gauges))  # type: ignore[no-untyped-call]
    return content


class Collected:
    """Gauges in the form that prometheus_client asks for."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = {(gauge.name, gauge.labels): gauge for gauge in reversed(gauges)}

    def collect(self) -> "list[GaugeMetricFamily]":
        """Return a family for each metric that has a value, in the order of `METRICS`."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

        families = []
        for name, (unit, told) in METRICS.items():
            found = sorted(
                (gauge for gauge in self._gauges.values() if gauge.name == name),
                key=lambda gauge: gauge.labels,
            )
            if found:
                family = GaugeMetricFamily(PREFIX + name, told, unit=unit)
                for gauge in found:
                    family.add_sample(PREFIX + name, dict(gauge.labels), gauge.value)
                families.append(family)
        return families


def write(place: Place, gauges: Gauges, progress: Progress) -> None:
    """Write `gauges` to `place`, unless something lies there; a failure is one warning.

    What they are of is published all the same, and stays so.

    Raises:
        StoppedError: the job was asked to stop meanwhile.
    """
    try:
        if not storage.exists(place):  # a newer version of the job may say it in other words
            storage.create(place, text(gauges))
    except StoppedError:
        raise
    except JobError as error:
        progress.event("metrics_not_exposed", uri=str(place), reason=str(error))


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = document.get(name)
    return part if isinstance(part, Mapping) else {}


def _sha256_of(document: Mapping[str, Any], path: str) -> Any:
    """Return the digest that metrics name an artifact with."""
    artifacts = document.get("artifacts")
    for artifact in artifacts if isinstance(artifacts, list) else []:
        if isinstance(artifact, Mapping) and artifact.get("path") == path:
            return artifact.get("sha256")
    return None


def _number(value: Any) -> float | None:
    """Return a finite number, else None; false and true are 0 and 1."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _known(*values: tuple[str, Any]) -> list[Gauge]:
    """Return a gauge for each (name, value) whose value is a number."""
    numbers = [(name, _number(value)) for name, value in values]
    return [Gauge(name, number) for name, number in numbers if number is not None]


def _labelled(name: str, label: str, values: Mapping[str, Any]) -> list[Gauge]:
    """Return a gauge for each value that is a number, its key in the label `label`."""
    numbers = {key: _number(value) for key, value in values.items()}
    return [
        Gauge(name, number, ((label, key),))
        for key, number in numbers.items()
        if number is not None
    ]


def _info(name: str, labels: Mapping[str, Any]) -> Gauge:
    """Return a gauge of 1 with all labels that have a value, each in one printable line."""
    written = {
        label: in_one_line(str(value))[:_MOST_SIGNS]
        for label, value in labels.items()
        if isinstance(value, str | int | float)
    }
    return Gauge(name, 1.0, tuple(written.items()))


def _time(document: Mapping[str, Any], name: str) -> float | None:
    """Return the Unix time of a text such as 2026-11-22T09:45:12+00:00, None of anything else."""
    try:
        time = datetime.fromisoformat(str(document.get(name)))
        return None if time.tzinfo is None else time.timestamp()
    except (ValueError, OverflowError):
        return None


def _ended_at(document: Mapping[str, Any], stages: Mapping[str, Any]) -> float | None:
    """Return when the run was complete, by what its last attempt took from its record on."""
    began = _time(document, "started")  # after the import
    after = [_number(seconds) for stage, seconds in stages.items() if stage != "import"]
    return None if began is None else began + sum(filter(None, after))
