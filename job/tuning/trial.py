"""One trial: a run of its own that is scored on held-out images, and published by nobody.

It goes on after a kill as any run does, from its last checkpoint and to the same bits. What it came
to is written last; a trial that has that is over, and running it again does nothing.
"""

import contextlib
import os
from typing import TYPE_CHECKING, Any

from job.data import source
from job.errors import DataError, JobError, MissingInputError, UsageError
from job.process import runtime
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.results import provenance
from job.results.publishing import RunFolder
from job.run import train_run
from job.storage import Place
from job.training import checkpoint
from job.tuning import halving
from job.tuning.study import SCHEMA_VERSION, Study, found, keep
from job.workers.cluster import Cluster

if TYPE_CHECKING:
    from job.config import RunConfig
    from job.data.source import Dataset


def run_trial(
    study: Study,
    trial: int,
    cluster: Cluster,
    preemption: Preemption,
    progress: Progress,
    *,
    fresh_seed: int = 0,
) -> dict[str, Any]:
    """Run a trial to its end, unless it is over, and return what it came to.

    Args:
        study: with the space and the rules.
        trial: counted from 0.
        cluster: where this process runs, on its own.
        preemption: knows whether to stop.
        progress: told how it goes.
        fresh_seed: from 1 on, for a final: the trial's config with another seed, never halted.

    Raises:
        ConflictError, ClusterError: it can't be part of this study; see `Study.begin`.
        JobError: whatever else went wrong, but for a training that these values made diverge, or
            that can't be done with them: that is a result.
    """
    place = study.final(trial, fresh_seed) if fresh_seed else study.trial(trial)
    if (result := found(place)) is not None:
        progress.event("trial_over", **_told(result))
        return result
    loading = runtime.beside(lambda: source.load(study.source, progress.beat))
    with preemption.deferred():
        runtime.prepare_tensorflow()
        runtime.import_tensorflow()
    dataset = loading.result()
    study.begin(dataset.fingerprint, provenance.code_version())
    values = _values(study, trial, fresh_seed, cluster)
    progress.event("trial_started", trial=trial, fresh_seed=fresh_seed, values=values)
    watch = _Watch(study, trial, fresh_seed, progress)
    facts = {"state": "complete", "why": None}
    try:
        config = study.config(trial, values, fresh_seed)
        watch.run(config, dataset, cluster, preemption)
    except UsageError as error:
        facts = {"state": "failed", "why": str(error)}
    if watch.halted_by is not None:
        rank, seen = watch.halted_by["rank"], len(watch.halted_by["seen"])
        facts = {"state": "halted", "why": f"rank {rank} of {seen} after epoch {watch.epochs}"}
    result = {
        "schema_version": SCHEMA_VERSION,
        "trial": trial,
        **({"fresh_seed": fresh_seed} if fresh_seed else {}),
        "values": values,
        **facts,
        **watch.came_to(),
    }
    result = keep(place, result)
    progress.event("trial_over", **_told(result))
    return result


class _Watch:
    """Looks at a trial after each epoch, and ends it where that is due."""

    def __init__(self, study: Study, trial: int, fresh_seed: int, progress: Progress) -> None:
        self._study = study
        self._trial = trial
        self._rungs = () if fresh_seed else study.rungs
        self._progress = progress
        self._history: tuple[dict[str, Any], ...] = ()
        self._parameters: int | None = None
        self.halted_by: dict[str, Any] | None = None

    @property
    def epochs(self) -> int:
        return len(self._history)

    def run(
        self, config: "RunConfig", dataset: "Dataset", cluster: Cluster, preemption: Preemption
    ) -> None:
        """Train, until the last epoch or a decision ends it: before the test set is looked at."""
        from job.training.train import stopped_early  # noqa: PLC0415

        def after_epoch(history: tuple[dict[str, Any], ...], parameters: int) -> bool:
            self._history, self._parameters = history, parameters
            if self.epochs == config.epochs or stopped_early(config, history):
                return False
            if self.epochs not in self._rungs:
                return True
            taken = halving.decide(self._study, self._trial, self.epochs, history[-1])
            told = {name: taken[name] for name in ("trial", "epoch", "rank", "places", "kept")}
            self._progress.event("rung_decided", **told, seen=len(taken["seen"]))
            self.halted_by = None if taken["kept"] else taken
            return bool(taken["kept"])

        published = train_run(
            config, cluster, preemption, self._progress, dataset=dataset, after_epoch=after_epoch
        )
        if published is not None:
            raise JobError(f"the trial at {config.place} was published, which no trial may be")

    def came_to(self) -> dict[str, Any]:
        """Return what was measured, after the last epoch that was finished."""
        last = self._history[-1] if self._history else {}
        return {
            "epochs": self.epochs,
            "validation_loss": last.get("validation_loss"),
            "validation_accuracy": last.get("validation_accuracy"),
            "parameters": self._parameters,
            "seconds": sum(epoch["seconds"] for epoch in self._history),
        }


def _values(study: Study, trial: int, fresh_seed: int, cluster: Cluster) -> dict[str, Any]:
    """Return the trial's values; TensorFlow is told first with how many threads to compute."""
    cores = runtime.available_cores(container_limit=cluster.cpu_limit)
    saved = _threads_of(RunFolder(study.run(trial, fresh_seed)).checkpoints)
    runtime.limit_threads(saved or runtime.wanted_threads(os.environ, cores))
    from job.tuning import sampling  # noqa: PLC0415

    return study.space.at(sampling.point(study.seed, trial, len(study.space.dimensions)))


def _threads_of(folder: Place) -> int | None:
    """Return with how many threads a run that goes on was begun; None for one that begins."""
    with contextlib.suppress(DataError, MissingInputError):  # the run itself finds out, and says so
        if names := checkpoint.names_in(folder):
            return checkpoint.read(folder / names[-1]).threads
    return None


def _told(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a person wants to know first of a trial."""
    names = ("trial", "state", "why", "epochs", "validation_loss", "validation_accuracy", "seconds")
    return {name: result[name] for name in names} | {"fresh_seed": result.get("fresh_seed", 0)}
