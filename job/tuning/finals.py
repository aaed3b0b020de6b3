"""The best trials again with fresh seeds: who can be told apart from the winner, and who is cheap.

The best of many trials is partly the luckiest: its score is too good (the winner's curse). So the
top few run again, each with the same fresh seeds, and these new scores alone decide.

Two configs are compared by a paired t test over the seeds (Student, 1908), one-sided: both have the
same initial weights, order and held-out examples at each seed, and their differences over the seeds
are what another training would see again. The images are not the unit that is drawn: all trials
have the same, and a test by image would take a lucky seed for a better config. Each p-value is
multiplied by the number of comparisons (Bonferroni). Then the truly best of them is, with 95 %,
among those that can't be told apart from the best mean, whichever that is: it is left out only if
one of the others looks better than it by chance (a subset as that of Gupta, 1965). Of this subset
the cheapest is taken.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from job.config import flags_of
from job.errors import MissingInputError
from job.process.preemption import Preemption
from job.results.statistics import student_tail
from job.tuning import tuner
from job.tuning.study import Study, found

TOP = 4
SEEDS = 5
ALPHA = 0.05
_LEFT_OUT = ("validation", "validation_seed")  # whose model is wanted may train on all images


@dataclass(frozen=True)
class Finalist:
    """A trial's config, run again."""

    trial: int
    values: Mapping[str, Any]
    trial_accuracy: float
    """Of the trial that brought it here: the lucky one."""
    accuracies: tuple[float, ...]
    """With each fresh seed, on the held-out examples."""
    losses: tuple[float, ...]
    seconds: float
    """Mean time in the training loop."""
    parameters: int
    p: float = 1.0
    """How probable so much less than the best finalist's is where neither is better, adjusted."""

    @property
    def is_apart(self) -> bool:
        """Whether it is worse than the best finalist, as far as one can tell."""
        return self.p <= ALPHA

    @property
    def document(self) -> dict[str, Any]:
        """What is told of it."""
        return {
            "trial": self.trial,
            "values": dict(self.values),
            "trial_accuracy": self.trial_accuracy,
            "accuracy": mean(self.accuracies),
            "spread": stdev(self.accuracies),
            "loss": mean(self.losses),
            "seconds": self.seconds,
            "parameters": self.parameters,
            "p": self.p,
            "is_apart": self.is_apart,
        }


def run(study: Study, words: Sequence[str], preemption: Preemption) -> int:
    """Run the finals that are not over; return 0, or the exit code of the first that didn't end.

    Args:
        study: with at least one complete trial.
        words: what this process was called with.
        preemption: takes the signals.

    Raises:
        MissingInputError: no trial is complete.
        JobError: as `tuner.run_trials`.
    """
    if not (best := top(study)):
        raise MissingInputError(
            f"{study.place} has no complete trial yet: run some, without --best"
        )
    for result in best:
        for fresh_seed in range(1, SEEDS + 1):
            trial = result["trial"]
            if found(study.final(trial, fresh_seed)) is None and (
                code := tuner.run_one(words, trial, fresh_seed, preemption)
            ):
                return code
    return 0


def top(study: Study) -> list[dict[str, Any]]:
    """Return what the best trials came to, of each set of values one, the best first."""
    best: list[dict[str, Any]] = []
    for result in study.ranked(study.results()):
        if result["values"] not in [other["values"] for other in best]:
            best.append(result)
    return best[:TOP]


def are_over(study: Study) -> bool:
    """Tell whether there are finals, and each of them has come to something."""
    best = top(study)
    return bool(best) and all(len(_finals_of(study, each["trial"])) == SEEDS for each in best)


def finalists(study: Study) -> list[Finalist]:
    """Return those whose finals are all complete, the best mean first, with their p-values."""
    found_ones = [each for each in (_finalist(study, result) for result in top(study)) if each]
    return _compared(study, found_ones) if found_ones else []


def failures(study: Study) -> list[dict[str, Any]]:
    """Return which trial failed with which fresh seed, and why: it is no finalist."""
    return [
        {name: final[name] for name in ("trial", "fresh_seed", "why")}
        for result in top(study)
        for final in _finals_of(study, result["trial"])
        if final["state"] == "failed"
    ]


def _finals_of(study: Study, trial: int) -> list[dict[str, Any]]:
    finals = (found(study.final(trial, seed)) for seed in range(1, SEEDS + 1))
    return [final for final in finals if final is not None]


def _finalist(study: Study, result: Mapping[str, Any]) -> Finalist | None:
    trial = result["trial"]
    complete = [each for each in _finals_of(study, trial) if each["state"] == "complete"]
    if len(complete) < SEEDS:
        return None
    return Finalist(
        trial=trial,
        values=result["values"],
        trial_accuracy=result["validation_accuracy"],
        accuracies=tuple(each["validation_accuracy"] for each in complete),
        losses=tuple(each["validation_loss"] for each in complete),
        seconds=mean(each["seconds"] for each in complete),
        parameters=complete[0]["parameters"],
    )


def _compared(study: Study, found_ones: Iterable[Finalist]) -> list[Finalist]:
    def means(each: Finalist) -> tuple[float, float]:
        return study.key(
            {
                "validation_accuracy": mean(each.accuracies),
                "validation_loss": mean(each.losses),
            }
        )

    best, *others = sorted(found_ones, key=lambda each: (*means(each), each.trial))
    compared = [best]
    for each in others:
        mine, bests = (
            (one.accuracies if study.objective == "accuracy" else [-loss for loss in one.losses])
            for one in (each, best)
        )
        p = min(1.0, len(others) * paired_p(bests, mine))
        compared.append(replace(each, p=p))
    return compared


def paired_p(better: Sequence[float], worse: Sequence[float]) -> float:
    """Return how probable so large a mean difference, or a larger one, is where there is none.

    Args:
        better: scores, two or more, of a config that may be better.
        worse: of another one, by the same seeds.
    """
    differences = [one - other for one, other in zip(better, worse, strict=True)]
    centre, spread = mean(differences), stdev(differences)
    if spread == 0:
        return 1.0 if centre <= 0 else 0.0
    return student_tail(centre / (spread / len(differences) ** 0.5), len(differences) - 1)


def cheapest(compared: Sequence[Finalist]) -> Finalist:
    """Return the cheapest of those that can't be told apart from the first.

    By their seconds; of equals by parameters, then by their place.
    """
    equal = [each for each in compared if not each.is_apart]
    return min(equal, key=lambda each: (each.seconds, each.parameters))


def command(study: Study, chosen: Finalist) -> str:
    """Return the `train` command of a finalist, on all training images where it can be.

    Early stopping needs held-out ones; what isn't said is `train`'s default.
    """
    config = study.config(chosen.trial, chosen.values)
    skipped = () if config.early_stopping else _LEFT_OUT
    fields = {**config.identity, "output": study.output}
    kept = {name: value for name, value in fields.items() if name not in skipped}
    return shlex.join(["mnist-job", "train", *flags_of(kept)])
