"""The convolutional net by Keras' `fit`, many steps a call.

With the word `xla` each step is compiled by XLA, else TensorFlow's own operations do it (oneDNN).
"""

import sys
import time

# Keras imports these where they are installed, as they are here for tests: no user has to.
sys.modules.update(dict.fromkeys(("pandas", "scipy")))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from recipe import (  # noqa: E402
    EPSILON,
    MOMENTUM,
    batch,
    epochs,
    filters,
    hidden,
    how,
    output,
    recipe,
    steps,
    tell,
    x_test,
    x_train,
    y_test,
    y_train,
)

if recipe["affine"] is not None:
    raise SystemExit("there is no augmentation here")


def layers():
    yield keras.layers.Input((*x_train.shape[1:], 1))
    for place, number in enumerate(filters, start=1):
        yield keras.layers.Conv2D(number, 3, use_bias=False)
        if place < len(filters):
            yield keras.layers.MaxPooling2D()
        yield from normalized()
    yield keras.layers.Flatten()
    if hidden:
        yield keras.layers.Dense(hidden, use_bias=False)
        yield from normalized()
    if recipe["dropout"]:
        yield keras.layers.Dropout(recipe["dropout"])
    yield keras.layers.Dense(10)


def normalized():
    norm = keras.layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, scale=False)
    return norm, keras.layers.ReLU()


class Clock(keras.callbacks.Callback):
    """Notes how long each epoch takes."""

    seconds: list[float] = []  # noqa: RUF012

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.began)


keras.utils.set_random_seed(0)
model = keras.Sequential(list(layers()))
warmup = round(0.1 * epochs * steps)
optimizer = keras.optimizers.AdamW(
    keras.optimizers.schedules.CosineDecay(
        0.0,
        epochs * steps - warmup,
        warmup_target=recipe["learning_rate"],
        warmup_steps=warmup,
    ),
    weight_decay=recipe["weight_decay"],
)
optimizer.exclude_from_weight_decay(var_names=["bias", "beta"])
model.compile(
    optimizer=optimizer,
    loss=keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=recipe["label_smoothing"]
    ),
    metrics=["accuracy"],
    steps_per_execution=min(50, steps),
    jit_compile=how == ["xla"],
)
images, tests = (array[..., None] / np.float32(255) for array in (x_train, x_test))
labels = keras.utils.to_categorical(y_train, 10)
clock = Clock()
model.fit(images, labels, batch_size=batch, epochs=epochs, verbose=0, callbacks=[clock])
accuracy = (model.predict(tests, verbose=0).argmax(axis=1) == y_test).mean()
model.save(f"{output}/model_weights.h5")
tell(accuracy, clock.seconds, model.count_params())
