"""A process without TensorFlow that watches over a worker, so that none ever waits for the dead.

It waits until all peers are there, starts the worker, passes signals on to it, and ends it when it
freezes, when it hangs in training, or when a peer is lost. `watchdog` is how the two know of each
other; what this one knows of the worker, and why it ended, the others learn through `membership`.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from job.errors import JobError, TemporaryError
from job.process import preemption as signals
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.workers import watchdog
from job.workers.cluster import Workers
from job.workers.membership import SILENCE_SECONDS, Membership
from job.workers.watchdog import LINK, RUN_AGAIN, SPENT, Signs

GRACE_SECONDS = 15.0  # for a worker whose peer is lost: TensorFlow tells it so in one to nine
HEARSAY_SECONDS = 3.0
_LOOK_SECONDS = 0.1


def supervise(
    words: Sequence[str],
    workers: Workers,
    team: str,
    peer_timeout_seconds: float,
    preemption: Preemption,
    progress: Progress,
) -> int:
    """Run `mnist-job` with `words` as one of `workers`, and return its exit code.

    Args:
        words: what this process was called with.
        workers: who trains together.
        team: what they must agree on.
        peer_timeout_seconds: how long to wait for the others before starting.
        preemption: takes the signals.
        progress: told who is missing; its beat shows that waiting is no hanging.

    Raises:
        TemporaryError: a peer never came or was lost, the worker froze or hung, or the time limit
            was reached before it had begun.
        ClusterError: a peer belongs to another training, or the port can't be had.
        StoppedError: SIGTERM came before the worker had begun.
        JobError: a signal of somebody else's killed the worker; with the code that shells give it.
    """
    membership = Membership(workers, team)
    code, why = TemporaryError.exit_code, ""
    try:
        membership.meet(peer_timeout_seconds, progress, preemption)
        code, why = _watch(words, membership, preemption, progress)
    except JobError as error:
        code, why = error.exit_code, watchdog.short(str(error))
        raise
    finally:
        signals.ignore()  # the worker has ended, and its code is this process's
        membership.leave(code, why)
    return code


def _watch(
    words: Sequence[str], membership: Membership, preemption: Preemption, progress: Progress
) -> tuple[int, str]:
    """Run the worker to its end; return its exit code, and why it ended if it told.

    Raises:
        JobError: as `supervise`, where the worker can't tell it itself.
    """
    link, theirs = watchdog.open_link()
    with theirs:
        worker = subprocess.Popen(
            # Safe from whatever is called `job` or `json` in the current folder.
            [sys.executable, "-P", "-m", "job", *words],
            env=os.environ
            | {LINK: str(theirs.fileno()), SPENT: f"{preemption.spent_seconds():.3f}"},
            pass_fds=[theirs.fileno()],
        )
    signs = Signs(link)
    problem, deadline = None, float("inf")
    try:
        with preemption.passed_on(worker.pid):
            while (code := worker.poll()) is None:
                fault, all_ready = membership.suspected(), membership.all_ready()
                paused_seconds = signs.look(fault, all_ready=all_ready)
                membership.doubt = signs.doubt()
                membership.ready, membership.waits = signs.ready, signs.waits
                now = time.monotonic()
                if problem is None and (problem := membership.lost()) is not None:
                    deadline = now + GRACE_SECONDS
                if (own := _own_problem(signs, membership, paused_seconds)) is not None:
                    problem, deadline = own, now
                if now >= deadline:
                    worker.kill()
                if signs.waits and membership.another_works():
                    progress.beat()  # the one that it waits for has a probe of its own
                time.sleep(_LOOK_SECONDS)
    finally:
        worker.kill()  # whatever happens here, no worker is left alone
        worker.wait()
        signs.look(None)  # its last words
        link.connection.close()
    if 0 <= code != JobError.exit_code:
        return code, signs.why
    if preemption.took(-code) and (stopped := preemption.reason()) is not None:
        raise stopped  # the worker was told before it had come up far enough to take it
    # A worker may stumble over a lost peer before its watcher has heard of that.
    # Not after SIGKILL, which only the system or a person sends to a worker unasked.
    deadline = time.monotonic() + (0 if code == -signal.SIGKILL else HEARSAY_SECONDS)
    while (problem := problem or membership.suspected()) is None and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    if problem is not None:
        raise TemporaryError(f"{problem}; the worker was ended: {RUN_AGAIN}")
    if code > 0:
        return code, signs.why
    raise JobError(
        f"the worker was killed by signal {-code}, sent by the system (out of memory?) or by "
        f"somebody; if memory ran out, give it more: {RUN_AGAIN}",
        exit_code=128 - code,  # as shells have it
    )


def _own_problem(signs: Signs, membership: Membership, paused_seconds: float) -> str | None:
    """Return why this worker must be ended at once, whatever the others do, or None."""
    if paused_seconds > SILENCE_SECONDS:
        return f"the watcher was paused for {paused_seconds:.0f} s, too long for the others"
    if (trouble := signs.trouble()) is None:
        return None
    if signs.hangs_with_others():  # so whose fault it is, only the others can know
        return membership.suspected() or f"no worker showed why, but this one {trouble}"
    return f"the worker {trouble}"
