"""Scores against values worked out by hand, or by their definition."""

import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.errors import DataError
from job.results import evaluation
from job.results.scores import expected_calibration_error, log_softmax, score
from job.training import model


class Parrot:
    """Stands in for a model: its logits are the pixels of the image's first row."""

    layers = (SimpleNamespace(output=np.zeros((1, 3))),)

    def __call__(self, pixels, *, training):
        assert not training
        return pixels[:, 0, :]


def scores(pixels, labels):
    images = np.array(pixels, np.uint8)[:, None, :]
    return score(evaluation.predict_logits(Parrot(), images), np.array(labels, np.int32))


def test_scores_of_four_images_by_hand():
    # Logits are pixels / 255: predictions are 0, 1, 1, 2 for the labels 0, 1, 2, 2.
    result = scores([[255, 0, 0], [0, 255, 0], [0, 255, 0], [0, 0, 255]], [0, 1, 2, 2])
    right, wrong = np.e / (np.e + 2), 1 / (np.e + 2)
    assert (result.examples, result.correct, result.accuracy) == (4, 3, 0.75)
    assert result.loss == pytest.approx(-(3 * np.log(right) + np.log(wrong)) / 4)
    assert result.confusion == ((1, 0, 0), (0, 1, 0), (0, 1, 1))
    assert result.expected_calibration_error == pytest.approx(0.75 - right)
    assert [(c.precision, c.recall, c.support) for c in result.per_class] == [
        (1, 1, 1),
        (0.5, 1, 1),
        (1, 0.5, 2),
    ]
    assert [c.f1 for c in result.per_class] == pytest.approx([1, 2 / 3, 2 / 3])


def test_figure_without_examples_is_none_not_zero():
    result = scores([[255, 0, 0], [255, 0, 0]], [0, 1])
    nobody = result.per_class[2]
    assert (nobody.precision, nobody.recall, nobody.f1, nobody.support) == (None, None, None, 0)
    assert result.per_class[1].precision is None  # never predicted, though it occurs
    assert result.per_class[1].recall == 0


@pytest.mark.parametrize("examples", [1, 999, 1000, 1001, 2500])
def test_every_example_is_scored_in_its_place(examples):
    labels = np.random.default_rng(examples).integers(0, 5, examples)
    pixels = np.eye(5, dtype=np.uint8)[labels] * 255
    assert scores(pixels, labels).correct == examples
    logits = evaluation.predict_logits(Parrot(), pixels[:, None, :])
    assert np.array_equal(logits.argmax(axis=1), labels)


def test_agrees_with_keras(mnist):
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10)])
    mine = score(evaluation.predict_logits(net, mnist.x_test[:1500]), mnist.y_test[:1500])
    net.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    loss, accuracy = net.evaluate(mnist.x_test[:1500] / 255, mnist.y_test[:1500], verbose=0)
    assert (mine.loss, mine.accuracy) == pytest.approx((loss, accuracy), rel=1e-5)


def test_calibration_error_bin_by_bin():
    confidence = np.array([0.05, 0.05, 0.5, 0.5, 1.0])
    correct = np.array([True, False, True, True, True])
    # Bins by hand: |0.10 - 1| + |1.0 - 2| + |1 - 1|, over five examples.
    assert expected_calibration_error(confidence, correct) == pytest.approx(1.9 / 5)


def test_memory_does_not_grow_with_the_images():
    """Scoring images of 160 x 160 once took 2.8 GiB, after a training that fitted into 1 GiB."""
    net = model.build("cnn", (160, 160), 10)
    batches = []

    class Counting(Parrot):
        layers = net.layers

        def __call__(self, pixels, *, training):
            tf.numpy_function(lambda count: batches.append(int(count)), [tf.shape(pixels)[0]], [])
            return super().__call__(pixels[..., :3], training=training)

    numbers_of_one = sum(np.prod(layer.output.shape[1:]) for layer in net.layers)
    with_batches_seen = evaluation.batch_size(net)
    assert with_batches_seen * numbers_of_one * 4 <= evaluation.ACTIVATION_BYTES
    images = np.zeros((2 * with_batches_seen + 1, 160, 160), np.uint8)
    evaluation.predict_logits(Counting(), images)
    assert batches == [with_batches_seen, with_batches_seen, 1]


MEMORY_PROGRAM = """
import sys
from job.process import runtime
runtime.prepare_tensorflow()
runtime.limit_threads(2)
runtime.import_tensorflow()
import numpy as np
from job.results import evaluation
from job.results.scores import expected_calibration_error, log_softmax, score
from job.training import model
net = model.build("cnn", (160, 160), 10)
evaluation.predict_logits(net, np.zeros((1, 160, 160), np.uint8))
before = runtime.usage().peak_memory_mib
evaluation.predict_logits(net, np.zeros((200, 160, 160), np.uint8))
print(runtime.usage().peak_memory_mib - before)
"""


@pytest.mark.slow
def test_scoring_large_images_really_takes_little_memory():
    """All 200 at once take over 500 MiB."""
    ended = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM], capture_output=True, text=True, check=True
    )
    assert float(ended.stdout) < 250


def test_each_batch_is_followed_by_a_sign_of_life():
    beats = []
    images = np.zeros((2 * evaluation.MOST_EXAMPLES + 1, 1, 3), np.uint8)
    evaluation.predict_logits(Parrot(), images, lambda: beats.append(1))
    assert len(beats) == 3


def test_small_images_are_scored_many_at_once():
    assert evaluation.batch_size(model.build("mlp", (28, 28), 10)) == evaluation.MOST_EXAMPLES


@pytest.mark.parametrize("pixel", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_refused(pixel):
    class Broken(Parrot):
        def __call__(self, pixels, *, training):
            return super().__call__(pixels, training=training) + pixel

    with pytest.raises(DataError, match="2 of 2 images are not finite"):
        evaluation.predict_logits(Broken(), np.zeros((2, 1, 3), np.uint8))


def test_huge_logits_do_not_overflow():
    rows = log_softmax(np.array([[1e4, 0.0], [-1e4, -1e4]]))
    assert np.allclose(rows, [[0, -1e4], [np.log(0.5), np.log(0.5)]])
