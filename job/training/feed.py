"""How training examples reach the devices: all at once, or in shards.

A set up to `RESIDENT_BYTES` is copied onto each device and stays there. Of a larger one each worker
reads, for the steps at hand, the examples of its own replicas only, and hands them over; the steps
are the same, and so is every bit that they compute.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job.data.examples import ALIGNMENT_BYTES
from job.data.files import RESIDENT_BYTES
from job.data.source import Dataset

SHARD_BYTES = 32 * 1024 * 1024  # of pixels for one replica: some seconds of a small net's work


class Feed:
    """The training part of a data set, given out by steps of an epoch."""

    def __init__(self, strategy: tf.distribute.Strategy, dataset: Dataset, share: int) -> None:
        """Feed the replicas of `strategy`, each of which takes `share` examples a step."""
        self._strategy = strategy
        self._dataset = dataset
        self._share = share
        self.most_steps: int | None = None
        """Steps that can be asked for at once; None for any number."""
        if dataset.x_train.nbytes <= RESIDENT_BYTES:
            whole = dataset.x_train, dataset.y_train
            self._resident = tuple(self._on_each(partial(_same, array)) for array in whole)
            return
        self.most_steps = max(1, SHARD_BYTES // (share * dataset.x_train[0].nbytes))
        # Within a shard the examples lie in the order they are taken in.
        taken = np.arange(self.most_steps * share, dtype=np.int32).reshape(-1, share)
        self._in_shard = tf.constant(np.tile(taken, strategy.num_replicas_in_sync))

    def steps(
        self,
        order: npt.NDArray[np.int32],
        rates: npt.NDArray[np.float32],
        first: int,
        count: int,
    ) -> tuple[tf.Tensor, ...]:
        """Return what the program needs for `count` steps of an epoch, from its step `first` on.

        Args:
            order: examples of each step of the epoch, shape (steps, replicas x share).
            rates: learning rate of each step of the epoch, shape (steps,).
            first: from 0.
            count: at most `most_steps`.

        Returns:
            Images, labels, order and rates, all of constant shapes; in these the first step, and
            the one after the last; and how many steps of the epoch lie before them.
        """
        if self.most_steps is None:
            span = tf.constant(first), tf.constant(first + count), tf.constant(0)
            return *self._resident, tf.constant(order), tf.constant(rates), *span
        rows = order[first : first + count]
        whole = self._dataset.x_train, self._dataset.y_train
        shard = (self._on_each(partial(self._shard, array, rows)) for array in whole)
        part = np.zeros(self.most_steps, np.float32)
        part[:count] = rates[first : first + count]
        span = tf.constant(0), tf.constant(count), tf.constant(first)
        return *shard, self._in_shard, tf.constant(part), *span

    def _shard(
        self, array: npt.NDArray[Any], rows: npt.NDArray[np.int32], replica: int
    ) -> npt.NDArray[Any]:
        assert self.most_steps is not None
        mine = rows[:, replica * self._share : (replica + 1) * self._share].ravel()
        shard = np.zeros((self.most_steps * self._share, *array.shape[1:]), array.dtype)
        shard[: len(mine)] = array[mine]
        return shard

    def _on_each(self, values: Callable[[int], npt.NDArray[Any]]) -> tf.Tensor:
        """Return, on each device of this worker, the values for its replica."""
        devices = self._strategy.extended.worker_devices

        def on_device(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
            replica = context.replica_id_in_sync_group
            with tf.device(devices[replica % len(devices)]):
                return _tensor(values(replica))

        return self._strategy.experimental_distribute_values_from_function(on_device)


def _tensor(array: npt.NDArray[Any]) -> tf.Tensor:
    """Return `array` as a tensor on the current device, on a CPU in the same memory if it may be.

    `tf.constant` copies twice, which for MNIST is 80 MiB more at the peak. The images that
    `job.data.source.load` returns are aligned, so they need not be copied; anything else is.
    """
    owner = array if array.base is None else array.base
    writable = isinstance(owner, np.ndarray) and owner.flags.writeable
    aligned = array.flags.c_contiguous and array.ctypes.data % ALIGNMENT_BYTES == 0
    if not (writable and aligned):
        return tf.constant(array)
    shared = array.view()
    shared.flags.writeable = True  # DLPack can't say read-only; the loop only gathers from it
    return tf.identity(tf.experimental.dlpack.from_dlpack(shared.__dlpack__()))


def _same(array: npt.NDArray[Any], replica: int) -> npt.NDArray[Any]:
    del replica
    return array
