"""Figures that need no TensorFlow, for rooms that work without it, such as the gate of nights."""

import math

Z_95 = 1.959963984540054  # the standard normal's 97.5 % quantile


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson, 1927, JASA 22, p. 209).

    Unlike the textbook interval it stays inside 0..1 and is right near the ends, where a good
    classifier lives.
    """
    rate, z2 = successes / trials, Z_95**2
    centre = rate + z2 / (2 * trials)
    margin = Z_95 * ((rate * (1 - rate) + z2 / (4 * trials)) / trials) ** 0.5
    low, high = ((centre - margin) / (1 + z2 / trials), (centre + margin) / (1 + z2 / trials))
    return max(0.0, low), min(1.0, high)


def coin_tail(heads: int, tosses: int) -> float:
    """Return the probability of `heads` or more heads in `tosses` of a fair coin, exactly.

    With images lost as heads this is the p-value of McNemar's test (1947, Psychometrika 12,
    p. 153) in its exact, one-sided form. Whole numbers until the last division, which Python
    rounds correctly however large they are.
    """
    ways, tail = math.comb(tosses, heads), 0
    for count in range(heads, tosses + 1):
        tail += ways
        ways = ways * (tosses - count) // (count + 1)
    return float(tail / 2**tosses)


def least_caught(pairs: int, alpha: float) -> int:
    """Return the smallest net loss that is significant where `pairs` images tell two models apart.

    Where so few do that not even losing all of them is, as many are assumed as that takes.
    """
    while math.ldexp(1.0, -pairs) > alpha:
        pairs += 1
    lost, ways, tail = pairs, pairs, 1  # `tail`: in how many ways `lost` or more come about
    while (tail + ways) / 2**pairs <= alpha:
        lost, tail = lost - 1, tail + ways
        ways = ways * lost // (pairs - lost + 1)
    return 2 * lost - pairs


def student_tail(t: float, degrees: int) -> float:
    """Return the probability that Student's t with `degrees` of freedom is `t` or more.

    By the finite sums of Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / degrees**0.5)
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for step in range(degrees // 2):
        total += term
        term *= cosine**2 * (2 * step + 1 + odd) / (2 * step + 2 + odd)
    inside = (theta + sine * total) * 2 / math.pi if odd else sine * total
    return (1 - inside) / 2
