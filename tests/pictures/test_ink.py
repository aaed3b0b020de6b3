"""Threshold, components and distances: each against its definition, worked out the long way."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from job.pictures import ink

masks = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))


def reached(mask, start) -> set[tuple[int, int]]:
    """Return all that can be walked to from `start`, one pixel in eight directions at a time."""
    found, ahead = {start}, [start]
    while ahead:
        row, column = ahead.pop()
        around = itertools.product((row - 1, row, row + 1), (column - 1, column, column + 1))
        for place in around:
            inside = 0 <= place[0] < mask.shape[0] and 0 <= place[1] < mask.shape[1]
            if inside and mask[place] and place not in found:
                found.add(place)
                ahead.append(place)
    return found


@given(masks)
@settings(deadline=None, derandomize=True)
def test_a_label_is_the_first_pixel_that_can_be_walked_to(mask):
    labels = ink._labels(mask)
    for place in zip(*np.nonzero(mask), strict=True):
        first = min(row * mask.shape[1] + column for row, column in reached(mask, place))
        assert labels[place] == first


def test_a_long_winding_stroke_is_one_component():
    mask = np.zeros((41, 200), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True  # there and back, twenty times
    assert set(ink._labels(mask)[mask]) == {0}


@given(masks)
@settings(deadline=None, derandomize=True)
def test_a_distance_is_that_of_the_nearest_pixel_outside(mask):
    mask[0, 0] = False  # else there may be none
    outside = np.argwhere(~mask)
    distances = ink._distance(mask)
    for place in itertools.product(*map(range, mask.shape)):
        nearest = np.sqrt(((outside - place) ** 2).sum(axis=1).min())
        assert distances[place] == pytest.approx(nearest, abs=1e-6)


def test_distances_end_at_the_radius_that_is_asked_for():
    mask = np.ones((200, 200), bool)
    mask[0] = False
    column = ink._distance(mask)[:, 100]
    assert list(column[:33]) == list(range(33))
    assert set(column[33:]) == {ink._MAX_RADIUS}


@given(st.lists(st.integers(120, 135), min_size=2, max_size=40))
@settings(deadline=None, derandomize=True)
def test_the_threshold_parts_most_variance_of_all(levels):
    values = (np.array(levels, np.float32) + np.float32(0.5)) / 256
    threshold, distance, eta = ink._otsu(values)
    if len(set(levels)) == 1:
        assert (distance, eta) == (0, 0)
        return

    def between(dark) -> float:
        light = values[~dark].mean(dtype=float) - values[dark].mean(dtype=float)
        return light**2 * dark.mean() * (1 - dark.mean())

    best = max(between(values >= level) for level in set(values) - {values.min()})
    dark = values >= threshold
    assert between(dark) == pytest.approx(best)
    assert distance == pytest.approx(values[dark].mean() - values[~dark].mean(), abs=1e-6)
    assert eta == pytest.approx(best / values.var(dtype=float))


def test_the_threshold_lies_amid_the_valley():
    threshold, *_ = ink._otsu(np.array([0.2, 0.2, 0.8], np.float32))
    assert threshold == pytest.approx(0.5, abs=0.01)
