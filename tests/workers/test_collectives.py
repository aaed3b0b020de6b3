"""Whatever workers tell each other, a peer that is gone is an error of that name, and no bug."""

import numpy as np
import pytest
import tensorflow as tf

from job.errors import ClusterError, TemporaryError
from job.workers.cluster import Workers
from job.workers.collectives import Collectives

WORKERS = Workers(("a:1", "b:1"), 0)


@pytest.fixture
def collectives():
    return Collectives(tf.distribute.OneDeviceStrategy("/cpu:0"), WORKERS)


@pytest.mark.parametrize(
    "call",
    [
        lambda all_of_them: all_of_them.total([1.0]),
        lambda all_of_them: all_of_them.check_alike("data", "ab" * 32),
        lambda all_of_them: all_of_them.from_chief({"x": np.zeros(3, np.float32)}),
        lambda all_of_them: all_of_them.wait(),
    ],
    ids=["total", "check_alike", "from_chief", "wait"],
)
def test_a_lost_peer_is_no_bug(collectives, monkeypatch, call):
    def fail(_):
        raise tf.errors.UnavailableError(None, None, "connection reset")

    monkeypatch.setattr(collectives, "_sum", fail)
    with pytest.raises(TemporaryError, match="lost contact to another worker"):
        call(collectives)


def test_memory_that_ran_out_is_no_lost_peer(collectives, monkeypatch):
    def fail(_):
        raise tf.errors.InternalError(None, None, "RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(collectives, "_sum", fail)
    with pytest.raises(tf.errors.InternalError):
        collectives.total([1.0])


def test_a_digest_that_differs_is_told(collectives, monkeypatch):
    monkeypatch.setattr(collectives, "from_chief", lambda _: {"digest": np.zeros(32, np.uint8)})
    with pytest.raises(ClusterError, match="the same data"):
        collectives.check_alike("data", "ab" * 32)
