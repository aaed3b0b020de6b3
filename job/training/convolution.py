"""3x3 convolutions as products of matrices, the form that XLA makes fast on a CPU.

Inside a loop that XLA compiles for a CPU, its own convolution runs on one core and in the order of
its operands in memory (openxla/xla#34273): a seventh of the speed of the matrix product that does
the same. So the windows that a kernel sees are laid side by side and multiplied by the kernel at
once ("im2col": Chellapilla, Puri and Simard, 2006).

Where a 2x2 max-pooling follows, only the largest of four neighbours is wanted. The four are
computed apart, each as a product of its own over every other window, so that pooling is a maximum
of whole arrays and no array of all windows is ever made. The pixels of every other window lie every
other pixel too: the images are first taken apart by even and odd rows and columns.

What is computed is said by the model, and the variables are those of `keras.layers.Conv2D`.
"""

from typing import Any

import keras
import tensorflow as tf

SIDE = 3  # of a kernel


class Convolution(keras.layers.Conv2D):  # type: ignore[misc]  # Keras has no types
    """A 3x3 convolution without bias, and the 2x2 max-pooling after it if `pooled`.

    As `keras.layers.Conv2D` and `keras.layers.MaxPooling2D` with the same `padding` would do it, to
    rounding. Its variables are those of the `Conv2D`.
    """

    def __init__(self, filters: int, *, pooled: bool, padding: str, **more: Any) -> None:
        """Make the layer; `more` are arguments of `keras.layers.Conv2D`."""
        super().__init__(filters, SIDE, padding=padding, use_bias=False, **more)
        self._pooled = pooled

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the convolution of `inputs`, shape (examples, height, width, channels)."""
        height, width = inputs.shape[1:3]
        if self.padding == "same":
            inputs = tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]])
            odd = height % 2 or width % 2
            if self._pooled and odd:  # the last window is of one row or column: no blocks
                return tf.nn.max_pool2d(convolved(inputs, self.kernel), 2, 2, "SAME")
        form = convolved_and_pooled if self._pooled else convolved
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            # XLA can't compile the whole step, whose replicas exchange numbers; so each part.
            form = tf.function(form, jit_compile=True, autograph=False)
        return form(inputs, tf.convert_to_tensor(self.kernel))

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that inputs of `input_shape` lead to."""
        shape = super().compute_output_shape(input_shape)
        if not self._pooled:
            return tuple(shape)
        up = 1 if self.padding == "same" else 0
        examples, height, width, filters = shape
        return examples, (height + up) // 2, (width + up) // 2, filters


def convolved(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Return the "valid" convolution of `images` with `kernel`.

    Args:
        images: shape (examples, height, width, channels).
        kernel: shape (3, 3, channels, filters), of the same type.

    Returns:
        Shape (examples, height - 2, width - 2, filters).
    """
    *_, channels, filters = kernel.shape
    rows, columns = images.shape[1] - SIDE + 1, images.shape[2] - SIDE + 1
    windows = [images[:, y : y + rows, x : x + columns] for y in range(SIDE) for x in range(SIDE)]
    matrix = tf.reshape(kernel, [SIDE * SIDE * channels, filters])
    return _product(tf.concat(windows, axis=-1), matrix)


def convolved_and_pooled(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Return the "valid" convolution of `images` with `kernel`, then 2x2 max-pooling.

    A last row or column of the convolution that makes no whole window of 2x2 is left out.

    Args:
        images: shape (examples, height, width, channels), at least 4 pixels high and wide.
        kernel: shape (3, 3, channels, filters), of the same type.

    Returns:
        Shape (examples, (height - 2) // 2, (width - 2) // 2, filters).
    """
    *_, channels, filters = kernel.shape
    height, width = images.shape[1:3]
    rows, columns = (height - 2) // 2, (width - 2) // 2
    apart = [[images[:, down::2, right::2] for right in (0, 1)] for down in (0, 1)]

    def every_other(down: int, right: int) -> tf.Tensor:
        """Return the pixels that lie so far from the first of every other window."""
        part = apart[down % 2][right % 2]
        return part[:, down // 2 : down // 2 + rows, right // 2 : right // 2 + columns]

    seen = [[every_other(down, right) for right in range(SIDE + 1)] for down in range(SIDE + 1)]
    matrix = tf.reshape(kernel, [SIDE * SIDE * channels, filters])
    first, second, third, fourth = (
        _product(
            tf.concat(
                [seen[down + y][right + x] for y in range(SIDE) for x in range(SIDE)], axis=-1
            ),
            matrix,
        )
        for down in (0, 1)
        for right in (0, 1)
    )
    return tf.maximum(tf.maximum(first, second), tf.maximum(third, fourth))


def _product(windows: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Return `windows`, shape (examples, rows, columns, numbers), times `matrix`."""
    flat = tf.reshape(windows, [-1, matrix.shape[0]])  # one product, and not one for each example
    return tf.reshape(flat @ matrix, [-1, *windows.shape[1:3], matrix.shape[1]])
