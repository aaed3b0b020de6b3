"""Random transforms of training images, as tensor ops.

Each is a function of the images and a seed alone, so a resumed run draws what an unbroken one would
have drawn.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from job.training import chance

MAX_SHIFT = 2  # pixels; MNIST digits keep a border of four
# At strength 1; of what was tried the best for nets that train for twenty epochs.
MAX_DEGREES = 10.0
MAX_SCALE = 0.1
MAX_SLANT = 0.1
MAX_MOVE = 1 / 14  # of the side: two pixels of 28


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


def affine(strength: float) -> "Transform":
    """Return a transform that turns, scales, shears and moves each image a little.

    Up to 10 degrees, a tenth each way, a slant of a tenth and a fourteenth of the side, times
    `strength`; what lies between pixels is read off the plane through the four around it
    (bilinear), and outside is zero.
    """

    def transform(images: tf.Tensor, seed: tf.Tensor, start: tf.Tensor, whole: int) -> tf.Tensor:
        examples, height, width = images.shape[:3]
        drawn = (2 * chance.uniform((whole, 6), seed) - 1) * strength
        drawn = tf.gather(drawn, (start + tf.range(examples)) % whole)
        turn, tall, wide, slant, down, right = tf.unstack(drawn[:, :, None, None], axis=1)
        angle = turn * MAX_DEGREES * math.pi / 180
        cosine, sine = tf.cos(angle), tf.sin(angle)
        tall, wide, slant = 1 + tall * MAX_SCALE, 1 + wide * MAX_SCALE, slant * MAX_SLANT
        # Where in the image each pixel comes from, seen from the centre.
        y = tf.range(height, dtype=tf.float32)[None, :, None] - (height - 1) / 2
        x = tf.range(width, dtype=tf.float32)[None, None, :] - (width - 1) / 2
        from_y = cosine * tall * y + (cosine * slant - sine) * wide * x
        from_x = sine * tall * y + (sine * slant + cosine) * wide * x
        from_y += (height - 1) / 2 + down * MAX_MOVE * height
        from_x += (width - 1) / 2 + right * MAX_MOVE * width
        return _read_between(images, from_y, from_x)

    return transform


def _read_between(images: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Return the values of `images` at the places `y`, `x`, shape (examples, rows, columns)."""
    examples, height, width = images.shape[:3]
    channels = images.shape[3:].num_elements()
    # One more row and column before, and two after, so that whatever is outside is there, and zero.
    margins = [[0, 0], [1, 2], [1, 2]] + [[0, 0]] * (images.shape.rank - 3)
    padded = tf.pad(tf.cast(images, tf.float32), margins)
    flat = tf.reshape(padded, [examples, (height + 3) * (width + 3), channels])
    top, left = tf.floor(y), tf.floor(x)
    below, beside = (y - top)[..., None], (x - left)[..., None]
    row = tf.clip_by_value(tf.cast(top, tf.int32), -1, height) + 1
    column = tf.clip_by_value(tf.cast(left, tf.int32), -1, width) + 1
    place = row * (width + 3) + column
    corners = (
        tf.gather(flat, place + off, axis=1, batch_dims=1) for off in (0, 1, width + 3, width + 4)
    )
    top_left, top_right, low_left, low_right = corners
    upper = top_left + beside * (top_right - top_left)
    lower = low_left + beside * (low_right - low_left)
    return tf.reshape(upper + below * (lower - upper), images.shape)


Transform = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, int], tf.Tensor]


def transform(name: str, strength: float | None) -> Transform:
    """Return the transform `name`, of that strength if it is one that has any."""
    return affine(strength) if strength is not None else {"none": none, "shift": shift}[name]
