"""Evaluate model_weights.h5 of the current folder, and predict the first test images with it."""

import sys

from job.cli import main

WEIGHTS = "model_weights.h5"


def predict_images(num_images: int = 10) -> int:
    """Print what the model makes of the first `num_images` test images; return the exit code."""
    return main(["predict", "--weights", WEIGHTS, "--num-images", str(num_images)])


if __name__ == "__main__":
    sys.exit(main(["evaluate", "--weights", WEIGHTS]) or predict_images())
