"""Training from the first step to the last, or from where a run before stopped.

The compiled loop runs in chunks of about half a second. Between chunks the training saves what is
due and looks whether it has been asked to stop. What is drawn at random is a function of (seed,
epoch, step), so where chunks end, or where one process stops and another goes on, doesn't change a
bit of the result.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from job.config import RunConfig
from job.data.source import Dataset
from job.errors import DataError, JobError, TemporaryError, UsageError
from job.process import runtime
from job.process.preemption import Preemption
from job.process.progress import Moment, Progress
from job.training.checkpoint import Checkpoints, State
from job.training.loop import Loop
from job.workers import watchdog
from job.workers.collectives import Collectives

WARMUP_SHARE = 0.1  # of all steps: Adam's second moments are noise before it has seen some
_HELD_OUT = 2**63  # the second word of a key that no epoch's order has
AfterEpoch = Callable[[tuple[dict[str, Any], ...], int], bool]
"""Given the epochs that are finished, each an `Epoch` as a dictionary, and the model's number of
parameters, whether to go on."""
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
    validation_loss: float | None = None
    """Mean cross-entropy of the held-out examples once the epoch was over, in nats; None where none
    are held out."""
    validation_accuracy: float | None = None
    """Share of them classified rightly."""

    def record(self) -> dict[str, Any]:
        """Return what is published of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Training:
    """What training a model took and gave."""

    epochs: int
    """Those that were done: fewer than were asked for if it was stopped early."""
    steps: int
    resumed_step: int
    """Step that this attempt went on from; 0 if it began the run."""
    compile_seconds: float
    train_seconds: float
    """In the loop, over all attempts."""
    attempt_train_seconds: float
    """Of that, in this attempt."""
    history: tuple[dict[str, Any], ...]
    """An `Epoch` as a dictionary, for each."""
    images_per_second: float
    """Median over the epochs that this worker knows of; 0 if of none."""
    halted: bool = False
    """Whether `after_epoch` ended it."""


def train(
    model: keras.Model,
    dataset: Dataset,
    config: RunConfig,
    collectives: Collectives,
    checkpoints: Checkpoints,
    start: State,
    preemption: Preemption,
    progress: Progress,
    after_epoch: AfterEpoch | None = None,
) -> Training:
    """Train `model` in place, as `config` says.

    Args:
        model: logits model made in the scope of `collectives.strategy`.
        dataset: its training part is used; the test part is not looked at.
        config: epochs, batch size, schedule, augmentation and seed.
        collectives: this worker and those it trains with; `model` lies where its strategy put it.
        checkpoints: takes the state of the run when that is due, and at the end.
        start: where to begin: a state restored from `checkpoints`, or one of step 0.
        preemption: asked between chunks whether to stop.
        progress: told when the loop is compiled and after each epoch.
        after_epoch: asked by the chief after each epoch whether to go on, and once at the start of
            a training that goes on: it may have been killed before the answer was heeded.

    Raises:
        StoppedError, TemporaryError, KeyboardInterrupt: asked to stop, and all work is saved.
        UsageError, DataError: the loss stopped being a number; with the flags that can be at fault.
        JobError, MemoryError: no more can be saved; see `Checkpoints.offer`.
    """
    course = _Course(config, len(dataset.x_train))
    # Until the last save, work exists nowhere else.
    with (
        preemption.deferred(),
        progress.showing(),
        collectives.losing_nobody(),
        contextlib.closing(checkpoints),
        watchdog.resting_after(),  # closing waits for a store
    ):
        loop, compile_seconds = _compile(model, dataset, config, collectives, course, progress)
        exchange_seconds = _time_exchange(loop, collectives, progress)
        state = _begin(start, loop, config, collectives)
        wanted = 1  # steps in the next chunk

        def over_early() -> tuple[bool, bool]:
            """Return whether the training is over before its time, and if by `after_epoch`."""
            if after_epoch is None and config.early_stopping is None:
                return False, False
            early = halts = False
            # The chief decides: of several workers that go on with a run, it alone has the history.
            if collectives.is_chief and state.step >= course.steps_per_epoch:
                early = stopped_early(config, state.history)
                halts = after_epoch is not None and not after_epoch(
                    state.history, model.count_params()
                )
            early, halts = map(bool, collectives.total([early, halts]))
            return early or halts, halts

        over, halted = over_early()
        while not over and state.step < course.total_steps:
            before = state.step
            state, seconds = _do_chunk(loop, course, state, wanted)
            progress.moved(lambda: course.moment(loop, state.step))  # noqa: B023  called at once
            watchdog.moved(seconds)
            if course.is_at_an_epochs_end(state.step):
                state = _finish_epoch(loop, course, state, config, collectives, progress)
                if len(state.history) - len(start.history) == 1:
                    _tell_of_waiting(
                        exchange_seconds, state.history[-1], course, collectives, progress
                    )
                over, halted = over_early()
            seconds_of_all = _stop_if_asked(
                seconds, state, loop, collectives, checkpoints, preemption
            )
            if collectives.is_chief:
                checkpoints.offer(lambda: state.holding(loop.arrays()))  # noqa: B023  called at once
            done = state.step - before
            wanted = _next_steps(wanted, done, seconds_of_all / collectives.size)
        watchdog.rests()
        if collectives.is_chief:
            checkpoints.save(state.holding(loop.arrays()))
    return Training(
        epochs=len(state.history),
        steps=state.step,
        resumed_step=start.step,
        compile_seconds=compile_seconds,
        train_seconds=state.train_seconds,
        attempt_train_seconds=state.train_seconds - start.train_seconds,
        history=state.history,
        images_per_second=_median_speed(state.history),
        halted=halted,
    )


