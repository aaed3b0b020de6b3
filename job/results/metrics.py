"""What `metrics.json` says of a run, as `job/assets/metrics.schema.json` describes it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from job.config import RunConfig
from job.data.source import Dataset
from job.process import runtime
from job.results.publishing import METRICS, Artifact
from job.results.scores import Scores

if TYPE_CHECKING:
    from job.training.train import Training

SCHEMA_VERSION = 1
MOST_TOLD = 3  # pairs of classes that are taken for each other
_SAID_ONCE = ("config", "config_sha256", "data_fingerprint")  # the same for all attempts


@dataclass(frozen=True)
class Seconds:
    """What the stages of this attempt took."""

    importing: float
    loading: float
    evaluating: float
    publishing: float


def document(
    config: RunConfig,
    dataset: Dataset,
    attempts: list[dict[str, Any]],
    environment: dict[str, Any],
    parameters: int,
    trained: "Training",
    scores: Scores,
    artifacts: tuple[Artifact, ...],
    seconds: Seconds,
    *,
    init_weights: dict[str, Any] | None = None,
    members: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    """Return the metrics of a run that is published but for them, in types that JSON has.

    Args:
        config: what was asked for.
        dataset: what it was trained and tested on.
        attempts: records of all attempts, the last of which completes the run.
        environment: what it ran on and with.
        parameters: numbers that the model learned.
        trained: what the training took and gave.
        scores: of the published model on the test set.
        artifacts: the files that are published.
        seconds: of the stages.
        init_weights: uri and sha256 of those that the run began with, where they were given.
        members: the runs that an ensemble is made of.
    """
    used = runtime.usage()
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": config.run_id,
        "status": "complete",
        "started": attempts[-1]["started"],
        "attempts": attempts[-1]["attempt"],
        "attempt_records": [
            {name: value for name, value in record.items() if name not in _SAID_ONCE}
            for record in attempts
        ],
        "config_sha256": config.digest,
        "config": config.identity,
        "model": model_facts(config.model, parameters, len(members) or 1),
        **({"members": list(members)} if members else {}),
        **({"init_weights": init_weights} if init_weights else {}),
        "data": dataset.facts(),
        "test": asdict(scores),
        "train": {
            "epochs": trained.epochs,
            "steps": trained.steps,
            "resumed_step": trained.resumed_step,
            "history": list(trained.history),
        },
        "timing": {
            "import_seconds": seconds.importing,
            "load_seconds": seconds.loading,
            "compile_seconds": trained.compile_seconds,
            "train_seconds": trained.train_seconds,
            "attempt_train_seconds": trained.attempt_train_seconds,
            "evaluate_seconds": seconds.evaluating,
            "publish_seconds": seconds.publishing,
            "total_seconds": used.wall_seconds,
            "images_per_second": trained.images_per_second,
        },
        "resources": {
            "peak_memory_mib": used.peak_memory_mib,
            "cpu_seconds": used.cpu_seconds,
        },
        "environment": environment,
        "artifacts": [asdict(artifact) for artifact in artifacts],
    }


def model_facts(name: str, parameters: int, members: int) -> dict[str, Any]:
    """Return what is told of a model: of an ensemble, how many nets of the name it is made of."""
    ensemble = {"ensemble": members} if members > 1 else {}
    return {"name": name, "parameters": parameters, **ensemble}


def summary(run: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what a person wants to know first of the complete run at `run`."""
    test, timing = metrics["test"], metrics["timing"]
    return {
        "run": run,
        "accuracy": test["accuracy"],
        "accuracy_interval_95": test["accuracy_interval_95"],
        "examples": test["examples"],
        "loss": test["loss"],
        "calibration_error": test["expected_calibration_error"],
        "mistakes": test["examples"] - test["correct"],
        "most_confused": most_confused(test["confusion"], MOST_TOLD),
        "total_seconds": timing["total_seconds"],
        "train_seconds": timing["train_seconds"],
        # One who published before this was told apart can only name the whole.
        "attempt_train_seconds": timing.get("attempt_train_seconds"),
        "attempts": metrics.get("attempts", 1),
        "images_per_second": timing["images_per_second"],
        "files": [*(artifact["path"] for artifact in metrics["artifacts"]), METRICS],
    }


def most_confused(confusion: Sequence[Sequence[int]], most: int) -> list[dict[str, int]]:
    """Return the pairs of classes that are mistaken most often, at most `most`, the worst first.

    Args:
        confusion: examples by true class (row) and predicted class (column).
        most: pairs to return.
    """
    pairs = [
        {"true": true, "predicted": predicted, "examples": count}
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if true != predicted and count
    ]
    return sorted(pairs, key=lambda pair: -pair["examples"])[:most]
