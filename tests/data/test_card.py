"""A data card says of images what NumPy says, however they came, and comes back from JSON."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.data import card as card_module
from job.data.card import Card
from job.data.source import Dataset
from job.errors import DataError


def same(one: Card, other: Card) -> None:
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_allclose(one.means, other.means, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(one.deviations, other.deviations, rtol=1e-9, atol=1e-12)


def test_a_card_of_mnist_is_what_numpy_says(mnist: Dataset) -> None:
    images, labels = mnist.x_test, mnist.y_test
    found = Card.of(images, labels, 10)
    shares = images.reshape(10_000, -1) / 255
    for label in range(10):
        ours = shares[labels == label]
        assert found.counts[label] == len(ours)
        features = np.stack([ours.mean(axis=1), ours.std(axis=1)], axis=1)
        np.testing.assert_allclose(found.means[label], features.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.deviations[label], features.std(axis=0), rtol=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_merged_cards_are_the_card_of_all(sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    total = sum(sizes)
    images = generator.integers(0, 256, (total, 3, 5, 2)).astype(np.uint8)
    labels = generator.integers(0, 4, total).astype(np.int32)
    merged, start = Card.of(images[:0], labels[:0], 4), 0
    for size in sizes:
        piece = slice(start, start + size)
        merged = merged.merge(Card.of(images[piece], labels[piece], 4))
        start += size
    same(merged, Card.of(images, labels, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card_module, "_CHUNK_BYTES", 70)  # two images and a bit
        same(Card.of(images, labels, 4), merged)
    same(Card.from_document(json.loads(json.dumps(merged.document()))), merged)
    assert merged.shares.sum() == pytest.approx(1 if total else 0)


def test_a_card_needs_no_second_copy_of_the_images(mnist: Dataset) -> None:
    tracemalloc.start()
    try:
        Card.of(mnist.x_train, mnist.y_train, 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mnist.x_train.nbytes  # which as floats are eight times as many


GOOD = Card.of(np.zeros((3, 2, 2), np.uint8), np.array([0, 1, 1]), 2).document()


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        without("labels"),
        {"labels": []},
        {"labels": 3},
        {"labels": [{"label": 0, "count": 1}]},
        {"labels": GOOD["labels"][::-1]},
        {"labels": [GOOD["labels"][0] | {"count": -1}]},
        {"labels": [GOOD["labels"][0] | {"pixel_mean": {"mean": float("nan"), "deviation": 0}}]},
        {"labels": [GOOD["labels"][0] | {"pixel_mean": {"mean": "x", "deviation": 0}}]},
        {"labels": [GOOD["labels"][0] | {"pixel_mean": {"mean": 0, "deviation": -1}}]},
    ],
)
def test_a_card_of_somebody_else_is_refused(document: object) -> None:
    with pytest.raises(DataError, match="data card"):
        Card.from_document(document)
