"""Where this process runs, as Kubernetes tells it: the only Kubernetes-aware Python."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """The job's own place in a cluster; every field is None on a laptop.

    Kubernetes fills the variables from the downward API (see the manifests in `k8s/`).
    """

    job: str | None = None
    """Name of the Job, which is the run id unless one is given."""
    pod: str | None = None
    """Name of the pod."""
    node: str | None = None
    """Name of the node that the pod runs on."""
    image: str | None = None
    """Container image that the process was started from."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Cluster":
        """Read the place from `environment`; an empty variable counts as unset."""
        return cls(
            job=environment.get("K8S_JOB_NAME") or None,
            pod=environment.get("K8S_POD_NAME") or None,
            node=environment.get("K8S_NODE_NAME") or None,
            image=environment.get("K8S_IMAGE") or None,
        )
