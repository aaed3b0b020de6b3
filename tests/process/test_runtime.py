"""What the operating system knows of us, and what happens around the import of TensorFlow."""

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from job.errors import JobError
from job.process import runtime
from job.process.runtime import (
    Stopwatch,
    available_cores,
    git_commit,
    limit_threads,
    prepare_tensorflow,
    processor_name,
    threads_in_force,
    wanted_threads,
)

MACHINE_CORES = 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def run_python(program: str, *arguments: str, **environment: str) -> Any:
    """Run `program` in a process of its own and return the JSON that it prints."""
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


# --- cores ----------------------------------------------------------------------------------


@pytest.fixture
def big_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = set(range(MACHINE_CORES))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: MACHINE_CORES)


CPU_MAX = [
    ("200000 100000\n", 2),
    ("100000 100000\n", 1),
    ("150000 100000\n", 2),  # a fraction of a core counts as a whole one
    ("101000 100000\n", 2),
    ("50000 100000\n", 1),
    ("1000 100000\n", 1),
    ("0 100000\n", 1),
    ("100000 50000\n", 2),
    ("6300000 100000\n", 63),
    ("9900000 100000\n", MACHINE_CORES),
    ("max 100000\n", MACHINE_CORES),
    ("max\n", MACHINE_CORES),
    ("", MACHINE_CORES),
    ("\n", MACHINE_CORES),
    ("garbage\n", MACHINE_CORES),
    ("200000\n", MACHINE_CORES),
    ("200000 0\n", MACHINE_CORES),
    ("-1 100000\n", MACHINE_CORES),
    ("2.5 1\n", MACHINE_CORES),
    ("200000 100000 7\n", MACHINE_CORES),
    ("\udcff\udcfe \udcff", MACHINE_CORES),
]


