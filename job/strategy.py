"""Device request -> `tf.distribute` strategy."""

from dataclasses import dataclass

import keras
import tensorflow as tf

from job.errors import ClusterError


@dataclass(frozen=True)
class Devices:
    """What a run computes on."""

    strategy: str
    """Kind of strategy in use: `cpu` or `gpu`."""
    devices: tuple[str, ...]
    """Names of the devices, such as `NVIDIA H100` or `CPU`."""
    tensorflow: str
    keras: str


def choose(request: str) -> tf.distribute.Strategy:
    """Return the strategy for `request`: `cpu`, `gpu`, or `auto` for a GPU if there is one.

    Raises:
        ClusterError: a GPU is asked for and TensorFlow sees none.
    """
    gpus = tf.config.list_physical_devices("GPU") if request != "cpu" else []
    if request == "gpu" and not gpus:
        raise ClusterError(
            "--strategy gpu: TensorFlow sees no GPU on this machine; check the driver and that the "
            "gpu extra is installed, or use --strategy cpu"
        )
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, enable=True)  # leave room for neighbours
    return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")


def describe(strategy: tf.distribute.Strategy) -> Devices:
    """Return what `strategy` computes on, for the record."""
    names = strategy.extended.worker_devices
    kind = "gpu" if any("GPU" in name.upper() for name in names) else "cpu"
    physical = tf.config.list_physical_devices(kind.upper())
    details = [tf.config.experimental.get_device_details(device) for device in physical]
    return Devices(
        strategy=kind,
        devices=tuple(detail.get("device_name", kind.upper()) for detail in details[: len(names)]),
        tensorflow=tf.__version__,
        keras=keras.__version__,
    )
