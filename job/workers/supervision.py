"""A process without TensorFlow that watches over a worker, so that none ever waits for the dead.

It waits until all peers are there, starts the worker, passes signals on to it, and ends it when it
freezes or when a peer is lost. The worker shows by a byte a second that it isn't frozen, and dies
with its watcher.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from job.errors import JobError, TemporaryError
from job.process.liveness import Liveness
from job.process.preemption import Preemption
from job.workers.cluster import Workers
from job.workers.membership import Membership
from job.workers.watchdog import PULSE

FROZEN_SECONDS = 20.0  # importing TensorFlow may keep all threads of a worker quiet for some
GRACE_SECONDS = 15.0  # for a worker whose peer is lost: TensorFlow tells it so in one to nine
HEARSAY_SECONDS = 3.0
_LOOK_SECONDS = 0.1
_SIGKILL = 9  # by POSIX; only the system or a person sends it to a worker unasked


def supervise(
    words: Sequence[str],
    workers: Workers,
    team: str,
    peer_timeout_seconds: float,
    preemption: Preemption,
    liveness: Liveness,
) -> int:
    """Run `mnist-job` with `words` as one of `workers`, and return its exit code.

    Args:
        words: what this process was called with.
        workers: who trains together.
        team: what they must agree on.
        peer_timeout_seconds: how long to wait for the others before starting.
        preemption: takes the signals.
        liveness: shows that waiting is no hanging.

    Raises:
        TemporaryError: a peer never came or was lost, or the worker froze.
        ClusterError: a peer belongs to another training, or the port can't be had.
        StoppedError: SIGTERM came before the worker had begun.
        JobError: a signal of somebody else's killed the worker; with the code that shells give it.
    """
    membership = Membership(workers, team)
    code = TemporaryError.exit_code
    try:
        membership.meet(peer_timeout_seconds, liveness)
        code = _watch(words, membership, preemption)
    except JobError as error:
        code = error.exit_code
        raise
    finally:
        membership.leave(code)
    return code


def _watch(words: Sequence[str], membership: Membership, preemption: Preemption) -> int:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    worker = subprocess.Popen(
        [sys.executable, "-m", "job", *words],
        env=os.environ | {PULSE: str(writing)},
        pass_fds=[writing],
    )
    os.close(writing)
    problem, deadline = None, float("inf")
    beaten = time.monotonic()
    try:
        with preemption.passed_on(worker.pid):
            while (code := worker.poll()) is None:
                now = time.monotonic()
                if _has_beaten(reading):
                    beaten = now
                if problem is None and (problem := membership.lost()) is not None:
                    deadline = now + GRACE_SECONDS
                if now - beaten > FROZEN_SECONDS:
                    problem = problem or f"this worker showed no life for {FROZEN_SECONDS:g} s"
                    deadline = now
                if now >= deadline:
                    worker.kill()
                time.sleep(_LOOK_SECONDS)
    finally:
        worker.kill()  # whatever happens here, no worker is left alone
        worker.wait()
        os.close(reading)
    if 0 <= code != JobError.exit_code:
        return code
    if preemption.took(-code) and (stopped := preemption.reason()) is not None:
        raise stopped  # the worker was told before it had come up far enough to take it
    # A worker may stumble over a lost peer before its watcher has heard of that.
    deadline = time.monotonic() + (0 if code == -_SIGKILL else HEARSAY_SECONDS)
    while (problem := problem or membership.lost()) is None and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    if problem is not None:
        raise TemporaryError(
            f"{problem}; the worker was ended: run all workers again, the run goes on from its "
            "last checkpoint"
        )
    if code > 0:
        return code
    killed = JobError(
        f"the worker was killed by signal {-code}, sent by the system (out of memory?) or by "
        "somebody; give it more memory if that ran out, then run all workers again: the run goes "
        "on from its last checkpoint"
    )
    killed.exit_code = 128 - code  # as shells have it
    raise killed


def _has_beaten(descriptor: int) -> bool:
    try:
        return bool(os.read(descriptor, 4096))
    except BlockingIOError:
        return False
