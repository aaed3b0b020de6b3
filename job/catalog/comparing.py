"""Two runs side by side: what differs in them, and whether one is better than the other.

On one test set both have classified the same images, so they are compared image by image: only
those that one has right and the other wrong tell them apart. Where neither is better each of these
falls as a coin does, so the test is a coin's (McNemar, 1947, in its exact, two-sided form).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from job.catalog.documents import at, count_at, number_at, text_at
from job.catalog.listing import preset_of
from job.errors import DataError, MissingInputError, in_one_line
from job.results import publishing
from job.results.predictions import Predictions
from job.results.publishing import RunFolder
from job.results.statistics import coin_tail, least_caught, wilson_interval
from job.storage import Place

ALPHA = 0.05  # how often the test finds a difference where there is none
NAMES = ("a", "b")
_OF_A_POD = ("job", "pod", "node")  # other ones each time: they say nothing of the result
_LONGEST = 60  # signs of a value in the table
_MOST_LABELS = 5  # told of those where the two differ most


@dataclass(frozen=True)
class Side:
    """One of two complete runs."""

    place: Place
    metrics: dict[str, Any]
    correct: int
    examples: int

    @classmethod
    def read(cls, place: Place) -> "Side":
        """Read the metrics of the run at `place`.

        Raises:
            MissingInputError: there is no complete run.
            DataError: its metrics hold no score.
        """
        folder = RunFolder(place)
        try:
            metrics = publishing.read_json(folder.metrics)
        except MissingInputError as error:
            raise MissingInputError(
                f"{place} is no complete run ({error}): only such ones can be compared; see them "
                "by mnist-job runs"
            ) from error
        correct = count_at(metrics, "test", "correct")
        examples = count_at(metrics, "test", "examples")
        if correct is None or not examples or correct > examples:
            raise DataError(f"{folder.metrics} holds no score: this job didn't write it")
        return cls(place, metrics, correct, examples)

    @property
    def test_set(self) -> str | None:
        """What tells its test set from others; None in metrics of before that was told."""
        return text_at(self.metrics, "data", "test_fingerprint")


@dataclass(frozen=True)
class Paired:
    """How two models did on the same images."""

    both_right: int
    only_a: int
    """Images that only the first has right."""
    only_b: int
    both_wrong: int
    by_label: tuple[tuple[int, int, int], ...]
    """Label, images of it that only the first has right, and those that only the second has."""

    @classmethod
    def of(cls, a: Predictions, b: Predictions) -> "Paired":
        """Count, by the predictions of both for images with the same labels."""
        right_a, right_b = a.predicted == a.labels, b.predicted == b.labels
        only_a, only_b = right_a & ~right_b, right_b & ~right_a
        classes = int(a.labels.max()) + 1
        counts = (np.bincount(a.labels[only], minlength=classes) for only in (only_a, only_b))
        return cls(
            both_right=int((right_a & right_b).sum()),
            only_a=int(only_a.sum()),
            only_b=int(only_b.sum()),
            both_wrong=int((~right_a & ~right_b).sum()),
            by_label=tuple(
                (label, int(one), int(other))
                for label, (one, other) in enumerate(zip(*counts, strict=True))
            ),
        )

    @property
    def examples(self) -> int:
        """Test images."""
        return self.both_right + self.only_a + self.only_b + self.both_wrong

    @property
    def p(self) -> float:
        """How probable so uneven a split of the images that differ is where neither is better."""
        larger, pairs = max(self.only_a, self.only_b), self.only_a + self.only_b
        return min(1.0, 2 * coin_tail(larger, pairs))

    @property
    def least_difference(self) -> int:
        """The least net gain, in images, that the test would have seen, as many differing."""
        return least_caught(self.only_a + self.only_b, ALPHA / 2)


def unpaired(a: Side, b: Side) -> str | None:
    """Return why the scores of two runs can't be compared image by image; None if they can."""
    if a.test_set is None or b.test_set is None:
        lacking = a if a.test_set is None else b
        return f"{lacking.place} doesn't tell its test set: it was made by an older version"
    if a.test_set != b.test_set:
        return "they were scored on different test sets"
    return None


def paired(a: Predictions, b: Predictions) -> Paired:
    """Return how two models did on the same test set.

    Raises:
        DataError: these are predictions for other images.
    """
    if not np.array_equal(a.labels, b.labels) or not len(a.labels):
        raise DataError(
            f"predictions for {len(a.labels):,} and {len(b.labels):,} images do not belong to one "
            "test set, though the metrics of both runs say so: one was changed; train it again"
        )
    return Paired.of(a, b)


def document(a: Side, b: Side, found: Paired | None, why_not: str | None) -> dict[str, Any]:
    """Return the comparison as JSON has it.

    Args:
        a: the first run.
        b: the second.
        found: how both did image by image; None where that isn't known.
        why_not: the reason for that.
    """
    return {
        "runs": [_scores(side) for side in (a, b)],
        "config": _differing(_part(a, "config"), _part(b, "config")),
        "data": _differing(_data(a), _data(b)),
        "same_test_set": None if None in {a.test_set, b.test_set} else a.test_set == b.test_set,
        "environment": _differing(_environment(a), _environment(b)),
        "paired": None if found is None else _paired_document(found),
        "not_paired": why_not,
    }


