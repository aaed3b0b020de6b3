"""What `make accuracy` and `make ablation` count, change and print."""

import functools
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import ablation
import accuracy
import flops
import numpy as np
import pytest
import tasks
import tensorflow as tf
import variants

from job.config import PRESETS, RunConfig
from job.training import augmentation, loop, model, train

FORMS = ("matrices", "published")


@pytest.mark.parametrize(
    ("name", "first", "others"),
    [
        ("mlp", 784 * 128, [128 * 64, 64 * 10]),
        # Places of the output x kernel of 3x3: 26 wide, pooled to 13; 11, pooled to 5; 3.
        ("cnn", 26**2 * 9 * 16, [11**2 * 9 * 16 * 32, 3**2 * 9 * 32 * 64, 576 * 10]),
    ],
)
def test_operations_are_counted_from_the_shapes(name, first, others):
    net = model.build(name, (28, 28), 10)
    assert flops.forward(net) == 2 * (first + sum(others))
    # Nobody needs the gradient of the pixels.
    assert flops.training(net) == 2 * (2 * first + 3 * sum(others))


def test_the_scores_of_a_run_are_those_of_the_held_out_images_if_there_are_any(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    run = accuracy.run_of(metrics)
    assert run.accuracy == metrics["test"]["accuracy"]
    assert run.images == 2 * 63 * 32  # 2,000 fill 62.5 batches of 32, and none is left out
    last = metrics["train"]["history"][-1]
    last |= {"validation_accuracy": 0.5, "validation_loss": 2.0}
    held_out = accuracy.run_of(metrics)
    assert (held_out.accuracy, held_out.loss, held_out.calibration_error) == (0.5, 2.0, None)


def runs(*accuracies: float) -> tuple[accuracy.Run, ...]:
    return tuple(
        accuracy.Run(seed, value, 0.05, None, 10.0 + seed, 6000)
        for seed, value in enumerate(accuracies)
    )


def test_the_table_has_mean_spread_and_the_command_of_each_preset():
    rows = [
        accuracy.Row(
            "fast", "mnist-job train --preset fast --seed 0..2", runs(0.99, 0.991, 0.992), 0.289
        ),
        accuracy.Row("best", "mnist-job train --preset best --seed 0", runs(0.997), 36.04),
    ]
    lines = accuracy.table(rows, held_out=True)
    assert lines[0].split()[:6] == ["preset,", "%", "of", "held", "out", "mean"]
    assert lines[1].split(maxsplit=8) == [
        *("fast", "99.100", "0.100", "99.00", "99.20", "3", "0.289", "11.0"),
        "mnist-job train --preset fast --seed 0..2",
    ]
    assert lines[2].split()[2] == "nan"  # one run has no spread


@pytest.mark.slow
def test_an_ensemble_has_a_line_for_its_members_and_shares_none_with_another(
    capsys, monkeypatch, tmp_path
):
    """Of each seed three nets are trained; their metrics have no history of epochs."""

    def train(flags, seed, *, held_out):
        assert (flags, held_out) == (["--preset", "fast", "--ensemble", "3"], False)
        config = {"seed": seed, "batch_size": 100, "validation": 0.0}
        return {
            "config": config,
            "model": {"name": "cnn", "ensemble": 3},
            "data": {"classes": 10, "image_shape": [28, 28]},
            "test": {"accuracy": 0.995, "loss": 0.01, "expected_calibration_error": 0.002},
            "train": {"steps": 1800, "history": []},
            "timing": {"total_seconds": 30.0},
            "members": [{"accuracy": (990 + member) / 1000} for member in range(3)],
        }

    words = [
        "accuracy.py",
        "--preset",
        "fast",
        "--seeds",
        "2",
        "--output",
        str(tmp_path / "seen.json"),
    ]
    monkeypatch.setattr(accuracy, "train", train)
    monkeypatch.setattr(accuracy.children, "end_by_exception", lambda: None)
    monkeypatch.setattr(sys, "argv", [*words, "--", "--ensemble", "3"])
    accuracy.main()
    *_, ensemble, members = capsys.readouterr().out.splitlines()
    teraflop = flops.training(model.build("cnn", (28, 28), 10)) * 180_000 / 1e12
    assert ensemble.split(maxsplit=8) == [
        *("fast", "99.500", "0.000", "99.50", "99.50", "2", f"{teraflop:.3g}", "30.0"),
        "mnist-job train --preset fast --ensemble 3 --seed 0,3",
    ]
    figures = ["each", "member", "99.100", "0.089", "99.00", "99.20", "6", f"{teraflop / 3:.3g}"]
    assert members.split() == figures
    monkeypatch.setattr(sys, "argv", [*words, "--held-out", "--", "--ensemble=3"])
    with pytest.raises(SystemExit, match="2"):
        accuracy.main()
    assert "scored on the test set only" in capsys.readouterr().err


def test_a_difference_is_that_of_pairs_with_students_interval():
    ours, theirs = [99.0, 99.4, 98.7, 99.1, 99.2], [98.9, 99.2, 98.6, 99.1, 99.0]
    mean, half = ablation.difference(ours, theirs)
    each = [0.1, 0.2, 0.1, 0.0, 0.2]
    assert mean == pytest.approx(statistics.mean(each))
    assert half == pytest.approx(2.776 * statistics.stdev(each) / math.sqrt(5))
    base = runs(*(value / 100 for value in theirs))
    changed = runs(*(value / 100 for value in ours))
    assert "+0.120  0.104  told apart" in ablation.line("changed", changed, base)
    assert "told apart" not in ablation.line("the same", base, base)
    assert ablation.line("as it is", base, None).split() == [
        "as",
        "it",
        "is",
        "98.960",
        "0.230",
        "12.0",
    ]


def test_students_t_is_scipys():
    from scipy import stats

    for place, value in enumerate(ablation._T, start=1):
        assert value == pytest.approx(stats.t.ppf(0.975, place), abs=5e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_row_changes_something_that_the_job_accepts(preset):
    rows = ablation.rows(preset)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        fields = {
            flag[2:].replace("-", "_"): value
            for flag, value in zip(row.flags[::2], row.flags[1::2], strict=True)
        }
        base = PRESETS[preset]
        if fields.get("augment", "affine") != "affine":
            base = {name: value for name, value in base.items() if name != "augment_strength"}
        typed = {
            name: type(getattr(RunConfig, name) or 0.0)(value) for name, value in fields.items()
        }
        changed = RunConfig(run_id="x", **(base | typed)).digest
        same = changed == RunConfig(run_id="x", **PRESETS[preset]).digest
        assert same == (not fields), row.name
        assert fields or row.variant
        assert row.variant is None or row.variant in variants.VARIANTS
    norms = [row.name for row in rows if "norm" in row.name]
    assert norms == ([] if preset == "reference" else ["no norm", "norm before the pool"])


@pytest.fixture
def history(command, small_mnist, tmp_path):
    """Return a function that trains an epoch in this process and returns what it says of it."""

    def run(*flags: str) -> dict[str, float]:
        place = ["--output", tmp_path, "--run-id", f"run-{len(list(tmp_path.iterdir()))}"]
        given = ["--data", small_mnist, "--epochs", "1", "--validation", "0.1", *place, *flags]
        finished = command("train", *given)
        assert finished.code == 0, finished.err
        metrics = json.loads((tmp_path / place[-1] / "metrics.json").read_text())
        return metrics["train"]["history"][-1]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "scores_alike"),
    [
        (functools.partial(variants.averaging, 0.9), False),
        (functools.partial(variants.averaging, 0.0), True),  # it forgets all but the last weights
        (variants.shifting, False),
    ],
    ids=["average", "no-average", "shifts"],
)
def test_averages_and_shifts_change_the_scores_and_not_the_training(
    history, monkeypatch, change, scores_alike
):
    plain = history()
    monkeypatch.setattr(train, "Loop", train.Loop)  # which is put back
    change()
    changed = history()
    # Not to the bit: XLA may fuse what else is done with the weights into their update.
    assert changed["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert changed["accuracy"] == pytest.approx(plain["accuracy"], abs=2e-3)
    same = changed["validation_loss"] == pytest.approx(plain["validation_loss"], rel=1e-3)
    assert same == scores_alike


@pytest.mark.slow
def test_averages_of_other_decays_are_other_averages(history, monkeypatch):
    """In some hundred steps 0.99 and 0.998 once came to the same."""
    losses = []
    for name in ("ema-0.99", "ema-0.998"):
        with monkeypatch.context() as patch:
            patch.setattr(train, "Loop", train.Loop)  # which is put back
            variants.VARIANTS[name]()
            losses.append(history()["validation_loss"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_an_image_moves_by_a_pixel_and_what_comes_in_is_zero():
    images = tf.constant(np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3))
    moved = [variants.moved(images, *shift)[0].numpy().tolist() for shift in variants.SHIFTS[:4]]
    assert moved == [
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        [[0, 0, 0], [1, 2, 3], [4, 5, 6]],
        [[4, 5, 6], [7, 8, 9], [0, 0, 0]],
        [[0, 1, 2], [0, 4, 5], [0, 7, 8]],
    ]


@pytest.fixture
def layers(monkeypatch):
    """Let variants change the layers that nets are made of, for one test."""
    for name in ("normalization", "convolution"):
        monkeypatch.setattr(model._Layers, name, getattr(model._Layers, name))


@pytest.mark.usefixtures("layers")
def test_without_the_norm_biases_stay_and_nothing_else():
    names = [weight.name for weight in model.build("cnn", (28, 28), 10).weights]
    variants.without_norm()
    nets = [model.build("cnn", (28, 28), 10, form=form) for form in FORMS]
    kept = [name for name in names if not name.startswith("moving")]
    assert [weight.name for weight in nets[0].weights] == kept
    nets[1].set_weights(nets[0].get_weights())
    images = np.random.default_rng(0).random((4, 28, 28), np.float32)
    np.testing.assert_allclose(nets[0](images), nets[1](images), atol=1e-5)


@pytest.mark.usefixtures("layers")
def test_a_norm_before_the_pool_is_one_of_four_times_as_many_numbers():
    shapes = {"normalization_1": (26, 26, 16), "normalization_2": (11, 11, 32)}
    plain = model.build("cnn", (28, 28), 10)
    variants.norm_before_the_pool()
    for form in FORMS:  # each is built anew, and so is what is published
        net = model.build("cnn", (28, 28), 10, form=form)
        for name, shape in shapes.items():
            assert net.get_layer(name).output.shape[1:] == shape
            assert plain.get_layer(name).output.shape[1:] == (
                shape[0] // 2,
                shape[1] // 2,
                shape[2],
            )
        assert [w.shape for w in net.weights] == [w.shape for w in plain.weights]


@pytest.mark.parametrize("name", ["nesterov", "lion", "beta2-0.99"])
def test_another_optimizer_is_the_one_that_steps(history, monkeypatch, name):
    made = []
    monkeypatch.setattr(loop, "_Adam", loop._Adam)
    variants.VARIANTS[name]()
    chosen = loop._Adam
    monkeypatch.setattr(loop, "_Adam", lambda **more: made.append(chosen(**more)) or made[-1])
    assert math.isfinite(history("--learning-rate", "0.001")["loss"])
    [optimizer] = made
    assert type(optimizer).__name__ == {"nesterov": "SGD", "lion": "Lion"}.get(name, "Adam")
    assert optimizer.iterations == 57  # batches of 32 in 1,800 images
    if name == "nesterov":
        assert optimizer.nesterov
    if name == "beta2-0.99":
        assert optimizer.beta_2 == 0.99


def test_an_unknown_variant_is_refused_before_anything_is_run():
    words = [sys.executable, str(ablation.HERE / "variants.py"), "none", "train"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "'none' is none of ema-0.99," in ended.stderr


@pytest.mark.slow
@pytest.mark.longest
@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_trains_a_convolutional_net(name, small_mnist, tmp_path):
    said = {}
    for program in (["-m", "job"], [str(ablation.HERE / "variants.py"), name]):
        place = ["--output", str(tmp_path / program[1][-3:]), "--run-id", "run"]
        flags = ["--preset", "fast", "--data", small_mnist, "--validation", "0.1", *place]
        subprocess.run([sys.executable, *program, "train", *flags], check=True)
        metrics = json.loads((Path(place[1]) / "run" / "metrics.json").read_text())
        [said[program[1]]] = metrics["train"]["history"]
    plain, changed = (
        {field: value for field, value in epoch.items() if "second" not in field}
        for epoch in said.values()
    )
    assert math.isfinite(changed["validation_loss"])
    assert changed != plain


@pytest.mark.slow
@pytest.mark.longest
def test_accuracy_and_ablation_run_print_and_leave_what_they_saw(tmp_path, small_mnist):
    flags = ["--", "--data", small_mnist, "--epochs", "1"]
    out = tmp_path / "seen.json"

    def run(script: str, *words: str) -> str:
        command = [
            sys.executable,
            str(ablation.HERE / script),
            *words,
            "--output",
            str(out),
            *flags,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    words = ["--preset", "reference", "--seeds", "2"]
    on_test = run("accuracy.py", *words).splitlines()
    documents = json.loads(out.read_text())["runs"]
    assert [document["config"]["seed"] for document in documents] == [0, 1]
    mean = statistics.mean(100 * document["test"]["accuracy"] for document in documents)
    assert on_test[-1].split()[:2] == ["reference", f"{mean:.3f}"]
    assert on_test[-1].endswith(f"--preset reference --data {small_mnist} --epochs 1 --seed 0..1")

    held_out = run("accuracy.py", *words, "--held-out").splitlines()
    documents = json.loads(out.read_text())["runs"]
    # A config leaves out of its identity what is as it is without a flag.
    drawn_by = [document["config"].get("validation_seed", 0) for document in documents]
    assert drawn_by == [0, 1]
    last = [document["train"]["history"][-1]["validation_accuracy"] for document in documents]
    assert held_out[-1].split()[:2] == ["reference", f"{100 * statistics.mean(last):.3f}"]

    lines = run("ablation.py", *words, "--only", "second moment").splitlines()
    base = [run["accuracy"] for run in json.loads(out.read_text())["runs"]["as it is"]]
    assert base == last  # the same runs: what is held out depends on the seed alone
    assert [line[:24].strip() for line in lines[2:]] == ["as it is", "Adam, second moment 0.99"]


def test_an_ablation_that_was_ended_goes_on_with_what_it_has(tmp_path, monkeypatch, capsys):
    trained = []

    def train(flags, seed, *, held_out, program):
        assert held_out
        if len(trained) == 3:
            raise SystemExit(143)
        trained.append((*flags, program[-1], seed))
        return trained[-1]

    monkeypatch.setattr(accuracy, "train", train)
    monkeypatch.setattr(accuracy, "run_of", lambda said: runs(*[0.99] * (said[-1] + 1))[-1])
    out = tmp_path / "ablation.json"
    row = ablation.Row("Lion", ("--learning-rate", "0.1"), "lion")
    flags = ("--preset", "fast")
    kept = ablation.Kept(out, flags)
    assert len(kept.runs(ablation.Row("as it is"), 2)) == 2
    with pytest.raises(SystemExit):
        kept.runs(row, 2)
    first, trained[:] = trained[:], []
    assert capsys.readouterr().err == ""

    again = ablation.Kept(out, flags)
    assert "3 trainings" in capsys.readouterr().err
    assert [run.seed for run in again.runs(ablation.Row("as it is"), 2)] == [0, 1]
    assert [run.seed for run in again.runs(row, 2)] == [0, 1]
    assert [*first, *trained] == [
        (*flags, "job", 0),
        (*flags, "job", 1),
        (*flags, *row.flags, "lion", 0),
        (*flags, *row.flags, "lion", 1),
    ]
    trained.clear()
    ablation.Kept(out, ("--preset", "cnn")).runs(row, 1)
    monkeypatch.setattr(ablation, "program_digest", lambda: "another")
    ablation.Kept(out, ("--preset", "cnn")).runs(row, 1)
    assert len(trained) == 2  # nothing of other flags, nothing of another program


def test_a_failed_training_ends_it_with_the_jobs_own_words():
    words = ["--preset", "reference", "--seeds", "1", "--", "--epochs", "0"]
    command = [sys.executable, str(ablation.HERE / "accuracy.py"), *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "--epochs must be a whole number from 1" in ended.stderr
    assert ended.stderr.strip().endswith("exited 64")


def test_the_augmentation_that_peers_of_the_bench_are_asked_for_is_the_jobs():
    assert tasks.AFFINE == {
        "degrees": augmentation.MAX_DEGREES,
        "scale": augmentation.MAX_SCALE,
        "slant": augmentation.MAX_SLANT,
        "move": augmentation.MAX_MOVE,
    }
