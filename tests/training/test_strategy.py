"""Device requests and what comes of them."""

import subprocess
import sys

import pytest
import tensorflow as tf

from job.errors import ClusterError
from job.training import strategy


@pytest.fixture
def told(monkeypatch):
    """Return what TensorFlow is told of GPUs, by the name of the function, instead of doing it."""
    told = {}

    def note(module, name):
        monkeypatch.setattr(module, name, lambda *given, **_: told.setdefault(name, given))

    note(tf.config.experimental, "enable_op_determinism")
    note(tf.config.experimental, "enable_tensor_float_32_execution")
    note(tf.config, "set_visible_devices")
    return told


@pytest.fixture
def gpus(monkeypatch, told):  # noqa: ARG001  so that nothing is really told
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


EXACT = {"enable_op_determinism": (), "enable_tensor_float_32_execution": (False,)}


def test_gpus_are_told_to_compute_exactly(gpus, told):
    """No GPU is at hand: this holds what TensorFlow is told, not what it does."""
    gpus(1)
    strategy.choose("gpu")
    assert told == EXACT


def test_scoring_is_told_what_training_is(trained, command, monkeypatch):
    asked = []
    monkeypatch.setattr(strategy, "prepare_gpus", lambda: asked.append("gpus"))
    assert command("evaluate", "--weights", trained).code == 0
    assert asked == ["gpus"]


@pytest.mark.parametrize("request_", ["auto", "cpu"])
def test_a_cpu_is_not_slowed_down(request_, gpus, told):
    gpus(1 if request_ == "cpu" else 0)
    strategy.choose(request_)
    assert told.keys() == ({"set_visible_devices"} if request_ == "cpu" else set())


def test_cpu_on_request_hides_the_gpu_from_the_evaluation_too(gpus, told):
    gpus(1)
    strategy.choose("cpu")
    assert told["set_visible_devices"] == ([], "GPU")


DETERMINISTIC = """
import sys
from job.process import runtime
runtime.prepare_tensorflow()
runtime.limit_threads(2)
runtime.import_tensorflow()
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
from job.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_nothing_that_the_job_computes_is_refused_as_indeterminate(small_mnist, tmp_path):
    """On a CPU: it shows that no op draws without a seed, not that every GPU kernel exists."""
    place = ["--data", small_mnist, "--output", str(tmp_path), "--model", "cnn", "--epochs", "1"]
    ended = subprocess.run(
        [sys.executable, "-c", DETERMINISTIC, "train", *place, "--augment", "shift"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_mirrored_without_anything_to_mirror_is_an_error_of_the_cluster(gpus):
    gpus(0)
    with pytest.raises(ClusterError, match=r"no GPU.*--strategy cpu") as refused:
        strategy.choose("mirrored")
    assert refused.value.exit_code == 78


def test_gpu_that_is_not_there_is_an_error_of_the_cluster(gpus):
    gpus(0)
    with pytest.raises(ClusterError, match="no GPU"):
        strategy.choose("gpu")


def test_description_names_what_is_used():
    described = strategy.describe(strategy.choose("cpu"))
    assert described.strategy == "cpu"
    assert described.devices == ("CPU",)
