"""Memory that ran out -> one sentence that says what to do.

The exit code is that of a machine which isn't what the job needs: the same pod on the same limit
would run out again, so that Kubernetes must not try it over and over.
"""

import contextlib
from collections.abc import Iterator

from job.errors import ClusterError, JobError

# What TensorFlow, XLA and the GPU's libraries say of it, in errors of several kinds.
_SIGNS = (
    *("RESOURCE_EXHAUSTED", "OOM when allocating", "CUDA_ERROR_OUT_OF_MEMORY"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "bad_alloc"),
    "Cannot parse tensor from proto",  # of a graph made in this process: no room to put it in
)
_MOST_QUOTED = 160  # signs of a message that goes on with an allocator's statistics


def refusal(error: BaseException, advice: str) -> ClusterError | None:
    """Return what to raise for `error` if it says that memory ran out, else None.

    Args:
        error: anything that was raised.
        advice: what to do about it.
    """
    if isinstance(error, JobError) or not ran_out(error):
        return None
    return ClusterError(f"out of memory ({_told(error)}): {advice}")


@contextlib.contextmanager
def explained(advice: str) -> Iterator[None]:
    """Say in the job's own terms that memory ran out inside this block, and what to do about it.

    Raises:
        ClusterError: it did.
    """
    try:
        yield
    except Exception as error:
        if (refused := refusal(error, advice)) is None:
            raise
        raise refused from error


def ran_out(error: BaseException) -> bool:
    """Tell whether `error` says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    # By name, since whoever asks may not have imported TensorFlow.
    names = {kind.__name__ for kind in type(error).__mro__}
    if "ResourceExhaustedError" in names:
        return True
    return "OpError" in names and _tells(str(error))


def _told(error: BaseException) -> str:
    """Return the line of the message that tells of memory: TensorFlow's begin with anything."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next(filter(_tells, lines), lines[0])[:_MOST_QUOTED]


def _tells(text: str) -> bool:
    return any(sign in text for sign in _SIGNS)