class _Course:
    """What a training does step by step: which examples, at which rates, in which epoch."""

    def __init__(self, config: RunConfig, examples: int) -> None:
        self._kept, self.held_out = parts(config, examples)
        self.steps_per_epoch = config.steps_per_epoch(examples)
        self.total_steps = config.epochs * self.steps_per_epoch
        self._config = config
        self._epoch = -1
        self._order, self._rates = np.empty((0, 0), np.int32), np.empty(0, np.float32)

    def rates(self, epoch: int) -> npt.NDArray[np.float32]:
        """Return the learning rate of each step of an epoch, counted from 0: shape (steps,)."""
        self._turn_to(epoch)
        return self._rates

    def order(self, epoch: int) -> npt.NDArray[np.int32]:
        """Return the examples of each step of an epoch: shape (steps, batch)."""
        self._turn_to(epoch)
        return self._order

    def moment(self, loop: Loop, step: int) -> Moment:
        """Say where the training is after `step` steps, at least one."""
        epoch = (step - 1) // self.steps_per_epoch
        loss, accuracy = loop.means(step - epoch * self.steps_per_epoch)
        return Moment(
            epoch=epoch + 1,
            epochs=self._config.epochs,
            step=step,
            steps=self.total_steps,
            loss=loss,
            accuracy=accuracy,
            batch_size=self._config.batch_size,
        )

    def _turn_to(self, epoch: int) -> None:
        """Keep one epoch at hand: of all together the rates alone could take gibibytes."""
        if epoch == self._epoch:
            return
        seed, batch_size, steps = self._config.seed, self._config.batch_size, self.steps_per_epoch
        self._epoch = epoch
        self._order = self._kept[epoch_order(seed, epoch, len(self._kept), batch_size)]
        self._rates = learning_rates(self._config, self.total_steps, epoch * steps, steps)

    def is_at_an_epochs_end(self, step: int) -> bool:
        """Tell whether the epoch is over once `step` steps are done."""
        return step % self.steps_per_epoch == 0


def _compile(
    model: keras.Model,
    dataset: Dataset,
    config: RunConfig,
    collectives: Collectives,
    course: _Course,
    progress: Progress,
) -> tuple[Loop, float]:
    """Return the compiled loop, and the seconds that took."""
    started = time.perf_counter()
    loop = Loop(model, dataset, config, collectives.strategy)
    nothing = np.zeros((course.steps_per_epoch, config.batch_size), np.int32)
    loop.run(nothing, course.rates(0), epoch_start=0, first=0, count=0)
    if len(course.held_out):
        loop.score(course.held_out, steps=0)
    runtime.give_back_memory()  # what compiling took and freed: a tenth of the peak otherwise
    seconds = time.perf_counter() - started
    progress.event("compiled", model=model.name, parameters=model.count_params(), seconds=seconds)
    return loop, seconds


