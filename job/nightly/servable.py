"""Whether a stranger can use what a run published: a clean process with plain Keras tries it.

Tests of the job's own code can't tell: that code knows its own layers, and reads its own files.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from job.errors import OutputError, TemporaryError

LIMIT_SECONDS = 180.0  # TensorFlow's import takes most: 5 s here, minutes on a node just started
TOLERANCE = 1e-5  # of a probability: another kernel sums in another order, no more
_FOUND = 3  # exit code of a process that says what is wrong with the files
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TF_NUM_INTRAOP_THREADS")

JUDGE = """
def judge(tolerance):
    import os

    import keras
    import numpy as np

    images = np.load("images.npy").astype("float32") / 255
    recorded = np.load("probabilities.npy")

    def difference(model):
        found = np.asarray(model(images, training=False))
        if found.shape != recorded.shape:
            return f"gives outputs of shape {found.shape}, not {recorded.shape}"
        largest = np.abs(found - recorded).max()
        if not largest <= tolerance:  # NaN is no match either
            return f"gives other probabilities than were recorded, by up to {largest:.2g}"

    where = "model.keras"
    try:
        model = keras.models.load_model(where, safe_mode=True)
        if wrong := difference(model):
            return f"{where} {wrong}"
        where = "model_weights.h5"
        fresh = keras.models.clone_model(model)  # of the same layers, with other weights
        fresh.load_weights(where)
        if wrong := difference(fresh):
            return f"{where} {wrong}"
        where = "serving/1"
        if os.path.isdir(where):
            import tensorflow

            served = tensorflow.saved_model.load(where).signatures["serving_default"]
            if wrong := difference(lambda pixels, training: served(pixels=pixels)["probabilities"]):
                return f"{where} {wrong}"
    except Exception as error:
        last = str(error).strip().splitlines()[-1:] or [""]  # the cause, after pages of config
        plain = "TensorFlow" if where == "serving/1" else "Keras"
        return f"{where} can't be opened by plain {plain}: {type(error).__name__}: {last[0]}"
"""

_SAY = """
import sys

found = judge(float(sys.argv[1]))
if ours := sorted(name for name in sys.modules if name.partition(".")[0] == "job"):
    found = f"opening what was published imports the job's own {ours[0]}" + (
        f"; {found}" if found else ""
    )
if found:
    print(found)
    sys.exit(3)
"""


def check(
    archive: bytes,
    weights: bytes,
    images: npt.NDArray[np.uint8],
    probabilities: npt.NDArray[np.floating],
    beat: Callable[[], None] = lambda: None,
    serving: Mapping[str, bytes] = MappingProxyType({}),
) -> str | None:
    """Return why a stranger could not use a published model, or None where one could.

    A fresh Python, isolated and with nothing of the job, opens both files with plain Keras on the
    processor, and what is to be served with plain TensorFlow, and must get the same probabilities.

    Args:
        archive: bytes of `model.keras`, which is opened in Keras' safe mode.
        weights: bytes of `model_weights.h5`.
        images: uint8, shape (n, *image_shape).
        probabilities: what the job computed for them, float, shape (n, classes).
        beat: called every second, as a sign of life.
        serving: files below `serving/`, by their path in the run's folder; none where the run
            published none.

    Raises:
        TemporaryError: the process was killed or took too long, which says nothing of the model.
        OutputError: the files can't be put into a folder for temporary ones.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mnist-job-")))
            lay_out(folder, archive, weights, images, probabilities, serving)
        except OSError as error:
            raise OutputError(
                f"the published files can't be laid out for a clean process ({error}): give the "
                "folder for temporary files, TMPDIR, more room"
            ) from error
        code, said, complained = _run(folder, beat)
    if code in {-signal.SIGKILL, -signal.SIGTERM}:
        raise TemporaryError(
            f"the clean process that opens the published model was killed (signal {-code}), for "
            "lack of memory perhaps: try again, with more"
        )
    if code == _FOUND:
        return said.strip()[:1000]
    if code != 0:
        last = complained.strip().splitlines()[-1:] or ["it said nothing"]
        return f"a clean process with plain Keras failed (exit {code}): {last[0][:1000]}"
    return None


def lay_out(
    folder: Path,
    archive: bytes,
    weights: bytes,
    images: npt.NDArray[np.uint8],
    probabilities: npt.NDArray[np.floating],
    serving: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write into `folder` what the clean process reads.

    Raises:
        OSError: it can't be written.
    """
    (folder / "model.keras").write_bytes(archive)
    (folder / "model_weights.h5").write_bytes(weights)
    for path, content in serving.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    np.save(folder / "images.npy", images)
    np.save(folder / "probabilities.npy", probabilities)


def _run(folder: Path, beat: Callable[[], None]) -> tuple[int, str, str]:
    """Run the program in `folder`; return its exit code, output and errors."""
    process = subprocess.Popen(
        # -P and all else that keeps foreign code out is part of -I.
        [sys.executable, "-I", "-c", JUDGE + _SAY, str(TOLERANCE)],
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C is this process's alone, and must not look like a fault
    )
    try:
        for _ in range(max(1, round(LIMIT_SECONDS))):
            beat()
            with contextlib.suppress(subprocess.TimeoutExpired):
                said, complained = process.communicate(timeout=min(1.0, LIMIT_SECONDS))
                return process.returncode, said, complained
        raise TemporaryError(
            f"the clean process that opens the published model took over {LIMIT_SECONDS:g} s: the "
            "machine is busy; try again"
        )
    finally:
        process.kill()
        process.communicate()


def _environment(folder: Path) -> dict[str, str]:
    """Return a stranger's variables: none that tune TensorFlow as the job does it, no secrets."""
    return {
        **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        "CUDA_VISIBLE_DEVICES": "-1",  # the job holds the GPU's memory
        "HOME": str(folder),  # nobody's keras.json: Keras as it comes, with TensorFlow
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
