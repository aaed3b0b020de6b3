"""Device request and cluster -> `tf.distribute` strategy."""

from dataclasses import dataclass

import keras
import tensorflow as tf

from job.errors import ClusterError
from job.workers.cluster import Workers


@dataclass(frozen=True)
class Devices:
    """What a run computes on."""

    strategy: str
    """Kind of strategy in use: `cpu`, `gpu`, `mirrored` or `multiworker`."""
    replicas: int
    """Devices that share each batch, over all workers."""
    devices: tuple[str, ...]
    """Names of this machine's, such as `NVIDIA H100` or `CPU`."""
    tensorflow: str
    keras: str


def choose(
    request: str, workers: Workers | None = None, *, require_gpu: bool = False
) -> tf.distribute.Strategy:
    """Return the strategy for a request.

    Args:
        request: `cpu` or `gpu` for one device, `mirrored` for all of this machine, `multiworker`
            for all of all workers; `auto` for the most of these that is there.
        workers: who trains together, if others do. They are waited for: see to it that they come.
        require_gpu: refuse to do without one.

    Raises:
        ClusterError: what is asked for isn't there.
    """
    several = workers is not None and workers.count > 1
    gpus = tf.config.list_physical_devices("GPU") if request != "cpu" else []
    if (require_gpu or request == "gpu") and not gpus:
        flag = "--require-gpu" if require_gpu else "--strategy gpu"
        raise ClusterError(
            f"{flag}: TensorFlow sees no GPU on this machine; check the driver and that the gpu "
            "extra is installed, or do without the flag"
        )
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, enable=True)  # leave room for neighbours
    if request == "auto":
        request = "multiworker" if several else "mirrored" if len(gpus) > 1 else "one"
    if request == "multiworker":
        if workers is None or not several:
            raise ClusterError(
                "--strategy multiworker: no other workers are named; set TF_CONFIG, or K8S_WORKERS "
                "and JOB_COMPLETION_INDEX as k8s/train-multiworker.yaml does"
            )
        return _multi_worker(workers)
    if request == "mirrored":
        kind = "GPU" if gpus else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")


def _multi_worker(workers: Workers) -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(workers.addresses)}),
        task_type="worker",
        task_id=workers.index,
        rpc_layer="grpc",
    )
    return tf.distribute.MultiWorkerMirroredStrategy(resolver)


def describe(strategy: tf.distribute.Strategy) -> Devices:
    """Return what `strategy` computes on, for the record."""
    names = strategy.extended.worker_devices
    device = "GPU" if any("GPU" in name.upper() for name in names) else "CPU"
    kinds = {
        tf.distribute.MultiWorkerMirroredStrategy: "multiworker",
        tf.distribute.MirroredStrategy: "mirrored",
    }
    details = [
        tf.config.experimental.get_device_details(physical)
        for physical in tf.config.list_physical_devices(device)
    ]
    named = [detail.get("device_name", device) for detail in details]
    return Devices(
        strategy=kinds.get(type(strategy), device.lower()),
        replicas=strategy.num_replicas_in_sync,
        # Several logical devices may share a physical one.
        devices=tuple((named * len(names))[: len(names)]),
        tensorflow=tf.__version__,
        keras=keras.__version__,
    )
