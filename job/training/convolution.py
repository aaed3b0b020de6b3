"""3x3 convolutions as products of matrices, the form that XLA makes fast on a CPU.

Inside a loop that XLA compiles for a CPU, its own convolution runs on one core and in the order of
its operands in memory (openxla/xla#34273): a seventh of the speed of the matrix product that does
the same. So the windows that a kernel sees are laid side by side and multiplied by the kernel at
once ("im2col": Chellapilla, Puri and Simard, 2006).

Where a 2x2 max-pooling follows, only the largest of four neighbours is wanted. The four are
computed apart, each as a product of its own over every other window, so that pooling is a maximum
of whole arrays and no array of all windows is ever made. The pixels of every other window lie every
other pixel too: the images are first taken apart by even and odd rows and columns.

Of many channels the four are computed together: sixteen products of sums of pixels with sums of
weights hold what thirty-six products of pixels and weights do (Winograd, 1980, as F(2x2, 3x3) of
Lavin and Gray, 2016). A few images at a time, so that what lies between stays in a core's cache:
together up to twice as fast.

What is computed is said by the model, and the variables are those of `keras.layers.Conv2D`.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

SIDE = 3  # of a kernel
MANY_CHANNELS = 32  # from which on fewer products outweigh the sums before and after them
CHUNK = 32  # images at a time
SMALLEST_CHUNK = 8  # below which the products would be too small
Rows = Sequence[Sequence[tf.Tensor]]


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
    channels = images.shape[3]
    if channels < MANY_CHANNELS or images.dtype != tf.float32:  # sums cost digits, as of bfloat16
        return _largest(_four_by_windows(images, kernel))
    return _in_chunks(images, kernel)


def _in_chunks(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Do what `convolved_and_pooled` does, a few images at a time, and the gradient likewise."""
    examples = images.shape[0] or 1  # None while Keras looks for shapes
    chunk = max(size for size in range(1, CHUNK + 1) if examples % size == 0)
    if chunk < SMALLEST_CHUNK:
        chunk = examples

    def parts(array: tf.Tensor) -> tf.Tensor:
        return tf.reshape(array, [-1, chunk, *array.shape[1:]])

    def whole(array: tf.Tensor) -> tf.Tensor:
        return tf.reshape(array, [-1, *array.shape[2:]])

    def forth(part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        four = _four_by_sums(part, kernel)
        return _largest(four), _which_is_largest(four)

    @tf.custom_gradient  # that of a loop would keep all that lies between
    def pooled(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
        largest, which = tf.map_fn(forth, parts(images), fn_output_signature=(tf.float32, tf.int8))

        def back(gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            def of_part(arrays: tuple[tf.Tensor, ...]) -> list[tf.Tensor]:
                part, gradient, which = arrays
                with tf.GradientTape() as tape:
                    tape.watch((part, kernel))
                    four = _four_by_sums(part, kernel)  # of which the gradient needs the sums only
                gradients = [tf.where(which == n, gradient, 0) for n in range(len(four))]
                return list(tape.gradient(four, (part, kernel), gradients))

            each = parts(images), parts(gradient), which
            of_images, of_kernel = tf.map_fn(
                of_part, each, fn_output_signature=[tf.float32, tf.float32]
            )
            return whole(of_images), tf.reduce_sum(of_kernel, axis=0)

        return whole(largest), back

    return pooled(images, kernel)


def _four_by_windows(images: tf.Tensor, kernel: tf.Tensor) -> list[tf.Tensor]:
    """Return what the convolution is at each of the four places of a pooling, row by row."""
    *_, channels, filters = kernel.shape
    seen = _seen(images)
    matrix = tf.reshape(kernel, [SIDE * SIDE * channels, filters])
    side = range(SIDE)
    return [
        _product(tf.concat([seen[down + y][right + x] for y in side for x in side], -1), matrix)
        for down in (0, 1)
        for right in (0, 1)
    ]


def _four_by_sums(images: tf.Tensor, kernel: tf.Tensor) -> list[tf.Tensor]:
    """Return the same, from sums of pixels and of weights, to rounding."""
    pixels = _twice(_sums_of_pixels, _seen(images))
    weights = _twice(_sums_of_weights, [[kernel[y, x] for x in range(SIDE)] for y in range(SIDE)])
    products = [
        [_product(one, other) for one, other in zip(*rows, strict=True)]
        for rows in zip(pixels, weights, strict=True)
    ]
    return [each for row in _twice(_sums_of_products, products) for each in row]


def _twice(sums: Any, rows: Rows) -> Rows:
    """Return `sums` over each row, and then over each column, as rows again."""
    columns = zip(*(sums(*row) for row in rows), strict=True)
    return list(zip(*(sums(*column) for column in columns), strict=True))


def _sums_of_pixels(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor) -> Sequence[tf.Tensor]:
    return a - c, b + c, c - b, b - d


def _sums_of_weights(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor) -> Sequence[tf.Tensor]:
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _sums_of_products(
    a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor
) -> Sequence[tf.Tensor]:
    return a + b + c, b - c - d


def _seen(images: tf.Tensor) -> Rows:
    """Return the pixels that the four windows of each pooling see, four rows of four."""
    height, width = images.shape[1:3]
    rows, columns = (height - 2) // 2, (width - 2) // 2
    apart = [[images[:, down::2, right::2] for right in (0, 1)] for down in (0, 1)]

    def every_other(down: int, right: int) -> tf.Tensor:
        """Return the pixels that lie so far from the first of every other window."""
        part = apart[down % 2][right % 2]
        return part[:, down // 2 : down // 2 + rows, right // 2 : right // 2 + columns]

    return [[every_other(down, right) for right in range(SIDE + 1)] for down in range(SIDE + 1)]


def _largest(four: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.maximum(tf.maximum(four[0], four[1]), tf.maximum(four[2], four[3]))


def _which_is_largest(four: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return the place of the largest, int8; of equals the first."""
    first, second, third, fourth = four

    def place(number: int) -> tf.Tensor:
        return tf.constant(number, tf.int8)

    upper = tf.where(first >= second, place(0), place(1))
    lower = tf.where(third >= fourth, place(2), place(3))
    return tf.where(tf.maximum(first, second) >= tf.maximum(third, fourth), upper, lower)


def _product(windows: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Return `windows`, shape (examples, rows, columns, numbers), times `matrix`."""
    flat = tf.reshape(windows, [-1, matrix.shape[0]])  # one product, and not one for each example
    return tf.reshape(flat @ matrix, [-1, *windows.shape[1:3], matrix.shape[1]])
