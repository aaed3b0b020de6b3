"""Device request and cluster -> `tf.distribute` strategy."""

from dataclasses import dataclass

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
    on_gpu: bool


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
    gpus = prepare_gpus() if request != "cpu" else []
    if request == "cpu":
        tf.config.set_visible_devices([], "GPU")  # evaluation would go to one by itself
    if (require_gpu or request == "gpu") and not gpus:
        flag = "--require-gpu" if require_gpu else "--strategy gpu"
        raise ClusterError(
            f"{flag}: TensorFlow sees no GPU on this machine; check the driver and that the gpu "
            "extra is installed, or do without the flag"
        )
    if request == "auto":
        request = "multiworker" if several else "mirrored" if len(gpus) > 1 else "one"
    if request == "multiworker":
        if workers is None or not several:
            raise ClusterError(
                "--strategy multiworker: fewer than two workers are named; give TF_CONFIG, or "
                "K8S_WORKERS and JOB_COMPLETION_INDEX as k8s/train-multiworker.yaml does"
            )
        return _multi_worker(workers)
    if request == "mirrored":
        kind = "GPU" if gpus else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        if not gpus and len(devices) == 1:
            raise ClusterError(
                "--strategy mirrored: TensorFlow sees no GPU on this machine, and one CPU has "
                "nothing to mirror; check the driver and that the gpu extra is installed, or give "
                "--strategy cpu"
            )
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")


def prepare_gpus() -> list[tf.config.PhysicalDevice]:
    """Return this machine's GPUs, set to give the same bits each time, in true float32.

    What XLA must be told for that, `runtime.prepare_tensorflow` tells it, since it reads that
    earlier. Where there are none nothing is set: a CPU's bits are the same each time already, and
    it would only be slower.
    """
    gpus = list(tf.config.list_physical_devices("GPU"))
    if gpus:
        tf.config.experimental.enable_op_determinism()
        # TF32 has 10 bits of mantissa: who wants less than float32 asks for mixed_bfloat16, where
        # the one small layer left in float32 has nothing to gain from it.
        tf.config.experimental.enable_tensor_float_32_execution(False)
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, enable=True)  # leave room for neighbours
    return gpus


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
        on_gpu=device == "GPU",
    )