@pytest.mark.usefixtures("big_machine")
@pytest.mark.parametrize(("cpu_max", "cores"), CPU_MAX)
def test_cores_under_cgroup_2(tmp_path: Path, cpu_max: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_bytes(os.fsencode(cpu_max))
    assert available_cores(tmp_path) == cores


@pytest.mark.usefixtures("big_machine")
@pytest.mark.parametrize(
    ("quota", "period", "cores"),
    [
        ("200000\n", "100000\n", 2),
        ("250000\n", "100000\n", 3),
        ("10000\n", "100000\n", 1),
        ("9900000\n", "100000\n", MACHINE_CORES),
        ("-1\n", "100000\n", MACHINE_CORES),
        ("200000\n", "0\n", MACHINE_CORES),
        ("\n", "\n", MACHINE_CORES),
        ("some\n", "100000\n", MACHINE_CORES),
        ("200000\n", None, MACHINE_CORES),
        (None, "100000\n", MACHINE_CORES),
    ],
)
def test_cores_under_cgroup_1(
    tmp_path: Path, quota: str | None, period: str | None, cores: int
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in [("cpu.cfs_quota_us", quota), ("cpu.cfs_period_us", period)]:
        if text is not None:
            (tmp_path / "cpu" / name).write_text(text)
    assert available_cores(tmp_path) == cores


@pytest.mark.usefixtures("big_machine")
def test_cores_without_a_cgroup_are_those_of_the_affinity(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == MACHINE_CORES
    assert available_cores(tmp_path / "nowhere") == MACHINE_CORES


@pytest.mark.usefixtures("big_machine")
@pytest.mark.parametrize(
    ("limit", "cores"),
    [(2, 2), (99, MACHINE_CORES), (None, MACHINE_CORES)],
)
def test_cores_where_a_sandbox_hides_the_cgroup(
    tmp_path: Path, limit: int | None, cores: int
) -> None:
    assert available_cores(tmp_path, limit) == cores


@pytest.mark.usefixtures("big_machine")
def test_the_cgroup_knows_better_than_the_pod_s_limit(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("300000 100000")
    assert available_cores(tmp_path, 2) == 3


def test_cores_of_a_pinned_process_are_no_more_than_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    (tmp_path / "cpu.max").write_text("800000 100000")
    assert available_cores(tmp_path) == 1


def test_cores_of_this_very_machine() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


# --- what a process has used ----------------------------------------------------------------


def test_wall_time_counts_from_the_start_of_the_process() -> None:
    before = time.time()
    used = run_python(
        "import time; time.sleep(0.5)\n"
        "from job.process.runtime import usage\n"
        "import json, dataclasses; print(json.dumps(dataclasses.asdict(usage())))"
    )
    elapsed = time.time() - before
    ticks = 0.1  # the kernel counts starts and uptime in hundredths
    assert 0.5 - ticks <= used["wall_seconds"] <= elapsed + ticks
    assert 0 < used["cpu_seconds"] <= elapsed * (os.cpu_count() or 1) + ticks


def test_cpu_time_and_memory_are_those_of_the_process() -> None:
    idle, busy = (
        run_python(
            "import time, json, dataclasses, sys\n"
            "mebibytes, seconds = map(float, sys.argv[1:])\n"
            "block = b'x' * int(mebibytes * 2**20)\n"
            "while time.process_time() < seconds: pass\n"
            "from job.process.runtime import usage\n"
            "print(json.dumps(dataclasses.asdict(usage())))",
            *arguments,
        )
        for arguments in (("0", "0"), ("200", "0.3"))
    )
    assert busy["cpu_seconds"] >= 0.25
    assert busy["peak_memory_mib"] >= 200
    assert busy["peak_memory_mib"] - idle["peak_memory_mib"] <= 300
    assert idle["peak_memory_mib"] > 1


def test_peak_memory_is_not_inherited_from_whoever_started_us() -> None:
    """`getrusage` keeps the peak of before exec: a notebook's gigabytes are not the job's."""
    used = run_python(
        "import subprocess, sys\n"
        "block = b'x' * (300 * 2**20)\n"
        "program = 'from job.process.runtime import usage; print(usage().peak_memory_mib)'\n"
        "print(subprocess.check_output([sys.executable, '-c', program], text=True))"
    )
    assert 1 < used < 200


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    before, after = run_python(
        "import json\n"
        "from pathlib import Path\n"
        "from job.process.runtime import give_back_memory\n"
        "def resident():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(status.partition('VmRSS:')[2].split()[0]) / 1024\n"
        "blocks = [bytearray(10_000) for _ in range(10_000)]\n"
        "del blocks[:-1]\n"  # the last one holds back what lies before it
        "before = resident()\n"
        "give_back_memory()\n"
        "print(json.dumps([before, resident()]))"
    )
    assert before - after > 50


def test_without_a_c_library_that_can_nothing_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    runtime.give_back_memory()


def test_without_proc_wall_time_counts_from_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(runtime, "_IMPORTED", time.time() - 1_000)
    assert 1_000 <= runtime.usage().wall_seconds < 2_000


def test_a_program_name_with_spaces_and_parentheses_does_not_confuse(tmp_path: Path) -> None:
    link = tmp_path / "py) (x 1"
    link.symlink_to(sys.executable)
    program = "from job.process.runtime import usage; print(usage().wall_seconds)"
    paths = os.pathsep.join(path for path in sys.path if path)
    ended = subprocess.run(
        [str(link), "-c", program],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert 0 < float(ended.stdout) < 60


def test_a_stopwatch_gives_the_seconds_between_laps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0, 103.5, 113.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    assert [watch.lap(), watch.lap(), watch.lap()] == [3.0, 0.5, 10.0]


def test_the_platform_is_one_word() -> None:
    assert runtime.platform_name().startswith(runtime.platform.system())
    assert len(runtime.platform_name().split()) == 1


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD  EPYC\ncache\t: 1\nmodel name\t: B\n", "AMD EPYC"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", runtime.platform.machine()),
        ("", runtime.platform.machine()),
        (None, runtime.platform.machine()),
    ],
)
def test_the_processor_is_named(tmp_path: Path, cpuinfo: str | None, name: str) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert processor_name(tmp_path / "cpuinfo") == name


# --- the commit -----------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def make_checkout(folder: Path) -> str:
    """Put a checkout with one commit into `folder` and return the commit."""
    (folder / "job" / "process").mkdir(parents=True)
    (folder / "job" / "process" / "runtime.py").write_text(f"# {folder}\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "one")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A checkout that the code seems to lie in, and its commit."""
    folder = tmp_path / "checkout"
    commit = make_checkout(folder)
    monkeypatch.setattr(runtime, "__file__", str(folder / "job" / "process" / "runtime.py"))
    return folder, commit


def test_the_variable_wins(checkout: tuple[Path, str]) -> None:
    assert checkout[1] != COMMIT
    assert git_commit({"GIT_COMMIT": COMMIT}) == COMMIT


@pytest.mark.parametrize("environment", [{}, {"GIT_COMMIT": ""}], ids=["unset", "empty"])
def test_else_the_checkout_is_asked(
    checkout: tuple[Path, str], environment: dict[str, str]
) -> None:
    assert git_commit(environment) == checkout[1]


def test_tags_do_not_replace_the_commit(checkout: tuple[Path, str]) -> None:
    folder, commit = checkout
    git(folder, "tag", "--annotate", "v1", "--message", "one")
    assert git_commit({}) == commit


def test_changed_files_make_it_dirty(checkout: tuple[Path, str]) -> None:
    folder, commit = checkout
    (folder / "job" / "process" / "runtime.py").write_text("# changed\n")
    assert git_commit({}) == f"{commit}-dirty"


def test_a_linked_worktree_is_a_checkout(
    checkout: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, commit = checkout
    git(folder, "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    monkeypatch.setattr(
        runtime, "__file__", str(tmp_path / "tree" / "job" / "process" / "runtime.py")
    )
    assert git_commit({}) == commit


def test_somebody_elses_checkout_around_us_is_not_ours(
    checkout: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout[0] / ".venv" / "job"
    installed.mkdir(parents=True)
    monkeypatch.setattr(runtime, "__file__", str(installed / "process" / "runtime.py"))
    assert git_commit({}) is None


def test_somebody_elses_checkout_in_the_environment_is_not_ours(
    checkout: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git's hooks run with GIT_DIR set, which counts for more than the folder git is called in."""
    assert make_checkout(tmp_path / "other") != checkout[1]
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert git_commit({}) == checkout[1]


def test_without_a_commit_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "--quiet")
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "job" / "process" / "runtime.py"))
    assert git_commit({}) is None


def test_without_git_nobody_knows(
    checkout: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_commit({}) == checkout[1]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert git_commit({}) is None


@pytest.mark.usefixtures("checkout")
def test_a_git_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float | None] = []

    def hang(command: list[str], timeout: float | None = None, **_: object) -> None:
        limits.append(timeout)
        raise subprocess.TimeoutExpired(command, timeout or 0)

    monkeypatch.setattr(subprocess, "run", hang)
    assert git_commit({}) is None
    assert limits[0] is not None
    assert 0 < limits[0] <= 30


# --- around the import of TensorFlow --------------------------------------------------------


@pytest.fixture(autouse=True)
def _nothing_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_in_force", None)


def test_tensorflow_is_told_before_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"PATH": "/bin", "KERAS_BACKEND": "torch"}
    monkeypatch.setattr(os, "environ", environment)
    prepare_tensorflow()
    limit_threads(3)
    assert environment == {
        "PATH": "/bin",
        "KERAS_BACKEND": "tensorflow",  # the only one this job can use
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "XLA_FLAGS": "--xla_gpu_deterministic_ops=true",
        "TF_NUM_INTRAOP_THREADS": "3",
        "TF_NUM_INTEROP_THREADS": "3",
    }


@pytest.mark.parametrize(
    "variable",
    [
        "TF_CPP_MIN_LOG_LEVEL",
        "TF_ENABLE_ONEDNN_OPTS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    ],
)
def test_who_set_a_variable_meant_it(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    environment = {variable: "7"}
    monkeypatch.setattr(os, "environ", environment)
    prepare_tensorflow()
    limit_threads(wanted_threads(environment, cores=3))
    assert environment[variable] == "7"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--xla_dump_to=/tmp", "--xla_dump_to=/tmp --xla_gpu_deterministic_ops=true"),
        ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_what_xla_is_told_leaves_what_it_was_told(
    monkeypatch: pytest.MonkeyPatch, given: str, told: str
) -> None:
    environment = {"XLA_FLAGS": given}
    monkeypatch.setattr(os, "environ", environment)
    prepare_tensorflow()
    prepare_tensorflow()
    assert environment["XLA_FLAGS"] == told


@pytest.mark.slow
def test_xla_knows_what_it_is_told() -> None:
    """It ends a process that gives it a flag which it doesn't know."""
    program = (
        "from job.process import runtime\n"
        "runtime.prepare_tensorflow()\n"
        "import tensorflow as tf\n"
        "print(int(tf.function(lambda: tf.constant(1), jit_compile=True)()))\n"
    )
    assert run_python(program) == 1


def test_threads_that_a_run_began_with_win_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"TF_NUM_INTRAOP_THREADS": "7"}
    monkeypatch.setattr(os, "environ", environment)
    limit_threads(3)
    assert environment["TF_NUM_INTRAOP_THREADS"] == "3"


def test_threads_are_in_force_once_they_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    assert threads_in_force() is None
    limit_threads(3)
    limit_threads(7)  # TensorFlow doesn't hear it
    assert threads_in_force() == 3
    assert wanted_threads({"TF_NUM_INTRAOP_THREADS": "7"}, cores=9) == 3


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1.5"])
def test_a_variable_that_tensorflow_ignores_is_ignored(text: str) -> None:
    assert wanted_threads({"TF_NUM_INTRAOP_THREADS": text}, cores=3) == 3


OPTIONAL = ("matplotlib", "pandas", "scipy")
FAKE_KERAS = """
import sys
__version__ = "0"
class config:
    backend = staticmethod(lambda: "tensorflow")
seen = {}
for name in ("matplotlib", "pandas", "scipy", "os"):
    try:
        __import__(name)
        seen[name] = True
    except ImportError:
        seen[name] = False
"""


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A folder of empty packages under the names of the real ones; Keras notes what it sees."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name in ("tensorflow", *OPTIONAL):
        (folder / f"{name}.py").write_text("__version__ = '0'")
    (folder / "keras.py").write_text(FAKE_KERAS)
    return folder


def test_keras_does_not_see_optional_packages_and_others_do(fakes: Path) -> None:
    found = run_python(
        "import json, sys\n"
        "from job.process.runtime import import_tensorflow\n"
        "import_tensorflow()\n"
        "missing = [name for name in ('keras', 'tensorflow') if name not in sys.modules]\n"
        "left = [name for name in ('matplotlib', 'pandas', 'scipy') if name in sys.modules]\n"
        "import keras, matplotlib, pandas\n"
        "print(json.dumps([keras.seen, missing, left, pandas.__name__]))",
        PYTHONPATH=str(fakes),
    )
    assert found == [
        {"matplotlib": False, "pandas": False, "scipy": False, "os": True},
        [],
        [],
        "pandas",
    ]


def test_work_goes_on_beside_the_caller_and_its_failure_is_not_lost() -> None:
    """It waits for the caller, who would wait for ever if this did not run beside it."""
    go_on = threading.Event()
    done = runtime.beside(lambda: go_on.wait(10))
    go_on.set()
    assert done.result(10) is True
    with pytest.raises(ZeroDivisionError):
        runtime.beside(lambda: 1 // 0).result(10)


def test_a_process_does_not_wait_for_what_runs_beside_it() -> None:
    began = time.monotonic()
    run_python(
        "import time\n"
        "from job.process.runtime import beside\n"
        "beside(lambda: time.sleep(60))\nprint(1)"
    )
    assert time.monotonic() - began < 30


def test_what_was_imported_before_stays_imported(fakes: Path) -> None:
    found = run_python(
        "import json, sys, pandas\n"
        "from job.process.runtime import import_tensorflow\n"
        "import_tensorflow()\n"
        "import keras\n"
        "print(json.dumps([keras.seen, sys.modules['pandas'] is pandas]))",
        PYTHONPATH=str(fakes),
    )
    assert found == [{"matplotlib": False, "pandas": True, "scipy": False, "os": True}, True]


@pytest.mark.parametrize("before", [True, False])
def test_the_garbage_collector_rests_during_the_import_only(fakes: Path, before: bool) -> None:
    (fakes / "tensorflow.py").write_text(
        "import gc\nresting = not gc.isenabled()\n__version__ = '0'"
    )
    found = run_python(
        "import gc, json\n"
        "from job.process.runtime import import_tensorflow\n"
        f"gc.enable() if {before} else gc.disable()\n"
        "import_tensorflow()\n"
        "import tensorflow\n"
        "print(json.dumps([tensorflow.resting, gc.isenabled(), gc.get_freeze_count() > 0]))",
        PYTHONPATH=str(fakes),
    )
    assert found == [True, before, True]


def test_another_backend_of_keras_is_no_bug(fakes: Path) -> None:
    """A notebook may have imported Keras for something else."""
    (fakes / "keras.py").write_text(FAKE_KERAS.replace('"tensorflow"', '"jax"'))
    found = run_python(
        "import json, keras\n"
        "from job.process.runtime import import_tensorflow\n"
        "try:\n"
        "    import_tensorflow()\n"
        "except Exception as error:\n"
        "    print(json.dumps([getattr(error, 'exit_code', None), str(error)]))",
        PYTHONPATH=str(fakes),
    )
    assert found[0] == 78
    assert "KERAS_BACKEND=tensorflow" in found[1]


def test_usage_can_count_from_a_call_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_counted_from", None)
    before = runtime.usage()
    runtime.count_from_here()
    after = runtime.usage()
    assert after.wall_seconds < before.wall_seconds
    assert after.cpu_seconds < before.cpu_seconds


def test_a_failed_import_hides_nothing_for_good(fakes: Path) -> None:
    (fakes / "tensorflow.py").write_text("raise ImportError('no such instruction')")
    found = run_python(
        "import json, sys\n"
        "from job.process.runtime import import_tensorflow\n"
        "try:\n"
        "    import_tensorflow()\n"
        "except Exception as error:\n"
        "    failed = str(error)\n"
        "import gc, matplotlib, pandas\n"
        "print(json.dumps([failed, pandas.__name__, gc.isenabled()]))",
        PYTHONPATH=str(fakes),
    )
    assert "no such instruction" in found[0]
    assert found[1:] == ["pandas", True]


def test_a_missing_tensorflow_is_not_reported_as_a_bug(fakes: Path) -> None:
    """It is an optional extra: who installed without it is told so, not shown a traceback."""
    (fakes / "tensorflow.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'tensorflow'\", name='tensorflow')"
    )
    found = run_python(
        "import json\n"
        "from job.errors import JobError\n"
        "from job.process.runtime import import_tensorflow\n"
        "try:\n"
        "    import_tensorflow()\n"
        "except Exception as error:\n"
        "    is_ours = isinstance(error, JobError)\n"
        "    print(json.dumps([is_ours, getattr(error, 'exit_code', None), str(error)]))",
        PYTHONPATH=str(fakes),
    )
    assert found[:2] == [True, 78]
    assert found[1] != JobError.exit_code
    assert "tensorflow" in found[2].lower()
