"""Which images a page shows, and what it says of them."""

import numpy as np
import pytest
from made import write_data

from job.config import DataSource
from job.data import source
from job.report import galleries, mislabelled
from job.results.predictions import Predictions
from job.storage import parse


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = write_data(tmp_path_factory.mktemp("data") / "d.npz", (8, 8), 4)
    return source.load(DataSource(parse(str(path))))


def said(dataset, *, right: np.ndarray, sure: np.ndarray) -> Predictions:
    """Return predictions that are right where told, and so sure."""
    labels = dataset.y_test
    predicted = np.where(right, labels, (labels + 1) % 4)
    logits = np.zeros((len(labels), 4), np.float32)
    logits[np.arange(len(labels)), predicted] = sure
    return Predictions(logits, labels)


def test_the_surest_mistakes_and_the_closest_calls_come_first(dataset):
    count = len(dataset.y_test)
    right = np.arange(count) % 3 > 0
    sure = np.random.default_rng(0).permutation(np.linspace(1, 6, count))
    predictions, wall = said(dataset, right=right, sure=sure), galleries.Wall()
    mistakes = galleries.mistakes(predictions, dataset, wall)
    calls = galleries.close_calls(predictions, dataset, wall)
    shown = [tile.index for tile in mistakes]
    assert sorted(shown) == [at for at in range(count) if not right[at]]
    assert [sure[at] for at in shown] == sorted(sure[~right], reverse=True)
    assert [sure[tile.index] for tile in calls] == sorted(sure[right])[: galleries.MOST_CLOSE_CALLS]
    images = np.concatenate(wall._images)
    for tile in [*mistakes, *calls]:
        assert np.array_equal(images[tile.place], dataset.x_test[tile.index])
    first, label = mistakes[0], dataset.y_test[mistakes[0].index]
    assert first.lines[0] == f"{label} taken for {(label + 1) % 4}"
    assert first.spoken.startswith(f"Test image {first.index}, labelled {label}, predicted ")
    assert calls[0].lines[0] == str(dataset.y_test[calls[0].index])


def test_of_data_there_are_numbers_and_means_of_each_class(dataset):
    wall = galleries.Wall()
    found = galleries.data(dataset, wall)
    assert [(row["train"], row["test"], row["share"]) for row in found.rows] == [(10, 15, 1.0)] * 4
    [means] = wall._images
    for row in found.rows:
        mine = dataset.x_train[dataset.y_train == row["label"]]
        assert np.abs(means[row["place"]] - mine.mean(axis=0)).max() <= 0.5


def test_of_large_data_the_means_are_of_a_part(dataset, monkeypatch):
    monkeypatch.setattr(galleries, "_MEAN_BYTES", dataset.x_train.nbytes // 3)
    wall = galleries.Wall()
    found = galleries.data(dataset, wall)
    assert found.of_images == 13
    assert sum(row["train"] for row in found.rows) == 40
    [means] = wall._images
    assert (means.reshape(4, -1).max(axis=1) > 0).all()  # of each class there are some


# --- labels that are known to be wrong --------------------------------------------------------

GIVEN = {
    947: 8, 1621: 0, 1901: 9, 2130: 4, 2462: 2, 2597: 5, 2654: 6, 3520: 6, 3558: 5, 5937: 5,
    6651: 0, 6783: 1, 8527: 4, 9679: 6, 9729: 5,
}  # fmt: skip


def test_the_wrong_labels_are_those_of_this_very_test_set(mnist):
    """The index means what it meant to its finders: their file names the label of each, too."""
    assert mnist.test_fingerprint == mislabelled.TEST_FINGERPRINT
    assert {index: int(mnist.y_test[index]) for index in mislabelled.LABEL_ERRORS} == GIVEN
    seen = mislabelled.LABEL_ERRORS
    assert all(seen[index] != label for index, label in GIVEN.items())


def test_doubts_are_told_of_mnist_alone(mnist, dataset):
    assert mislabelled.doubt(947, mnist.test_fingerprint) == "Label wrong: people see 9."
    assert mislabelled.doubt(2130, mnist.test_fingerprint) == "Label doubtful."
    assert mislabelled.doubt(948, mnist.test_fingerprint) == ""
    assert mislabelled.doubt(947, dataset.test_fingerprint) == ""


def test_a_mistake_on_a_wrong_label_is_marked(mnist):
    logits = np.zeros((len(mnist.y_test), 10), np.float32)
    logits[np.arange(len(logits)), mnist.y_test] = 9
    logits[947] = 0
    logits[947, 9] = 9
    [tile] = galleries.mistakes(Predictions(logits, mnist.y_test), mnist, galleries.Wall())
    assert tile.lines == ("8 taken for 9", "99.9 %")
    assert tile.doubt == "Label wrong: people see 9."
    assert tile.doubt in tile.spoken
