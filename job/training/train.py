"""Training from the first step to the last, or from where a run before stopped.

The compiled loop runs in chunks of about half a second. Between chunks the training saves what is
due and looks whether it has been asked to stop. What is drawn at random is a function of (seed,
epoch, step), so where chunks end, or where one process stops and another goes on, doesn't change a
bit of the result.
"""

import contextlib
import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from job.config import RunConfig
from job.data.source import Dataset
from job.errors import TemporaryError, UsageError
from job.process import runtime
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.training.checkpoint import Checkpoints, State
from job.training.loop import Loop
from job.workers import watchdog
from job.workers.collectives import Collectives

WARMUP_SHARE = 0.1  # of all steps: Adam's second moments are noise before it has seen some
CHUNK_SECONDS = 0.5  # a stop waits for a chunk at most, and a chunk's start costs a millisecond


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training set gave."""

    epoch: int
    """Counts from 1."""
    loss: float
    """Mean cross-entropy against the smoothed targets, in nats, while the weights moved."""
    accuracy: float
    """Share of examples classified rightly, while the weights moved."""
    learning_rate: float
    """Rate of the last step."""
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Training:
    """What training a model took and gave."""

    epochs: int
    steps: int
    resumed_step: int
    """Step that this attempt went on from; 0 if it began the run."""
    compile_seconds: float
    train_seconds: float
    """Over all attempts."""
    history: tuple[dict[str, Any], ...]
    """An `Epoch` as a dictionary, for each."""

    @property
    def images_per_second(self) -> float:
        """Median over the epochs."""
        return float(np.median([epoch["images_per_second"] for epoch in self.history]))


def train(
    model: keras.Model,
    dataset: Dataset,
    config: RunConfig,
    collectives: Collectives,
    checkpoints: Checkpoints,
    start: State,
    preemption: Preemption,
    progress: Progress,
) -> Training:
    """Train `model` in place, as `config` says.

    Args:
        model: logits model made in the scope of `strategy`.
        dataset: its training part is used; the test part is not looked at.
        config: epochs, batch size, schedule, augmentation and seed.
        collectives: this worker and those it trains with; `model` lies where its strategy put it.
        checkpoints: takes the state of the run when that is due, and at the end.
        start: where to begin: a state restored from `checkpoints`, or one of step 0.
        preemption: asked between chunks whether to stop.
        progress: told when the loop is compiled and after each epoch.

    Raises:
        StoppedError, TemporaryError, KeyboardInterrupt: asked to stop, and all work is saved.
        UsageError: the learning rate is so high that the loss stopped being a number.
    """
    steps_per_epoch = math.ceil(len(dataset.x_train) / config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    rates = learning_rates(config, total_steps).reshape(config.epochs, steps_per_epoch)
    # Until the last save, work exists nowhere else.
    with preemption.deferred(), collectives.losing_nobody(), contextlib.closing(checkpoints):
        compile_started = time.perf_counter()
        loop = Loop(model, dataset, config, collectives.strategy)
        loop.run(np.zeros((steps_per_epoch, config.batch_size), np.int32), rates[0], 0, 0, 0)
        runtime.give_back_memory()  # what compiling took and freed: a tenth of the peak otherwise
        compile_seconds = time.perf_counter() - compile_started
        progress.event(
            "compiled", model=model.name, parameters=model.count_params(), seconds=compile_seconds
        )
        state = _chief_state(start, loop, collectives)
        order = np.empty(0, np.int32)
        chunk = 1
        while state.step < total_steps:
            chunk_started = time.perf_counter()
            epoch, position = divmod(state.step, steps_per_epoch)
            if position == 0 or order.size == 0:
                order = epoch_order(config.seed, epoch, len(dataset.x_train), config.batch_size)
            if position == 0:
                loop.begin_epoch()
            count = min(chunk, steps_per_epoch - position, loop.most_steps)
            with watchdog.together():
                loop.run(order, rates[epoch], state.step - position, position, count)
            seconds = time.perf_counter() - chunk_started
            progress.beat()
            watchdog.moved(seconds)
            state = state.after(count, seconds)
            if position + count == steps_per_epoch:
                finished = _epoch(
                    loop, rates[epoch], epoch, order.size, state.epoch_seconds, config
                )
                state = state.after_epoch(asdict(finished))
                if collectives.is_chief:
                    progress.event("epoch", epochs=config.epochs, **asdict(finished))
            reason = preemption.reason(2 * seconds)
            # All workers must do as many steps as each other, and stop after the same one.
            stops, seconds_of_all = collectives.total([reason is not None, seconds])
            if stops:
                watchdog.rests()
                if collectives.is_chief:
                    checkpoints.save(state.holding(loop.arrays()))
                collectives.wait()
                raise reason or TemporaryError(
                    "another worker was asked to stop, the work is saved: run all of them again"
                )
            if collectives.is_chief:
                checkpoints.offer(lambda: state.holding(loop.arrays()))  # noqa: B023  called at once
            # Grow towards the wanted length, but not in one leap from a first, cold step.
            chunk = max(
                1, min(8 * chunk, int(count * CHUNK_SECONDS * collectives.size / seconds_of_all))
            )
        watchdog.rests()
        if collectives.is_chief:
            checkpoints.save(state.holding(loop.arrays()))
    return Training(
        epochs=config.epochs,
        steps=total_steps,
        resumed_step=start.step,
        compile_seconds=compile_seconds,
        train_seconds=state.train_seconds,
        history=state.history,
    )


def _chief_state(start: State, loop: Loop, collectives: Collectives) -> State:
    """Put the chief's state into the loop of every worker, and return where to begin."""
    step = int(collectives.from_chief({"step": np.array(start.step)})["step"])
    if step == 0:
        return start
    loop.assign(collectives.from_chief(start.arrays if collectives.is_chief else loop.arrays()))
    return replace(start, step=step, arrays={})