def _time_exchange(loop: Loop, collectives: Collectives, progress: Progress) -> float:
    """Return the seconds of each step that workers exchange numbers; 0 for one alone."""
    if collectives.size == 1:
        return 0.0
    with watchdog.together():
        seconds = loop.exchange_seconds()
    if collectives.is_chief:
        progress.event("exchange_timed", workers=collectives.size, seconds=seconds)
    return seconds


def _tell_of_waiting(
    exchange_seconds: float,
    epoch: dict[str, Any],
    course: "_Course",
    collectives: Collectives,
    progress: Progress,
) -> None:
    """Warn where more than half of an epoch went into exchanges: fewer workers would be faster."""
    step_seconds = epoch["seconds"] / course.steps_per_epoch
    if collectives.is_chief and exchange_seconds > step_seconds / 2:
        progress.event("mostly_waits", step_seconds=step_seconds, exchange_seconds=exchange_seconds)


def _begin(start: State, loop: Loop, config: RunConfig, collectives: Collectives) -> State:
    """Put the chief's state into the loop of every worker, and return where to begin."""
    step = int(collectives.from_chief({"step": np.array(start.step)})["step"])
    if step == 0 and config.init_weights is None:
        return start  # all have drawn the same
    if step and collectives.is_chief:
        loop.assign(start.arrays)  # first: what doesn't fit is found before others wait for it
    loop.assign(collectives.from_chief(loop.arrays()))
    return replace(start, step=step, arrays={})


def _do_chunk(loop: Loop, course: _Course, state: State, most: int) -> tuple[State, float]:
    """Do up to `most` steps of the epoch; return the state after them, and their seconds."""
    started = time.perf_counter()
    epoch, position = divmod(state.step, course.steps_per_epoch)
    if position == 0:
        loop.begin_epoch()
    count = min(most, course.steps_per_epoch - position, loop.most_steps)
    order, rates = course.order(epoch), course.rates(epoch)
    with watchdog.together():
        loop.run(order, rates, epoch_start=state.step - position, first=position, count=count)
    seconds = time.perf_counter() - started
    return state.after(count, seconds), seconds


def _finish_epoch(
    loop: Loop,
    course: _Course,
    state: State,
    config: RunConfig,
    collectives: Collectives,
    progress: Progress,
) -> State:
    """Report the epoch that ends with the steps done, and return the state with it."""
    index = state.step // course.steps_per_epoch - 1
    rates = course.rates(index)
    loss, accuracy = loop.means(len(rates))
    if not math.isfinite(loss):
        raise _diverged(loss, index + 1, config, state.history)
    validation_loss = validation_accuracy = None
    if len(course.held_out):
        with watchdog.together():
            validation_loss, validation_accuracy = loop.score(course.held_out)
        if not math.isfinite(validation_loss):  # by the very last step, which `loss` is before
            raise _diverged(validation_loss, index + 1, config, state.history)
    finished = Epoch(
        epoch=index + 1,
        loss=loss,
        accuracy=accuracy,
        learning_rate=float(rates[-1]),
        seconds=state.epoch_seconds,
        images_per_second=course.order(index).size / state.epoch_seconds,
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
    )
    after = state.after_epoch(finished.record())
    if collectives.is_chief:
        progress.event("epoch", epochs=config.epochs, **finished.record())
        if stopped_early(config, after.history) and finished.epoch < config.epochs:
            progress.event("stopped_early", epoch=finished.epoch, patience=config.early_stopping)
    return after


