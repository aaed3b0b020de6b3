"""Amazon SageMaker's training jobs: files below /opt/ml, and two variables.

    /opt/ml/input/config/hyperparameters.json     flags by name; all values are strings
    /opt/ml/input/config/inputdataconfig.json     the channels, and how each is brought
    /opt/ml/input/config/resourceconfig.json      the hosts, and which one this is
    /opt/ml/input/data/<channel>/                 the data
    /opt/ml/checkpoints/                          brought from S3 before, sent there all the time
    /opt/ml/output/data/, /opt/ml/model/          packed and sent to S3 at the end
    /opt/ml/output/tensorboard/                   sent to S3, where TensorBoard reads it
    /opt/ml/output/failure                        first 1,024 characters: the job's FailureReason

From the AWS documentation, "How Amazon SageMaker AI Provides Training Information", "... Processes
Training Output" and "Use checkpoints in Amazon SageMaker AI".
"""

import json
import os
from pathlib import Path
from typing import Any

from job.errors import ClusterError, UsageError
from job.platforms.contract import (
    PEER_TIMEOUT_SECONDS,
    Default,
    Platform,
    Row,
    Surroundings,
    Value,
    is_folder,
    variable,
    writes_events,
)
from job.workers.cluster import DEFAULT_PORT, Cluster, Workers

CONFIG = "/opt/ml/input/config"
HYPERPARAMETERS = f"{CONFIG}/hyperparameters.json"
CHANNELS = f"{CONFIG}/inputdataconfig.json"
HOSTS = f"{CONFIG}/resourceconfig.json"
DATA = "/opt/ml/input/data"
CHECKPOINTS = "/opt/ml/checkpoints"
OUTPUT = "/opt/ml/output/data"
MODEL = "/opt/ml/model"
TENSORBOARD = "/opt/ml/output/tensorboard"
FAILURE = "/opt/ml/output/failure"

_TRAINING = {"training", "train"}  # names of the channel that is taken
_NOT_DATA = {"code", "sm_drivers"}  # channels in which SageMaker's SDK brings scripts of its own
_SHARDS = ("base", "train-", "test-")  # what the files of a folder of shards begin with
# Hyperparameters that its toolkits set for themselves, and flags that no hyperparameter may set.
_TOOLKIT = ("sagemaker_", "_", "default_user_module_name")
_NOT_SET_SO = {"platform", "failure-file"}


def _sign(here: Surroundings) -> str | None:
    return f"{here.path(CONFIG)} is there" if here.has_folder(CONFIG) else None


# --- hyperparameters ----------------------------------------------------------------------------


def _flags(here: Surroundings) -> dict[str, Default]:
    """Return the flags that hyperparameters give: `learning_rate` is `--learning-rate`, too.

    Raises:
        UsageError: one is no flag of this command, or is there twice.
    """
    source = str(here.path(HYPERPARAMETERS))
    known = here.flags - _NOT_SET_SO
    found: dict[str, Default] = {}
    for name, told in here.document(HYPERPARAMETERS).items():
        if name.startswith(_TOOLKIT):
            continue
        flag = name.replace("_", "-")
        if flag not in known:
            raise UsageError(
                f"{source}: {name[:80]!r} is no flag of this command{_near(flag, known)}"
            )
        if flag in found:
            raise UsageError(f"{source} gives {flag!r} twice, once with '_' in it: drop one")
        if (value := value_of(told)) is not None:
            found[flag] = Default(value, source)
    return found


def _near(flag: str, known: frozenset[str]) -> str:
    """Return the end of a sentence that names the flag that may have been meant."""
    import difflib  # noqa: PLC0415  for a slip only

    nearest = difflib.get_close_matches(flag, sorted(known), n=1)
    return f": did you mean {nearest[0]!r}?" if nearest else "; --help lists them"


def value_of(told: Any) -> Value | None:
    """Return the value of a hyperparameter as a command line would give it, None for `null`.

    SageMaker hands on strings; its SDK writes many of them as JSON, so that `"cnn"` comes with the
    quotation marks in it.
    """
    text = told if isinstance(told, str) else json.dumps(told)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text or None
    if isinstance(value, list):
        return [each if isinstance(each, str) else json.dumps(each) for each in value]
    if isinstance(value, str):
        return value or None  # as an empty variable counts as unset
    return None if value is None else text.strip()  # numbers as they were written


def _ignored(here: Surroundings) -> list[str]:
    names = sorted(here.document(HYPERPARAMETERS))
    return [name for name in names if name.startswith(_TOOLKIT)]


# --- channels -----------------------------------------------------------------------------------


