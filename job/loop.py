"""Optimizer steps as one compiled program that lies on the device with its data.

A call takes the order of examples of an epoch and its learning rates, and gathers, scales,
augments, differentiates and updates in one loop inside XLA: Python is not in it, which for a small
net is most of the time that Keras' `fit` takes.
"""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from job.augmentation import TRANSFORMS
from job.config import RunConfig
from job.data import Dataset
from job.errors import DataError
from job.examples import ALIGNMENT_BYTES, Images
from job.model import PIXEL_SCALE, xla_on_cpu


class Loop:
    """A model, its optimizer, and the compiled steps that train it in place.

    The optimizer is Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter,
    2019).
    """

    def __init__(
        self,
        model: keras.Model,
        dataset: Dataset,
        config: RunConfig,
        strategy: tf.distribute.Strategy,
    ) -> None:
        """Put the training data on the device of `strategy`, in whose scope `model` was made."""
        self._model = model
        self._strategy = strategy
        self._batch_size = config.batch_size
        self._classes = dataset.classes
        self._seed = config.seed
        self._label_smoothing = config.label_smoothing
        self._transform = TRANSFORMS[config.augment]
        with strategy.scope():
            self._optimizer = keras.optimizers.Adam(
                weight_decay=config.weight_decay or None, name="adam"
            )
            self._optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
            self._optimizer.build(model.trainable_variables)
        with tf.device(strategy.extended.worker_devices[0]):
            # Arguments, not closures: captured constants would be embedded in the program.
            self._resident = resident(dataset.x_train), tf.constant(dataset.y_train)
        on_cpu = "CPU" in strategy.extended.worker_devices[0].upper()
        xla = xla_on_cpu(config.model) or not on_cpu
        self._program = tf.function(self._on_device, jit_compile=xla, autograph=False)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Set the sums of loss and hits to zero."""
        self._loss_sum, self._hits = np.float32(0), np.int32(0)

    def run(
        self,
        order: npt.NDArray[np.int32],
        rates: npt.NDArray[np.float32],
        epoch_start: int,
        first: int,
        count: int,
    ) -> None:
        """Do `count` steps of an epoch, from its step `first` on. No step only compiles.

        Args:
            order: examples of each step of the epoch, shape (steps, batch).
            rates: learning rate of each step of the epoch, shape (steps,).
            epoch_start: optimizer steps done before this epoch.
            first: steps of this epoch done before.
            count: steps to do; neither this nor the two before cause another compilation.
        """
        numbers = [tf.constant(number, tf.int32) for number in (epoch_start, first, first + count)]
        sums = tf.constant(self._loss_sum), tf.constant(self._hits)
        loss_sum, hits = self._program(
            *self._resident, tf.constant(order), tf.constant(rates), *numbers, *sums
        )
        # Carried as they are, so that a sum has the same bits wherever the chunks end.
        self._loss_sum, self._hits = loss_sum.numpy(), hits.numpy()

    def means(self, steps: int) -> tuple[float, float]:
        """Return loss and accuracy over the epoch, of which `steps` steps are done."""
        return float(self._loss_sum) / steps, int(self._hits) / (steps * self._batch_size)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of every variable and sum, by name."""
        variables = {name: variable.numpy() for name, variable in self._variables().items()}
        return variables | {
            "epoch/loss_sum": np.array(self._loss_sum),
            "epoch/hits": np.array(self._hits),
        }

    def assign(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Put back what `arrays` returned.

        Raises:
            DataError: the names or shapes are not this model's.
        """
        variables = self._variables()
        mine = {name: tuple(variable.shape) for name, variable in variables.items()}
        theirs = {name: array.shape for name, array in arrays.items() if "epoch/" not in name}
        if mine != theirs:
            differing = sorted(name for name, _ in mine.items() ^ theirs.items())
            raise DataError(
                f"the checkpoint does not fit the model: {', '.join(differing[:4])} differ; it was "
                "written by another version of this job, choose another --run-id"
            )
        for name, variable in variables.items():
            variable.assign(arrays[name])
        self._loss_sum = np.float32(arrays["epoch/loss_sum"])
        self._hits = np.int32(arrays["epoch/hits"])

    def _variables(self) -> dict[str, keras.Variable]:
        # By place and not by path: Keras numbers the seed generators of a whole process.
        return {
            f"{part}/{index:03}/{variable.name}": variable
            for part, owner in (("model", self._model), ("optimizer", self._optimizer))
            for index, variable in enumerate(owner.variables)
        }

    def _on_device(self, *arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss_sum, hits = self._strategy.run(self._steps, arguments)
        return loss_sum, hits

    def _steps(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        rates: tf.Tensor,
        epoch_start: tf.Tensor,
        first: tf.Tensor,
        end: tf.Tensor,
        loss_sum: tf.Tensor,
        hits: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        def body(i: tf.Tensor, loss_sum: tf.Tensor, hits: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # Slices of static size: with traced bounds XLA would copy the whole order each step.
            batch = tf.reshape(tf.slice(order, [i, 0], [1, self._batch_size]), [self._batch_size])
            self._optimizer.learning_rate.assign(tf.reshape(tf.slice(rates, [i], [1]), []))
            loss, step_hits = self._step(
                tf.gather(images, batch), tf.gather(labels, batch), epoch_start + i
            )
            return i + 1, loss_sum + loss, hits + step_hits

        _, loss_sum, hits = tf.while_loop(
            lambda i, *_: i < end, body, (first, loss_sum, hits), parallel_iterations=1
        )
        return loss_sum, hits

    def _step(
        self, images: tf.Tensor, labels: tf.Tensor, number: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Do optimizer step `number` of the run, and return its mean loss and its hits."""
        images = self._transform(images, tf.stack([self._seed, number]))
        pixels = tf.cast(images, tf.float32) * PIXEL_SCALE
        off = self._label_smoothing / self._classes
        on = 1 - self._label_smoothing + off
        targets = tf.one_hot(labels, self._classes, on_value=on, off_value=off)
        with tf.GradientTape() as tape:
            logits = self._model(pixels, training=True)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
        gradients = tape.gradient(loss, self._model.trainable_variables)
        self._optimizer.apply(gradients, self._model.trainable_variables)
        hits = tf.argmax(logits, axis=1, output_type=tf.int32) == labels
        return loss, tf.reduce_sum(tf.cast(hits, tf.int32))


def resident(images: Images) -> tf.Tensor:
    """Return `images` as a tensor on the current device, on a CPU in the same memory if it may be.

    `tf.constant` copies twice, which for MNIST is 80 MiB more at the peak. What `data.load` returns
    is aligned, so it need not be copied; anything else is.
    """
    owner = images if images.base is None else images.base
    writable = isinstance(owner, np.ndarray) and owner.flags.writeable
    aligned = images.flags.c_contiguous and images.ctypes.data % ALIGNMENT_BYTES == 0
    if not (writable and aligned):
        return tf.constant(images)
    shared = images.view()
    shared.flags.writeable = True  # DLPack can't say read-only; the loop only gathers from it
    return tf.identity(tf.experimental.dlpack.from_dlpack(shared.__dlpack__()))
