"""What the workers of one training tell each other, beside gradients: sums, and the chief's word.

Every worker must call the same method in the same order, or all wait for ever. A worker on its own
talks to nobody.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job.errors import ClusterError, TemporaryError
from job.process import memory
from job.workers import watchdog
from job.workers.cluster import Workers

# A lost peer shows as almost any error of TensorFlow's; these are never its doing.
_OUR_OWN = (
    *(tf.errors.ResourceExhaustedError, tf.errors.InvalidArgumentError),
    *(tf.errors.UnimplementedError, tf.errors.NotFoundError),
)
# A watcher hears of a peer's end within a second, of its silence after ten: TensorFlow after nine.
BLAME_SECONDS = 5.0


class Collectives:
    """The workers of one training as one of them sees them, connected by a strategy."""

    def __init__(self, strategy: tf.distribute.Strategy, workers: Workers | None = None) -> None:
        """Talk over `strategy`, whose replicas are spread over `workers` (None: only this one)."""
        self.strategy = strategy
        workers = workers or Workers()
        self.size, self.is_chief = workers.count, workers.is_chief
        self._sum = tf.function(self._sum_on_devices, autograph=False)

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of `numbers` over all workers, the same on each; also a barrier."""
        if self.size == 1:
            return list(numbers)
        return [float(value) for value in self._all_reduce(np.array(numbers, np.float32))]

    def from_chief(self, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the chief's `arrays`, bit for bit; those of others only tell shape and type."""
        if self.size == 1:
            return arrays
        names = sorted(arrays)
        raw = b"".join(arrays[name].tobytes() for name in names)
        # As integers, since a sum with zero would turn a float's -0.0 into 0.0.
        words = np.frombuffer(raw + bytes(-len(raw) % 4), np.int32)
        received = self._all_reduce(words if self.is_chief else np.zeros_like(words)).tobytes()
        result, start = {}, 0
        for name in names:
            array = arrays[name]
            piece = received[start : start + array.nbytes]
            result[name] = np.frombuffer(piece, array.dtype).reshape(array.shape)
            start += array.nbytes
        return result

    def check_alike(self, what: str, digest: str) -> None:
        """Check that all workers have the same `digest` (hex) of `what`.

        Raises:
            ClusterError: this one's differs from the chief's.
        """
        mine = {"digest": np.frombuffer(bytes.fromhex(digest), np.uint8)}
        theirs = self.from_chief(mine)["digest"].tobytes().hex()
        if theirs != digest:
            raise ClusterError(
                f"this worker's {what} has the digest {digest[:12]}..., the chief's "
                f"{theirs[:12]}...: give all workers the same flags and the same data"
            )

    def wait(self) -> None:
        """Wait until all workers have come here.

        Raises:
            TemporaryError: one is gone.
        """
        watchdog.rests()
        with self.losing_nobody():
            self.total([0])
        # A process that left at once would take the answer with it that others still wait for.
        with contextlib.suppress(TemporaryError), self.losing_nobody():
            self.total([0])

    @contextlib.contextmanager
    def losing_nobody(self) -> Iterator[None]:
        """Say in the job's own terms what TensorFlow raises when a peer is gone.

        Raises:
            TemporaryError: a peer is gone.
        """
        try:
            yield
        except tf.errors.OpError as error:
            if self.size == 1 or isinstance(error, _OUR_OWN) or memory.ran_out(error):
                raise
            known = watchdog.fault(BLAME_SECONDS)
            raise TemporaryError(
                f"{known or 'lost contact to another worker'} ({_gist(error)}): "
                f"{watchdog.RUN_AGAIN}"
            ) from error

    def _all_reduce(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        local = len(self.strategy.extended.worker_devices)
        # One of a worker's replicas speaks for it, the others add nothing.
        placed = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                values if context.replica_id_in_sync_group % local == 0 else np.zeros_like(values)
            )
        )
        with self.losing_nobody(), watchdog.together():
            return np.asarray(self._sum(placed).numpy())

    def _sum_on_devices(self, values: tf.Tensor) -> tf.Tensor:
        def one(value: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # TensorFlow wants a tensor that was made on the replica's own device.
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(value))

        summed = self.strategy.run(one, (values,))
        return self.strategy.experimental_local_results(summed)[0]


def _gist(error: tf.errors.OpError) -> str:
    """Return the part of TensorFlow's message that is neither a heading nor a traceback."""
    lines = str(error.message).splitlines()
    telling = [line for line in lines if line[:1].isalpha() and not line.endswith(":")]
    return next(iter(telling), type(error).__name__)[:120]
