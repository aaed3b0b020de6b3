"""Study's seed and trial's number -> a point: the same in every pod, and nobody hands it out.

A Sobol sequence (1967) fills a space more evenly than chance does, however many of its points are
taken. It is TensorFlow's (`tf.math.sobol_sample`, with the direction numbers of Joe and Kuo, 2008).
Each study shifts it by a point of its own, modulo 1 (Cranley and Patterson, 1976): its first points
are the same for everybody otherwise, corners and middles among them.
"""

import numpy as np
import tensorflow as tf

_SHIFT = 2**63 + 1  # the second word of a key that no order of a training has


def point(seed: int, trial: int, dimensions: int) -> tuple[float, ...]:
    """Return the point of a trial, counted from 0: a share from 0 to below 1 for each dimension."""
    # In a session on the CPU: what TensorFlow computes eagerly would settle the devices for good,
    # and how the training uses them is its own to say.
    with tf.Graph().as_default():
        # The first point of the sequence, all zeros, is left out by TensorFlow.
        sample = tf.math.sobol_sample(dimensions, 1, skip=trial, dtype=tf.float64)
        with tf.compat.v1.Session(config=tf.compat.v1.ConfigProto(device_count={"GPU": 0})) as run:
            sobol = run.run(sample)[0]
    shift = np.random.Generator(np.random.Philox(key=[seed, _SHIFT])).random(dimensions)
    return tuple(((sobol + shift) % 1.0).tolist())
