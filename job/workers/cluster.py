"""Where this process runs, as Kubernetes tells it: the only Kubernetes-aware Python."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from job.errors import ClusterError

DEFAULT_PORT = 2222


@dataclass(frozen=True)
class Workers:
    """The processes that train one model together, and which of them this one is."""

    addresses: tuple[str, ...] = ("localhost:0",)
    """`host:port` of each worker's TensorFlow, by index."""
    index: int = 0
    """Place of this process among them; 0 is the chief, which alone writes."""

    @property
    def count(self) -> int:
        """How many there are; 1 is a process on its own."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process evaluates and publishes."""
        return self.index == 0


@dataclass(frozen=True)
class Cluster:
    """The job's own place in a cluster; every name is None on a laptop.

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
    cpu_limit: int | None = None
    """Cores that the container may use, a fraction counted as a whole one; None if unlimited."""
    workers: Workers = field(default_factory=Workers)
    """Who trains together."""
    completion_index: int | None = None
    """Which pod of an Indexed Job this is, from 0, where each has work of its own; else None."""

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str],
        *,
        together: bool = True,
        pools: bool = True,
        otherwise: Workers | None = None,
    ) -> "Cluster":
        """Read the place from `environment`; an empty variable counts as unset.

        Args:
            environment: the process's.
            together: look for workers to train with; else this process is on its own.
            pools: look for them in Vertex AI's CLUSTER_SPEC, too.
            otherwise: who trains together where the environment names nobody, as a platform's files
                tell it; None for this process alone.

        Raises:
            ClusterError: it names workers, but not in a way that could work.
        """
        cores = environment.get("K8S_CPU_LIMIT", "")
        index = environment.get("JOB_COMPLETION_INDEX", "")
        if environment.get("K8S_WORKERS"):  # be it 1: the index is that of a worker
            index = ""
        named = _workers(environment, pools=pools) if together else Workers()
        return cls(
            job=environment.get("K8S_JOB_NAME") or None,
            pod=environment.get("K8S_POD_NAME") or None,
            node=environment.get("K8S_NODE_NAME") or None,
            image=environment.get("K8S_IMAGE") or None,
            cpu_limit=(int(cores) or None) if cores.isdecimal() else None,
            workers=named or otherwise or Workers(),
            completion_index=int(index) if index.isdecimal() else None,
        )

    @property
    def names(self) -> dict[str, str | None]:
        """Job, pod, node and image, for the record."""
        return {"job": self.job, "pod": self.pod, "node": self.node, "image": self.image}


def _workers(environment: Mapping[str, str], *, pools: bool) -> Workers | None:
    """Return the workers of TF_CONFIG, of CLUSTER_SPEC, or of an Indexed Job; None without any."""
    for name, chief, worker, form in _GROUPS:
        if (text := environment.get(name)) and (pools or name != POOLS):
            return _of_groups(name, text, chief, worker, form)
    if not environment.get("K8S_WORKERS"):
        return None
    count = _integer(environment, "K8S_WORKERS", 1, 1_000)
    if count == 1:
        return Workers()
    index = _integer(environment, "JOB_COMPLETION_INDEX", 0, count - 1)
    port = _integer(environment, "K8S_WORKER_PORT", 1, 65_534, DEFAULT_PORT)
    job, service = (environment.get(name) for name in ("K8S_JOB_NAME", "K8S_SERVICE_NAME"))
    if not job or not service:
        raise ClusterError(
            f"K8S_WORKERS is {count}, but K8S_JOB_NAME is {job!r} and K8S_SERVICE_NAME "
            f"{service!r}: set both, as k8s/train-multiworker.yaml does"
        )
    # So the pods of an Indexed Job are called where a headless Service is their subdomain.
    return Workers(tuple(f"{job}-{i}.{service}:{port}" for i in range(count)), index)


POOLS = "CLUSTER_SPEC"
# Variables that name groups of workers, in the order they are believed in: what each calls the
# chief and the others, and its form. CLUSTER_SPEC is Vertex AI's, whose pools go by their number.
_GROUPS = (
    (
        "TF_CONFIG",
        "chief",
        "worker",
        (
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, '
            'with one more group {"chief": ["host:port"]} if there is one'
        ),
    ),
    (
        POOLS,
        "workerpool0",
        "workerpool1",
        (
            '{"cluster": {"workerpool0": ["host:port"], "workerpool1": ["host:port", ...]}, "task":'
            ' {"type": "workerpool0", "index": 0}}'
        ),
    ),
)


def _of_groups(name: str, text: str, chief: str, worker: str, form: str) -> Workers:
    """Read {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": i}}.

    A group `chief` of one, as TensorFlow and Vertex AI have it, comes before the workers.

    Args:
        name: of the variable that holds `text`.
        text: its JSON.
        chief: what the group of one is called in it.
        worker: what the group of the others is called.
        form: what to give instead, where it isn't understood.
    """
    try:
        config = json.loads(text)
        groups, task = dict(config["cluster"]), config["task"]
        kind, index = task["type"], int(task["index"])
        named = {group for group, members in groups.items() if members}  # an empty one is nobody
        unknown = sorted({*named, kind} - {chief, worker})
        chiefs, others = list(groups.get(chief) or []), list(groups.get(worker) or [])
        addresses = chiefs + others
        hosts_and_ports = [address.rpartition(":") for address in addresses]
        valid = (
            len(chiefs) <= 1
            and 0 <= index < len(chiefs if kind == chief else others)
            and all(host and 0 < int(port) < 65_535 for host, _, port in hosts_and_ports)
            and len(set(addresses)) == len(addresses)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid, unknown = False, []
    if unknown:
        raise ClusterError(
            f"{name} {text[:200]!r} names {' and '.join(map(repr, unknown))}, which this job "
            "has no part for: it trains on one chief and workers, without parameter servers, and "
            "the chief evaluates; leave others out"
        )
    if not valid:
        raise ClusterError(f"{name} {text[:200]!r} is not understood: give {form}")
    index += len(chiefs) if kind == worker else 0
    return Workers(tuple(addresses), index) if len(addresses) > 1 else Workers()


def _integer(
    environment: Mapping[str, str], name: str, lowest: int, highest: int, default: int | None = None
) -> int:
    text = environment.get(name) or (None if default is None else str(default))
    if text is None or not text.isdecimal() or not lowest <= int(text) <= highest:
        raise ClusterError(
            f"{name} must be a whole number from {lowest:,} to {highest:,}, not {text!r}: "
            "k8s/train-multiworker.yaml shows how the workers' variables are set"
        )
    return int(text)
