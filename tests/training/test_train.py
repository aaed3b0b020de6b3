"""The compiled loop: what it computes, in which order, from which seed."""

import contextlib
import dataclasses
import functools
import io
import json
import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from job.config import RunConfig
from job.data.source import Dataset
from job.errors import DataError, StoppedError, UsageError
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.training import loop, model, strategy, train
from job.training.checkpoint import Checkpoints, State, from_bytes, to_bytes
from job.training.loop import Loop
from job.workers import watchdog
from job.workers.collectives import Collectives


def config(**changes) -> RunConfig:
    return RunConfig(run_id="test", **{"epochs": 2, "batch_size": 20, **changes})


@pytest.fixture(scope="module")
def tiny(mnist: Dataset) -> Dataset:
    """Ninety images: batches of 20 don't divide them."""
    return dataclasses.replace(mnist, x_train=mnist.x_train[:90], y_train=mnist.y_train[:90])


class Memory(Checkpoints):
    """Checkpoints that are kept in memory: the last state of all that were saved."""

    def __init__(self):
        self.state = None

    def offer(self, state):
        pass

    def save(self, state):
        self.state = state

    def close(self):
        pass


class StopAfter(Preemption):
    """Asks to stop after so many chunks."""

    def __init__(self, chunks):
        super().__init__()
        self.chunks = chunks

    def reason(self, needed_seconds=0):
        del needed_seconds
        self.chunks -= 1
        return StoppedError("enough") if self.chunks == 0 else None


def run(dataset, settings, start=None, stop_after=0, after_epoch=None, progress=None):
    """Train on from `start`; return the weights, the last saved state and what was returned."""
    chosen = strategy.choose("cpu")
    with chosen.scope():
        net = model.build(
            *(settings.model, (28, 28), dataset.classes),
            seed=settings.seed,
            dropout=settings.dropout,
            form="matrices",
        )
    checkpoints = Memory()
    begin = start or State({}, 2)
    result = None
    with contextlib.suppress(StoppedError):
        preemption = StopAfter(stop_after)
        progress = progress or Progress("json", io.StringIO())
        result = train.train(
            net,
            dataset,
            settings,
            Collectives(chosen),
            checkpoints,
            begin,
            preemption,
            progress,
            after_epoch,
        )
    return net.get_weights(), checkpoints.state, result


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_held_out_loss_that_is_no_number_is_a_divergence(bad):
    """The loss of the epoch is that of its steps: the last one may have spoilt the weights."""
    settings = config(validation=0.2, learning_rate=1.0)
    course = train._Course(settings, 90)
    alone = Collectives(strategy.choose("cpu"))
    state = State({}, 2, step=course.steps_per_epoch, epoch_seconds=1.0)

    class Spoilt:
        def means(self, *_):
            return 0.5, 0.9

        def score(self, *_):
            return bad, 0.1

    with pytest.raises(UsageError, match=f"became {bad} in epoch 1.*--learning-rate 1 is"):
        train._finish_epoch(Spoilt(), course, state, settings, alone, Progress("json"))


@pytest.mark.slow
def test_a_training_is_ended_after_an_epoch_with_its_state_saved(tiny):
    asked = []

    def twice(history, parameters):
        asked.append((len(history), parameters))
        return len(history) < 2

    _, state, result = run(tiny, config(epochs=4), after_epoch=twice)
    assert asked == [(1, 109_386), (2, 109_386)]
    assert result.halted
    assert (state.step, len(result.history)) == (10, 2)  # 90 images are five batches

    # Killed before the answer was heeded: it is asked for again, before any further step.
    asked.clear()
    _, again, result = run(tiny, config(epochs=4), start=state, after_epoch=twice)
    assert asked == [(2, 109_386)]
    assert (result.halted, again.step) == (True, 10)

    # And with another answer it goes on to what it would have become.
    weights, _, result = run(tiny, config(epochs=4), start=state, after_epoch=lambda *_: True)
    assert not result.halted
    unbroken_weights, _, _ = run(tiny, config(epochs=4))
    assert all(map(np.array_equal, weights, unbroken_weights))


@functools.cache
def trained(dataset: Dataset, settings: RunConfig, attempt: int = 0):
    del attempt  # only keeps two trainings apart
    weights, _, result = run(dataset, settings)
    return weights, result


@functools.cache
def unbroken(dataset: Dataset, settings: RunConfig):
    """Return what `run` does, once for all that compare with it: compiling takes seconds."""
    return run(dataset, settings)