def _stop_if_asked(
    seconds: float,
    state: State,
    loop: Loop,
    collectives: Collectives,
    checkpoints: Checkpoints,
    preemption: Preemption,
) -> float:
    """Return the seconds that all workers took for a chunk together, this one's being `seconds`.

    Raises:
        StoppedError, TemporaryError, KeyboardInterrupt: one was asked to stop; the work is saved.
    """
    reason = preemption.reason(2 * seconds)
    # All workers must do as many steps as each other, and stop after the same one.
    stops, seconds_of_all = collectives.total([reason is not None, seconds])
    if not stops:
        return seconds_of_all
    watchdog.rests()
    if collectives.is_chief:
        checkpoints.save(state.holding(loop.arrays()))
    collectives.wait()
    raise reason or TemporaryError(
        "another worker was asked to stop, the work is saved: run all of them again"
    )


def _median_speed(history: tuple[dict[str, Any], ...]) -> float:
    return float(np.median([epoch["images_per_second"] for epoch in history])) if history else 0.0


def _next_steps(wanted: int, done: int, seconds: float) -> int:
    """Return how many steps the next chunk has, after one of `done` steps took `seconds`."""
    # Grow towards the wanted length, but not in one leap from a first, cold step.
    return max(1, min(8 * wanted, int(done * CHUNK_SECONDS / seconds)))


def _diverged(
    loss: float, epoch: int, config: RunConfig, history: tuple[dict[str, Any], ...]
) -> JobError:
    """Return the error for a loss that is no number, which names flags that can be the cause."""
    said = f"the loss became {loss} in epoch {epoch}"
    if history:
        said += f", after {history[-1]['loss']:.4g} in the one before"
    causes = []
    if config.learning_rate > RunConfig.learning_rate:  # which trains every model of this job
        causes.append(
            f"--learning-rate {config.learning_rate:g} is too high for this model and data, try a "
            "tenth of it"
        )
    if config.learning_rate * config.weight_decay > 2:
        # Each step multiplies the kernels by 1 - rate x decay: below -1 they grow without end.
        causes.append(
            f"--weight-decay {config.weight_decay:g} at this learning rate makes weights grow, "
            "give one below 1"
        )
    if config.precision != "float32":
        causes.append(f"--precision {config.precision} is too coarse for this, try float32")
    if causes:
        return UsageError(f"{said}: {'; or '.join(causes)}")
    return DataError(
        f"{said}, and no flag explains that (--learning-rate is {config.learning_rate:g}): run it "
        "anew with another --run-id; if that ends the same, look at the images and labels, and "
        "have this machine's memory or GPU checked"
    )


def stopped_early(config: RunConfig, history: tuple[dict[str, Any], ...]) -> bool:
    """Tell whether so many epochs went by without a better validation loss that training ends."""
    if config.early_stopping is None or not history:
        return False
    losses = [epoch["validation_loss"] for epoch in history]
    return len(losses) - 1 - losses.index(min(losses)) >= config.early_stopping


def parts(config: RunConfig, examples: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return which of the training examples are trained on, and which are held out.

    A function of the number of examples, `validation` and `validation_seed` alone.

    Returns:
        Two arrays of rising indices, int32, which together are all of them.
    """
    shuffled = np.random.Generator(np.random.Philox(key=[config.validation_seed, _HELD_OUT]))
    order = shuffled.permutation(examples).astype(np.int32)
    held_out = round(config.validation * examples)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def learning_rates(
    config: RunConfig, steps: int, first: int = 0, count: int | None = None
) -> npt.NDArray[np.float32]:
    """Return the rate of each of `count` optimizer steps of `steps`, from step `first` on.

    A linear warm-up over the first tenth of all steps, then a fall to zero on a line or on a half
    cosine (Loshchilov and Hutter, 2017), or no fall.

    Args:
        config: its schedule and peak.
        steps: of the whole training, which may be too many to hold the rates of.
        first: from 0.
        count: None for all that are left.

    Returns:
        Shape (count,).
    """
    warmup = round(WARMUP_SHARE * steps)
    end = steps if count is None else first + count
    rising = np.arange(first + 1, min(end, warmup) + 1) / max(1, warmup)
    progress = np.arange(max(first, warmup) - warmup, end - warmup) / max(1, steps - warmup)
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
