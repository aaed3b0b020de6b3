"""What the bench asks of the job alone: its start, its checkpoints, its memory, more data."""

import json
import shutil
import zipfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from contestants import run
from environments import FOLDER, own_python
from tasks import MNIST, NO_PAGE

TIMES = 10
CHECKPOINT_SECONDS = 30  # the job's default
OFTEN_SECONDS = 0.5  # a chunk of the loop: as often as it can
NEVER_SECONDS = 86_400
CHECKPOINT_EPOCHS = 20

_IMPORT = """
import pathlib, sys, time
sys.modules.update(pandas=None, scipy=None)  # which the tests' statsmodels brings: no user has to
import tensorflow
now, status = time.time(), pathlib.Path("/proc/self/status").read_text()
print(now, int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""


@dataclass(frozen=True)
class Start:
    """One start of the job, and one bare import of TensorFlow right before it."""

    import_seconds: float
    """From process start until `import tensorflow` is done."""
    import_memory_mib: float
    """Peak of the process that only did that."""
    first_step_seconds: float
    """From process start until the job has compiled its loop and the first step begins."""


@dataclass(frozen=True)
class CheckpointCost:
    """A pair of trainings, one saving as often as it can, one never before its end."""

    saves: int
    saving_seconds: float
    plain_seconds: float

    @property
    def share(self) -> float:
        """Share of the time at the default interval, by the cost of one save."""
        return (self.saving_seconds - self.plain_seconds) / self.saves / CHECKPOINT_SECONDS


@dataclass(frozen=True)
class Growth:
    """One epoch of MNIST, and one of ten times as much."""

    wall_seconds: tuple[float, float]
    train_seconds: tuple[float, float]
    peak_memory_mib: tuple[float, float]
    data_mib: tuple[float, float]


def start(scratch: Path) -> Start:
    """Measure a bare import of TensorFlow and the start of the job, each in a fresh process."""
    bare = run([str(own_python()), "-c", _IMPORT])
    done, memory = map(float, bare.out.split())
    started, events, _ = _train(scratch, "--epochs", "1")
    compiled = next(_time(event) for event in events if event["event"] == "compiled")
    return Start(done - bare.started, memory, compiled - started)


def checkpoints(scratch: Path) -> CheckpointCost:
    """Measure what a save costs: many in one training, against none in another.

    From the first step to the end of the last epoch, by the times in the log: both trainings save
    once more after that.
    """
    seconds, saves = {}, 0
    for every in (OFTEN_SECONDS, NEVER_SECONDS):
        flags = ["--epochs", str(CHECKPOINT_EPOCHS), "--checkpoint-seconds", str(every)]
        _, events, _ = _train(scratch, *flags)
        last = max(place for place, event in enumerate(events) if event["event"] == "epoch")
        first = next(place for place, event in enumerate(events) if event["event"] == "compiled")
        within = events[first : last + 1]
        seconds[every] = _time(within[-1]) - _time(within[0])
        saves = saves or sum(event["event"] == "checkpoint_saved" for event in within)
    return CheckpointCost(saves, seconds[OFTEN_SECONDS], seconds[NEVER_SECONDS])


def growth(scratch: Path) -> Growth:
    """Train an epoch on MNIST and one on ten times MNIST, stored in the same way."""
    walls, trains, peaks, sizes = [], [], [], []
    for times in (1, TIMES):
        path, size_mib = _repeated(times)
        _, _, metrics = _train(scratch, "--epochs", "1", "--data", str(path))
        walls.append(metrics["wall_seconds"])
        trains.append(metrics["timing"]["train_seconds"])
        peaks.append(metrics["resources"]["peak_memory_mib"])
        sizes.append(size_mib)
    return Growth(tuple(walls), tuple(trains), tuple(peaks), tuple(sizes))


def _train(scratch: Path, *flags: str) -> tuple[float, list[dict[str, Any]], dict[str, Any]]:
    """Return when a run of the job was started, what it said, and its metrics."""
    program = str(own_python().parent / "mnist-job")
    place = ["--output", str(scratch / "output"), "--run-id", "probe", "--log", "json"]
    ended = run([program, "train", *place, *NO_PAGE, *flags])
    metrics = json.loads((scratch / "output" / "probe" / "metrics.json").read_text())
    shutil.rmtree(scratch / "output")
    events = [json.loads(line) for line in ended.out.splitlines()]
    return ended.started, events, metrics | {"wall_seconds": ended.wall_seconds}


def _time(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _repeated(times: int) -> tuple[Path, float]:
    """Return where MNIST lies, so many times over, and the MiB of its arrays.

    Each copy is moved down by one more pixel, so that no two are the same.
    """
    path = FOLDER / f"mnist-{times}-times.npz"
    size = 0
    unfinished = path.with_suffix(".tmp")
    with np.load(MNIST) as mnist:
        arrays = dict(mnist)
    size = times * sum(array.nbytes for array in arrays.values())
    if not path.is_file():
        FOLDER.mkdir(exist_ok=True)
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                moved = [np.roll(array, n, 1) if array.ndim > 1 else array for n in range(times)]
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.concatenate(moved))
        unfinished.replace(path)
    return path, size / 2**20
