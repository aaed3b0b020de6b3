"""The convolutional net in JAX, in one of two forms.

`conv`: `lax.conv` in one jitted step after the other. In a scan XLA's convolutions are several
times slower on a CPU (jax-ml/jax#12868), so a user who measures leaves the scan.
`matrices`: an epoch one jitted `lax.scan`, convolutions and poolings as products of matrices, in
the job's own form (job/training/convolution.py): by far not what users write.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from recipe import (
    EPSILON,
    MOMENTUM,
    epochs,
    filters,
    hidden,
    how,
    order,
    output,
    rates,
    recipe,
    tell,
    x_test,
    x_train,
    y_test,
    y_train,
)

if recipe["affine"] is not None:
    raise SystemExit("there is no augmentation here")
by_matrices = how == ["matrices"]


def initial(key):
    """Return kernels and biases of each layer, and the moving statistics of the normalised."""
    side, channels, shapes = x_train.shape[1], 1, []
    for place, number in enumerate(filters, start=1):
        shapes.append((3, 3, channels, number))
        channels = number
        side = (side - 2) // (2 if place < len(filters) else 1)
    features = channels * side**2
    if hidden:
        shapes.append((features, hidden))
        features = hidden
    moving = [(jnp.zeros(shape[-1]), jnp.ones(shape[-1])) for shape in shapes]
    shapes.append((features, 10))
    glorot = jax.nn.initializers.glorot_uniform()
    keys = jax.random.split(key, len(shapes))
    pairs = zip(keys, shapes, strict=True)
    return [(glorot(key, shape), jnp.zeros(shape[-1])) for key, shape in pairs], moving


def convolved(images, kernel, *, pooled):
    """Return the "valid" convolution of `images`, and 2x2 max-pooling of it if `pooled`."""
    if by_matrices:
        return (four_pooled if pooled else unpooled)(images, kernel)
    layout = ("NHWC", "HWIO", "NHWC")
    hidden = jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=layout)
    if not pooled:
        return hidden
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(hidden, -jnp.inf, jax.lax.max, window, window, "VALID")


def unpooled(images, kernel):
    rows, columns = images.shape[1] - 2, images.shape[2] - 2
    windows = [images[:, y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    return jnp.concatenate(windows, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def four_pooled(images, kernel):
    rows, columns = (images.shape[1] - 2) // 2, (images.shape[2] - 2) // 2
    apart = [[images[:, down::2, right::2] for right in (0, 1)] for down in (0, 1)]

    def every_other(down, right):
        part = apart[down % 2][right % 2]
        return part[:, down // 2 : down // 2 + rows, right // 2 : right // 2 + columns]

    four = [
        jnp.concatenate(
            [every_other(down + y, right + x) for y in range(3) for x in range(3)], axis=-1
        )
        @ kernel.reshape(-1, kernel.shape[-1])
        for down in (0, 1)
        for right in (0, 1)
    ]
    return jnp.maximum(jnp.maximum(four[0], four[1]), jnp.maximum(four[2], four[3]))


def logits_of(parameters, moving, images, key=None):
    """Return logits and moving statistics; with a `key`, as training computes them."""
    values, after = images[..., None].astype(jnp.float32) / 255, []
    for place, (kernel, bias) in enumerate(parameters[:-1], start=1):
        if kernel.ndim == 4:
            values = convolved(values, kernel, pooled=place < len(filters))
        else:
            values = values.reshape(len(values), -1) @ kernel
        mean, variance = moving[place - 1]
        if key is not None:
            axes = tuple(range(values.ndim - 1))
            now = values.mean(axes), values.var(axes)
            before = zip(moving[place - 1], now, strict=True)
            after.append(tuple(MOMENTUM * old + (1 - MOMENTUM) * new for old, new in before))
            mean, variance = now
        values = jax.nn.relu((values - mean) * jax.lax.rsqrt(variance + EPSILON) + bias)
    values = values.reshape(len(values), -1)
    if key is not None and recipe["dropout"]:
        kept = 1 - recipe["dropout"]
        values = jnp.where(jax.random.bernoulli(key, kept, values.shape), values / kept, 0)
    kernel, bias = parameters[-1]
    return values @ kernel + bias, after


def loss_of(parameters, moving, images, labels, key):
    logits, after = logits_of(parameters, moving, images, key)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 10), recipe["label_smoothing"])
    return optax.softmax_cross_entropy(logits, targets).mean(), after


all_rates = jnp.asarray(rates().reshape(-1))
optimizer = optax.adamw(
    lambda count: all_rates[count],
    eps=1e-7,  # as Keras has it
    weight_decay=recipe["weight_decay"],
    mask=lambda parameters: jax.tree.map(lambda array: array.ndim > 1, parameters),
)


def step(carry, rows, images, labels):
    parameters, moving, state, key = carry
    key, drawn = jax.random.split(key)
    pixels, targets = (jnp.take(array, rows, axis=0, mode="clip") for array in (images, labels))
    differentiated = jax.value_and_grad(loss_of, has_aux=True)
    (loss, moving), gradients = differentiated(parameters, moving, pixels, targets, drawn)
    updates, state = optimizer.update(gradients, state, parameters)
    return (optax.apply_updates(parameters, updates), moving, state, key), loss


one_step = jax.jit(step, donate_argnums=0)


@partial(jax.jit, donate_argnums=0)
def whole_epoch(carry, orders, images, labels):
    return jax.lax.scan(lambda carry, rows: step(carry, rows, images, labels), carry, orders)


parameters, moving = initial(jax.random.key(0))
carry = parameters, moving, optimizer.init(parameters), jax.random.key(1)
images, labels = jnp.asarray(x_train), jnp.asarray(y_train)
seconds = []
for _ in range(epochs):
    began = time.perf_counter()
    orders = order().astype(np.int32)
    if by_matrices:
        carry, losses = whole_epoch(carry, jnp.asarray(orders), images, labels)
    else:
        for rows in orders:
            carry, losses = one_step(carry, rows, images, labels)
    losses.block_until_ready()
    seconds.append(time.perf_counter() - began)
parameters, moving, *_ = carry
predict = jax.jit(lambda images: logits_of(parameters, moving, images)[0].argmax(axis=1))
predicted = np.concatenate([predict(part) for part in np.split(x_test, len(x_test) // 1000)])
arrays = jax.tree.leaves((parameters, moving))
np.savez(f"{output}/weights.npz", *arrays)
tell((predicted == y_test).mean(), seconds, sum(array.size for array in arrays))
