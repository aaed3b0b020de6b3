"""A worker is taken from its collectives; nobody waits for ever, and the run goes on. For real."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, free_ports

from job.errors import JobError, StoppedError, TemporaryError
from job.process.liveness import Liveness
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.workers import supervision
from job.workers.cluster import Workers


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["killed", "frozen", "missing"])
def test_a_lost_worker_ends_all_with_75_and_the_run_goes_on(harm):
    """The short version of `make chaos`, which does this ten times with two and three workers."""
    script = str(REPOSITORY / "scripts" / "chaos" / "workers.py")
    flags = ["--times", "1", "--workers", "2", "--harms", harm, "--peer-timeout", "5"]
    flags += ["--flags", "--epochs 12 --augment shift"]
    done = subprocess.run(
        [sys.executable, script, *flags], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def worker(small_mnist, tmp_path):
    """Return a function that starts worker `index` of two; those left are killed at the end."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    started = []

    def start(index: int, *flags: str, **environment: str) -> subprocess.Popen:
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        words = ["--data", small_mnist, "--output", str(tmp_path), "--run-id", "r", *flags]
        process = subprocess.Popen(
            [sys.executable, "-m", "job", "train", *words],
            env=os.environ | {"TF_CONFIG": json.dumps(config)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until_epoch(process: subprocess.Popen, epoch: int = 1) -> None:
    for line in process.stdout:
        told = json.loads(line)
        if told["event"] == "epoch" and told["epoch"] >= epoch:
            return
    pytest.fail(process.communicate()[1])


def worker_of(watcher: subprocess.Popen) -> int:
    path = Path(f"/proc/{watcher.pid}/task/{watcher.pid}/children")
    [child] = path.read_text().split()
    return int(child)


def both_end(chief: subprocess.Popen, other: subprocess.Popen) -> tuple[str, str]:
    """Wait for two workers, and return what each said on standard error."""
    errors = [process.communicate(timeout=60)[1] for process in (chief, other)]
    return errors[0], errors[1]


@pytest.mark.slow
def test_sigterm_to_one_stops_all_after_saving(worker, tmp_path):
    chief, other = worker(0, "--epochs", "2000"), worker(1, "--epochs", "2000")
    until_epoch(chief)
    other.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, of_chief = chief.communicate(timeout=60)
    _, of_other = other.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert (chief.returncode, other.returncode) == (75, 143), of_chief + of_other
    assert "another worker was asked to stop, the work is saved" in of_chief
    assert "stopped by SIGTERM, the work is saved" in of_other
    assert len(list((tmp_path / "r" / "checkpoints").iterdir())) >= 1


@pytest.mark.slow
def test_workers_that_go_on_with_a_run_stop_early_together(worker, tmp_path):
    """The chief alone has the epochs before: by those of its own the other would go on longer."""
    patience = 30
    flags = ["--validation", "0.2", "--early-stopping", str(patience), "--epochs", "200"]
    flags += ["--learning-rate", "0.1"]  # so high that after some epochs no other is better
    chief, other = (worker(index, *flags) for index in (0, 1))
    until_epoch(chief, patience)
    chief.send_signal(signal.SIGTERM)
    of_chief, of_other = both_end(chief, other)
    assert (chief.returncode, other.returncode) == (143, 75), of_chief + of_other
    chief, other = (worker(index, *flags) for index in (0, 1))
    of_chief, of_other = both_end(chief, other)
    assert (chief.returncode, other.returncode) == (0, 0), of_chief + of_other
    trained = json.loads((tmp_path / "r" / "metrics.json").read_text())["train"]
    losses = [epoch["validation_loss"] for epoch in trained["history"]]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + patience
    resumed = trained["resumed_step"] / (trained["steps"] / len(losses))
    assert best < resumed < len(losses)  # else both would have ended there without being told


@pytest.mark.slow
def test_a_worker_that_somebody_killed_says_so(worker):
    """As the kernel does when memory runs out: the watcher is left, and must tell."""
    chief, other = worker(0, "--epochs", "2000"), worker(1, "--epochs", "2000")
    until_epoch(chief)
    os.kill(worker_of(other), signal.SIGKILL)
    of_chief, of_other = both_end(chief, other)
    assert (chief.returncode, other.returncode) == (75, 137), of_chief + of_other
    assert of_other.count("\n") == 1
    assert "the worker was killed by signal 9" in of_other
    assert "worker 1 (127.0.0.1:" in of_chief
    assert "is lost: it ended with exit code 137 (the worker was killed by signal 9" in of_chief
    assert of_chief.count("run all workers again") == 1


# Run by each Python process of a worker as it starts: patience that a test has, and a harm.
SHORTER = """
import os, time
from job.workers import membership, supervision, watchdog
membership.SILENCE_SECONDS = supervision.SILENCE_SECONDS = 3.0
watchdog.FROZEN_SECONDS, watchdog.HUNG_SECONDS, watchdog.DOUBT_SECONDS = 5.0, 9.0, 2.0
watchdog._AWAKEN_BEATS, watchdog._END_BEATS = 5, 9
moved = watchdog.moved
def moved_and_hang(seconds):
    moved(seconds)
    while os.path.exists(os.environ["HANG"]):
        time.sleep(0.1)
watchdog.moved = moved_and_hang
"""


@pytest.fixture
def impatient(tmp_path) -> dict[str, str]:
    """Return variables by which workers wait for seconds where they would for half a minute."""
    folder = tmp_path / "impatient"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SHORTER)
    return {"PYTHONPATH": str(folder), "HANG": str(tmp_path / "hang")}


@pytest.mark.slow
def test_a_worker_that_hangs_while_a_thread_of_it_beats(worker, impatient, tmp_path):
    other_too = impatient | {"HANG": str(tmp_path / "never")}
    chief = worker(0, "--epochs", "2000", **other_too)
    other = worker(1, "--epochs", "2000", **impatient)
    until_epoch(chief)
    (tmp_path / "hang").touch()
    began = time.monotonic()
    of_chief, of_other = both_end(chief, other)
    assert time.monotonic() - began < 30
    assert (chief.returncode, other.returncode) == (75, 75), of_chief + of_other
    assert '"error": "the worker did no step for ' in of_other
    assert '"error": "worker 1 (127.0.0.1:' in of_chief
    assert "it did no step for " in of_chief or "the worker did no step for " in of_chief


@pytest.mark.slow
def test_a_frozen_worker_is_named_by_all(worker, impatient):
    chief, other = (worker(index, "--epochs", "2000", **impatient) for index in (0, 1))
    until_epoch(chief)
    os.kill(worker_of(other), signal.SIGSTOP)
    of_chief, of_other = both_end(chief, other)
    assert (chief.returncode, other.returncode) == (75, 75), of_chief + of_other
    assert '"error": "the worker showed no life for ' in of_other
    assert '"error": "worker 1 (127.0.0.1:' in of_chief
    assert "showed no life for " in of_chief


FAILING = """
from job.errors import OutputError
def fail(seconds):
    raise OutputError("the battery is empty: charge it")
if "FAILS" in os.environ:
    watchdog.moved = fail
"""


@pytest.mark.slow
def test_a_worker_that_fails_tells_the_others_why(worker, impatient, tmp_path):
    with (tmp_path / "impatient" / "sitecustomize.py").open("a") as file:
        file.write(FAILING)
    chief = worker(0, "--epochs", "2000", **impatient)
    other = worker(1, "--epochs", "2000", FAILS="yes", **impatient)
    of_chief, of_other = both_end(chief, other)
    assert (chief.returncode, other.returncode) == (75, 74), of_chief + of_other
    why = "the battery is empty: charge it"
    assert f'"error": "{why}"' in of_other
    assert f"is lost: it ended with exit code 74 ({why})" in of_chief


SLOW_SAVE = """
from job.training import checkpoint
save = checkpoint.Checkpoints.save
def slow_save(*arguments):
    time.sleep(8)
    save(*arguments)
checkpoint.Checkpoints.save = slow_save
"""


@pytest.mark.slow
def test_a_slow_store_is_no_hang(worker, impatient, tmp_path):
    with (tmp_path / "impatient" / "sitecustomize.py").open("a") as file:
        file.write(SLOW_SAVE)
    both = [worker(index, "--epochs", "2", **impatient) for index in (0, 1)]
    errors = both_end(both[0], both[1])
    assert [process.returncode for process in both] == [0, 0], errors


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_worker_is_named_by_all_in_time(worker, victim):
    """As long as it takes: here TensorFlow notices before the frozen one's watcher is sure."""
    both = worker(0, "--epochs", "10000"), worker(1, "--epochs", "10000")
    until_epoch(both[0])
    os.kill(worker_of(both[victim]), signal.SIGSTOP)
    began = time.monotonic()
    errors = both_end(*both)
    assert time.monotonic() - began < 60
    assert [process.returncode for process in both] == [75, 75], errors
    assert '"error": "the worker showed no life for ' in errors[victim]
    assert f'"error": "worker {victim} (127.0.0.1:' in errors[1 - victim]
    assert "showed no life for " in errors[1 - victim]


@pytest.mark.slow
def test_a_frozen_watcher_is_woken_by_its_worker(worker, impatient):
    """It would keep its pod until the liveness probe ends it, minutes later, and be counted."""
    chief, other = (worker(index, "--epochs", "2000", **impatient) for index in (0, 1))
    until_epoch(chief)
    other.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    of_chief, of_other = both_end(chief, other)
    assert time.monotonic() - began < 50
    assert (chief.returncode, other.returncode) == (75, 75), of_chief + of_other
    assert '"error": "the watcher was paused for ' in of_other
    assert '"error": "worker 1 (127.0.0.1:' in of_chief
    assert "is lost: no answer for 3 s" in of_chief


@pytest.mark.slow
def test_a_frozen_watcher_is_woken_by_its_worker_in_time(worker):
    chief, other = worker(0, "--epochs", "10000"), worker(1, "--epochs", "10000")
    until_epoch(chief)
    other.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    of_chief, of_other = both_end(chief, other)
    assert time.monotonic() - began < 60
    assert (chief.returncode, other.returncode) == (75, 75), of_chief + of_other


@pytest.mark.slow
def test_a_cluster_that_forms_late_is_waited_for(worker):
    """TensorFlow holds Python's lock meanwhile, so that the chief shows no life, and is well."""
    both = worker(0, "--epochs", "2"), worker(1, "--epochs", "2")
    deadline = time.monotonic() + 60
    late = None
    while late is None and time.monotonic() < deadline:
        time.sleep(0.05)
        children = Path(f"/proc/{both[1].pid}/task/{both[1].pid}/children").read_text().split()
        late = int(children[0]) if children else None
    os.kill(late, signal.SIGSTOP)
    time.sleep(supervision.watchdog.FROZEN_SECONDS + 15)
    os.kill(late, signal.SIGCONT)
    errors = both_end(*both)
    assert [process.returncode for process in both] == [0, 0], errors


class Unbothered:
    """Membership that are never lost."""

    doubt: str | None = None
    ready = waits = False

    def __init__(self, *, another_works: bool = True) -> None:
        self.another_works = lambda: another_works

    def all_ready(self) -> bool:
        return self.ready

    def lost(self) -> None:
        return None

    def suspected(self) -> None:
        return None


@pytest.mark.parametrize(
    ("number", "sent_by_us", "error", "code"),
    [
        (signal.SIGTERM, True, StoppedError, 143),
        (signal.SIGINT, True, KeyboardInterrupt, None),
        (signal.SIGTERM, False, JobError, 143),
        (signal.SIGSEGV, False, JobError, 139),
    ],
)
def test_a_worker_that_a_signal_ends_before_it_could_take_it(
    number, sent_by_us, error, code, tmp_path, monkeypatch
):
    worker = tmp_path / "worker"
    worker.write_text("#!/bin/sh\necho $$ > " + str(tmp_path / "pid") + "\nexec sleep 60\n")
    worker.chmod(0o755)
    monkeypatch.setattr(supervision.sys, "executable", str(worker))
    monkeypatch.setattr(supervision, "HEARSAY_SECONDS", 0.2)
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    preemption = Preemption()
    preemption.install()

    def send() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid() if sent_by_us else int((tmp_path / "pid").read_text()), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(error) as caught:
            supervision._watch([], Unbothered(), preemption, Progress())
    finally:
        sender.join()
        for one, handler in before.items():
            signal.signal(one, handler)
    assert getattr(caught.value, "exit_code", None) == code
    assert ("killed by signal" in str(caught.value)) is not sent_by_us


@pytest.mark.parametrize(
    ("says", "another_works", "shown"),
    [
        ("(\\n", True, True),
        ("(\\n", False, False),
        ("+0.5\\n(\\n", True, False),
        (".\\n", True, False),
    ],
)
def test_liveness_is_shown_for_a_worker_that_waits_for_others(
    says, another_works, shown, tmp_path, monkeypatch
):
    """The chief may publish for longer than a probe allows; who should move shows it itself.

    Where all wait for each other, nothing goes on, and the probe has to find it.
    """
    script = tmp_path / "worker"
    script.write_text(f"#!/bin/bash\nprintf '{says}' >&$MNIST_JOB_INTERNAL_LINK\nsleep 1\nexit 7\n")
    script.chmod(0o755)
    monkeypatch.setattr(supervision.sys, "executable", str(script))
    file = tmp_path / "alive"
    progress = Progress(liveness=Liveness(str(file)))
    file.unlink()
    membership = Unbothered(another_works=another_works)
    assert supervision._watch([], membership, Preemption(), progress) == (7, "")
    assert file.exists() is shown
    assert membership.waits is says.startswith("(")  # for the others to know


WATCHER = """
import sys
from pathlib import Path
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.workers import supervision

class Unbothered:
    doubt, ready, waits, another_works = None, False, False, lambda *_: False
    lost = suspected = lambda self: None
    all_ready = lambda self: False

progress = Progress("json")
preemption = Preemption(when_interrupted=lambda: progress.event("stopping"))
preemption.install()
supervision.sys.executable = sys.argv[1]
supervision._watch([], Unbothered(), preemption, progress)
"""


def test_a_second_ctrl_c_ends_the_worker_too_and_the_first_does_not(tmp_path):
    """As a terminal sends it: to both at once. The worker gets it again and again as well."""
    script = tmp_path / "worker"
    counts = f"echo x >> {tmp_path}/interrupts"
    script.write_text(
        f"#!/bin/bash\ntrap '{counts}' INT\necho $$\nfor _ in {{1..300}}; do sleep 0.1; done\n"
    )
    script.chmod(0o755)
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCHER, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        worker = int(watcher.stdout.readline())
        time.sleep(0.5)  # so that the watcher has begun to watch
        os.killpg(watcher.pid, signal.SIGINT)
        assert json.loads(watcher.stdout.readline())["event"] == "stopping"
        time.sleep(1.5)
        assert watcher.poll() is None
        assert (tmp_path / "interrupts").read_text().count("x") >= 3
        os.killpg(watcher.pid, signal.SIGINT)
        assert watcher.wait(timeout=10) == 130
        deadline = time.monotonic() + 5
        while Path(f"/proc/{worker}/exe").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{worker}/exe").exists()  # a zombie has none either
    finally:
        watcher.kill()
        os.killpg(watcher.pid, signal.SIGKILL)
        watcher.communicate()


class Left(Unbothered):
    """Membership in which SIGTERM comes while the others are told of the end."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def meet(self, *_: object) -> None:
        pass

    def leave(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)


def test_sigterm_after_the_workers_end_changes_no_exit_code(tmp_path, monkeypatch):
    script = tmp_path / "worker"
    script.write_text("#!/bin/sh\nexit 75\n")
    script.chmod(0o755)
    monkeypatch.setattr(supervision.sys, "executable", str(script))
    monkeypatch.setattr(supervision, "Membership", Left)
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    preemption = Preemption()
    preemption.install()
    try:
        assert supervision.supervise([], Workers(), "run", 1, preemption, Progress()) == 75
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_who_is_doubted_is_named_when_the_worker_stumbles_over_it(tmp_path, monkeypatch):
    """TensorFlow may notice a frozen peer before the watcher of that one is sure."""
    script = tmp_path / "worker"
    script.write_text("#!/bin/sh\nexit 70\n")
    script.chmod(0o755)
    monkeypatch.setattr(supervision.sys, "executable", str(script))
    monkeypatch.setattr(supervision, "HEARSAY_SECONDS", 0.2)
    membership = Unbothered()
    membership.suspected = lambda: "worker 1 (b:1) is lost: it showed no life for 6 s"
    with pytest.raises(TemporaryError, match="it showed no life for 6 s; the worker was ended"):
        supervision._watch([], membership, Preemption(), Progress())


@pytest.mark.slow
def test_the_time_limit_runs_while_others_are_waited_for(worker):
    alone = worker(0, "--time-limit", "2")
    _, errors = alone.communicate(timeout=30)
    assert alone.returncode == 75
    assert '"error": "--time-limit 2 reached' in errors


def test_the_worker_goes_on_with_the_time_that_is_left(tmp_path, monkeypatch):
    script = tmp_path / "worker"
    script.write_text(f"#!/bin/sh\necho $MNIST_JOB_INTERNAL_SPENT_SECONDS > {tmp_path}/spent\n")
    script.chmod(0o755)
    monkeypatch.setattr(supervision.sys, "executable", str(script))
    supervision._watch([], Unbothered(), Preemption(100, spent_seconds=60), Progress())
    spent = (tmp_path / "spent").read_text().strip()
    assert 60 <= float(spent) < 65
    monkeypatch.setenv("MNIST_JOB_INTERNAL_SPENT_SECONDS", spent)
    left = Preemption(100, spent_seconds=supervision.watchdog.spent_seconds())
    assert left.reason(needed_seconds=30) is None
    assert isinstance(left.reason(needed_seconds=41), TemporaryError)


LATE = """
from job.process import runtime
watchdog.FORMING_SECONDS = 5.0
limit_threads = runtime.limit_threads
def late(threads):
    time.sleep(9)
    limit_threads(threads)
if "LATE" in os.environ:
    runtime.limit_threads = late
"""


@pytest.mark.slow
def test_who_is_ready_early_waits_for_the_others_alive(worker, impatient, tmp_path):
    """Inside TensorFlow it would be silent, and be ended for it."""
    with (tmp_path / "impatient" / "sitecustomize.py").open("a") as file:
        file.write(LATE)
    both = (
        worker(0, "--epochs", "1", **impatient),
        worker(1, "--epochs", "1", LATE="yes", **impatient),
    )
    errors = both_end(*both)
    assert [process.returncode for process in both] == [0, 0], errors


@pytest.mark.slow
def test_sigterm_while_waiting_for_the_others(worker, tmp_path):
    alone = worker(0)
    started, event = (json.loads(alone.stdout.readline()) for _ in range(2))
    assert started["event"] == "started"
    assert event["event"] == "waiting_for_workers"
    assert event["missing"][0].startswith("worker 1 (127.0.0.1:")
    assert event["timeout_seconds"] == 45
    alone.send_signal(signal.SIGTERM)
    _, errors = alone.communicate(timeout=30)
    assert alone.returncode == 143
    assert errors.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_workers_of_different_configs_refuse_each_other(worker, tmp_path):
    both = worker(0, "--epochs", "1"), worker(1, "--epochs", "2")
    ends = [process.communicate(timeout=60) for process in both]
    assert 78 in {process.returncode for process in both}
    assert {process.returncode for process in both} <= {78, 75}
    assert any("give all workers the same flags" in errors for _, errors in ends)
    assert not (tmp_path / "r").exists()


def test_of_a_finished_run_no_worker_waits_for_others(worker, trained, tmp_path):
    """Its pod may have been replaced after the others had ended: they will not come again."""
    (tmp_path / "r").symlink_to(trained)
    alone = worker(1, "--epochs", "2")
    output, _ = alone.communicate(timeout=60)
    assert alone.returncode == 0
    told = [json.loads(line)["event"] for line in output.splitlines()]
    assert told == ["started", "already_complete"]


@pytest.mark.slow
def test_workers_import_nothing_from_the_current_folder(foreign_folder):
    """Watchers by the script, workers by their watchers: each is a Python process of its own."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "multiworker-local", "2", "--data", "no.npz"],
        cwd=foreign_folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 66, done.stdout + done.stderr
    assert done.stdout.count("no.npz does not exist") == 2
    assert "current folder" not in done.stdout + done.stderr
