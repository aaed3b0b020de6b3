"""Figures against their definition, and against statsmodels."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from job.results import statistics


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (9815, 10_000, 0.978669, 0.983962),  # by solving (p - x)^2 = z^2 x (1 - x) / n for x
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (1, 2, 0.094531, 0.905469),
    ],
)
def test_wilson_interval(successes, trials, low, high):
    assert statistics.wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(3, 7), (99, 100), (0, 5), (50, 50)])
def test_wilson_interval_solves_its_equation(successes, trials):
    rate = successes / trials
    for end in statistics.wilson_interval(successes, trials):
        left = (rate - end) ** 2
        assert left == pytest.approx(statistics.Z_95**2 * end * (1 - end) / trials, abs=1e-12)


def test_wilson_interval_agrees_with_statsmodels_on_1_000_random_tables():
    draw = np.random.default_rng(0)
    for _ in range(1000):
        trials = int(10 ** draw.uniform(0, 6))
        successes = int(draw.integers(0, trials + 1))
        theirs = proportion_confint(successes, trials, alpha=0.05, method="wilson")
        mine = statistics.wilson_interval(successes, trials)
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12), (successes, trials)


def test_the_tail_of_a_coin_by_its_definition():
    for tosses in range(12):
        for heads in range(tosses + 1):
            ways = sum(math.comb(tosses, count) for count in range(heads, tosses + 1))
            assert statistics.coin_tail(heads, tosses) == float(Fraction(ways, 2**tosses))


def test_the_least_net_loss_that_is_caught_by_its_definition():
    draw = np.random.default_rng(3)
    for alpha in (0.5, 0.05, 0.01, *(0.5 * 10 ** draw.uniform(-5, 0, 5))):
        for pairs in range(1, 200):
            net = statistics.least_caught(pairs, alpha)
            used = max(pairs, net)  # where too few differ, as many as it takes
            assert (net - used) % 2 == 0
            assert statistics.coin_tail((used + net) // 2, used) <= alpha
            if used > pairs:
                assert statistics.coin_tail(pairs, pairs) > alpha
                assert net == used
                assert statistics.coin_tail(used - 1, used - 1) > alpha
            else:
                assert statistics.coin_tail((used + net) // 2 - 1, used) > alpha


@pytest.mark.parametrize(("pairs", "net"), [(0, 5), (4, 5), (5, 5), (60, 14), (100, 18), (140, 22)])
def test_the_least_net_loss_that_is_caught(pairs, net):
    assert statistics.least_caught(pairs, 0.05) == net


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30])
@pytest.mark.parametrize("t", [-3.0, -0.5, 0.0, 0.7, 2.132, 9.0])
def test_students_tail(t, degrees):
    assert statistics.student_tail(t, degrees) == pytest.approx(stats.t.sf(t, degrees), abs=1e-12)
