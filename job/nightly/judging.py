"""Judging a challenger: it, the champion and the anchor on the same images, as things are now."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from job.data.card import Card
from job.data.source import Dataset
from job.errors import ConflictError
from job.nightly import champions, gate
from job.nightly.champions import Entry, Model
from job.nightly.contest import Contender
from job.nightly.desk import Desk
from job.nightly.records import SCHEMA_VERSION
from job.results import statistics

RECORDED_PROBABILITIES = 100  # images whose probabilities a stranger must find again
MOST_DISAGREEMENTS = 200  # images that are told of, for people to look at
_LONG = ("probabilities", "disagreements")  # which other records leave to the verdict's own file


@dataclass(frozen=True)
class Judged:
    """A verdict of the gate, and what it was made of."""

    verdict: gate.Verdict
    challenger: Model
    champion: Model | None
    anchor: Model | None
    """The better of champion and anchor of the log, on this test set."""
    scores: dict[str, Any]
    document: dict[str, Any]
    images: npt.NDArray[np.uint8]
    """The first test images: what a stranger must find the probabilities of again."""
    probabilities: npt.NDArray[np.float64]
    card: dict[str, Any]


def judge(desk: Desk, challenger: Contender, entry: Entry | None, dataset: Dataset) -> Judged:
    """Let challenger, champion and anchor classify the same images, and compare them in pairs."""
    output, beat = desk.output, desk.progress.beat
    champion = None if entry is None else Contender.of(output, entry.champion)
    anchor = champion
    if entry is not None and entry.anchor.weights_sha256 != entry.champion.weights_sha256:
        anchor = Contender.of(output, entry.anchor)
    newest = _newest(dataset, champion)
    probabilities = challenger.probabilities(dataset.x_test, beat)
    named = {"challenger": challenger, "champion": champion, "anchor": anchor}
    guesses = {"challenger": probabilities.argmax(axis=1)}
    differ = None
    fresh: dict[str, Any] = {}
    for name, contender in named.items():
        if contender is None:
            continue
        if name == "anchor" and anchor is champion:
            guesses[name] = guesses["champion"]
        elif name not in guesses:
            others = contender.probabilities(dataset.x_test, beat)
            guesses[name] = others.argmax(axis=1)
            if name == "champion":
                differ = disagreements(dataset.y_test, probabilities, others)
        if newest is not None:
            fresh[name] = _score(contender.classes(newest[0], beat), newest[1])
    models = {
        name: _judged_on(dataset, contender.model, guesses[name])
        for name, contender in named.items()
        if contender is not None
    }
    # On another test set than before the champion may be the better of the two.
    if "anchor" in models and models["champion"].test_correct > models["anchor"].test_correct:
        models["anchor"], guesses["anchor"] = models["champion"], guesses["champion"]
    rules, apart = desk.plan.rules, models.get("anchor") != models.get("champion")
    verdict = gate.judge(
        dataset.y_test,
        guesses["challenger"],
        guesses.get("champion"),
        guesses.get("anchor") if apart else None,  # nobody is to lose to the same model twice
        rules,
        dataset.classes,
    )
    recorded = probabilities[:RECORDED_PROBABILITIES]
    document = {
        **{name: asdict(models[name]) if name in models else None for name in named},
        "settings": asdict(rules),
        **verdict.document,
        "newest": fresh or None,
        "probabilities": recorded.tolist(),
        "disagreements": differ,
    }
    return Judged(
        verdict=verdict,
        challenger=models["challenger"],
        champion=models.get("champion"),
        anchor=models.get("anchor"),
        scores={
            "test_fingerprint": dataset.test_fingerprint,
            "test": verdict.document["scores"],
            "newest": fresh or None,
        },
        document=document,
        images=dataset.x_test[:RECORDED_PROBABILITIES],
        probabilities=recorded,
        card=Card.of(dataset.x_train, dataset.y_train, dataset.classes).document(),
    )


def disagreements(
    labels: npt.NDArray[np.int32],
    challenger: npt.NDArray[np.float64],
    champion: npt.NDArray[np.float64],
) -> dict[str, Any]:
    """Return the images that two models call differently, for people to look at.

    Those come first of which the one that is wrong is surest, and last those of which both are.

    Args:
        labels: shape (images,).
        challenger: its probabilities, shape (images, classes).
        champion: the champion's.
    """
    guesses = {"challenger": challenger.argmax(axis=1), "champion": champion.argmax(axis=1)}
    sure = {"challenger": challenger.max(axis=1), "champion": champion.max(axis=1)}
    lost = guesses["champion"] == labels
    decides = lost | (guesses["challenger"] == labels)
    wrong = np.where(lost, sure["challenger"], sure["champion"])
    differ = np.flatnonzero(guesses["challenger"] != guesses["champion"])
    order = differ[np.lexsort((-wrong[differ], ~decides[differ]))]
    return {
        "count": len(differ),
        "images": [
            {
                "index": int(index),
                "label": int(labels[index]),
                **{
                    name: {
                        "predicted": int(guesses[name][index]),
                        "confidence": float(sure[name][index]),
                    }
                    for name in guesses
                },
            }
            for index in order[:MOST_DISAGREEMENTS]
        ],
    }


def _newest(
    dataset: Dataset, champion: Contender | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]] | None:
    """Return the images kept from training of all shards that the champion didn't have."""
    had = set()
    if champion is not None:
        listed = champion.metrics.get("data", {}).get("shards") or []
        had = {(each.get("name"), each.get("sha256")) for each in listed}
    names = [
        shard.name
        for shard in dataset.shards
        if shard.name in dataset.held_out and (shard.name, shard.sha256) not in had
    ]
    kept = [dataset.held_out[name] for name in names if len(dataset.held_out[name][1])]
    if not kept:
        return None
    images, labels = zip(*kept, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _score(guess: npt.NDArray[np.int64], labels: npt.NDArray[np.int32]) -> dict[str, Any]:
    correct = int((guess == labels).sum())
    return {
        "examples": len(labels),
        "correct": correct,
        "accuracy": correct / len(labels),
        "accuracy_interval_95": list(statistics.wilson_interval(correct, len(labels))),
    }


def _judged_on(dataset: Dataset, model: Model, guess: npt.NDArray[np.int64]) -> Model:
    """Return `model` with its result on the data's test images."""
    return replace(
        model,
        test_fingerprint=dataset.test_fingerprint,
        test_correct=int((guess == dataset.y_test).sum()),
        test_examples=len(guess),
    )


def keep_verdict(desk: Desk, key: str, judged: Judged) -> dict[str, Any]:
    """Write the verdict, unless this night did so before it was killed.

    Returns:
        What other records tell of it: where it lies, and all of it that isn't long.
    """
    canonical = json.dumps(judged.document, sort_keys=True)
    inputs = hashlib.sha256(canonical.encode()).hexdigest()
    test = judged.challenger.test_fingerprint
    while True:
        last = desk.records.last_verdict(key)
        mine = last is not None and last[1].get("night") == desk.plan.night
        if last is not None and mine and last[1].get("inputs") == inputs:
            return _told(desk.records.verdict_path(key, last[0], test), last[1])
        number = 1 if last is None else last[0] + 1
        document = {
            "schema_version": SCHEMA_VERSION,
            "night": desk.plan.night,
            "time": champions.utc_now(),
            "inputs": inputs,
            "test_set_decided_before": desk.records.verdicts_on(test),
            **judged.document,
        }
        try:
            desk.records.keep_verdict(key, number, test, document)
        except ConflictError:
            if last == desk.records.last_verdict(key):
                raise
            continue  # another night was faster: look what it wrote
        return _told(desk.records.verdict_path(key, number, test), document)


def _told(path: str, document: dict[str, Any]) -> dict[str, Any]:
    return {"path": path, **{k: v for k, v in document.items() if k not in _LONG}}
