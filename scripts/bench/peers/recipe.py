"""What the peers with convolutions share: their words, the data, the order, the rates.

    PEER RECIPE DATA OUTPUT [how]

RECIPE is JSON: fields of the job's own config, and in `affine` how far its augmentation goes.
"""

import ctypes
import json
import sys

import numpy as np

if sys.platform == "linux":
    # glibc would give arrays of megabytes back after each step, and clear them anew for the next.
    # PyTorch's tuning guide takes jemalloc or tcmalloc for that.
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
    for setting in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        ctypes.CDLL(None).mallopt(setting, 2**31 - 1)

recipe, output, how = json.loads(sys.argv[1]), sys.argv[3], sys.argv[4:]
batch, epochs = recipe["batch_size"], recipe["epochs"]
filters = {"cnn": (16, 32, 64), "cnn-wide": (48, 96, 96)}[recipe["model"]]
hidden = {"cnn": None, "cnn-wide": 128}[recipe["model"]]
MOMENTUM, EPSILON = 0.95, 1e-3  # of the normalisation

with np.load(sys.argv[2]) as mnist:
    x_train, y_train = mnist["x_train"], mnist["y_train"].astype(np.int32)
    x_test, y_test = mnist["x_test"], mnist["y_test"].astype(np.int32)
steps = -(-len(x_train) // batch)  # of an epoch
_draw = np.random.default_rng(0)


def order():
    """Return which images each step of an epoch takes, shape (steps, batch).

    The last step is filled up with the first of the same order, as in the job.
    """
    return np.resize(_draw.permutation(len(x_train)), (steps, batch))


def rates():
    """Return the learning rate of each step, shape (epochs, steps): as the job's half cosine."""
    total, warmup = epochs * steps, round(0.1 * epochs * steps)
    falling = (1 + np.cos(np.pi * np.arange(total - warmup) / (total - warmup))) / 2
    rising = np.arange(1, warmup + 1) / max(1, warmup)
    rates = recipe["learning_rate"] * np.concatenate([rising, falling])
    return rates.reshape(epochs, steps).astype(np.float32)


def tell(accuracy, seconds, parameters):
    """Print what the bench reads; of the epochs the first, which compiles, is left out."""
    told = {
        "accuracy": float(accuracy),
        "images_per_second": len(x_train) / float(np.median(seconds[1:] or seconds)),
        "parameters": int(parameters),
    }
    print(json.dumps(told))
