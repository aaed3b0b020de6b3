"""What the controllers of Kubeflow's Trainer and of JobSet make of a manifest.

No cluster with them was at hand: this says again, in a few lines, what their sources say of all
that the manifests in `k8s/trainer` and `k8s/jobset` use. Read were Trainer 2.3.0 (pkg/apply, and in
pkg/runtime `core` and the plugins jobset, jax and trainjobstatus) and JobSet 0.12.0 (pkg/webhooks,
pkg/controllers).
"""

import copy
import re
from typing import Any

Document = dict[str, Any]

ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
# By which member the elements of a list are told apart where two lists are merged.
KEYS = {
    "replicatedJobs": "name",
    "containers": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}
STATUS_PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/default/trainjobs/{name}/status"
STATUS_FOLDER = "/var/run/secrets/kubeflow/trainer"


def jobset_of(trainjob: Document, runtime: Document, *, tells_progress: bool = False) -> Document:
    """Return the JobSet that the Trainer makes.

    Args:
        trainjob: that is applied.
        runtime: that it names.
        tells_progress: whether the feature gate TrainJobStatus is on.
    """
    name, spec = trainjob["metadata"]["name"], trainjob["spec"]
    assert spec["runtimeRef"]["name"] == runtime["metadata"]["name"]
    template = copy.deepcopy(runtime["spec"]["template"]["spec"])
    for patch in spec.get("runtimePatches", []):
        template = _merged(template, patch["trainingRuntimeSpec"]["template"]["spec"])
    policy, trainer = runtime["spec"]["mlPolicy"], spec.get("trainer")
    nodes = (trainer or {}).get("numNodes", policy["numNodes"])
    for replicated in template["replicatedJobs"]:
        job = replicated["template"]
        if job["metadata"]["labels"].get(ANCESTOR) != "trainer":
            continue
        replicated["replicas"] = 1
        job["spec"] |= {"parallelism": nodes, "completions": nodes}
        pod = job["spec"]["template"]["spec"]
        [container] = [one for one in pod["containers"] if one["name"] == "node"]
        if trainer is not None and "jax" in policy:
            index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            first = f"{name}-node-0-0.{name}:29500"
            _upsert(container["env"], {"name": "JAX_NUM_PROCESSES", "value": str(nodes)})
            where = {"fieldRef": {"fieldPath": index}}
            _upsert(container["env"], {"name": "JAX_PROCESS_ID", "valueFrom": where})
            _upsert(container["env"], {"name": "JAX_COORDINATOR_ADDRESS", "value": first})
            _upsert_port(container["ports"], {"containerPort": 29500})
        for entry in (trainer or {}).get("env", []):
            _upsert(container["env"], entry)
        for field in ("image", "command", "args"):
            if field in (trainer or {}):
                container[field] = trainer[field]
        if tells_progress:
            _tell_where_to_post(container, pod, name)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": template,
    }


def objects_of(jobset: Document) -> list[Document]:
    """Return what JobSet makes: a headless Service and the Jobs."""
    name, owner = jobset["metadata"]["name"], [{"kind": "JobSet"}]
    key = "jobset.sigs.k8s.io"
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "ownerReferences": owner},
        "spec": {
            "clusterIP": "None",
            "selector": {f"{key}/jobset-name": name},
            "publishNotReadyAddresses": True,
        },
    }
    jobs = []
    for replicated in jobset["spec"]["replicatedJobs"]:
        for index in range(replicated.get("replicas", 1)):
            template = copy.deepcopy(replicated["template"])
            labels = {
                f"{key}/jobset-name": name,
                f"{key}/replicatedjob-name": replicated["name"],
                f"{key}/job-index": str(index),
            }
            spec = {"completionMode": "Indexed"} | template["spec"]
            spec["template"]["metadata"]["labels"] |= labels
            spec["template"]["spec"] = {
                "restartPolicy": "OnFailure",
                **spec["template"]["spec"],
                "subdomain": name,
            }
            metadata = {
                "name": f"{name}-{replicated['name']}-{index}",
                "labels": template["metadata"]["labels"] | labels,
                "ownerReferences": owner,
            }
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
            jobs.append(job)
    return [service, *jobs]


