"""Whether a challenger may take the champion's place: both on the same images, by exact tests.

Rules, of which each is told with its numbers:

1. no significant loss against the champion;
2. none against the anchor, the best champion ever on this test set: else every night could lose
   what is too little to be significant, and sixty of them a lot (scripts/gate measures that);
3. no class significantly worse than the champion has it;
4. an accuracy of at least `minimum`;
5. with `--promote better`, a significant win over the champion.

Only images that one model has right and the other wrong tell two models apart. Where neither is
better each of these is lost or won as a coin falls, so the test is a coin's (exact McNemar).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from job.errors import JobError, UsageError
from job.results.statistics import coin_tail, least_caught, wilson_interval

Promote = Literal["no-worse", "better", "manual"]
Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Rules:
    """What a challenger is held to."""

    alpha: float = 0.05
    """How often each test may fire where nothing is worse: lower lets more losses pass."""
    minimum: float = 0.9
    """Least accuracy, 0 to 1."""
    promote: Promote = "no-worse"
    """What earns the place; `manual` judges, and leaves the promotion to people."""

    def __post_init__(self) -> None:
        """Refuse what can't be meant.

        Raises:
            UsageError: a value is out of its range.
        """
        if not 0 < self.alpha <= 0.5:
            raise UsageError(f"--gate-alpha must be above 0 and at most 0.5, not {self.alpha:g}")
        if not 0 <= self.minimum <= 1:
            raise UsageError(f"--gate-minimum must be 0 to 1, not {self.minimum:g}")
        if self.promote not in get_args(Promote):
            raise UsageError(
                f"--promote must be {', '.join(get_args(Promote))}, not {self.promote!r}"
            )


@dataclass(frozen=True)
class Paired:
    """A challenger beside another model on the same images."""

    lost: int
    """Images that the other has right and the challenger wrong."""
    won: int
    """Images that the challenger has right and the other wrong."""

    @property
    def p_loss(self) -> float:
        """How probable so many or more lost ones are where neither model is better."""
        return coin_tail(self.lost, self.lost + self.won)

    @property
    def p_win(self) -> float:
        """How probable so many or more won ones are where neither model is better."""
        return coin_tail(self.won, self.lost + self.won)

    def caught(self, alpha: float) -> int:
        """Return the least net loss that the test would have refused, as many differing."""
        return least_caught(self.lost + self.won, alpha)


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a challenger."""

    passed: bool
    """Whether every rule is kept."""
    promotes: bool
    """Whether that makes it the champion: where `passed`, unless people decide."""
    why: str
    """One sentence, with the numbers that decided and what would have been caught."""
    document: dict[str, Any]
    """All numbers, as JSON."""


