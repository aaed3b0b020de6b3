"""What `make bench` makes of its samples: medians, ratios, verdicts and the table."""

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
import verdicts
from contestants import BATCHES, JAX, JAX_UNROLLED, JOB, KERAS, PRODUCTS, Contestant
from summary import Measured
from verdicts import Figure, Sample

WIDTH = 100


def sample(contestant: str, batch: int, number: int, wall: float, speed: float = 1e5) -> Sample:
    return Sample(contestant, batch, number, wall, wall, speed, 0.98)


def walls(contestant: str, *seconds: float) -> list[Sample]:
    """Return a sample of each round, with batch 32."""
    return [sample(contestant, 32, number, wall) for number, wall in enumerate(seconds)]


def test_a_median_is_of_one_contestant_at_one_batch_size():
    samples = [*walls(JOB, 3, 1, 20), *walls(JAX, 7), sample(JOB, 128, 0, 100)]
    assert verdicts.median(samples, JOB, 32, verdicts.wall) == 3
    assert verdicts.median(samples, JOB, 512, verdicts.wall) is None


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


def someone(name: str, *, slow: bool = False) -> Contestant:
    return Contestant(name, Path("python"), "script.py", slow=slow)


def test_every_round_begins_with_another_and_the_slow_sit_out_every_other_one():
    everyone = [someone("a"), someone("b"), someone("c", slow=True)]
    rounds = [contestants.order(everyone, number) for number in range(3)]
    assert [who.name for who, batch in rounds[0] if batch == 128] == ["a", "b", "c"]
    assert [who.name for who, batch in rounds[1] if batch == 128] == ["b", "a"]
    assert [who.name for who, batch in rounds[2] if batch == 128] == ["c", "a", "b"]
    assert [batch for _, batch in rounds[1]] == [32, 32, 128, 128, 512, 512]


def test_the_contestants_run_without_what_would_steer_them(monkeypatch):
    for name in ("PYTHONDONTWRITEBYTECODE", "XLA_FLAGS", "OMP_NUM_THREADS", "MNIST_JOB_EPOCHS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LANG", "C.UTF-8")
    kept = environments.clean_environment()
    assert kept["LANG"] == "C.UTF-8"
    assert not {name for name in kept if name.startswith(("PYTHON", "XLA", "OMP", "MNIST"))}


@pytest.mark.parametrize(
    "words", [["-c", probes._IMPORT], [str(environments.PEERS / "keras_fit.py"), *"1100"]]
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
import sys, compare, contestants, machine
from pathlib import Path
one = contestants.Contestant("stand-in", Path(sys.argv.pop()), "none.py")
contestants.contestants = lambda without: [one]
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
        [sys.executable, "-c", BENCH_OF_ONE, "--quick", contestant],
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


@pytest.fixture
def seen() -> Measured:
    """Return two rounds in which the job took a second and everyone else two."""
    samples = [
        sample(name, batch, number, 1 if name == JOB else 2, 2e5 if name == JOB else 1e5)
        for name in (JOB, KERAS, JAX, JAX_UNROLLED, PRODUCTS)
        for batch in BATCHES
        for number in range(2)
    ]
    timing = {f"{stage}_seconds": 0.1 for stage in summary.STAGES}
    metrics = [
        {
            "config": {"batch_size": batch},
            "timing": timing,
            "resources": {"peak_memory_mib": 600.0},
        }
        for batch in BATCHES
    ]
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
    rows = summary.stages(seen)
    assert [sum(row[place] for row in rows.values()) for place in range(3)] == pytest.approx(
        [1] * 3
    )


def test_the_table_fits_a_terminal_and_says_what_is_missed(seen):
    document = {
        "date": "2026-11-23T00:00:00+00:00",
        "machine": {"cpu": "Some CPU at 2.40 GHz", "cores": 2, "load": 0.04},
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
    }
    lines = summary.table(document, seen)
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert text.count("MISSED") == 2
    assert text.count("  reached") == 11
    assert any(line.split() == ["mnist-job", "200,000", "200,000", "200,000"] for line in lines)


def test_what_goes_into_the_file_is_json_and_has_every_sample(seen):
    document = json.loads(json.dumps(seen.document(), allow_nan=False))
    assert len(document["samples"]) == len(seen.samples)
    assert document["medians"]["wall_seconds"][JOB] == [1, 1, 1]
    assert [figure["reached"] for figure in document["figures"]].count(False) == 2
