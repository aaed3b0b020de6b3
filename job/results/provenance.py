"""Who made a run, when, on what and with what: for its records, and to tell what a resume mixes."""

import contextlib
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

from job import __version__
from job.config import RunConfig
from job.process import runtime
from job.workers.cluster import Cluster

if TYPE_CHECKING:
    from job.training.strategy import Devices

_DECIDES = ("job_version", "git_commit", "tensorflow", "keras", "processor", "workers")


def code_version() -> dict[str, str | None]:
    """Return what a training depends on beside config and data, without loading it."""
    commit, keras = runtime.git_commit(os.environ), metadata.version("keras")
    found: dict[str, str | None] = {
        "job_version": __version__,
        "git_commit": commit,
        "keras": keras,
    }
    for name in ("tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found["tensorflow"] = metadata.version(name)
    return found


def begun(config: RunConfig, cluster: Cluster, versions: dict[str, str]) -> dict[str, Any]:
    """Return what is known of an attempt when it begins; its strategy is what was asked for.

    Args:
        config: of the run.
        cluster: where this process runs.
        versions: of TensorFlow and Keras, by name.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "job_version": __version__,
        "git_commit": runtime.git_commit(os.environ),
        "python": platform.python_version(),
        **versions,
        "platform": runtime.platform_name(),
        "processor": runtime.processor_name(),
        "cores": runtime.available_cores(container_limit=cluster.cpu_limit),
        "strategy": config.strategy,
        "workers": cluster.workers.count,
        **cluster.names,
    }


def in_force(facts: dict[str, Any], devices: "Devices", threads: list[int]) -> dict[str, Any]:
    """Return what a run's bits depend on beside its config and data.

    Args:
        facts: what `begun` returned.
        devices: what this machine really computes on.
        threads: how many threads each worker computes with, by index.
    """
    return {
        **{name: facts.get(name) for name in _DECIDES},
        "strategy": devices.strategy,
        "replicas": devices.replicas,
        "devices": list(devices.devices),
        "threads": threads,
    }


def forces(environment: dict[str, Any]) -> dict[str, Any]:
    """Return what `in_force` was, by the environment or an attempt in a run's metrics."""
    names = (*_DECIDES, "strategy", "replicas", "devices", "threads")
    return {name: environment.get(name) for name in names}


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """Return [value before, value now] of all in force that changed; None where nobody knows."""
    return {
        name: [before.get(name), value] for name, value in now.items() if before.get(name) != value
    }


def environment(facts: dict[str, Any], forces: dict[str, Any]) -> dict[str, Any]:
    """Return what a run really ran on and with, for its metrics."""
    return {name: value for name, value in facts.items() if name != "started"} | forces
