"""What is compared: a net to train on the same images, in so many steps."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from environments import FOLDER

from job.config import EMBEDDED, PRESETS, RunConfig

MNIST = EMBEDDED.path
EPOCHS = 10  # of the reference net
NO_PAGE = ("--no-report",)  # the peers draw none: what is timed ends with what they all publish
# Of job.training.augmentation, at strength 1: importing that would import TensorFlow.
AFFINE = {"degrees": 10.0, "scale": 0.1, "slant": 0.1, "move": 1 / 14}
_RECIPE = ("model", "batch_size", "epochs", "learning_rate", "schedule", "weight_decay")
_RECIPE += ("label_smoothing", "dropout", "augment", "augment_strength")


@dataclass(frozen=True)
class Task:
    """One training, as the job and as its peers are asked for it."""

    name: str
    """Heads its column."""
    flags: tuple[str, ...]
    """Of `mnist-job train`."""
    words: tuple[str, ...]
    """What a peer is given, before the folder for its files."""
    recipe: dict[str, Any] | None = None
    """What the job must have been asked for, by its metrics; None where the peers' is their own."""
    every_other_round: bool = False
    """It takes minutes."""
    errors_allowed: int | None = None
    """Of the 10,000 test images, where the task is to be that good."""


def _reference(batch: int) -> Task:
    flags = ("--batch-size", str(batch), "--epochs", str(EPOCHS))
    return Task(f"batch {batch}", flags, (str(batch), str(EPOCHS), str(MNIST)))


def _steady(preset: Any) -> Task:
    """Return the steps of a preset's net alone: few images, none of them augmented."""
    changed: dict[str, Any] = {"epochs": 4, "augment": "none", "augment_strength": None}
    flags = ("--preset", preset, "--epochs", "4", "--augment", "none", "--data", str(EXCERPT))
    recipe = _recipe(preset, changed)
    return Task(recipe["model"], flags, (_for_peers(recipe), str(EXCERPT)), recipe)


def _goal(preset: Any, percent: str, errors_allowed: int, *, every_other_round: bool) -> Task:
    recipe = _recipe(preset, {})
    words = (_for_peers(recipe), str(MNIST))
    flags = ("--preset", preset)
    name = f"to {percent} %"
    return Task(name, flags, words, recipe, every_other_round, errors_allowed)


def _recipe(preset: Any, changed: dict[str, Any]) -> dict[str, Any]:
    config = RunConfig(run_id="bench", **(PRESETS[preset] | changed))
    return {name: getattr(config, name) for name in _RECIPE}


def _for_peers(recipe: dict[str, Any]) -> str:
    strength = recipe["augment_strength"]
    affine = strength and {name: most * strength for name, most in AFFINE.items()}
    return json.dumps(recipe | {"affine": affine})


def write_excerpt() -> None:
    """Write the data of the tasks that measure steps alone: some hundred of them are enough."""
    if EXCERPT.is_file():
        return
    FOLDER.mkdir(exist_ok=True)
    with np.load(MNIST) as mnist:
        arrays = {name: mnist[name] for name in mnist}
    for name in ("x_train", "y_train"):
        arrays[name] = arrays[name][:EXCERPT_IMAGES]
    unfinished = EXCERPT.with_name("unfinished.npz")
    np.savez(unfinished, **arrays)
    unfinished.replace(EXCERPT)


EXCERPT_IMAGES = 12_800  # which batches of 128 divide
EXCERPT = FOLDER / f"mnist-first-{EXCERPT_IMAGES}.npz"
BATCHES = (32, 128, 512)
REFERENCE = {batch: _reference(batch) for batch in BATCHES}
STEADY = (_steady("cnn"), _steady("best"))
GOALS = (
    _goal("fast", "99", 100, every_other_round=False),
    _goal("cnn", "99.5", 50, every_other_round=True),
)
PARTS = {"mlp": tuple(REFERENCE.values()), "cnn": (*STEADY, *GOALS)}
"""What `make bench` consists of: the tasks of each part."""
