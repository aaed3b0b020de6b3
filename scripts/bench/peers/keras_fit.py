"""What a user of the original project writes: Sequential, compile, fit, evaluate, save.

With a fifth word `fast`, the two switches that Keras offers for speed are set as well. More than 50
steps a call gain nothing here.
"""

import json
import sys
import time

# Keras imports these where they are installed, as they are here for tests: no user has to.
sys.modules.update(dict.fromkeys(("pandas", "scipy")))

import keras  # noqa: E402
import numpy as np  # noqa: E402

batch, epochs, data, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
fast = sys.argv[5:] == ["fast"]

with np.load(data) as mnist:
    x_train, y_train = mnist["x_train"].reshape(-1, 784) / np.float32(255), mnist["y_train"]
    x_test, y_test = mnist["x_test"].reshape(-1, 784) / np.float32(255), mnist["y_test"]

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.layers.Input((784,)),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(
    optimizer="adam",
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
    steps_per_execution=50 if fast else 1,
    jit_compile=True if fast else "auto",
)


class Clock(keras.callbacks.Callback):
    """Notes how long each epoch takes."""

    seconds: list[float] = []  # noqa: RUF012

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.began)


clock = Clock()
model.fit(x_train, y_train, batch_size=batch, epochs=epochs, verbose=0, callbacks=[clock])
_, accuracy = model.evaluate(x_test, y_test, verbose=0)
model.save(f"{output}/model_weights.h5")
speed = len(x_train) / float(np.median(clock.seconds[1:]))
print(json.dumps({"accuracy": float(accuracy), "images_per_second": speed}))
