"""Google's Vertex AI custom training jobs: variables, of which most name folders in a bucket.

    CLOUD_ML_JOB_ID, CLOUD_ML_TRIAL_ID    the job; of a hyperparameter tuning job the trial too
    AIP_MODEL_DIR                         <base output directory>/[<trial>/]model/
    AIP_CHECKPOINT_DIR                    <base output directory>/[<trial>/]checkpoints/
    AIP_TENSORBOARD_LOG_DIR               <base output directory>/[<trial>/]logs/
    CLUSTER_SPEC, TF_CONFIG               who trains together: see job/workers/cluster.py

From google-cloud-aiplatform's `training_utils/environment_variables.py` and the documents
"Distributed training" and "Environment variables for special Cloud Storage directories".
"""

from job.errors import UsageError
from job.platforms.contract import (
    PEER_TIMEOUT_SECONDS,
    Platform,
    Row,
    Surroundings,
    variable,
    writes_events,
)
from job.workers.cluster import Cluster

JOB, TRIAL = "CLOUD_ML_JOB_ID", "CLOUD_ML_TRIAL_ID"
MODEL, CHECKPOINTS, LOGS = "AIP_MODEL_DIR", "AIP_CHECKPOINT_DIR", "AIP_TENSORBOARD_LOG_DIR"
SIGNS = (JOB, MODEL, CHECKPOINTS, LOGS)
# Managed data sets, in forms of their own (CSV, JSON lines, BigQuery).
_FOREIGN_DATA = ("AIP_TRAINING_DATA_URI", "AIP_VALIDATION_DATA_URI", "AIP_TEST_DATA_URI")


def _sign(here: Surroundings) -> str | None:
    return next((f"{name} is set" for name in SIGNS if here.variable(name)), None)


def _run_id(here: Surroundings) -> str | None:
    job, trial = here.variable(JOB), here.variable(TRIAL)
    return f"{job}-{trial}" if job and trial else job


def _output(here: Surroundings) -> str:
    """Return where runs go: beside the model, below the job's base output directory.

    Raises:
        UsageError: a night needs a folder that outlives its job, and a run one that outlives its
            container.
    """
    if "night" in here.flags:
        raise UsageError(
            "--output is missing: Vertex AI's folders are those of one job, and nights share "
            "theirs; give a gs://bucket/key that stays"
        )
    if checkpoints := here.variable(CHECKPOINTS):
        return checkpoints
    if model := here.variable(MODEL):
        return model.rstrip("/").rpartition("/")[0]
    raise UsageError(
        "--output is missing: without a base output directory a run is lost with its container; "
        "give the job a baseOutputDirectory, or --output gs://bucket/key"
    )


def _logs(here: Surroundings) -> str | None:
    return here.variable(LOGS) if writes_events() else None


def _peer_timeout(here: Surroundings) -> str | None:
    several = Cluster.from_environment(here.environment).workers.count > 1
    return PEER_TIMEOUT_SECONDS if several else None


def _ignored(here: Surroundings) -> list[str]:
    unread = [name for name in _FOREIGN_DATA if here.variable(name)]
    return unread + ([LOGS] if here.variable(LOGS) and not writes_events() else [])


VERTEX = Platform(
    name="vertex",
    sign=_sign,
    wanted=f"one of the variables {', '.join(SIGNS)}",
    rows=(
        Row("run-id", JOB, _run_id),
        Row("output", f"{CHECKPOINTS} or {MODEL}", _output),
        variable("model-dir", MODEL),
        Row("tensorboard-dir", LOGS, _logs),
        Row("peer-timeout", "CLUSTER_SPEC", _peer_timeout),
    ),
    pools=True,
    ignored=_ignored,
)
