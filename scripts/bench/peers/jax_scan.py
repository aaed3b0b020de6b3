"""The same training in JAX: the data set on the device, an epoch one jitted `lax.scan`.

A fifth word is how many steps the scan unrolls: more of them run faster and compile longer. Where
the batch doesn't divide the images, the last step is filled up with the first of the same order, as
in the job.
"""

import json
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

batch, epochs, data, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
unroll = int(sys.argv[5]) if sys.argv[5:] else 1

with np.load(data) as mnist:
    x_train, y_train = mnist["x_train"].reshape(-1, 784), mnist["y_train"].astype(np.int32)
    x_test, y_test = mnist["x_test"].reshape(-1, 784), mnist["y_test"].astype(np.int32)
steps = -(-len(x_train) // batch)


def initial(key, sizes=(784, 128, 64, 10)):
    keys = jax.random.split(key, len(sizes) - 1)
    glorot = jax.nn.initializers.glorot_uniform()
    return [
        (glorot(key, shape), jnp.zeros(shape[1]))
        for key, shape in zip(keys, zip(sizes, sizes[1:], strict=False), strict=True)
    ]


def logits_of(parameters, images):
    hidden = images.astype(jnp.float32) / 255
    for kernel, bias in parameters[:-1]:
        hidden = jax.nn.relu(hidden @ kernel + bias)
    kernel, bias = parameters[-1]
    return hidden @ kernel + bias


def loss_of(parameters, images, labels):
    logits = logits_of(parameters, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, epochs * steps))


@partial(jax.jit, donate_argnums=(0, 1))
def epoch(parameters, state, images, labels, order):
    def step(carry, rows):
        parameters, state = carry
        # Clipped, for indices that are known to be good: otherwise each is checked.
        pixels, targets = (jnp.take(array, rows, axis=0, mode="clip") for array in (images, labels))
        loss, gradients = jax.value_and_grad(loss_of)(parameters, pixels, targets)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(parameters, updates), state), loss

    (parameters, state), losses = jax.lax.scan(step, (parameters, state), order, unroll=unroll)
    return parameters, state, losses.mean()


parameters = initial(jax.random.key(0))
state = optimizer.init(parameters)
images, labels = jnp.asarray(x_train), jnp.asarray(y_train)
draw = np.random.default_rng(0)
seconds = []
for _ in range(epochs):
    began = time.perf_counter()
    order = np.resize(draw.permutation(len(x_train)).astype(np.int32), (steps, batch))
    parameters, state, loss = epoch(parameters, state, images, labels, jnp.asarray(order))
    loss.block_until_ready()
    seconds.append(time.perf_counter() - began)
predicted = jax.jit(logits_of)(parameters, jnp.asarray(x_test)).argmax(axis=1)
accuracy = float((predicted == y_test).mean())
np.savez(f"{output}/weights.npz", *(array for layer in parameters for array in layer))
speed = steps * batch / float(np.median(seconds[1:]))
print(json.dumps({"accuracy": accuracy, "images_per_second": speed}))