def untimed(history):
    timed = {"seconds", "images_per_second"}
    return [{key: value for key, value in done.items() if key not in timed} for done in history]


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        pytest.param("mlp", (2, 1), marks=pytest.mark.slow),
        pytest.param("mlp", (1,), marks=pytest.mark.slow),
        pytest.param("mlp", (3, 1, 1), marks=pytest.mark.slow),
        pytest.param("cnn", (1,), marks=pytest.mark.slow),
        pytest.param("cnn", (3, 1, 1), marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_is_one_unbroken_run(tiny, monkeypatch, name, stops):
    """Bit for bit, with all that draws at random, and for the cnn with moving averages."""
    settings = config(model=name, augment="affine", dropout=0.3, epochs=3, validation=0.1)
    whole, whole_state, whole_result = unbroken(tiny, settings)
    # Chunks of other lengths too: they must not matter either.
    monkeypatch.setattr(train, "CHUNK_SECONDS", 1e-9)
    state, steps = None, []
    for stop_after in stops:
        _, state, result = run(tiny, settings, state, stop_after)
        assert result is None
        state = from_bytes(to_bytes(state), "x")  # as it comes back from a file
        steps.append(state.step)
    assert steps == sorted(set(steps))
    assert steps[-1] < 15
    weights, last_state, result = run(tiny, settings, state)
    assert result.resumed_step == steps[-1]
    for mine, others in zip(weights, whole, strict=True):
        assert np.array_equal(mine, others)
    assert last_state.arrays.keys() == whole_state.arrays.keys()
    for key, array in last_state.arrays.items():
        assert np.array_equal(array, whole_state.arrays[key]), key
    assert untimed(result.history) == untimed(whole_result.history)


@pytest.mark.slow
def test_state_holds_every_variable_that_moves(tiny):
    _, state, _ = run(tiny, config(model="cnn", dropout=0.5), stop_after=1)
    names = set(state.arrays)
    for part in ("seed", "moving_mean", "momentum", "velocity", "iteration", "loss_sum", "hits"):
        assert any(part in name for name in names), part


@pytest.mark.slow
def test_state_of_another_model_is_refused(tiny):
    _, state, _ = run(tiny, config(), stop_after=1)
    with pytest.raises(DataError, match="does not fit"):
        run(tiny, config(model="cnn"), state)


def test_loop_equals_a_plain_one_written_with_keras(tiny):
    """The reference is the textbook loop: eager, a batch at a time, nothing shared with the job."""
    settings = config(label_smoothing=0.1, weight_decay=0.3)
    net = model.build("mlp", (28, 28), 10, seed=settings.seed)
    optimizer = keras.optimizers.Adam()
    loss_of = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    rates = iter(train.learning_rates(settings, 10))
    losses = []
    for epoch in range(2):
        for batch in train.epoch_order(settings.seed, epoch, 90, 20):
            optimizer.learning_rate = next(rates)
            targets = keras.utils.to_categorical(tiny.y_train[batch], 10)
            with tf.GradientTape() as tape:
                loss = loss_of(targets, net(tiny.x_train[batch] / np.float32(255)))
            gradients = tape.gradient(loss, net.trainable_variables)
            before = {weight.path: weight.numpy() for weight in net.trainable_variables}
            optimizer.apply_gradients(zip(gradients, net.trainable_variables, strict=True))
            for kernel in net.trainable_variables[::2]:  # as in algorithm 2 of the paper on AdamW
                kernel.assign(kernel - 0.3 * optimizer.learning_rate * before[kernel.path])
            losses.append(float(loss))
    weights, result = trained(tiny, settings)
    assert [epoch["loss"] for epoch in result.history] == pytest.approx(
        [np.mean(losses[:5]), np.mean(losses[5:])], rel=1e-4
    )
    for mine, plain in zip(weights, net.get_weights(), strict=True):
        np.testing.assert_allclose(mine, plain, atol=2e-5)


@pytest.mark.parametrize("augment", [pytest.param("none", marks=pytest.mark.slow), "shift"])
def test_same_seed_same_bits(tiny, augment):
    (first, _), (second, _) = (
        trained(tiny, config(augment=augment), attempt) for attempt in range(2)
    )
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"augment": "shift"},
        {"augment": "affine"},
        {"dropout": 0.5},
        {"validation": 0.25},
        {"validation": 0.25, "validation_seed": 1},
        {"label_smoothing": 0.0},
        {"weight_decay": 0.0},
        {"schedule": "constant"},
        {"learning_rate": 0.001},
    ],
)
def test_each_setting_reaches_the_loop(tiny, change):
    before = {"validation": 0.25} if "validation_seed" in change else {}
    (default, _), (changed, _) = trained(tiny, config(**before)), trained(tiny, config(**change))
    assert any(not np.array_equal(one, other) for one, other in zip(default, changed, strict=True))