def environment(job: Document, index: int) -> dict[str, str]:
    """Return the variables of the container of a Job's pod, as Kubernetes fills them in.

    Args:
        job: an Indexed one, of one container.
        index: of the pod.
    """
    template = job["spec"]["template"]
    [container] = template["spec"]["containers"]
    name = job["metadata"]["name"]
    completion = "batch.kubernetes.io/job-completion-index"
    values = {
        f"metadata.labels['{label}']": value
        for label, value in {
            **template["metadata"]["labels"],
            "batch.kubernetes.io/job-name": name,
            completion: str(index),
        }.items()
    } | {
        f"metadata.annotations['{completion}']": str(index),
        "metadata.name": f"{name}-{index}-abcde",
        "spec.nodeName": "node-1",
        "limits.cpu": str(container["resources"]["limits"]["cpu"]),
    }
    found: dict[str, str] = {}
    for entry in container["env"]:
        source = entry.get("valueFrom", {})
        where = source.get("fieldRef", {}).get("fieldPath")
        where = where or source.get("resourceFieldRef", {}).get("resource")
        value = values[where] if where else entry.get("value", "")
        # Of variables only those that stand before are known; what isn't stays as it is.
        found[entry["name"]] = re.sub(
            r"\$\((\w+)\)", lambda one, known=dict(found): known.get(one[1], one[0]), value
        )
    return found | {"JOB_COMPLETION_INDEX": str(index)}


def _merged(base: Any, patch: Any, key: str | None = None) -> Any:
    """Return `base` with a strategic merge patch; `key` tells the elements of lists apart."""
    if isinstance(base, dict) and isinstance(patch, dict):
        changed = {
            name: _merged(base[name], value, KEYS.get(name)) if name in base else value
            for name, value in patch.items()
        }
        return base | changed
    if isinstance(base, list) and key is not None:
        found = {one[key]: one for one in base}
        for one in patch:
            found[one[key]] = _merged(found[one[key]], one) if one[key] in found else one
        return list(found.values())
    return patch


def _upsert(entries: list[Document], entry: Document) -> None:
    """Put `entry` in the place of the one of its name, or at the end."""
    for place, one in enumerate(entries):
        if one["name"] == entry["name"]:
            entries[place] = entry
            return
    entries.append(entry)


def _upsert_port(ports: list[Document], port: Document) -> None:
    """Do so with a port: two without a name are held to be one."""
    for place, one in enumerate(ports):
        if one["containerPort"] == port["containerPort"] or one.get("name") == port.get("name"):
            ports[place] = port
            return
    ports.append(port)


def _tell_where_to_post(container: Document, pod: Document, name: str) -> None:
    volume = "kubeflow-trainer-token"
    server = "https://kubeflow-trainer-controller-manager.kubeflow-system.svc:10443"
    for ending, value in {
        "URL": server + STATUS_PATH.format(name=name),
        "CA_CERT": f"{STATUS_FOLDER}/ca.crt",
        "TOKEN": f"{STATUS_FOLDER}/token",
    }.items():
        _upsert(container["env"], {"name": f"KUBEFLOW_TRAINER_SERVER_{ending}", "value": value})
    mount = {"name": volume, "mountPath": STATUS_FOLDER, "readOnly": True}
    container["volumeMounts"].append(mount)
    path = f"trainer.kubeflow.org/v1alpha1/namespaces/default/trainjobs/{name}/status"
    token = {"audience": path, "expirationSeconds": 3600, "path": "token"}
    items = [{"key": "ca.crt", "path": "ca.crt"}]
    authority = {"name": f"{name}-tls-config", "items": items}
    sources = [{"serviceAccountToken": token}, {"configMap": authority}]
    pod["volumes"].append({"name": volume, "projected": {"sources": sources}})
