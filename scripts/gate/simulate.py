"""What the gate lets through in sixty nights, with and without an anchor: many repetitions.

    python scripts/gate/simulate.py                       the tables of README.md beside
    python scripts/gate/simulate.py --repetitions 20      the same, sooner and rougher

Every decision is that of job/nightly/gate.py. What is made up are the models. An image has a
difficulty, normally distributed; a model gets it wrong with the probability that the logistic
function gives for difficulty plus the model's weakness, one number for all images, chosen so that
the model's true accuracy, over all images there could be, is known. Two models of the same true
accuracy of 98.5 % then differ on 100 of 10,000 test images, as two seeds of the job's net do.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from job.nightly import gate

NIGHTS = 60
IMAGES = 10_000
CLASSES = 10
ACCURACY = 0.985
DIFFERING = 0.01  # of the images, between two models of that accuracy
POINT = 0.01  # a percentage point
CHANGE_NIGHT = 31  # of a sudden loss
QUANTILES = np.array([NormalDist().inv_cdf((k + 0.5) / 20_000) for k in range(20_000)])

# An image that all get right moves no test, and is left out; so no accuracy is asked for.
GATES = {
    "champion only": (gate.Rules(minimum=0), False),
    "champion and anchor": (gate.Rules(minimum=0), True),
    "only if better": (gate.Rules(minimum=0, promote="better"), True),
}


@dataclass
class Tally:
    """What one gate did in all repetitions of one story; accuracies in percentage points."""

    promoted: list[int] = field(default_factory=list)
    """Of 60 nights."""
    worse: list[int] = field(default_factory=list)
    """Nights whose challenger was truly worse than the champion."""
    missed: list[int] = field(default_factory=list)
    """Nights of these that promoted it."""
    good: list[int] = field(default_factory=list)
    """Nights whose challenger was truly as good as the champion, or better."""
    refused: list[int] = field(default_factory=list)
    """Nights of these that refused it."""
    true_change: list[float] = field(default_factory=list)
    """True accuracy of the last champion less that of the first."""
    seen_change: list[float] = field(default_factory=list)
    """The same as the test set has it."""
    caught_at_once: list[bool] = field(default_factory=list)
    """Whether the first night after the sudden loss was refused."""
    kept_out: list[bool] = field(default_factory=list)
    """Whether all nights after it were."""


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    world = World()
    constant = np.full(NIGHTS + 1, ACCURACY)
    step = 0.02 * POINT * np.arange(NIGHTS + 1)
    print(
        "| true accuracy of the night | gate | promoted, of 60 nights | of worse ones promoted "
        "| of no worse ones refused | champion in the end, truly | by the test set |"
    )
    print("|---|---|---|---|---|---|---|")
    stories = {
        "stays": constant,
        "falls by 0.02 a night": constant - step,
        "rises by 0.02 a night": constant + step,
    }
    for title, accuracies in stories.items():
        for name, tally in story(world, accuracies, arguments).items():
            print(f"| {title} | {name} | {sixty_nights(tally)} |", flush=True)
    print()
    print("| loss in night 31 | gate | refused at once | kept out 30 nights | lost at the end |")
    print("|---|---|---|---|---|")
    for loss in (0.1, 0.2, 0.3, 0.4, 0.5):
        sudden = constant - loss * POINT * (np.arange(NIGHTS + 1) >= CHANGE_NIGHT)
        for name, tally in story(world, sudden, arguments).items():
            print(f"| {loss} | {name} | {sudden_loss(tally)} |", flush=True)


class World:
    """Images and models whose true accuracies are known."""

    def __init__(self) -> None:
        """Find how widely difficulties spread where two models differ as wanted."""
        low, high = 0.1, 50.0
        while high - low > 1e-6:  # the wider, the more do two models agree on what is hard
            self.spread = (low + high) / 2
            wrong = self._wrong(self.weakness(ACCURACY))
            differing = float((2 * wrong * (1 - wrong)).mean())
            low, high = (self.spread, high) if differing > DIFFERING else (low, self.spread)

    def weakness(self, accuracy: float) -> float:
        """Return the weakness of a model of that true accuracy."""
        low, high = -500.0, 500.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            right = 1 - float(self._wrong(middle).mean())
            low, high = (middle, high) if right > accuracy else (low, middle)
        return low

    def _wrong(self, weakness: float) -> npt.NDArray[np.float64]:
        return logistic(self.spread * QUANTILES + weakness)

    def draw(
        self, weaknesses: npt.NDArray[np.float64], chance: np.random.Generator
    ) -> npt.NDArray[np.bool_]:
        """Return which images of a new test set each model gets wrong: (models, images)."""
        difficulty = self.spread * chance.standard_normal(IMAGES)
        wrong = logistic(difficulty + weaknesses[:, None])
        return chance.random(wrong.shape) < wrong


def logistic(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return 1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(numbers / 2))


def story(
    world: World, accuracies: npt.NDArray[np.float64], arguments: argparse.Namespace
) -> dict[str, Tally]:
    """Tell one story many times, each time to all gates with the same models.

    Args:
        world: where they come from.
        accuracies: true ones, shape (61,); that of the first champion, then each night's.
        arguments: of the command line.
    """
    tallies = {name: Tally() for name in GATES}
    levels = {accuracy: world.weakness(accuracy) for accuracy in set(accuracies.tolist())}
    weaknesses = np.array([levels[accuracy] for accuracy in accuracies.tolist()])
    for repetition in range(arguments.repetitions):
        wrong = world.draw(weaknesses, np.random.default_rng((arguments.seed, repetition)))
        for name, tally in tallies.items():
            count(tally, list(champions(wrong, *GATES[name])), accuracies, wrong)
    return tallies


def champions(wrong: npt.NDArray[np.bool_], rules: gate.Rules, anchored: bool) -> Iterator[int]:
    """Yield which night's model is the champion after each night, the first one's being 0."""
    champion = anchor = 0
    correct = IMAGES - wrong.sum(axis=1)
    yield champion
    for night in range(1, NIGHTS + 1):
        hard = np.flatnonzero(wrong[night] | wrong[champion] | wrong[anchor])
        labels = hard % CLASSES
        challenger, best, ever = (
            (labels + wrong[model, hard]) % CLASSES for model in (night, champion, anchor)
        )
        verdict = gate.judge(labels, challenger, best, ever if anchored else None, rules, CLASSES)
        if verdict.promotes:
            champion = night
            anchor = max(anchor, night, key=lambda model: int(correct[model]))
        yield champion


def count(
    tally: Tally,
    reigning: list[int],
    accuracies: npt.NDArray[np.float64],
    wrong: npt.NDArray[np.bool_],
) -> None:
    """Add to `tally` what came of one repetition."""
    nights = range(1, NIGHTS + 1)
    promoted = {night for night in nights if reigning[night] == night}
    worse = {night for night in nights if accuracies[night] < accuracies[reigning[night - 1]]}
    good = set(nights) - worse
    after = {night for night in promoted if night >= CHANGE_NIGHT}
    last = reigning[-1]
    tally.promoted.append(len(promoted))
    tally.worse.append(len(worse))
    tally.missed.append(len(worse & promoted))
    tally.good.append(len(good))
    tally.refused.append(len(good - promoted))
    tally.true_change.append((accuracies[last] - accuracies[0]) / POINT)
    tally.seen_change.append(float(wrong[0].sum() - wrong[last].sum()) / IMAGES / POINT)
    tally.caught_at_once.append(CHANGE_NIGHT not in after)
    tally.kept_out.append(not after)


def sixty_nights(tally: Tally) -> str:
    """Return the cells of the first table."""
    return " | ".join(
        [
            f"{np.mean(tally.promoted):.1f}",
            share(tally.missed, tally.worse),
            share(tally.refused, tally.good),
            mean(tally.true_change),
            mean(tally.seen_change),
        ]
    )


def share(some: list[int], all_of_them: list[int]) -> str:
    """Return a share in per cent; there may have been none."""
    return f"{sum(some) / sum(all_of_them):.0%}" if sum(all_of_them) else "-"


def sudden_loss(tally: Tally) -> str:
    """Return the cells of the second table."""
    return " | ".join(
        [
            f"{np.mean(tally.caught_at_once):.0%}",
            f"{np.mean(tally.kept_out):.0%}",
            mean(tally.true_change),
        ]
    )


def mean(points: list[float]) -> str:
    """Return a mean with twice its standard error."""
    error = 2 * np.std(points) / len(points) ** 0.5
    return f"{np.mean(points):+.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