def _data(here: Surroundings) -> str | None:
    """Return the folder of the channel with the training data, or the one .npz in it.

    Raises:
        UsageError: there are several channels, or it can't be read as files.
    """
    config = here.document(CHANNELS)
    folder = here.path(DATA)
    names = set(config) or {path.name for path in _entries(folder) if is_folder(path)}
    if not (names := names - _NOT_DATA):
        return None
    if len(names) > 1 or not names <= _TRAINING:
        told = ", ".join(repr(name[:80]) for name in sorted(names))
        raise UsageError(
            f"{here.path(CHANNELS)} has the channels {told}, and the job takes one data set, with "
            "its test images in it: give one channel, 'training'; or name a path or a URI in the "
            "hyperparameter 'data'"
        )
    [name] = names
    channel = config.get(name)
    if isinstance(channel, dict) and channel.get("TrainingInputMode") == "Pipe":
        raise UsageError(
            f"{here.path(CHANNELS)}: the channel {name!r} has the input mode Pipe, and the job "
            "reads files: choose File or FastFile"
        )
    return str(_single_file(folder / name) or folder / name)


def _single_file(channel: Path) -> Path | None:
    """Return the .npz that a channel has alone, unless its name is that of a shard."""
    entries = _entries(channel)
    alone = len(entries) == 1 and entries[0].suffix == ".npz"
    return entries[0] if alone and not entries[0].name.startswith(_SHARDS) else None


def _entries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:  # who reads the data tells what is wrong with them
        return []


# --- hosts --------------------------------------------------------------------------------------


def _workers(here: Surroundings) -> Workers | None:
    """Return the hosts, which all of them have in the same order; None where there is one.

    Raises:
        ClusterError: they are not told as SageMaker tells them.
    """
    config = here.document(HOSTS)
    hosts, own = config.get("hosts", []), config.get("current_host")
    if not isinstance(hosts, list) or not all(host and isinstance(host, str) for host in hosts):
        hosts = [None]
    if len(hosts) < 2 and None not in hosts:
        return None
    if own not in hosts or len(set(hosts)) < len(hosts):
        raise ClusterError(
            f"{here.path(HOSTS)} is not understood: it must have 'hosts', a list of names that all "
            "differ, and among them 'current_host'; --platform none leaves it alone"
        )
    ordered = sorted(hosts)
    return Workers(tuple(f"{host}:{DEFAULT_PORT}" for host in ordered), ordered.index(own))


def _peer_timeout(here: Surroundings) -> str | None:
    cluster = Cluster.from_environment(here.environment, pools=False, otherwise=_workers(here))
    return PEER_TIMEOUT_SECONDS if cluster.workers.count > 1 else None


# --- what is written ----------------------------------------------------------------------------


def _output(here: Surroundings) -> str:
    """Return where runs go: what comes back to a job that is started again, if anything does.

    Raises:
        UsageError: a night needs a folder that outlives its job.
        ClusterError: it can't be written.
    """
    lasts = here.has_folder(CHECKPOINTS)
    if "night" in here.flags and not lasts:
        raise UsageError(
            f"--output is missing: {here.path(CHECKPOINTS)} is not there, and nights share a "
            "folder that stays; give the job a checkpoint config of the same S3Uri each night"
        )
    return _writable(here.path(CHECKPOINTS if lasts else OUTPUT))


def _events(here: Surroundings) -> str | None:
    path = here.path(TENSORBOARD)  # there where a TensorBoardOutputConfig asks for it
    return _writable(path) if is_folder(path) and writes_events() else None


def _failure(here: Surroundings) -> str | None:
    path = here.path(FAILURE)
    return _writable(path) if is_folder(path.parent) else None


def _writable(path: Path) -> str:
    """Return a path that may be written.

    Raises:
        ClusterError: it may not.
    """
    # Unlike Path.exists, this never raises: of what may not be seen the folder above it is named.
    there = next(each for each in (path, *path.parents) if os.access(each, os.F_OK))
    if not os.access(there, os.W_OK):
        raise ClusterError(
            f"{there} can't be written by uid {os.geteuid()}: SageMaker's folders belong to root; "
            "give it an image that runs as root, of two lines: FROM mnist-job, USER root; or give "
            "MNIST_JOB_PLATFORM=none and an MNIST_JOB_OUTPUT in S3"
        )
    return str(path)


SAGEMAKER = Platform(
    name="sagemaker",
    sign=_sign,
    wanted=f"the folder {CONFIG}",
    rows=(
        variable("run-id", "TRAINING_JOB_NAME"),
        Row("data", DATA, _data),
        Row("output", f"{CHECKPOINTS} or {OUTPUT}", _output),
        Row("model-dir", MODEL, lambda here: _writable(here.path(MODEL))),
        Row("tensorboard-dir", TENSORBOARD, _events),
        Row("failure-file", FAILURE, _failure),
        Row("peer-timeout", HOSTS, _peer_timeout),
    ),
    more=_flags,
    workers=_workers,
    ignored=_ignored,
    failure_file=FAILURE,
)
