"""Open published runs with Keras on another backend: print how far its probabilities are, as JSON.

    KERAS_BACKEND=jax python open_with_keras.py <data.npz> <folder of a run>...

For each run the largest difference of a probability from those that the run published, by file. The
run is opened as its README tells; nothing of the job is imported, and no TensorFlow.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
from safetensors.numpy import load_file

IMAGES = 128  # of the test set: whole batches, so that each model is compiled once


def published(folder: Path) -> np.ndarray:
    """Return the probabilities in predictions.safetensors, float64, shape (IMAGES, classes)."""
    logits = load_file(folder / "predictions.safetensors")["logits"][:IMAGES].astype(np.float64)
    each = np.exp(logits - logits.max(axis=1, keepdims=True))
    return each / each.sum(axis=1, keepdims=True)


def differences(folder: Path, pixels: np.ndarray) -> dict[str, float]:
    """Return the largest difference of a probability, by the file that was opened."""
    archive = keras.models.load_model(folder / "model.keras")
    fresh = keras.models.clone_model(archive)  # the same layers, with other weights
    models = {"no weights": fresh, "model.keras": archive}
    found = {}
    for name, model in models.items():
        found[name] = float(np.abs(model.predict(pixels, verbose=0) - published(folder)).max())
    fresh.load_weights(folder / "model_weights.h5")
    again = fresh.predict(pixels, verbose=0)
    return found | {"model_weights.h5": float(np.abs(again - published(folder)).max())}


def main(data: str, *folders: str) -> None:
    """Print backend, and the differences of each run by its name."""
    pixels = np.load(data)["x_test"][:IMAGES].astype(np.float32) / 255
    runs = {Path(folder).name: differences(Path(folder), pixels) for folder in folders}
    loaded = sorted({"tensorflow", "job"} & {name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"backend": keras.backend.backend(), "loaded": loaded, "runs": runs}))


if __name__ == "__main__":
    main(*sys.argv[1:])
