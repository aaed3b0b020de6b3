"""Random numbers that are the same whether XLA compiles what draws them or not.

TensorFlow's stateless generator (Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2,
3", 2011) gives the same integers either way, but other real numbers: XLA orders them otherwise
(seen in TensorFlow 2.21). One device trains compiled as a whole, replicas in part, and all must
draw alike.
"""

from collections.abc import Sequence

import tensorflow as tf

_BITS = 24  # of a float32's mantissa: each number is drawn as likely as any other


def uniform(shape: Sequence[int], seed: tf.Tensor) -> tf.Tensor:
    """Return float32 numbers from 0 up to but not 1, a function of `seed`, int32, shape (2,)."""
    whole = tf.random.stateless_uniform(shape, seed, minval=0, maxval=2**_BITS, dtype=tf.int32)
    return tf.cast(whole, tf.float32) / 2**_BITS
