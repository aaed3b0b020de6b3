"""Keras layers that compute of a replica's share of a batch what one device would of the whole.

Keras' own draw the same mask on every replica, and count examples that only fill up a share in the
statistics of a batch. Outside of `share_of_batch` these are Keras' own.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import keras
import tensorflow as tf

from job.training import chance


@dataclass(frozen=True)
class Share:
    """The examples of a batch that a replica computes."""

    batch_size: int
    """Examples in the batch, over all replicas."""
    places: tf.Tensor
    """Place of each example in the batch: int32, shape (share,)."""
    counts: tf.Tensor | None
    """Whether each counts, or only fills up the share: bool, shape (share,). None: all count."""


# Each replica is traced in a thread of its own, and sees its own share.
_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextlib.contextmanager
def share_of_batch(share: Share) -> Iterator[None]:
    """Let the layers called meanwhile, in training, know which examples they are given."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


class Dropout(keras.layers.Dropout):  # type: ignore[misc]  # Keras has no types
    """Dropout whose mask is drawn for the whole batch, of which each replica takes its share.

    The mask is a function of the layer's seed and the number of masks drawn before, both of which
    its seed generator holds; all replicas hold the same.
    """

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return `inputs`, shape (share, ...), in training with some of them zero."""
        if not training or not self.rate:
            return inputs
        share = _share.get()
        examples = inputs.shape[0] if share is None else share.batch_size
        seed = tf.cast(self.seed_generator.next(), tf.int32)
        kept = chance.uniform((examples, *inputs.shape[1:]), seed) >= self.rate
        mask = tf.cast(kept, inputs.dtype) / (1 - self.rate)
        return inputs * (mask if share is None else tf.gather(mask, share.places))


class BatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Batch normalisation by the statistics of the examples that count, over all replicas."""

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Return `inputs`, shape (share, ..., channels), normalised."""
        share, replica = _share.get(), tf.distribute.get_replica_context()
        if share is None or not training:
            return super().call(inputs, training=training, mask=mask)
        if share.counts is None and replica.num_replicas_in_sync == 1:
            return super().call(inputs, training=training, mask=mask)
        # As Keras does it where `synchronized`, but in one exchange of three, and some examples may
        # not count: variance is E(x^2) - E(x)^2.
        values = tf.cast(inputs, tf.float32)
        axes = list(range(values.shape.rank - 1))
        counted = values
        if share.counts is not None:
            ones = [1] * len(axes)
            counted = values * tf.reshape(tf.cast(share.counts, tf.float32), [-1, *ones])
        sums = tf.stack([tf.reduce_sum(counted, axes), tf.reduce_sum(counted * values, axes)])
        sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        numbers = share.batch_size * values.shape[1:-1].num_elements()
        mean, square = tf.unstack(sums / numbers)
        variance = tf.maximum(square - mean**2, 0)
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + now * (1 - self.momentum))
        normalized = keras.ops.batch_normalization(
            values, mean, variance, self.axis, self.beta, self.gamma, self.epsilon
        )
        return tf.cast(normalized, self.compute_dtype)
