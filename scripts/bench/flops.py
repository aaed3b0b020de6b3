"""Floating-point operations of a net, counted from the shapes of its layers.

    python scripts/bench/flops.py cnn 10 28 28        name, classes, shape of an image

Prints the operations for one image, forward and in training, as JSON.
"""

import json
import math
import sys
from typing import Any


def forward(net: Any) -> int:
    """Return the operations of one image through `net`, a `keras.Model`.

    Each number that a dense layer or a convolution gives is a sum of as many products as its kernel
    has numbers for it: 2 x kernel x places, a multiplication and an addition being two. Whatever is
    added to or taken from those sums (biases, normalisation, pooling) counts nothing, nor does how
    they are computed (job/training/convolution.py does more of them, to be faster).
    """
    return sum(operations for operations in _layers(net))


def training(net: Any) -> int:
    """Return the operations of one image in training.

    Forward, then as many for the gradients of the kernels, and for those of the inputs of all but
    the first layer: three times forward less that layer (as Kaplan et al., "Scaling laws for neural
    language models", 2020, count: backward is twice forward).
    """
    each = _layers(net)
    return 3 * sum(each) - each[0]


def _layers(net: Any) -> list[int]:
    return [
        2 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
        for layer in net.layers
        if hasattr(layer, "kernel")
    ]


def main() -> None:
    """Count for the architecture that the command line names."""
    from job.process import runtime  # noqa: PLC0415

    runtime.prepare_tensorflow()
    from job.training import model  # noqa: PLC0415

    name, classes, *shape = sys.argv[1:]
    net = model.build(name, tuple(map(int, shape)), int(classes))
    print(json.dumps({"forward": forward(net), "training": training(net)}))


if __name__ == "__main__":
    main()
