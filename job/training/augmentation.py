"""Random transforms of training images, as tensor ops.

Each is a function of the images and a seed alone (counter-based generators: Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", 2011), so a resumed run draws what an unbroken one
would have drawn.
"""

from collections.abc import Callable

import tensorflow as tf

MAX_SHIFT = 2  # pixels; MNIST digits keep a border of four


def none(images: tf.Tensor, seed: tf.Tensor, start: tf.Tensor, whole: int) -> tf.Tensor:
    """Return `images` as they are."""
    del seed, start, whole
    return images


def shift(images: tf.Tensor, seed: tf.Tensor, start: tf.Tensor, whole: int) -> tf.Tensor:
    """Move each image by up to `MAX_SHIFT` pixels each way, filling with zeros.

    Args:
        images: any number type, shape (examples, height, width) or (examples, height, width,
            channels); all but the first may not be unknown.
        seed: int32, shape (2,); the same seed gives the same shifts.
        start: place in the batch of the first of `images`.
        whole: examples in the batch; each is moved alike, whoever has it.

    Returns:
        Moved images of the same shape and type.
    """
    examples, height, width = images.shape[:3]
    margins = [[0, 0], [MAX_SHIFT, MAX_SHIFT], [MAX_SHIFT, MAX_SHIFT]]
    padded = tf.pad(images, margins + [[0, 0]] * (images.shape.rank - 3))
    offsets = tf.random.stateless_uniform(
        (2, whole, 1), seed, minval=0, maxval=2 * MAX_SHIFT + 1, dtype=tf.int32
    )
    offsets = tf.gather(offsets, (start + tf.range(examples)) % whole, axis=1)
    rows = offsets[0] + tf.range(height)
    columns = offsets[1] + tf.range(width)
    moved = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(moved, columns, axis=2, batch_dims=1)


Transform = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, int], tf.Tensor]
TRANSFORMS: dict[str, Transform] = {"none": none, "shift": shift}
