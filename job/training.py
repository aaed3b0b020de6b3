"""The compiled loop: a whole epoch of optimizer steps is one call into XLA.

The data set lies on the device as uint8. A call takes the epoch's order of examples and its
learning rates, and gathers, scales, augments, differentiates and updates inside one compiled loop:
Python is not in it, which for a net this small is most of the time that Keras' `fit` takes.

Randomness is a function of (seed, epoch, step): nothing that is drawn depends on what was drawn
before.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job.augmentation import TRANSFORMS
from job.config import RunConfig
from job.data import Dataset
from job.errors import UsageError
from job.model import PIXEL_SCALE
from job.progress import Progress

WARMUP_SHARE = 0.1  # of all steps: Adam's second moments are noise before it has seen some


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training set gave."""

    epoch: int
    """Counts from 1."""
    loss: float
    """Mean cross-entropy against the smoothed targets, in nats, while the weights moved."""
    accuracy: float
    """Share of examples classified rightly, while the weights moved."""
    learning_rate: float
    """Rate of the last step."""
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Training:
    """What training a model took and gave."""

    epochs: int
    steps: int
    compile_seconds: float
    train_seconds: float
    images_per_second: float
    """Median over the epochs."""
    history: tuple[Epoch, ...]


def train(
    model: keras.Model,
    dataset: Dataset,
    config: RunConfig,
    strategy: tf.distribute.Strategy,
    progress: Progress,
) -> Training:
    """Train `model` in place as `config` says.

    The optimizer is Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter,
    2019).

    Args:
        model: logits model made in the scope of `strategy`.
        dataset: its training part is used; the test part is not looked at.
        config: epochs, batch size, schedule, augmentation and seed.
        strategy: where `model` lies.
        progress: told when the loop is compiled and after each epoch.

    Raises:
        UsageError: the learning rate is so high that the loss stopped being a number.
    """
    steps_per_epoch = math.ceil(len(dataset.x_train) / config.batch_size)
    rates = learning_rates(config, config.epochs * steps_per_epoch).reshape(config.epochs, -1)
    started = time.perf_counter()
    run_steps = _compiled_loop(model, dataset, config, strategy)
    run_steps(np.zeros((steps_per_epoch, config.batch_size), np.int32), rates[0], 0, 0)  # no step
    compile_seconds = time.perf_counter() - started

    progress.event(
        "compiled",
        model=model.name,
        parameters=model.count_params(),
        seconds=compile_seconds,
    )

    history: list[Epoch] = []
    for index in range(config.epochs):
        epoch_started = time.perf_counter()
        order = epoch_order(config.seed, index, len(dataset.x_train), config.batch_size)
        loss, accuracy = run_steps(order, rates[index], index * steps_per_epoch, steps_per_epoch)
        seconds = time.perf_counter() - epoch_started
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss became {loss} in epoch {index + 1}: --learning-rate "
                f"{config.learning_rate} is too high for this model and data, try a tenth of it"
            )
        history.append(
            Epoch(
                epoch=index + 1,
                loss=loss,
                accuracy=accuracy,
                learning_rate=float(rates[index, -1]),
                seconds=seconds,
                images_per_second=order.size / seconds,
            )
        )
        progress.event("epoch", epochs=config.epochs, **asdict(history[-1]))
    return Training(
        epochs=config.epochs,
        steps=config.epochs * steps_per_epoch,
        compile_seconds=compile_seconds,
        train_seconds=sum(epoch.seconds for epoch in history),
        images_per_second=float(np.median([epoch.images_per_second for epoch in history])),
        history=tuple(history),
    )


def learning_rates(config: RunConfig, steps: int) -> npt.NDArray[np.float32]:
    """Return the rate of each of `steps` optimizer steps, shape (steps,).

    A linear warm-up over the first tenth of them, then a fall to zero on a line or on a half
    cosine (Loshchilov and Hutter, 2017), or no fall.
    """
    warmup = round(WARMUP_SHARE * steps)
    rising = np.arange(1, warmup + 1) / max(1, warmup)
    progress = np.arange(steps - warmup) / max(1, steps - warmup)
    falling = {
        "linear": 1 - progress,
        "cosine": (1 + np.cos(np.pi * progress)) / 2,
        "constant": np.ones_like(progress),
    }[config.schedule]
    return (config.learning_rate * np.concatenate([rising, falling])).astype(np.float32)


def epoch_order(seed: int, epoch: int, examples: int, batch_size: int) -> npt.NDArray[np.int32]:
    """Return which examples each step of an epoch takes: int32, shape (steps, batch_size).

    Every example occurs; where the batch does not divide their number, the last step is filled up
    with the first of the same order, so that no example is ever left out.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)
    missing = -examples % batch_size
    return np.concatenate([order, order[:missing]]).astype(np.int32).reshape(-1, batch_size)


def _compiled_loop(
    model: keras.Model, dataset: Dataset, config: RunConfig, strategy: tf.distribute.Strategy
) -> Callable[[npt.NDArray[np.int32], npt.NDArray[np.float32], int, int], tuple[float, float]]:
    """Return a function that runs steps and returns their mean loss and accuracy.

    It takes the order of examples (steps, batch), the rates (steps,), the number of steps done
    before, and how many to do; the last two don't cause another compilation.
    """
    with strategy.scope():
        optimizer = keras.optimizers.Adam(weight_decay=config.weight_decay or None)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.build(model.trainable_variables)
    transform = TRANSFORMS[config.augment]
    batch_size, classes = config.batch_size, dataset.classes

    def step(
        images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        images = transform(images, tf.stack([config.seed, number]))
        pixels = tf.cast(images, tf.float32) * PIXEL_SCALE
        off = config.label_smoothing / classes
        targets = tf.one_hot(
            labels, classes, on_value=1 - config.label_smoothing + off, off_value=off
        )
        with tf.GradientTape() as tape:
            logits = model(pixels, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        hits = tf.argmax(logits, axis=1, output_type=tf.int32) == labels
        return loss, tf.reduce_sum(tf.cast(hits, tf.int32))

    def steps(
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        rates: tf.Tensor,
        done: tf.Tensor,
        count: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        def body(i: tf.Tensor, loss: tf.Tensor, hits: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # Slices of static size: with traced bounds XLA would copy the whole order each step.
            batch = tf.reshape(tf.slice(order, [i, 0], [1, batch_size]), [batch_size])
            optimizer.learning_rate.assign(tf.reshape(tf.slice(rates, [i], [1]), []))
            step_loss, step_hits = step(
                tf.gather(images, batch), tf.gather(labels, batch), done + i
            )
            return i + 1, loss + step_loss, hits + step_hits

        start = (tf.constant(0), tf.constant(0.0), tf.constant(0))
        _, loss, hits = tf.while_loop(lambda i, *_: i < count, body, start)
        return loss, hits

    @tf.function(jit_compile=True, autograph=False)
    def compiled(*arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss, hits = strategy.run(steps, arguments)
        return loss, hits

    with tf.device(strategy.extended.worker_devices[0]):
        # Arguments, not closures: captured constants would be embedded in the compiled program.
        resident = tf.constant(dataset.x_train), tf.constant(dataset.y_train)

    def run(
        order: npt.NDArray[np.int32], rates: npt.NDArray[np.float32], done: int, count: int
    ) -> tuple[float, float]:
        loss, hits = compiled(
            *resident, tf.constant(order), tf.constant(rates), tf.constant(done), tf.constant(count)
        )
        seen = max(1, count)
        return float(loss) / seen, int(hits) / (seen * batch_size)

    return run