def table(told: Mapping[str, Any]) -> str:
    """Return a comparison, by `document`, for people."""
    runs = told["runs"]
    lines = [f"{name}  {in_one_line(run['uri'])}" for name, run in zip(NAMES, runs, strict=True)]
    rows = [("", *NAMES), *_score_rows(runs)]
    for part in ("config", "data", "environment"):
        differing = told[part]
        if not differing:
            rows.append((f"{part}: the same", "", ""))
            continue
        rows.append((part, "", ""))
        rows += [(f"  {_shown(name)}", _shown(a), _shown(b)) for name, (a, b) in differing.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines += ["", *(_aligned(row, widths) for row in rows), ""]
    if told["paired"] is None:
        lines.append(f"No test: {in_one_line(told['not_paired'])}.")
    else:
        lines += _sentences(told["paired"])
    return "\n".join(lines)


def _part(side: Side, name: str) -> dict[str, Any]:
    found = at(side.metrics, name)
    return found if isinstance(found, dict) else {}


def _data(side: Side) -> dict[str, Any]:
    """Return what data a run had; of its files only how many, which the fingerprint tells apart."""
    data = _part(side, "data")
    names = ("uri", "fingerprint", "test_fingerprint", "train_examples", "test_examples")
    told = {name: data.get(name) for name in (*names, "image_shape", "classes")}
    shards = data.get("shards")
    return told | {"shards": len(shards) if isinstance(shards, list) else None}


def _environment(side: Side) -> dict[str, Any]:
    found = _part(side, "environment")
    return {name: value for name, value in found.items() if name not in _OF_A_POD}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return [value of a, value of b] of all that differs; None of what one doesn't have."""
    names = dict.fromkeys([*a, *b])
    return {name: [a.get(name), b.get(name)] for name in names if a.get(name) != b.get(name)}


def _scores(side: Side) -> dict[str, Any]:
    metrics = side.metrics
    return {
        "run": text_at(metrics, "run_id"),
        "uri": str(side.place),
        "model": text_at(metrics, "config", "model"),
        "ensemble": count_at(metrics, "config", "ensemble"),
        "preset": preset_of(at(metrics, "config")),
        "accuracy": side.correct / side.examples,
        "accuracy_interval_95": wilson_interval(side.correct, side.examples),
        "correct": side.correct,
        "examples": side.examples,
        "loss": number_at(metrics, "test", "loss"),
        "expected_calibration_error": number_at(metrics, "test", "expected_calibration_error"),
        "parameters": count_at(metrics, "model", "parameters"),
        "total_seconds": number_at(metrics, "timing", "total_seconds"),
        "train_seconds": number_at(metrics, "timing", "train_seconds"),
        "images_per_second": number_at(metrics, "timing", "images_per_second"),
    }


def _paired_document(found: Paired) -> dict[str, Any]:
    least = found.least_difference
    return {
        "examples": found.examples,
        "both_right": found.both_right,
        "only_a_right": found.only_a,
        "only_b_right": found.only_b,
        "both_wrong": found.both_wrong,
        "difference": (found.only_b - found.only_a) / found.examples,
        "p": found.p,
        "alpha": ALPHA,
        "significant": found.p <= ALPHA,
        "least_images": least,
        "least_difference": least / found.examples,
        "classes": [
            {"label": label, "only_a_right": one, "only_b_right": other}
            for label, one, other in found.by_label
        ],
    }


def _score_rows(runs: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    forms = {
        "accuracy": "{:.2%}",
        "correct": "{:,}",
        "examples": "{:,}",
        "loss": "{:.4f}",
        "expected_calibration_error": "{:.4f}",
        "parameters": "{:,}",
        "total_seconds": "{:,.1f}",
        "train_seconds": "{:,.1f}",
        "images_per_second": "{:,.0f}",
    }
    rows = []
    for name, form in forms.items():
        one, other = ("-" if run[name] is None else form.format(run[name]) for run in runs)
        rows.append((name.replace("_", " "), one, other))
        if name == "accuracy":
            ends = [run["accuracy_interval_95"] for run in runs]
            one, other = (f"{100 * low:.2f} to {100 * high:.2f}" for low, high in ends)
            rows.append(("95 % interval", one, other))
    return rows


def _sentences(paired: Mapping[str, Any]) -> list[str]:
    """Say what the test found, and what it could have found."""
    a, b = paired["only_a_right"], paired["only_b_right"]
    lines = [
        (
            f"Of {paired['examples']:,} test images both have {paired['both_right']:,} right and "
            f"{paired['both_wrong']:,} wrong; only a has {a:,} right, only b {b:,}."
        )
    ]
    if paired["significant"]:
        better = NAMES[b > a]
        verdict = f"{better} is better than {NAMES[b <= a]}, by {abs(paired['difference']):.2%}"
    else:
        verdict = "no difference that this test can tell from chance"
    lines.append(f"{verdict[0].upper()}{verdict[1:]} (exact McNemar, two-sided, p = {_p(paired)}).")
    lines.append(
        f"It would have seen a difference of {paired['least_difference']:.2%}: {a + b:,} images "
        f"tell the two apart, and {paired['least_images']:,} more on one side are needed."
    )
    apart = [each for each in paired["classes"] if each["only_a_right"] + each["only_b_right"]]
    apart.sort(key=lambda each: -abs(each["only_a_right"] - each["only_b_right"]))
    if apart:
        told = ", ".join(
            f"{each['label']} ({each['only_a_right']} : {each['only_b_right']})"
            for each in apart[:_MOST_LABELS]
        )
        lines.append(f"Where they differ most, by label (only a : only b right): {told}.")
    return lines


def _p(paired: Mapping[str, Any]) -> str:
    return f"{paired['p']:.2g}"


def _shown(value: Any) -> str:
    """Return a value, which may be anybody's, in one short line; `-` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, list):
        value = " x ".join(map(str, value[:8])) if len(value) > 1 else next(iter(value), "-")
    line = in_one_line(str(value))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _aligned(row: tuple[str, str, str], widths: list[int]) -> str:
    name, a, b = row
    return f"{name:<{widths[0]}}  {a:>{widths[1]}}  {b:>{widths[2]}}".rstrip()
