"""Time of the matrix products alone that a training step of the net can't do without.

Forward, and backward for kernels and inner activations, in float32, into memory that is there
already: a bound for any loop that calls the same library's products and does something besides. The
last word names the library, `numpy` (OpenBLAS) or `torch` (oneDNN and MKL); both use all cores.
"""

import json
import sys
import time

import numpy as np

batch, library = int(sys.argv[1]), sys.argv[-1]
SIZES = (784, 128, 64, 10)
SHAPES = list(zip(SIZES, SIZES[1:], strict=False))
draw = np.random.default_rng(0)


def product(a, b):
    """Return a call that does one product again and again."""
    out = np.empty((len(a), b.shape[1]), np.float32)
    if library == "numpy":
        return lambda: np.matmul(a, b, out=out)
    import torch  # noqa: PLC0415

    torch.set_grad_enabled(False)
    left, right, result = (torch.from_numpy(array) for array in (a, b, out))
    return lambda: torch.mm(left, right, out=result)


activations = [draw.random((batch, size), np.float32) for size in SIZES]
kernels = [draw.random(shape, np.float32) for shape in SHAPES]
products = []
for layer, kernel in enumerate(kernels):
    inputs, gradient = activations[layer], activations[layer + 1]
    products += [product(inputs, kernel), product(inputs.T, gradient)]
    if layer:  # nobody needs the gradient of the pixels
        products.append(product(gradient, kernel.T))

flops = 2 * batch * (3 * sum(a * b for a, b in SHAPES) - SIZES[0] * SIZES[1])
times = []
for _ in range(40):
    began = time.perf_counter()
    for _ in range(25):
        for call in products:
            call()
    times.append((time.perf_counter() - began) / 25)
step_seconds = float(np.median(times))
print(json.dumps({"images_per_second": batch / step_seconds, "gflops": flops / step_seconds / 1e9}))
