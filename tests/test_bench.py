"""What `make bench` makes of its samples: medians, ratios, verdicts and tables; and its peers."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import contestants
import environments
import probes
import pytest
import summary
import tasks
import verdicts
from contestants import (
    JAX,
    JAX_CONVOLUTIONS,
    JAX_UNROLLED,
    JOB,
    KERAS,
    KERAS_ONEDNN,
    PRODUCTS,
    TORCH_CNN,
    TORCH_COMPILED,
    Contestant,
)
from summary import Measured
from tasks import GOALS, PARTS, REFERENCE, STEADY
from verdicts import Figure, Sample

from job.config import RunConfig

WIDTH = 100
NAMES = [task.name for task in PARTS["mlp"]]


def sample(contestant: str, task: str, number: int, wall: float, speed: float = 1e5) -> Sample:
    return Sample(contestant, task, number, wall, wall, speed, 0.98)


def walls(contestant: str, *seconds: float) -> list[Sample]:
    """Return a sample of each round, with batch 32."""
    return [sample(contestant, "batch 32", number, wall) for number, wall in enumerate(seconds)]


def test_a_median_is_of_one_contestant_at_one_task():
    samples = [*walls(JOB, 3, 1, 20), *walls(JAX, 7), sample(JOB, "batch 128", 0, 100)]
    assert verdicts.median(samples, JOB, "batch 32", verdicts.wall) == 3
    assert verdicts.median(samples, JOB, "batch 512", verdicts.wall) is None


def test_a_ratio_is_of_medians_over_the_rounds_both_were_in():
    ours, theirs = walls(JOB, 2, 100, 3, 4), walls(KERAS, 20, 0, 20, 20)
    del theirs[1]  # it sat out
    figure = verdicts.ratio("whole", ours, theirs, verdicts.wall, 1 / 7, at_most=True)
    assert figure.value == pytest.approx(3 / 20)
    assert (figure.low, figure.high) == (pytest.approx(2 / 20), pytest.approx(4 / 20))
    assert not figure.reached


def test_a_ratio_without_a_common_round_is_refused():
    with pytest.raises(ValueError, match="no round in common"):
        verdicts.ratio("whole", walls(JOB, 1), [], verdicts.wall, 1, at_most=True)


@pytest.mark.parametrize(
    ("value", "bound", "at_most", "reached"),
    [
        (1.3, 1.3, True, True),
        (1.3001, 1.3, True, False),
        (1.0, 1.0, False, True),
        (0.9999, 1.0, False, False),
        (-0.1, 2.0, True, True),
    ],
)
def test_a_bound_is_kept_to_the_last_digit(value, bound, at_most, reached):
    assert Figure("x", value, value, value, bound, at_most).reached is reached


def test_the_best_of_two_is_chosen_round_by_round():
    both = [walls(JAX, 5, 9), walls(JAX_UNROLLED, 6, 7)]
    assert [s.wall_seconds for s in verdicts.best(both, verdicts.wall, least=True)] == [5, 7]
    assert [s.wall_seconds for s in verdicts.best(both, verdicts.wall, least=False)] == [6, 9]


def test_one_save_costs_its_share_of_the_default_interval():
    cost = probes.CheckpointCost(saves=10, saving_seconds=13, plain_seconds=10)
    assert cost.share == pytest.approx(0.3 / 30)


def someone(name: str, *, slow: bool = False, part: str = "mlp") -> Contestant:
    return Contestant(name, Path("python"), "script.py", tasks=PARTS[part], slow=slow)


def test_every_round_begins_with_another_and_the_slow_sit_out_every_other_one():
    everyone = [someone("a"), someone("b"), someone("c", slow=True)]
    rounds = [contestants.order(everyone, "mlp", number) for number in range(3)]
    middle = [[who.name for who, task in each if task is REFERENCE[128]] for each in rounds]
    assert middle == [["a", "b", "c"], ["b", "a"], ["c", "a", "b"]]
    assert [task for _, task in rounds[1]] == [task for task in PARTS["mlp"] for _ in "ab"]


def test_what_takes_minutes_is_done_every_other_round():
    rounds = [contestants.order([someone("a", part="cnn")], "cnn", number) for number in range(3)]
    assert [task.name for _, task in rounds[0]] == ["cnn", "cnn-wide", "to 99 %", "to 99.5 %"]
    assert [task.name for _, task in rounds[1]] == ["cnn", "cnn-wide", "to 99 %"]
    assert rounds[2] == rounds[0]


def test_the_contestants_run_without_what_would_steer_them(monkeypatch):
    for name in ("PYTHONDONTWRITEBYTECODE", "XLA_FLAGS", "OMP_NUM_THREADS", "MNIST_JOB_EPOCHS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LANG", "C.UTF-8")
    kept = environments.clean_environment()
    assert kept["LANG"] == "C.UTF-8"
    assert not {name for name in kept if name.startswith(("PYTHON", "XLA", "OMP", "MNIST"))}


@pytest.mark.parametrize(
    "words",
    [
        ["-c", probes._IMPORT],
        [str(environments.PEERS / "keras_fit.py"), *"1100"],
        [str(environments.PEERS / "keras_cnn.py")],
    ],
    ids=["import", "keras_fit", "keras_cnn"],
)
def test_keras_and_tensorflow_are_measured_without_what_only_our_tests_bring(tmp_path, words):
    for name in ("pandas", "scipy"):
        (tmp_path / f"{name}.py").touch()
        looking = f"try:\n    import {name}\nexcept ImportError:\n    print('no {name}')\n"
        for library in ("keras", "tensorflow"):
            with (tmp_path / f"{library}.py").open("a") as file:
                file.write(looking)
    ended = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.startswith("no pandas\nno scipy\n")


def test_a_contestant_that_fails_stops_the_bench():
    with pytest.raises(environments.BenchError, match=r"exited 3: no such luck"):
        contestants.run(["sh", "-c", "echo no such luck >&2; exit 3"])


BENCH_OF_ONE = """
import sys, compare, contestants, machine, tasks
from pathlib import Path
mlp = tasks.PARTS["mlp"]
one = contestants.Contestant("stand-in", Path(sys.argv.pop()), "none.py", tasks=mlp)
contestants.contestants = lambda part, without: [one]
machine.versions_of = lambda everyone: {}
compare.main()
"""
CONTESTANT = """#!/bin/sh
trap '' INT TERM HUP  # it ends by nobody's asking
exec 3>"$FIFO"
echo begun >&3
exec sleep 30
"""


def waited_for(descriptor: int, seconds: float = 10) -> bytes:
    """Return what the contestant wrote, or nothing once it is gone."""
    assert select.select([descriptor], [], [], seconds)[0], "it is still there"
    return os.read(descriptor, 100)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_bench_that_is_ended_leaves_nothing_running(tmp_path, name):
    if name == "SIGKILL" and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent was killed")
    number, fifo, contestant = signal.Signals[name], tmp_path / "fifo", tmp_path / "contestant"
    contestant.write_text(CONTESTANT)
    contestant.chmod(0o700)
    os.mkfifo(fifo)
    bench = subprocess.Popen(
        [sys.executable, "-c", BENCH_OF_ONE, "--quick", "--only", "mlp", contestant],
        cwd=Path(contestants.__file__).parent,
        env=os.environ | {"FIFO": str(fifo), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # Without waiting for a writer: a bench that fails to start must not hang the test.
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert waited_for(reading) == b"begun\n"
        assert list(tmp_path.glob("mnist-job-bench-*"))
        bench.send_signal(number)
        assert waited_for(reading) == b""
        bench.wait(timeout=10)
    finally:
        bench.kill()
        out, err = bench.communicate()
        os.close(reading)
    if number == signal.SIGKILL:
        assert bench.returncode == -number
    else:
        assert (bench.returncode, out, err) == (128 + number, b"", b"")
        assert not list(tmp_path.glob("mnist-job-bench-*"))


def test_what_the_peers_install_is_pinned_by_hash_and_names_no_host():
    for name in ("jax", "torch"):
        text = (environments.PEERS / f"{name}.txt").read_text()
        pins = [line for line in text.splitlines() if "==" in line]
        assert len(pins) > 5
        assert all(line.endswith("\\") for line in pins)  # a hash follows
        assert "://" not in text


def metrics_of(task: str, peak_memory_mib: float) -> dict:
    timing = {f"{stage}_seconds": 0.1 for stage in summary.STAGES}
    resources = {"peak_memory_mib": peak_memory_mib}
    return {"task": task, "timing": timing, "resources": resources}


@pytest.fixture
def seen() -> Measured:
    """Return two rounds in which the job took a second and everyone else two."""
    samples = [
        sample(name, task, number, 1 if name == JOB else 2, 2e5 if name == JOB else 1e5)
        for name in (JOB, KERAS, JAX, JAX_UNROLLED, PRODUCTS)
        for task in NAMES
        for number in range(2)
    ]
    metrics = [metrics_of(task, 600.0) for task in NAMES]
    return Measured(
        samples,
        metrics,
        starts=[probes.Start(3.0, 400.0, 3.0), probes.Start(3.0, 400.0, 3.2)],
        checkpoints=[probes.CheckpointCost(10, 10.5, 10.0)],
        growths=[probes.Growth((5, 9), (0.5, 5.1), (600, 1500), (52, 524))],
    )


def test_every_figure_that_was_asked_for_is_judged(seen):
    figures = {figure.name: figure for figure in summary.judge(seen)}
    assert len(figures) == 1 + 3 + 3 + 1 + 5
    missed = {name for name, figure in figures.items() if not figure.reached}
    assert missed == {
        "whole job, 10 epochs, vs Keras fit, batch 32",  # a half is not a seventh
        "10 times the data, training",
    }
    started = figures["start to first step, less 0.8 import TensorFlow"]
    assert started.value == pytest.approx(0.7)
    assert figures["peak memory above import TensorFlow"].value == 200


def test_without_jax_nothing_is_said_of_it(seen):
    samples = [s for s in seen.samples if s.contestant not in {JAX, JAX_UNROLLED}]
    figures = summary.judge(Measured(samples, *list(vars(seen).values())[1:]))
    assert not [figure for figure in figures if "JAX" in figure.name]
    assert len(figures) == 1 + 1 + 5


def test_the_stages_add_up_to_the_whole(seen):
    rows = summary.stages(seen, "mlp")
    assert [sum(row[place] for row in rows.values()) for place in range(3)] == pytest.approx(
        [1] * 3
    )


DOCUMENT = {
    "date": "2026-11-23T00:00:00+00:00",
    "machine": {"cpu": "Some CPU at 2.40 GHz", "cores": 2, "load": 0.04},
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
}


def test_the_table_fits_a_terminal_and_says_what_is_missed(seen):
    lines = summary.table(DOCUMENT, seen)
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert text.count("MISSED") == 2
    assert text.count("  reached") == 11
    assert any(line.split() == ["mnist-job", "200,000", "200,000", "200,000"] for line in lines)


def test_what_goes_into_the_file_is_json_and_has_every_sample(seen):
    document = json.loads(json.dumps(seen.document(), allow_nan=False))
    assert len(document["samples"]) == len(seen.samples)
    assert document["medians"]["mlp"]["wall_seconds"][JOB] == [1, 1, 1]
    assert [figure["reached"] for figure in document["figures"]].count(False) == 2


def convolutional(*others: tuple[str, float, float], wrong: int = 40) -> Measured:
    """Return two rounds: the job at 20 s and 1,000 images/s, and each of `others` at its own."""
    samples = []
    for name, wall, speed in ((JOB, 20, 1000), *others):
        for task in PARTS["cnn"]:
            rounds = (0,) if task.every_other_round else (0, 1)
            if name in {JOB, TORCH_CNN, TORCH_COMPILED} or task in STEADY:
                accuracy = 1 - (wrong if name == JOB else 900) / 10_000
                samples += [
                    Sample(name, task.name, number, wall, wall, speed, accuracy, 29_290)
                    for number in rounds
                ]
    metrics = [metrics_of(task.name, 5000.0) for task in PARTS["cnn"]]
    return Measured(samples, metrics, [], [], [])


def test_steps_are_held_against_the_best_of_all_and_times_against_pytorchs_better_way():
    rivals = (TORCH_CNN, 25, 800), (TORCH_COMPILED, 50, 1250), (JAX_CONVOLUTIONS, 1, 900)
    figures = {figure.name: figure for figure in summary.judge(convolutional(*rivals))}
    assert len(figures) == 2 + 2 * 2
    assert max(map(len, figures)) <= 46  # what the table has room for
    steps = [figures[f"{task.name}, steady images/s vs best (goal 1.3)"] for task in STEADY]
    assert [figure.value for figure in steps] == [pytest.approx(0.8)] * 2
    assert not any(figure.reached for figure in steps)
    times = [figures[f"{task.name}, seconds vs PyTorch"] for task in GOALS]
    assert [figure.value for figure in times] == [pytest.approx(0.8)] * 2  # of 25, not of 50 or 1
    assert not any(figure.reached for figure in times)


@pytest.mark.parametrize(
    "name",
    [
        one.name
        for one in contestants._convolutional({"torch": Path("python"), "jax": Path("python")})
    ],
)
def test_whoever_is_fastest_is_the_one_to_beat(name):
    others = [(KERAS_ONEDNN, 25, 800), (TORCH_CNN, 25, 900)]
    seen = convolutional(*(other for other in others if other[0] != name), (name, 25, 2000))
    steps = [figure.value for figure in summary.judge(seen) if "steady" in figure.name]
    assert steps == [pytest.approx(0.5)] * 2


def test_a_time_counts_nothing_where_the_accuracy_is_missed():
    for wrong, reached in ((50, [True, True]), (51, [True, False]), (101, [False, False])):
        figures = summary.judge(convolutional((TORCH_CNN, 40, 500), wrong=wrong))
        assert [f.reached for f in figures if "images wrong" in f.name] == reached


def test_without_pytorch_only_our_own_accuracy_is_told():
    names = [figure.name for figure in summary.judge(convolutional((JAX_CONVOLUTIONS, 1, 900)))]
    assert len(names) == 2 + 2
    assert not [name for name in names if "PyTorch" in name]


def test_both_parts_make_one_table_that_fits_a_terminal_and_each_alone_does(seen):
    ours = convolutional((TORCH_CNN, 40, 500))
    both = Measured(
        seen.samples + ours.samples,
        seen.job_metrics + ours.job_metrics,
        seen.starts,
        seen.checkpoints,
        seen.growths,
    )
    lines = summary.table(DOCUMENT, both)
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert text.count("images/s, steady") == 2
    # What the convolutional nets took is no matter of the reference net's peak.
    assert "peak memory above import TensorFlow            <= 250 MiB   200 MiB" in text
    alone = summary.table(DOCUMENT, ours)
    assert max(map(len, alone)) <= WIDTH
    [head] = [line for line in alone if line.startswith("images/s, steady")]
    assert head.split(maxsplit=2)[2].split("  ")[-1].strip() == "to 99.5 %"
    assert json.loads(json.dumps(both.document(), allow_nan=False))["medians"].keys() == {
        "mlp",
        "cnn",
    }


def test_peers_are_asked_for_what_the_preset_says(tmp_path):
    job = Contestant(JOB, Path("bin/python"), tasks=PARTS["cnn"])
    peer = Contestant("peer", Path("python"), "torch_cnn.py", ("compile",), PARTS["cnn"])
    assert job.command(GOALS[0], tmp_path)[-2:] == ["--preset", "fast"]
    *_, recipe, data, folder, last = peer.command(GOALS[0], tmp_path)
    asked = json.loads(recipe)
    assert (data, folder, last) == (str(tasks.MNIST), str(tmp_path), "compile")
    assert (asked["model"], asked["epochs"], asked["learning_rate"]) == ("cnn", 1, 0.03)
    assert asked["affine"]["degrees"] == pytest.approx(0.6 * tasks.AFFINE["degrees"])
    assert json.loads(STEADY[1].words[0])["affine"] is None


def test_a_job_that_did_something_else_than_its_peers_stops_the_bench():
    for task in (*STEADY, *GOALS):
        did = RunConfig(run_id="x", **task.recipe).identity
        contestants.check_recipe(task, did)
        with pytest.raises(environments.BenchError, match=r"label_smoothing 0\.3, not 0\.1"):
            contestants.check_recipe(task, did | {"label_smoothing": 0.3})
    none = RunConfig(run_id="x", **STEADY[1].recipe | {"dropout": 0.0}).identity
    assert "dropout" not in none
    with pytest.raises(environments.BenchError, match=r"dropout 0\.0, not 0\.2"):
        contestants.check_recipe(STEADY[1], none)


def test_a_peer_with_another_net_stops_the_bench():
    ours = convolutional((TORCH_CNN, 40, 500)).samples
    contestants.check_net(ours)
    contestants.check_net(walls(JOB, 1, 2))  # who tells no number has none to compare
    other = Sample(JAX_CONVOLUTIONS, "cnn-wide", 0, 1, 1, 1, 0.99, 29_289)
    with pytest.raises(environments.BenchError, match="29,289 numbers, but mnist-job 29,290"):
        contestants.check_net([*ours, other])
