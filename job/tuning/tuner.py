"""The trials of a study, one after the other, each in a process of its own.

As on Kubernetes, where each is a pod: a run's threads and devices are settled once in a process,
and a trial that memory runs out for, or that somebody kills, takes no other with it. In one order,
so that decisions which depend on who came to a rung before are the same however often it is begun
again.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from job.errors import JobError
from job.process.preemption import Preemption
from job.tuning.study import Study, found
from job.workers import watchdog

# Variable: trial and fresh seed that this process is to run, and the process that started it.
ONE = "MNIST_JOB_INTERNAL_TRIAL"
_PR_SET_PDEATHSIG = 1  # prctl(2)


def run_trials(study: Study, trials: int, words: Sequence[str], preemption: Preemption) -> int:
    """Run the trials that are not over; return 0, or the exit code of the first that didn't end.

    Args:
        study: whose trials.
        trials: how many, from 0 on.
        words: what this process was called with.
        preemption: takes the signals; asked before each trial whether to stop.

    Raises:
        StoppedError, TemporaryError, KeyboardInterrupt: asked to stop; the same command goes on.
        JobError: a signal of somebody else's killed a trial.
    """
    for trial in range(trials):
        if found(study.trial(trial)) is None and (code := run_one(words, trial, 0, preemption)):
            return code
    return 0


def run_one(words: Sequence[str], trial: int, fresh_seed: int, preemption: Preemption) -> int:
    """Run a trial, or a final, in a process that is called as this one was; return its exit code.

    What went wrong it has told itself.

    Raises:
        JobError: as `run_trials`.
    """
    if (reason := preemption.reason()) is not None:
        raise reason
    spent = f"{preemption.spent_seconds():.3f}"
    process = subprocess.Popen(
        # Safe from whatever is called `job` or `json` in the current folder.
        [sys.executable, "-P", "-m", "job", *words],
        env=os.environ | {ONE: f"{trial} {fresh_seed} {os.getpid()}", watchdog.SPENT: spent},
    )
    try:
        with preemption.passed_on(process.pid):
            code = process.wait()
    finally:
        process.kill()  # whatever happens here, it is not left alone
        process.wait()
    if code >= 0:
        return code
    if preemption.took(-code) and (reason := preemption.reason()) is not None:
        raise reason  # it was told before it had come up far enough to take it
    raise JobError(
        f"trial {trial} was killed by signal {-code}, sent by the system (out of memory?) or by "
        "somebody; if memory ran out, give it more, or vary --batch-size less: the same command "
        "goes on",
        exit_code=128 - code,  # as shells have it
    )


def which() -> tuple[int, int] | None:
    """Return trial and fresh seed that this process was started for by `run_one`, or None."""
    told = os.environ.get(ONE)
    if not told:
        return None
    trial, fresh_seed, _ = told.split()
    return int(trial), int(fresh_seed)


def stop_with_parent() -> None:
    """Let this process, if `run_one` started it, be stopped by SIGTERM when its parent is no more.

    Else a trial whose study was killed would go on beside the one that goes on with it. On Linux:
    elsewhere the two are twins, which do each other no harm.
    """
    if not os.environ.get(ONE) or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != os.environ[ONE].split()[2]:  # it was killed before
        os.kill(os.getpid(), signal.SIGTERM)