def _epoch(
    loop: Loop,
    rates: npt.NDArray[np.float32],
    index: int,
    examples: int,
    seconds: float,
    config: RunConfig,
) -> Epoch:
    loss, accuracy = loop.means(len(rates))
    if not math.isfinite(loss):
        raise UsageError(
            f"the loss became {loss} in epoch {index + 1}: --learning-rate "
            f"{config.learning_rate} is too high for this model and data, try a tenth of it"
        )
    return Epoch(
        epoch=index + 1,
        loss=loss,
        accuracy=accuracy,
        learning_rate=float(rates[-1]),
        seconds=seconds,
        images_per_second=examples / seconds,
    )


def learning_rates(config: RunConfig, steps: int) -> npt.NDArray[np.float32]:
    """Return the rate of each of `steps` optimizer steps, shape (steps,).

    A linear warm-up over the first tenth of them, then a fall to zero on a line or on a half
    cosine (Loshchilov and Hutter, 2017), or no fall.
    """
    warmup = round(WARMUP_SHARE * steps)
    rising = np.arange(1, warmup + 1) / max(1, warmup)
    progress = np.arange(steps - warmup) / max(1, steps - warmup)
    falling = {
        "linear": 1 - progress,
        "cosine": (1 + np.cos(np.pi * progress)) / 2,
        "constant": np.ones_like(progress),
    }[config.schedule]
    return (config.learning_rate * np.concatenate([rising, falling])).astype(np.float32)


def epoch_order(seed: int, epoch: int, examples: int, batch_size: int) -> npt.NDArray[np.int32]:
    """Return which examples each step of an epoch takes: int32, shape (steps, batch_size).

    Every example occurs; where the batch does not divide their number, the last step is filled up
    with the first of the same order, so that no example is ever left out.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(examples)
    missing = -examples % batch_size
    return np.concatenate([order, order[:missing]]).astype(np.int32).reshape(-1, batch_size)
