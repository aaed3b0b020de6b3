"""Device requests and what comes of them."""

import pytest
import tensorflow as tf

from job.errors import ClusterError
from job.training import strategy


@pytest.fixture
def gpus(monkeypatch):
    """Return a function that makes TensorFlow report GPUs, and notes what is set on them."""
    grown = []

    def pretend(count):
        found = [f"gpu {index}" for index in range(count)]
        monkeypatch.setattr(
            tf.config, "list_physical_devices", lambda kind: found if kind == "GPU" else ["cpu"]
        )
        monkeypatch.setattr(
            tf.config.experimental, "set_memory_growth", lambda gpu, **_: grown.append(gpu)
        )
        return grown

    return pretend


def device(chosen):
    """Return the one device; TensorFlow names it in full only after its first use."""
    (name,) = chosen.extended.worker_devices
    return name.rpartition("device:")[2]


@pytest.mark.parametrize("request_", ["auto", "cpu"])
def test_cpu_where_there_is_no_gpu(request_, gpus):
    gpus(0)
    assert device(strategy.choose(request_)) == "CPU:0"


@pytest.mark.parametrize("request_", ["auto", "gpu"])
def test_gpu_where_there_is_one(request_, gpus):
    grown = gpus(1)
    assert device(strategy.choose(request_)) == "GPU:0"
    assert grown == ["gpu 0"]


def test_cpu_on_request_leaves_the_gpu_alone(gpus):
    grown = gpus(1)
    assert device(strategy.choose("cpu")) == "CPU:0"
    assert grown == []


def test_gpu_that_is_not_there_is_an_error_of_the_cluster(gpus):
    gpus(0)
    with pytest.raises(ClusterError, match="no GPU"):
        strategy.choose("gpu")


def test_description_names_what_is_used():
    described = strategy.describe(strategy.choose("cpu"))
    assert described.strategy == "cpu"
    assert described.devices == ("CPU",)
    assert described.tensorflow == tf.__version__
