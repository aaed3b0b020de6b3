"""What must happen around the import of TensorFlow, and what the operating system knows of us."""

import contextlib
import ctypes
import gc
import math
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from job.errors import ClusterError

MEBIBYTE = 1024 * 1024
_THREADS = "TF_NUM_INTRAOP_THREADS"  # that share the work of one operation, or of one XLA program
Result = TypeVar("Result")


@dataclass(frozen=True)
class Usage:
    """What this process has used since it started, or since `count_from_here`."""

    wall_seconds: float
    cpu_seconds: float
    peak_memory_mib: float


class Stopwatch:
    """Measures a run's stages one after the other."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap, or since the watch was made."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def prepare_tensorflow() -> None:
    """Set what TensorFlow and Keras read once, when they are imported. Call before either is."""
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its start-up notes are no news to anyone
    # The loop is XLA's, which oneDNN has no part in; without it, evaluation sums in one order.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # XLA would time kernels on a GPU and take the fastest, another one after a restart perhaps.
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".lstrip()


def wanted_threads(environment: Mapping[str, str], cores: int) -> int:
    """Return how many threads to compute with, where no run says so.

    They are those in force, else TensorFlow's own variable says, else it is one a core.
    """
    if _in_force is not None:
        return _in_force
    text = environment.get(_THREADS, "")
    return int(text) if text.isdecimal() and int(text) > 0 else cores


def limit_threads(threads: int) -> None:
    """Let TensorFlow compute with `threads` threads. Call before it first computes.

    It counts cores by affinity, and would start 64 threads in a pod limited to 2. Its variable is
    set whatever it was, since a run that goes on needs the threads that it began with. It is read
    once: what the first call says is in force until the process ends.
    """
    global _in_force  # noqa: PLW0603
    _in_force = _in_force or threads
    os.environ[_THREADS] = str(threads)
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", str(threads))  # no sum depends on these


def threads_in_force() -> int | None:
    """Return with how many threads this process computes for good; None while it may be said."""
    return _in_force


def beside(work: Callable[[], Result], done: "Future[Result] | None" = None) -> "Future[Result]":
    """Begin `work` in a thread of its own; the process doesn't wait for it when it ends.

    Reading, inflating and hashing leave Python's lock to the import of TensorFlow for most of their
    time. Not the other way round: a process that ended while a thread imports TensorFlow could
    hang.

    Args:
        work: what to do.
        done: takes the result, for who wants to hold it before the thread begins.
    """
    done = Future() if done is None else done

    def run() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised where the result is asked for
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="beside").start()
    return done


def import_tensorflow() -> dict[str, str]:
    """Import TensorFlow and Keras, which takes seconds, and return their versions by name.

    Optional packages that Keras would import only because they are installed are hidden from it:
    the job uses none of them through Keras. The garbage collector rests meanwhile, and never looks
    at what was imported: a sixth of the import went into looking through objects that all stay.
    """
    if {"keras", "tensorflow"} <= sys.modules.keys():  # nothing to hide, and nothing to freeze
        return _versions()
    collecting = gc.isenabled()
    gc.disable()
    try:
        with without("matplotlib", "pandas", "scipy"):
            import keras  # noqa: F401, PLC0415
            import tensorflow  # noqa: F401, ICN001, PLC0415
    except ModuleNotFoundError as error:
        if error.name not in {"keras", "tensorflow"}:
            raise
        raise ClusterError(
            f"{error.name} is not installed: install mnist-job[cpu], or mnist-job[gpu] on a "
            "machine with an NVIDIA GPU"
        ) from error
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
    return _versions()


def _versions() -> dict[str, str]:
    import keras  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    # Somebody's own program may have imported it before us, with a backend of its own.
    if (backend := keras.config.backend()) != "tensorflow":
        raise ClusterError(
            f"Keras was imported with the backend {backend!r}, and the job needs 'tensorflow': set "
            "KERAS_BACKEND=tensorflow before the first import of keras"
        )
    return {"tensorflow": tf.__version__, "keras": keras.__version__}


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """Let imports of `packages` fail inside this block, but for those that are imported already.

    Libraries import what else is installed, only to see whether it is, and some of it takes long.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes imports fail
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def give_back_memory() -> None:
    """Give freed memory back to the system, where the C library can: glibc keeps it for later."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def available_cores(
    cgroup: Path = Path("/sys/fs/cgroup"), container_limit: int | None = None
) -> int:
    """Return how many cores this process may use: the smaller of its affinity and its CPU quota.

    The quota is the cgroup's: `cpu.max` in version 2, `cpu.cfs_quota_us` in version 1; a fraction
    of a core counts as a whole one. Where a sandbox hides that (gVisor, Kata), it is
    `container_limit`.
    """
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = _cgroup_quota(cgroup)
    if quota is None:
        quota = container_limit
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def _cgroup_quota(cgroup: Path) -> float | None:
    """Return the CPU quota in cores, or None where there is none to read."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:  # "max" and -1: no quota
        return None
    return int(quota) / int(period)


def usage() -> Usage:
    """Return what this process has used so far; wall time counts from its start, not ours."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    began, cpu_before = _counted_from or (_process_start(), 0.0)
    return Usage(
        wall_seconds=time.time() - began,
        cpu_seconds=spent.ru_utime + spent.ru_stime - cpu_before,
        peak_memory_mib=_peak_memory_bytes(spent.ru_maxrss) / MEBIBYTE,
    )


def count_from_here() -> None:
    """Let `usage` count seconds from now on, where the process is somebody else's and older."""
    global _counted_from  # noqa: PLW0603
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _counted_from = time.time(), spent.ru_utime + spent.ru_stime


def _peak_memory_bytes(ru_maxrss: int) -> int:
    """Return the most memory this process had; `ru_maxrss` is the best guess without /proc."""
    try:
        # VmHWM of proc_pid_status(5) begins at exec; ru_maxrss keeps the peak of whoever forked us.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return ru_maxrss if sys.platform == "darwin" else ru_maxrss * 1024


def _process_start() -> float:
    """Return when this process was started, in seconds since the epoch."""
    try:
        # Field 22 of proc_pid_stat(5): clock ticks between boot and start. The name in field 2 may
        # hold spaces, so count from its closing parenthesis.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _IMPORTED
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def git_commit(environment: Mapping[str, str]) -> str | None:
    """Return the commit this code was built from, or None where nobody knows.

    An image carries it in the variable `GIT_COMMIT`; a checkout is asked, and says `-dirty` when
    its files differ from the commit.
    """
    if commit := environment.get("GIT_COMMIT"):
        return commit
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps inside somebody else's checkout
        return None
    # In one of its hooks git says by GIT_DIR which repository it is about: not about ours.
    variables = {name: os.environ[name] for name in os.environ if not name.startswith("GIT_")}
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        answer = subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def platform_name() -> str:
    """Return the operating system and machine, such as `Linux-6.1-x86_64`."""
    return f"{platform.system()}-{platform.release()}-{platform.machine()}"


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor, such as `Intel(R) Xeon(R) Processor`: XLA compiles for the one it has.

    Where the system doesn't tell, it is the kind of machine.
    """
    try:
        line = cpuinfo.read_text(errors="replace").partition("model name")[2].partition("\n")[0]
    except OSError:
        line = ""
    return " ".join(line.lstrip("\t :").split()) or platform.machine()


_counted_from: tuple[float, float] | None = None  # wall and CPU seconds; None: the process's start
_in_force: int | None = None  # threads that TensorFlow was told first
_IMPORTED = time.time()  # the best guess at our start where there is no /proc
