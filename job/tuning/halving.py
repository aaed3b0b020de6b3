"""Asynchronous successive halving: at each rung one trial in so many goes on, and none waits.

Li et al. (2020, MLSys, "A system for massively parallel hyperparameter tuning"), in the form that
stops trials: one that comes to a rung is kept if it is among the best 1/reduction, rounded up, of
the scores that have come there so far, its own included. So the first are kept more readily, and
the best of all so far always is.

There is no controller. A score and a decision are objects that are created once: a trial that was
killed and goes on reads its own decision, and of two pods that run the same trial one decides.
"""

import math
from collections.abc import Mapping
from typing import Any

from job.tuning.study import SCHEMA_VERSION, Study, found, keep, read_all


def decide(study: Study, trial: int, epoch: int, score: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decision whether a trial goes on after an epoch; take it if nobody has.

    Args:
        study: with its rungs.
        trial: that came to the rung.
        epoch: of the rung.
        score: `validation_loss` and `validation_accuracy`.
    """
    place = study.decision(epoch, trial)
    if (taken := found(place)) is not None:
        return taken
    names = ("validation_loss", "validation_accuracy")
    mine = {"trial": trial, "epoch": epoch, **{name: score[name] for name in names}}
    mine = keep(study.rung(epoch, trial), mine)
    seen = read_all(study.scores(epoch))
    return keep(place, _decided(study, mine, seen))


def _decided(study: Study, mine: dict[str, Any], seen: list[dict[str, Any]]) -> dict[str, Any]:
    better = sum(study.key(other) < study.key(mine) for other in seen)
    places = math.ceil(len(seen) / study.reduction)
    return {
        "schema_version": SCHEMA_VERSION,
        **mine,
        "rank": better + 1,
        "places": places,
        "kept": better < places,
        "reduction": study.reduction,
        "seen": seen,
    }