def judge(
    labels: Integers,
    challenger: Integers,
    champion: Integers | None,
    anchor: Integers | None,
    rules: Rules,
    classes: int,
) -> Verdict:
    """Judge a challenger by what it, the champion and the anchor make of the same images.

    Args:
        labels: shape (images,), at least one, each in 0..classes-1.
        challenger: the class it predicts for each, shape (images,).
        champion: the champion's; None where there is none, which leaves rule 4.
        anchor: the anchor's; None where there is none.
        rules: what it is held to.
        classes: number of classes.

    Raises:
        JobError: the arrays are not of the same images.
    """
    models = {"challenger": challenger, "champion": champion, "anchor": anchor}
    predicted = {name: each for name, each in models.items() if each is not None}
    if not len(labels) or any(each.shape != labels.shape for each in predicted.values()):
        shapes = {name: each.shape for name, each in predicted.items()}
        raise JobError(f"the gate needs as many predictions as labels {labels.shape}, not {shapes}")
    right = {name: each == labels for name, each in predicted.items()}
    correct = int(right["challenger"].sum())
    losses = {
        name: _no_loss(_paired(right["challenger"], right[name]), rules.alpha)
        for name in ("champion", "anchor")
        if name in right
    }
    decided: dict[str, dict[str, Any] | None] = {
        "champion": losses.get("champion"),
        "anchor": losses.get("anchor"),
        "classes": None,
        "minimum": {
            "passed": correct / len(labels) >= rules.minimum,
            "accuracy": correct / len(labels),
            "minimum": rules.minimum,
        },
        "better": None,
    }
    if "champion" in right:
        decided["classes"] = _no_class_worse(
            labels, right["challenger"], right["champion"], rules.alpha, classes
        )
        if rules.promote == "better":
            decided["better"] = _better(
                _paired(right["challenger"], right["champion"]), rules.alpha
            )
    passed = all(rule["passed"] for rule in decided.values() if rule is not None)
    why = _sentence(decided, correct, len(labels), rules)
    return Verdict(
        passed=passed,
        promotes=passed and rules.promote != "manual",
        why=why,
        document={
            "passed": passed,
            "why": why,
            "promote": rules.promote,
            "examples": len(labels),
            "scores": {
                name: _score(int(right[name].sum()), len(labels)) if name in right else None
                for name in models
            },
            "rules": decided,
        },
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, in their order, adjusted for their number.

    By Holm's steps (1979, Scandinavian Journal of Statistics 6, p. 65): where nothing is worse, the
    smallest is at most alpha in at most that share of nights, however the classes hang together.
    """
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _paired(challenger: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> Paired:
    return Paired(lost=int((other & ~challenger).sum()), won=int((challenger & ~other).sum()))


def _no_loss(paired: Paired, alpha: float) -> dict[str, Any]:
    p = paired.p_loss
    return {
        "passed": p > alpha,
        **_counts(paired),
        "p": p,
        "alpha": alpha,
        "caught_net_loss": paired.caught(alpha),
    }


def _no_class_worse(
    labels: Integers,
    challenger: npt.NDArray[np.bool_],
    champion: npt.NDArray[np.bool_],
    alpha: float,
    classes: int,
) -> dict[str, Any]:
    examples = np.bincount(labels, minlength=classes)
    lost = np.bincount(labels[champion & ~challenger], minlength=classes)
    won = np.bincount(labels[challenger & ~champion], minlength=classes)
    pairs = [Paired(int(lost[label]), int(won[label])) for label in range(classes)]
    p_values = [paired.p_loss for paired in pairs]
    adjusted = holm(p_values)
    return {
        "passed": min(adjusted) > alpha,
        "alpha": alpha,
        "classes": [
            {
                "label": label,
                "examples": int(examples[label]),
                **_counts(pairs[label]),
                "p": p_values[label],
                "p_holm": adjusted[label],
            }
            for label in range(classes)
        ],
    }


def _better(paired: Paired, alpha: float) -> dict[str, Any]:
    p = paired.p_win
    return {"passed": p <= alpha, **_counts(paired), "p": p, "alpha": alpha}


def _counts(paired: Paired) -> dict[str, int]:
    return {"lost": paired.lost, "won": paired.won, "net_loss": paired.lost - paired.won}


def _score(correct: int, examples: int) -> dict[str, Any]:
    return {
        "correct": correct,
        "accuracy": correct / examples,
        "accuracy_interval_95": list(wilson_interval(correct, examples)),
    }


def _sentence(
    decided: dict[str, dict[str, Any] | None], correct: int, examples: int, rules: Rules
) -> str:
    """Say what decided: the rules that were broken, or else how each was kept; and the power."""
    parts = [
        f"significantly worse than the {name}: {_lost_and_won(rule)}"
        for name in ("champion", "anchor")
        if (rule := decided[name]) is not None and not rule["passed"]
    ]
    if (rule := decided["classes"]) is not None and not rule["passed"]:
        parts += [
            f"class {each['label']} significantly worse than the champion has it: "
            f"{_lost_and_won(each)} ({each['p_holm']:.2g} by Holm)"
            for each in rule["classes"]
            if each["p_holm"] <= rules.alpha
        ]
    if (rule := decided["minimum"]) is not None and not rule["passed"]:
        parts.append(f"accuracy {correct / examples:.4f} is below the {rules.minimum:g} asked for")
    if (rule := decided["better"]) is not None and not rule["passed"]:
        parts.append(f"not significantly better than the champion: {_lost_and_won(rule)}")
    against = {name: rule for name in ("champion", "anchor") if (rule := decided[name]) is not None}
    if not parts:
        parts = [f"{correct:,} of {examples:,} images right"]
        if "champion" not in against:
            parts.append("no champion to compare with")
        if (rule := decided["better"]) is not None:
            parts.append(f"significantly better than the champion: {_lost_and_won(rule)}")
        else:
            parts += [
                f"no significant loss against the {name}: {_lost_and_won(rule)}"
                for name, rule in against.items()
            ]
    if against:
        caught = " or ".join(
            f"of {rule['caught_net_loss']:,} against the {name}" for name, rule in against.items()
        )
        parts.append(f"a net loss {caught} would have been caught")
    return "; ".join(parts)


def _lost_and_won(rule: dict[str, Any]) -> str:
    return f"{rule['lost']:,} images lost, {rule['won']:,} won, p = {rule['p']:.2g}"
