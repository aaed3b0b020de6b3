"""Figures that need no TensorFlow, for rooms that work without it, such as the gate of nights."""

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
