"""Optimizer steps as one compiled program that lies on the devices with the data.

A call takes the order of examples of an epoch and its learning rates, and gathers, scales,
augments, differentiates and updates in one loop: Python is not in it, which for a small net is
most of the time that Keras' `fit` takes. On one device XLA may compile all of it. Of several
replicas each takes its share of every batch, XLA may compile what each does alone, and one
all-reduce a step adds up their gradients; together they compute what one device would.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job.config import RunConfig
from job.data.source import Dataset
from job.errors import DataError
from job.training import augmentation
from job.training.feed import Feed
from job.training.layers import Share, share_of_batch
from job.training.model import PIXEL_SCALE, exchanges_in_layers

EXCHANGES = 20  # that are timed


class _Adam(keras.optimizers.Adam):  # type: ignore[misc]  # Keras has no types
    """Adam that is given gradients which are summed over all replicas already."""

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return list(grads_and_vars)


class Loop:
    """A model, its optimizer, and the compiled steps that train it in place.

    The optimizer is Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter,
    2019).
    """

    def __init__(
        self,
        model: keras.Model,
        dataset: Dataset,
        config: RunConfig,
        strategy: tf.distribute.Strategy,
    ) -> None:
        """Put the training data on the device of `strategy`, in whose scope `model` was made."""
        self._model = model
        self._strategy = strategy
        self._replicas = strategy.num_replicas_in_sync
        self._batch_size = config.batch_size
        self._share = math.ceil(config.batch_size / self._replicas)
        self._exchange = tf.as_dtype(config.exchange)
        self._classes = dataset.classes
        self._seed = config.seed
        self._label_smoothing = config.label_smoothing
        self._transform = augmentation.transform(config.augment, config.augment_strength)
        with strategy.scope():
            self._optimizer = _Adam(weight_decay=config.weight_decay or None, name="adam")
            self._optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
            self._optimizer.build(model.trainable_variables)
        self._feed = Feed(strategy, dataset, self._share)
        # XLA knows no exchange between replicas.
        alone = self._replicas == 1
        apart = not alone and not exchanges_in_layers(config.model)
        self._program = tf.function(self._steps, jit_compile=alone, autograph=False)
        self._scoring = tf.function(self._scores, jit_compile=alone, autograph=False)
        self._gradients = (
            tf.function(self._differentiate, jit_compile=True, autograph=False)
            if apart
            else self._differentiate
        )
        self.begin_epoch()

    @property
    def most_steps(self) -> int:
        """How many steps can be done at once."""
        return self._feed.most_steps or sys.maxsize

    def begin_epoch(self) -> None:
        """Set the sums of loss and hits to zero."""
        self._loss_sum, self._hits = np.float32(0), np.int32(0)

    def run(
        self,
        order: npt.NDArray[np.int32],
        rates: npt.NDArray[np.float32],
        *,
        epoch_start: int,
        first: int,
        count: int,
    ) -> None:
        """Do `count` steps of an epoch, from its step `first` on. No step only compiles.

        Args:
            order: examples of each step of the epoch, shape (steps, batch).
            rates: learning rate of each step of the epoch, shape (steps,).
            epoch_start: optimizer steps done before this epoch.
            first: steps of this epoch done before.
            count: steps to do, at most `most_steps`; neither this nor the two before cause
                another compilation.
        """
        # Where the replicas don't divide the batch, some examples fill it up, and don't count.
        order = np.pad(order, [(0, 0), (0, self._share * self._replicas - order.shape[1])], "wrap")
        *given, before = self._feed.steps(order, rates, first, count)
        sums = tf.constant(self._loss_sum), tf.constant(self._hits)
        # Arguments, not closures: captured constants would be embedded in the program.
        loss_sum, hits = self._program(*given, before + epoch_start, *sums)
        # Carried as they are, so that a sum has the same bits wherever the chunks end.
        self._loss_sum, self._hits = loss_sum.numpy(), hits.numpy()

    def score(
        self, examples: npt.NDArray[np.int32], steps: int | None = None
    ) -> tuple[float, float]:
        """Return mean loss against the labels themselves, and accuracy, of training examples.

        Args:
            examples: which, shape (any,).
            steps: batches to take, all if None; no batch only compiles.
        """
        whole = self._share * self._replicas
        batches = math.ceil(len(examples) / whole)
        order = np.resize(examples, (batches, whole))  # which takes the first ones again at the end
        nothing = np.zeros(batches, np.float32)
        sums = tf.constant(np.float32(0)), tf.constant(np.int32(0))
        first, end = 0, batches if steps is None else steps
        while True:
            count = min(end - first, self.most_steps)
            images, labels, rows, _, *span = self._feed.steps(order, nothing, first, count)
            sums = self._scoring(images, labels, rows, *span, tf.constant(len(examples)), *sums)
            first += count
            if first >= end:
                return float(sums[0]) / len(examples), int(sums[1]) / len(examples)

    def exchange_seconds(self) -> float:
        """Return what the exchanges of one step take where no replica comes late."""
        gradients = sum(math.prod(each.shape) for each in self._model.trainable_variables)
        statistics = [
            (2 * math.prod(layer.moving_mean.shape), tf.float32)
            for layer in self._model.layers
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        sums = [(2, tf.float32)] if self._exchange != tf.float32 else []
        # Those of a batch go forward, and their gradients back.
        sent = [*statistics, *statistics, *sums, (gradients, self._exchange)]

        def exchange() -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            last = tf.zeros([])
            for length, kind in sent:  # one after another, as layers are
                numbers = tf.zeros([length], kind) + tf.cast(last, kind)
                last = replica.all_reduce(tf.distribute.ReduceOp.SUM, numbers)[0]
            return last

        def body(i: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            last = self._strategy.run(exchange)
            return i + 1, self._strategy.experimental_local_results(last)[0]

        program = tf.function(  # a loop, as that of the steps
            lambda count: tf.while_loop(
                lambda i, _: i < count,
                body,
                (0, tf.cast(0, self._exchange)),
                parallel_iterations=1,
            )[1],
            autograph=False,
        )
        program(tf.constant(1))
        started = time.perf_counter()
        program(tf.constant(EXCHANGES)).numpy()
        return (time.perf_counter() - started) / EXCHANGES

    def means(self, steps: int) -> tuple[float, float]:
        """Return loss and accuracy over the epoch, of which `steps` steps are done."""
        return float(self._loss_sum) / steps, int(self._hits) / (steps * self._batch_size)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of every variable and sum, by name."""
        variables = {name: variable.numpy() for name, variable in self._variables().items()}
        return variables | {
            "epoch/loss_sum": np.array(self._loss_sum),
            "epoch/hits": np.array(self._hits),
        }

    def assign(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Put back what `arrays` returned.

        Raises:
            DataError: the names or shapes are not this model's.
        """
        variables = self._variables()
        mine = {name: tuple(variable.shape) for name, variable in variables.items()}
        theirs = {name: array.shape for name, array in arrays.items() if "epoch/" not in name}
        if mine != theirs:
            differing = sorted(name for name, _ in mine.items() ^ theirs.items())
            raise DataError(
                f"the checkpoint does not fit the model: {', '.join(differing[:4])} differ; it was "
                "written by another version of this job, choose another --run-id"
            )
        for name, variable in variables.items():
            variable.assign(arrays[name])
        self._loss_sum = np.float32(arrays["epoch/loss_sum"])
        self._hits = np.int32(arrays["epoch/hits"])

    def _variables(self) -> dict[str, keras.Variable]:
        # By place and not by path: Keras numbers the seed generators of a whole process.
        return {
            f"{part}/{index:03}/{variable.name}": variable
            for part, owner in (("model", self._model), ("optimizer", self._optimizer))
            for index, variable in enumerate(owner.variables)
        }

    def _steps(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        rates: tf.Tensor,
        first: tf.Tensor,
        end: tf.Tensor,
        before: tf.Tensor,
        loss_sum: tf.Tensor,
        hits: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        def step(i: tf.Tensor) -> list[tf.Tensor]:
            self._optimizer.learning_rate.assign(tf.reshape(tf.slice(rates, [i], [1]), []))
            results = self._strategy.run(self._step, (images, labels, order, i, before + i))
            # The same on every replica, so that of the first will do.
            return [self._strategy.experimental_local_results(each)[0] for each in results]

        return _added_up(step, first, end, loss_sum, hits)

    def _scores(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        first: tf.Tensor,
        end: tf.Tensor,
        before: tf.Tensor,
        examples: tf.Tensor,
        loss_sum: tf.Tensor,
        hits: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        def batch(i: tf.Tensor) -> list[tf.Tensor]:
            arguments = images, labels, order, i, before + i, examples
            results = self._strategy.run(self._score_batch, arguments)
            total = tf.distribute.ReduceOp.SUM
            return [self._strategy.reduce(total, each, axis=None) for each in results]

        return _added_up(batch, first, end, loss_sum, hits)

    def _own_part(self, order: tf.Tensor, i: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
        """Return the examples of batch `i` that a replica takes, from its place `start` on."""
        # Slices of static size: with traced bounds XLA would copy the whole order each step.
        return tf.reshape(tf.slice(order, [i, start], [1, self._share]), [self._share])

    def _score_batch(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        i: tf.Tensor,
        number: tf.Tensor,
        examples: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return a replica's part of the sums of loss and hits of batch `number`."""
        replica = tf.distribute.get_replica_context()
        start = replica.replica_id_in_sync_group * self._share
        batch = self._own_part(order, i, start)
        pixels = tf.cast(tf.gather(images, batch), tf.float32) * PIXEL_SCALE
        labels = tf.gather(labels, batch)
        logits = self._model(pixels, training=False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        counts = number * self._share * self._replicas + start + tf.range(self._share) < examples
        right = (tf.argmax(logits, axis=1, output_type=tf.int32) == labels) & counts
        loss = tf.reduce_sum(tf.where(counts, losses, 0))
        return loss, tf.reduce_sum(tf.cast(right, tf.int32))

    def _step(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        i: tf.Tensor,
        number: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Do a replica's part of optimizer step `number`; return the step's mean loss and hits."""
        replica = tf.distribute.get_replica_context()
        start = replica.replica_id_in_sync_group * self._share
        batch = self._own_part(order, i, start)
        loss, hits, *gradients = self._gradients(
            tf.gather(images, batch), tf.gather(labels, batch), start, number
        )
        if self._replicas > 1:
            parts = [loss, tf.cast(hits, tf.float32), *gradients]
            loss, float_hits, *gradients = _summed(parts, replica, self._exchange)
            hits = tf.cast(float_hits, tf.int32)
        self._optimizer.apply(gradients, self._model.trainable_variables)
        return loss, hits

    def _differentiate(
        self, images: tf.Tensor, labels: tf.Tensor, start: tf.Tensor, number: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Return what a replica's share of a batch adds to the mean loss, its hits and gradients.

        Args:
            images: uint8, shape (share, *image_shape).
            labels: int32, shape (share,).
            start: place in the batch of the first of them.
            number: optimizer steps done before.
        """
        seed = tf.stack([self._seed, number])
        images = self._transform(images, seed, start, self._batch_size)
        pixels = tf.cast(images, tf.float32) * PIXEL_SCALE
        off = self._label_smoothing / self._classes
        on = 1 - self._label_smoothing + off
        targets = tf.one_hot(labels, self._classes, on_value=on, off_value=off)
        places = start + tf.range(self._share)
        counts = places < self._batch_size
        all_count = self._share * self._replicas == self._batch_size
        share = Share(self._batch_size, places % self._batch_size, None if all_count else counts)
        with tf.GradientTape() as tape:
            with share_of_batch(share):
                logits = self._model(pixels, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            if not all_count:
                losses = tf.where(counts, losses, 0)
            loss = tf.reduce_sum(losses) / self._batch_size
        gradients = tape.gradient(loss, self._model.trainable_variables)
        right = (tf.argmax(logits, axis=1, output_type=tf.int32) == labels) & counts
        return loss, tf.reduce_sum(tf.cast(right, tf.int32)), *gradients


def _added_up(
    do: Callable[[tf.Tensor], Sequence[tf.Tensor]],
    first: tf.Tensor,
    end: tf.Tensor,
    loss_sum: tf.Tensor,
    hits: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the sums with the loss and hits of `do(i)` for each i from `first` up to `end`."""

    def body(i: tf.Tensor, loss_sum: tf.Tensor, hits: tf.Tensor) -> tuple[tf.Tensor, ...]:
        loss, more_hits = do(i)
        return i + 1, loss_sum + loss, hits + more_hits

    _, loss_sum, hits = tf.while_loop(
        lambda i, *_: i < end, body, (first, loss_sum, hits), parallel_iterations=1
    )
    return loss_sum, hits


def _summed(
    parts: list[tf.Tensor], replica: tf.distribute.ReplicaContext, precision: tf.DType
) -> list[tf.Tensor]:
    """Return the sums of `parts` over all replicas, in one exchange.

    In a second one, if gradients go as numbers of less `precision`: the first two parts, the loss
    and a count, are always exact.
    """
    few = 0 if precision == tf.float32 else 2

    def exchanged(parts: list[tf.Tensor], precision: tf.DType) -> list[tf.Tensor]:
        flat = tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)
        total = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(flat, precision))
        pieces = tf.split(tf.cast(total, tf.float32), [part.shape.num_elements() for part in parts])
        return [tf.reshape(piece, part.shape) for piece, part in zip(pieces, parts, strict=True)]

    first = exchanged(parts[:few], tf.float32) if few else []
    return first + exchanged(parts[few:], precision)
