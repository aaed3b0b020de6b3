"""Train one net on one device and on replicas of it: print how far they are apart, as JSON.

    python replicas.py <replicas> <model> <batch size> [<what to break>...]

The replicas are trained as they are, and once more for each thing that is broken on purpose. Of
one process TensorFlow takes one number of replicas only.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

FORM = "matrices"
# Adam's first steps are as long for a gradient that is rounding alone as for any other.
NEARLY_ALL = 0.999
STEPS = 10  # later, rounding alone tips a ReLU or a pooling that stood on the edge
sys.path.insert(0, str(Path(__file__).parents[2]))

from job.process import runtime  # noqa: E402

runtime.prepare_tensorflow()
runtime.limit_threads(2)
runtime.import_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from job.config import EMBEDDED, DataSource, RunConfig  # noqa: E402
from job.data import source  # noqa: E402
from job.training import layers, loop, model, train  # noqa: E402


@contextlib.contextmanager
def each_for_itself() -> Iterator[None]:
    """Normalise by the statistics of a replica's own share."""
    keras_own = keras.layers.BatchNormalization.__init__

    def unsynchronized(self, **settings):
        keras_own(self, **settings | {"synchronized": False})

    of_keras = keras.layers.BatchNormalization.call
    with (
        mock.patch.object(layers.BatchNormalization, "__init__", unsynchronized),
        mock.patch.object(layers.BatchNormalization, "call", of_keras),
    ):
        yield


BREAKING: dict[str, Callable] = {
    "nothing": contextlib.nullcontext,
    "statistics": each_for_itself,
    "fill-ups": lambda: mock.patch.object(
        layers.BatchNormalization, "call", keras.layers.BatchNormalization.call
    ),
    "masks": lambda: mock.patch.object(layers.Dropout, "call", keras.layers.Dropout.call),
}


def trained(strategy: tf.distribute.Strategy, config: RunConfig) -> list[np.ndarray]:
    """Return the weights, moving averages among them, after `STEPS` steps."""
    data = source.load(DataSource(EMBEDDED))
    with strategy.scope():
        net = model.build(
            *(config.model, data.image_shape, data.classes),
            dropout=config.dropout,
            form=FORM,
        )
    order = train.epoch_order(0, 0, len(data.x_train), config.batch_size)[:STEPS]
    rates = train.learning_rates(config, STEPS)
    loop.Loop(net, data, config, strategy).run(order, rates, epoch_start=0, first=0, count=STEPS)
    return net.get_weights()


def main(replicas: int, name: str, batch_size: int, breaking: list[str]) -> None:
    """Print the difference that nearly all weights keep below, for each way of breaking."""
    cpus = [tf.config.LogicalDeviceConfiguration()] * replicas
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
    settings = {"augment": "affine", "dropout": 0.3}
    config = RunConfig(run_id="r", model=name, batch_size=batch_size, **settings)
    mirrored = tf.distribute.MirroredStrategy([f"cpu:{index}" for index in range(replicas)])
    one = trained(tf.distribute.OneDeviceStrategy("/cpu:0"), config)
    apart = {}
    for broken in ["nothing", *breaking]:
        with BREAKING[broken]():
            several = trained(mirrored, config)
        pairs = zip(one, several, strict=True)
        differences = [np.abs(mine - theirs).ravel() for mine, theirs in pairs]
        apart[broken] = float(np.quantile(np.concatenate(differences), NEARLY_ALL))
    print(json.dumps(apart))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
