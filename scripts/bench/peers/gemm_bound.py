"""Time of the matrix products alone that a training step of the net can't do without.

Forward, and backward for kernels and inner activations, in float32, by NumPy's BLAS: a bound that
no loop over the same products on the same cores can pass, with anything else for free.
"""

import json
import sys
import time

import numpy as np

batch = int(sys.argv[1])
SIZES = (784, 128, 64, 10)
draw = np.random.default_rng(0)
activations = [draw.random((batch, size), np.float32) for size in SIZES]
kernels = [draw.random(shape, np.float32) for shape in zip(SIZES, SIZES[1:], strict=False)]


def products() -> None:
    """Do the products of one step."""
    for layer, kernel in enumerate(kernels):
        np.matmul(activations[layer], kernel)
    for layer, kernel in enumerate(kernels):
        np.matmul(activations[layer].T, activations[layer + 1])
        if layer:
            np.matmul(activations[layer + 1], kernel.T)


flops = 2 * batch * sum(a * b for a, b in zip(SIZES, SIZES[1:], strict=False)) * 3
flops -= 2 * batch * SIZES[0] * SIZES[1]  # no gradient of the pixels
best = []
for _ in range(20):
    began = time.perf_counter()
    for _ in range(50):
        products()
    best.append((time.perf_counter() - began) / 50)
step_seconds = float(np.median(best))
print(json.dumps({"images_per_second": batch / step_seconds, "gflops": flops / step_seconds / 1e9}))