def test_held_out_examples_are_scored_and_not_trained_on(tiny):
    settings = config(validation=0.3, epochs=3)
    kept, held_out = train.parts(settings, 90)
    assert len(held_out) == 27
    assert sorted([*kept, *held_out]) == list(range(90))
    weights, result = trained(tiny, settings)
    # Without the images that are held out nothing changes, but for what they score.
    blank = tiny.x_train.copy()
    blank[held_out] = 0
    others, other = run(dataclasses.replace(tiny, x_train=blank), settings)[::2]
    assert all(np.array_equal(one, other) for one, other in zip(weights, others, strict=True))
    assert other.history[-1]["validation_loss"] != result.history[-1]["validation_loss"]
    net = model.build("mlp", (28, 28), tiny.classes)
    net.set_weights(weights)
    logits = net(tiny.x_train[held_out] / np.float32(255)).numpy()
    labels = tiny.y_train[held_out]
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    assert result.history[-1]["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert result.history[-1]["validation_accuracy"] == np.mean(logits.argmax(1) == labels)
    assert result.steps == 3 * 4  # ceil(63 / 20)


def test_held_out_examples_do_not_depend_on_the_seed_of_the_run():
    first, other = (train.parts(config(validation=0.3, seed=seed), 90)[1] for seed in (0, 1))
    assert np.array_equal(first, other)
    other = train.parts(config(validation=0.3, validation_seed=1), 90)[1]
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("losses", "stops"),
    [([3], 0), ([3, 2, 1], 0), ([3, 2, 2.5], 0), ([3, 2, 2, 2.5], 1), ([1, 2, 3], 1), ([], 0)],
)
def test_epochs_without_a_better_loss_end_it(losses, stops):
    history = tuple({"validation_loss": loss} for loss in losses)
    assert train.stopped_early(config(validation=0.1, early_stopping=2), history) == bool(stops)
    assert not train.stopped_early(config(validation=0.1), history)


@pytest.mark.slow
def test_stopped_early_is_over_and_stays_over(tiny):
    """The rate is so high that it never gets better than after its first epoch."""
    more = {"validation": 0.3, "learning_rate": 3.0, "epochs": 9, "schedule": "constant"}
    whole, state, result = run(tiny, config(early_stopping=2, **more))
    losses = [epoch["validation_loss"] for epoch in result.history]
    assert result.epochs == len(losses) == losses.index(min(losses)) + 3 < 9
    assert result.steps == 4 * len(losses) == state.step
    again, _, resumed = run(
        tiny, config(early_stopping=2, **more), from_bytes(to_bytes(state), "x")
    )
    assert resumed.steps == resumed.resumed_step == state.step
    assert all(np.array_equal(one, other) for one, other in zip(whole, again, strict=True))


def test_accuracy_counts_each_step_once(tiny):
    _, result = trained(tiny, config(epochs=30, learning_rate=0.01))
    assert result.steps == 30 * 5
    assert result.history[-1]["accuracy"] == 1  # ninety images are soon learned by heart
    assert result.history[0]["accuracy"] < 0.9


@given(examples=st.integers(1, 300), batch=st.integers(1, 300), epoch=st.integers(0, 9))
@settings(deadline=None, derandomize=True)
def test_every_example_has_its_turn(examples, batch, epoch):
    batch = min(batch, examples)
    order = train.epoch_order(3, epoch, examples, batch)
    seen = np.bincount(order.ravel(), minlength=examples)
    assert order.shape == (-(-examples // batch), batch)
    assert seen.min() >= 1  # nobody is left out
    assert seen.sum() - examples == -examples % batch  # and the filling is no longer than needed
    assert seen.max() <= 2


def test_orders_differ_by_epoch_and_seed_and_not_by_process():
    orders = {
        train.epoch_order(seed, epoch, 50, 50).tobytes() for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9
    # Pinned: another order would be another run for everyone who resumes one.
    assert train.epoch_order(0, 0, 10, 5).tolist() == [[0, 7, 8, 6, 9], [5, 1, 3, 2, 4]]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 9, 10, 1000])
def test_learning_rates_rise_to_the_peak_and_fall(schedule, steps):
    rates = train.learning_rates(config(schedule=schedule, learning_rate=0.5), steps)
    warmup = round(steps / 10)
    assert rates.dtype == np.float32
    assert rates.shape == (steps,)
    assert rates.max() == 0.5
    assert (rates > 0).all()
    assert (np.diff(rates[:warmup]) > 0).all()
    assert (np.diff(rates[warmup:]) <= 0).all()
    if steps == 1000:
        assert rates[[0, 49, 99, 100]] == pytest.approx([0.005, 0.25, 0.5, 0.5])
        assert rates[[325, 550, 999]] == pytest.approx(
            {
                "linear": [0.375, 0.25, 0.5 / 900],
                "cosine": [0.5 * (1 + 0.5**0.5) / 2, 0.25, 0],
                "constant": [0.5, 0.5, 0.5],
            }[schedule],
            abs=1e-5,
        )


def all_rates(settings: RunConfig, steps: int) -> np.ndarray:
    """Return the whole schedule at once, as its formula stands in the books."""
    warmup = round(0.1 * steps)
    rising = np.arange(1, warmup + 1) / max(1, warmup)
    progress = np.arange(steps - warmup) / max(1, steps - warmup)
    falling = {
        "linear": 1 - progress,
        "cosine": (1 + np.cos(np.pi * progress)) / 2,
        "constant": np.ones_like(progress),
    }[settings.schedule]
    return (settings.learning_rate * np.concatenate([rising, falling])).astype(np.float32)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (3, 1), (1, 30), (2, 19), (9, 1875)])
def test_rates_of_the_epochs_are_those_of_the_whole_to_the_bit(schedule, epochs, steps):
    settings = config(schedule=schedule)
    each = [
        train.learning_rates(settings, epochs * steps, epoch * steps, steps)
        for epoch in range(epochs)
    ]
    assert {len(rates) for rates in each} == {steps}
    whole = all_rates(settings, epochs * steps)
    assert np.concatenate(each).tobytes() == whole.tobytes()
    assert train.learning_rates(settings, epochs * steps).tobytes() == whole.tobytes()


def test_no_more_rates_are_made_than_those_of_an_epoch(tiny, monkeypatch):
    """Ten thousand epochs of sixty thousand steps would be gibibytes."""
    asked = []

    def rates(_, steps, first=0, count=None):
        asked.append((steps, first, count))
        return np.zeros(count, np.float32)

    with monkeypatch.context() as patch:
        patch.setattr(train, "learning_rates", rates)
        run(tiny, config(epochs=3))
    assert set(asked) == {(15, 0, 5), (15, 5, 5), (15, 10, 5)}
    tracemalloc.start()
    for first in (0, 59_940_000, 60_000_000, 599_940_000):
        train.learning_rates(config(schedule="cosine"), 600_000_000, first, 60_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 * 1024 * 1024


@pytest.mark.parametrize(("exchange", "told"), [(0.0, 0), (0.0049, 0), (0.0051, 1)])
def test_a_run_that_mostly_waits_for_other_workers_says_so(monkeypatch, tiny, exchange, told):
    monkeypatch.setattr(train, "_time_exchange", lambda *_: exchange)
    five_steps = dataclasses.asdict(train.Epoch(1, 1.0, 0.5, 0.1, 0.05, 9.0))
    monkeypatch.setattr(train.Epoch, "record", lambda _: five_steps)
    stream = io.StringIO()
    run(tiny, config(epochs=3), progress=Progress("json", stream))
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [each["event"] for each in said].count("mostly_waits") == told  # of three epochs


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_loss_and_hits_are_exchanged_as_they_are_and_gradients_as_asked(name):
    sent = []

    class Replica:
        def all_reduce(self, _, numbers):
            sent.append(numbers.dtype.name)
            return 2 * numbers

    exact = 1 + 2.0**-20  # which bfloat16 has no room for
    parts = [tf.constant(exact), tf.constant(60_001.0), tf.fill([2, 3], exact), tf.ones([4])]
    summed = loop._summed(parts, Replica(), tf.as_dtype(name))
    assert [part.shape for part in summed] == [part.shape for part in parts]
    assert [float(part) for part in summed[:2]] == [2 * exact, 120_002]
    assert np.all(summed[2] == 2 * (exact if name == "float32" else 1))
    assert sent == (["float32"] if name == "float32" else ["float32", "bfloat16"])


@pytest.mark.parametrize("place", ["run", "means"])
def test_what_ends_the_loop_rests_before_it_waits_for_a_store(tiny, monkeypatch, place):
    """Its watcher would take a slow store for a hang, and end it without its own exit code."""
    said = []

    def fail(*_, count=1, **__):
        if count:  # none while it compiles
            raise DataError("no number")

    monkeypatch.setattr(watchdog, "_say", said.append)
    monkeypatch.setattr(Memory, "close", lambda _: said.append("closed"))
    monkeypatch.setattr(Loop, place, fail)
    with pytest.raises(DataError):
        run(tiny, config())
    *lines, rests, closed = said
    assert (rests, closed) == ("-", "closed")
    assert lines.count("(") == lines.count(")") > 0
