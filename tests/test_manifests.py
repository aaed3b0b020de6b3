"""The doctor of `k8s/`: what the manifests say must be what the job understands.

What needs kubectl and other tools is marked `checks` and run by `make check`, which installs them.
"""

import ast
import copy
import functools
import json
import os
import re
import subprocess
import tomllib
import zoneinfo
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import REPOSITORY

import job
from job import cli, errors, run
from job.config import RunConfig, check_run_id
from job.process import verdict
from job.results.publishing import RunFolder
from job.storage import parse

K8S = REPOSITORY / "k8s"
TOOLS = REPOSITORY / ".venv-checks" / "bin"
PLAIN = [*sorted(K8S.glob("*-*job.yaml")), K8S / "train-multiworker.yaml"]
COMPONENTS = sorted(path.parent for path in K8S.glob("components/*/kustomization.yaml"))
EXAMPLES = sorted(path.parent for path in K8S.glob("examples/*/kustomization.yaml"))
GKE_EXAMPLES = {path.name for path in EXAMPLES if "-gcs-" in path.name}

FAIL = {64, 65, 66, 73, 78}  # the Job ends: it will never succeed
IGNORE = {75, 143}  # another pod, and nothing is counted
COUNT = {70, 74, 77}  # another pod, until backoffLimit

# SIGTERM to exit: the longest of 32 at random moments, as `scripts/chaos/kill.py --kills 0` draws
# them, on two cores with three times their work; a cnn took less. Most of it is the import of
# TensorFlow and the compilation, which a signal waits for.
MEASURED_STOP_SECONDS = 13
# Once training has begun, with a store that doesn't answer: a chunk, all saving, the end's record.
PROMISED_STOP_SECONDS = 1 + 15 + run.END_SECONDS
# The longest that passes between two touches of the liveness file, apart from remote reads and
# writes, which --storage-timeout bounds: import and compilation, on a cold and busy node.
MEASURED_SILENCE_SECONDS = 60

# Each worker's watcher answers on the port after TensorFlow's.
WATCHER_OFFSET = 1

# Variables of others: read by the SDK of the cloud, not by the job.
CLOUD = {"AWS_REGION", "AWS_SHARED_CREDENTIALS_FILE"}
# Those that Kubeflow's Trainer puts into its pods.
TRAINER = {
    *("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"),
    *(f"KUBEFLOW_TRAINER_SERVER_{ending}" for ending in ("URL", "CA_CERT", "TOKEN")),
}

# Labels of nodes that GKE's Autopilot lets a pod ask for: its webhook lists them when it refuses.
AUTOPILOT_LABELS = {
    "cloud.google.com/compute-class",
    "cloud.google.com/gke-accelerator",
    "cloud.google.com/gke-spot",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
}
WHICH_GPU = "Autopilot must be told which GPU"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.load_all(path.read_text(), yaml.CSafeLoader))


@functools.cache
def variables_read() -> set[str]:
    """Return the variables of the environment that the source of the job names."""
    trees = [ast.parse(path.read_text()) for path in Path(job.__file__).parent.rglob("*.py")]
    texts = {
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {text for text in texts if re.fullmatch(r"(K8S|JOB|GIT)_[A-Z_]+", text)}


@functools.cache
def variables_of(command: str) -> set[str]:
    """Return the variables that the flags of `command` can be given by."""
    parameters = typer.main.get_command(cli.app).commands[command].params
    return {str(parameter.envvar) for parameter in parameters if parameter.envvar}


def kind(found: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [document for document in found if document["kind"] in kinds]


def job_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a Job, or of the Jobs of a CronJob."""
    spec = document["spec"]
    return spec["jobTemplate"]["spec"] if document["kind"] == "CronJob" else spec


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    return job_of(document)["template"]["spec"]


def container_of(document: dict[str, Any]) -> dict[str, Any]:
    [container] = pod_of(document)["containers"]
    return container


def environment_of(document: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a pod; of those that Kubernetes fills in, a likely value."""
    entries = container_of(document)["env"]
    return {entry["name"]: entry.get("value", "2") for entry in entries}


# --- the rules: each yields what is wrong -----------------------------------------------------

Rule = Callable[[dict[str, Any], list[dict[str, Any]]], Iterator[str]]


def exit_codes(workload: dict[str, Any], _: list[dict[str, Any]]) -> Iterator[str]:
    spec = job_of(workload)
    rules = spec["podFailurePolicy"]["rules"]
    actions = [rule["action"] for rule in rules]
    if actions[0] != "FailJob":
        yield "FailJob must come first, or a drained pod with a wrong flag is tried for ever"
    for action, codes in (("FailJob", FAIL), ("Ignore", IGNORE)):
        found = [
            set(rule["onExitCodes"]["values"])
            for rule in rules
            if rule["action"] == action and "onExitCodes" in rule
        ]
        if found != [codes]:
            yield f"{action} must name the exit codes {sorted(codes)}, not {found}"
    name = container_of(workload)["name"]
    if any(rule.get("onExitCodes", {}).get("containerName", name) != name for rule in rules):
        yield "the exit codes are of another container"
    disruption = {"type": "DisruptionTarget", "status": "True"}
    if {"action": "Ignore", "onPodConditions": [disruption]} not in rules:
        yield "DisruptionTarget must be ignored"
    if pod_of(workload)["restartPolicy"] != "Never":
        yield "podFailurePolicy demands restartPolicy Never"


def bounds(workload: dict[str, Any], _: list[dict[str, Any]]) -> Iterator[str]:
    spec = job_of(workload)
    if not spec["backoffLimit"] > 0:
        yield "with backoffLimit 0, a pod deleted by hand ends the Job"
    if not 0 < spec["activeDeadlineSeconds"] < 86_400:
        yield "activeDeadlineSeconds must end what ignored exits would go on with, within a day"
    if spec["ttlSecondsAfterFinished"] < 3_600:
        yield "a finished Job must be there to be looked at for an hour"
    longest = max(MEASURED_STOP_SECONDS, PROMISED_STOP_SECONDS)
    if not pod_of(workload)["terminationGracePeriodSeconds"] > longest:
        yield f"a stop takes up to {longest} s, the grace must be longer"
    if "lifecycle" in container_of(workload):
        yield "a hook before the stop takes of the grace"


def variables(workload: dict[str, Any], _: list[dict[str, Any]]) -> Iterator[str]:
    command, *words = container_of(workload)["args"]
    if words:
        yield f"flags are given as variables, which components can change, not as {words}"
    entries = [entry["name"] for entry in container_of(workload)["env"]]
    if len(entries) != len(set(entries)):
        yield f"a variable is given twice: {sorted(entries)}"
    known = variables_of(command) | variables_read() | CLOUD | TRAINER
    for name in environment_of(workload).keys() - known:
        yield f"nobody reads the variable {name}"
    for name in ("K8S_IMAGE", "K8S_JOB_NAME", "K8S_POD_NAME", "K8S_NODE_NAME", "K8S_CPU_LIMIT"):
        if name not in environment_of(workload):
            yield f"{name} is missing"


def paths(workload: dict[str, Any], found: list[dict[str, Any]]) -> Iterator[str]:
    container, pod = container_of(workload), pod_of(workload)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    if set(mounts.values()) != {volume["name"] for volume in pod["volumes"]}:
        yield "volumes and mounts are not the same"
    for name, value in environment_of(workload).items():
        if value.startswith("/") and not any(f"{value}/".startswith(f"{at}/") for at in mounts):
            yield f"{name} is {value}, where nothing is mounted and the root is read-only"
    if container["terminationMessagePath"] != verdict.KUBERNETES_LOG:
        yield "the job leaves its verdict elsewhere"
    claims = {claim["metadata"]["name"] for claim in kind(found, "PersistentVolumeClaim")}
    for volume in pod["volumes"]:
        if (claim := volume.get("persistentVolumeClaim", {}).get("claimName")) not in {
            *claims,
            None,
        }:
            yield f"there is no claim {claim}"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"the emptyDir {volume['name']} has no sizeLimit"


def liveness(workload: dict[str, Any], _: list[dict[str, Any]]) -> Iterator[str]:
    probe = container_of(workload)["livenessProbe"]
    matched = re.search(r"find (\S+) -mmin -(\d+)", " ".join(probe["exec"]["command"]))
    if matched is None:
        yield "the probe does not look at the age of a file"
        return
    if matched[1] != environment_of(workload).get("MNIST_JOB_LIVENESS_FILE"):
        yield f"the job does not touch {matched[1]}"
    if int(matched[2]) * 60 < 5 * MEASURED_SILENCE_SECONDS:
        yield f"a run may be silent for {MEASURED_SILENCE_SECONDS} s, five times that must be fine"
    if probe["initialDelaySeconds"] + probe["periodSeconds"] * (probe["failureThreshold"] - 1) < 60:
        yield "the probe ends a pod whose Python takes a minute to start"


def names(workload: dict[str, Any], _: list[dict[str, Any]]) -> Iterator[str]:
    name, longest = workload["metadata"]["name"], workload["metadata"]["name"]
    if workload["kind"] == "CronJob":
        longest += "-29408910"  # minutes since 1970, by which the controller names each Job
        if len(name) > 52:
            yield f"{name} is longer than the 52 characters of a CronJob's name"
    if len(f"{longest}-{job_of(workload).get('completions', 1) - 1}") > 63:
        yield f"{longest} is too long to be a pod's host name with its index"
    check_run_id(longest)


def schedule(workload: dict[str, Any], _: list[dict[str, Any]]) -> Iterator[str]:
    if workload["kind"] != "CronJob":
        return
    spec = workload["spec"]
    if spec["timeZone"] not in zoneinfo.available_timezones():
        yield f"there is no time zone {spec['timeZone']}"
    if spec["concurrencyPolicy"] != "Forbid":
        yield "two nights must not run at once"
    if not 10 < spec["startingDeadlineSeconds"] < 86_400:
        yield "startingDeadlineSeconds must be above the controller's own 10 s, and below a day"


def versions(workload: dict[str, Any], found: list[dict[str, Any]]) -> Iterator[str]:
    container = container_of(workload)
    gpu = "nvidia.com/gpu" in container["resources"]["limits"]
    image = f"mnist-job:{job.__version__}{'-gpu' if gpu else ''}"
    if container["image"] != image or environment_of(workload)["K8S_IMAGE"] != image:
        yield f"the image must be {image}, and K8S_IMAGE must say so"
    if container["imagePullPolicy"] != "IfNotPresent":
        yield "an image loaded into the nodes must be found there"
    ours = [document["metadata"] for document in found]
    labels = [one["labels"] for one in ours if "ownerReferences" not in one]  # else a controller's
    labels.append(job_of(workload)["template"]["metadata"]["labels"])
    for label in labels:
        wanted = {"app.kubernetes.io/name": "mnist-job", "app.kubernetes.io/part-of": "mnist-job"}
        wanted["app.kubernetes.io/version"] = job.__version__
        if not (wanted.items() <= label.items() and "app.kubernetes.io/component" in label):
            yield f"labels are {label}"


def hardening(workload: dict[str, Any], found: list[dict[str, Any]]) -> Iterator[str]:
    pod, container = pod_of(workload), container_of(workload)
    wanted = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
    wanted["seccompProfile"] = {"type": "RuntimeDefault"}
    if not wanted.items() <= pod["securityContext"].items():
        yield "the pod's securityContext is not that of the restricted standard"
    inner = container["securityContext"]
    if inner["capabilities"] != {"drop": ["ALL"]} or not inner["readOnlyRootFilesystem"]:
        yield "the container may do more than it needs"
    if inner["allowPrivilegeEscalation"] or inner["privileged"]:
        yield "the container may gain privileges"
    accounts = {one["metadata"]["name"]: one for one in kind(found, "ServiceAccount")}
    account = accounts.get(pod["serviceAccountName"], {})
    if account.get("automountServiceAccountToken") is not False:
        yield "the ServiceAccount must be one of its own, without a token"
    if pod["automountServiceAccountToken"] or pod["enableServiceLinks"]:
        yield "the pod gets a token or variables that it has no use for"
    for limit in ("cpu", "memory", "ephemeral-storage"):
        if any(limit not in container["resources"][part] for part in ("requests", "limits")):
            yield f"{limit} is not both requested and limited"
    if container["terminationMessagePolicy"] != "FallbackToLogsOnError":
        yield "a pod killed before its verdict must show its last lines"


def network(workload: dict[str, Any], found: list[dict[str, Any]]) -> Iterator[str]:
    labels = job_of(workload)["template"]["metadata"]["labels"].items()
    ports = {
        port["name"]: port["containerPort"]
        for port in container_of(workload).get("ports", [])
        if "name" in port
    }
    [policy] = kind(found, "NetworkPolicy")
    rules = policy["spec"].get("ingress", [])
    if policy["spec"]["policyTypes"] != ["Ingress"]:
        yield "the NetworkPolicy does not close the pods"
    if not policy["spec"]["podSelector"]["matchLabels"].items() <= labels:
        yield "the NetworkPolicy is for other pods"
    spec, environment = job_of(workload), environment_of(workload)
    if "K8S_WORKERS" not in environment:
        if ports or rules or "subdomain" in pod_of(workload):
            yield "one pod alone needs no port"
        return
    [service] = kind(found, "Service")
    peers = [{"podSelector": policy["spec"]["podSelector"]}]
    if rules != [{"from": peers, "ports": [{"protocol": "TCP", "port": name} for name in ports]}]:
        yield "the ports, without authentication, must be open to the same Job's pods alone"
    if not service["spec"]["selector"].items() <= labels:
        yield "the Service is for other pods"
    if service["spec"]["clusterIP"] != "None" or not service["spec"]["publishNotReadyAddresses"]:
        yield "the Service must give each pod a name at once"
    wanted = service["metadata"]["name"]
    if {pod_of(workload)["subdomain"], environment["K8S_SERVICE_NAME"]} != {wanted}:
        yield f"subdomain and K8S_SERVICE_NAME must be {wanted}"
    workers = {spec["completions"], spec["parallelism"], int(environment["K8S_WORKERS"])}
    if len(workers) != 1:
        yield f"completions, parallelism and K8S_WORKERS differ: {workers}"
    port = int(environment["K8S_WORKER_PORT"])
    needed = [port, port + WATCHER_OFFSET]
    # A headless Service without ports has the same names.
    served = [port["port"] for port in service["spec"].get("ports", [])] or needed
    if not needed == served == list(ports.values()):
        yield "the ports of the worker, the pod and the Service differ"
    if int(environment["MNIST_JOB_PEER_TIMEOUT"]) < spec["activeDeadlineSeconds"]:
        yield "a worker that waits gives its place away before the deadline"


def members(workload: dict[str, Any], _: list[dict[str, Any]]) -> Iterator[str]:
    spec, asked = job_of(workload), environment_of(workload).get("MNIST_JOB_ENSEMBLE")
    indexed = spec.get("completionMode") == "Indexed"
    if asked is not None and indexed and spec["completions"] != int(asked):
        yield "completions and MNIST_JOB_ENSEMBLE differ: who trains the last member?"


def trials(workload: dict[str, Any], _: list[dict[str, Any]]) -> Iterator[str]:
    if "MNIST_JOB_TRIALS" not in environment_of(workload):
        return
    spec = job_of(workload)
    if spec.get("completionMode") != "Indexed":
        yield "a pod without an index would run all trials"
    counted = {spec.get("completions"), int(environment_of(workload)["MNIST_JOB_TRIALS"])}
    if len(counted) != 1:
        yield f"completions and MNIST_JOB_TRIALS differ: {counted}"
    if "MNIST_JOB_TRIAL" in environment_of(workload):
        yield "with MNIST_JOB_TRIAL all pods would run the same trial"


def autopilot(workload: dict[str, Any]) -> Iterator[str]:
    """Yield what GKE's Autopilot would refuse, by its messages: no cluster was asked."""
    pod = pod_of(workload)
    asked = set(pod.get("nodeSelector", {}))
    nodes = pod.get("affinity", {}).get("nodeAffinity", {})
    terms = nodes.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    for term in terms.get("nodeSelectorTerms", []):
        asked |= {one["key"] for one in term["matchExpressions"]}
    for key in sorted(asked - AUTOPILOT_LABELS):
        yield f"Autopilot knows no label {key}"
    gpu = "nvidia.com/gpu" in container_of(workload)["resources"]["limits"]
    if not gpu and "nvidia.com/gpu" in {one["key"] for one in pod.get("tolerations", [])}:
        yield "Autopilot lets only a pod with a GPU tolerate one"
    if gpu and not asked & {"cloud.google.com/gke-accelerator", "cloud.google.com/compute-class"}:
        yield WHICH_GPU


RULES: list[Rule] = [
    exit_codes, bounds, variables, paths, liveness, names, schedule, versions, hardening, network,
    members, trials,
]  # fmt: skip


def faults(found: list[dict[str, Any]]) -> list[str]:
    """Return what the doctor has to say of the documents of one workload."""
    [workload] = kind(found, "Job", "CronJob")
    name = f"{workload['kind']}/{workload['metadata']['name']}"
    return [f"{name}: {fault}" for rule in RULES for fault in rule(workload, found)]


# --- the plain manifests ----------------------------------------------------------------------


def test_all_manifests_are_looked_at() -> None:
    listed = {path.name for path in PLAIN} | {"kustomization.yaml", ".checkov.yaml"}
    assert {path.name for path in K8S.glob("*.yaml")} == listed
    assert len(PLAIN) == 5


def test_every_exit_code_has_its_place_in_the_policy() -> None:
    tree = [errors.JobError, *errors.JobError.__subclasses__()]
    assert sorted(kind.exit_code for kind in tree) == sorted(FAIL | IGNORE | COUNT)
    table = (K8S / "README.md").read_text()
    for code in {0, 137, *FAIL, *IGNORE, *COUNT}:
        assert f"| {code} |" in table


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_the_doctor_finds_nothing(path: Path) -> None:
    assert faults(documents(path)) == []


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_the_first_lines_say_what_to_know(path: Path) -> None:
    head = path.read_text().partition("apiVersion")[0]
    for word in ("# Needs:", "# Does:", "# See:", "kubectl logs", "terminated.message"):
        assert word in head
    names_in_it = {document["metadata"]["name"] for document in documents(path)}
    assert len(names_in_it) == 1  # so that it can be applied and deleted beside the others
    assert names_in_it.pop() in head


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_the_job_accepts_what_the_manifest_gives(path, command, monkeypatch, tmp_path) -> None:
    """Starts the job with the pod's own arguments and variables, up to where work would begin."""
    seen = []

    def stop(output: str, name: str) -> None:
        seen.append((output, name))
        raise errors.TemporaryError("far enough")

    def train(config: RunConfig, *_: Any) -> None:
        stop(config.output, config.run_id)

    def retrain(plan: Any, config: RunConfig, *_: Any) -> None:
        stop(config.output, plan.night)

    monkeypatch.setattr(run, "train_run", train)

    def tune(study: Any, trial: int, *_: Any, **__: Any) -> None:
        assert trial == 2
        stop(study.output, study.name)

    monkeypatch.setattr("job.nightly.night.retrain", retrain)
    monkeypatch.setattr("job.tuning.trial.run_trial", tune)
    [workload] = kind(documents(path), "Job", "CronJob")
    for name, value in environment_of(workload).items():
        if name == "K8S_WORKERS":  # it would wait for its peers
            continue
        monkeypatch.setenv(name, re.sub("^/tmp(?=/)", str(tmp_path), value))
    if os.environ.get("MNIST_JOB_STRATEGY") == "multiworker":  # here it is alone
        monkeypatch.setenv("MNIST_JOB_STRATEGY", "auto")
    monkeypatch.setenv("K8S_JOB_NAME", workload["metadata"]["name"])
    if job_of(workload).get("completionMode") == "Indexed":
        monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    ended = command(*container_of(workload)["args"])
    assert ended.code == 75, ended.err
    assert seen == [("/runs", workload["metadata"]["name"])]


def test_versions_are_in_step() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == job.__version__
    for path in K8S.rglob("*"):
        if path.is_file():
            for found in re.findall(r"mnist-job:(\d+\.\d+\.\d+)", path.read_text()):
                assert found == job.__version__, path


# --- the doctor can find something ------------------------------------------------------------

BROKEN: list[tuple[str, str, Any, str]] = [
    ("train-job", "spec.podFailurePolicy.rules.0.onExitCodes.values", [64, 65], "FailJob"),
    ("train-job", "spec.podFailurePolicy.rules.0.action", "Ignore", "first"),
    ("train-job", "spec.podFailurePolicy.rules.1.onPodConditions.0.type", "Ready", "Disruption"),
    ("train-job", "spec.podFailurePolicy.rules.2.onExitCodes.values", [75], "Ignore"),
    ("train-job", "spec.podFailurePolicy.rules.2.onExitCodes.containerName", "x", "container"),
    ("train-job", "spec.backoffLimit", 0, "backoffLimit"),
    ("train-job", "spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds"),
    ("train-job", "spec.ttlSecondsAfterFinished", 1, "looked at"),
    ("train-job", "spec.template.spec.restartPolicy", "OnFailure", "restartPolicy"),
    ("train-job", "spec.template.spec.terminationGracePeriodSeconds", 21, "grace"),
    ("train-job", "spec.template.spec.containers.0.lifecycle", {"preStop": {}}, "hook"),
    ("train-job", "spec.template.spec.serviceAccountName", "default", "ServiceAccount"),
    ("train-job", "spec.template.spec.enableServiceLinks", True, "token"),
    ("train-job", "spec.template.spec.securityContext.runAsUser", 0, "restricted"),
    ("train-job", "spec.template.spec.containers.0.args", ["train", "--epochs=3"], "--epochs=3"),
    ("train-job", "spec.template.spec.containers.0.image", "mnist-job:9.9.9", "image"),
    ("train-job", "spec.template.spec.containers.0.imagePullPolicy", "Always", "nodes"),
    ("train-job", "spec.template.spec.containers.0.env.0.name", "MNIST_JOB_OUT", "nobody reads"),
    ("train-job", "spec.template.spec.containers.0.env.0.value", "/elsewhere", "mounted"),
    ("train-job", "spec.template.spec.containers.0.env.1.value", "/tmp/other", "touch"),
    ("train-job", "spec.template.spec.containers.0.env.1.name", "MNIST_JOB_OUTPUT", "twice"),
    ("train-job", "spec.template.spec.containers.0.env.3.name", "K8S_JOB", "K8S_JOB_NAME"),
    ("train-job", "spec.template.spec.containers.0.livenessProbe.exec.command", ["true"], "age"),
    (
        "train-job", "spec.template.spec.containers.0.livenessProbe.exec.command",
        ["find /tmp/alive -mmin -1"], "silent",
    ),
    ("train-job", "spec.template.spec.containers.0.livenessProbe.failureThreshold", 1, "start"),
    ("train-job", "spec.template.spec.containers.0.resources.limits", {}, "limited"),
    ("train-job", "spec.template.spec.subdomain", "x", "needs no port"),
    ("train-job", "spec.template.spec.containers.0.terminationMessagePath", "/x", "verdict"),
    ("train-job", "spec.template.spec.containers.0.terminationMessagePolicy", "File", "lines"),
    ("train-job", "spec.template.spec.containers.0.securityContext.privileged", True, "gain"),
    ("train-job", "spec.template.spec.containers.0.securityContext.capabilities", {}, "more"),
    ("train-job", "spec.template.spec.volumes.0.emptyDir", {}, "sizeLimit"),
    ("train-job", "spec.template.spec.volumes.1.persistentVolumeClaim.claimName", "x", "claim"),
    ("train-job", "spec.template.spec.volumes.1.name", "x", "mounts"),
    ("train-job", "spec.template.metadata.labels", {}, "labels"),
    ("train-job", "metadata.name", "x" * 63, "host name"),
    ("nightly-cronjob", "metadata.name", "x" * 53, "52"),
    ("nightly-cronjob", "spec.timeZone", "Europe/Atlantis", "Atlantis"),
    ("nightly-cronjob", "spec.concurrencyPolicy", "Allow", "at once"),
    ("nightly-cronjob", "spec.startingDeadlineSeconds", 5, "startingDeadlineSeconds"),
    ("train-multiworker", "spec.completions", 3, "K8S_WORKERS"),
    ("tune-job", "spec.completions", 3, "MNIST_JOB_TRIALS"),
    ("tune-job", "spec.completionMode", "NonIndexed", "index"),
    ("tune-job", "spec.template.spec.containers.0.env.3.name", "MNIST_JOB_TRIAL", "the same trial"),
    ("tune-job", "spec.template.spec.subdomain", "x", "needs no port"),
    ("train-multiworker", "spec.template.spec.subdomain", "x", "subdomain"),
    ("train-multiworker", "spec.template.spec.containers.0.ports.0.containerPort", 1, "ports"),
    ("train-multiworker", "spec.template.spec.containers.0.ports.1.name", "x", "alone"),
    ("train-multiworker", "spec.template.spec.containers.0.env.3.value", "300", "its place away"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "where", "value", "word"), BROKEN)
def test_the_doctor_sees_what_is_broken(name: str, where: str, value: Any, word: str) -> None:
    found = copy.deepcopy(documents(K8S / f"{name}.yaml"))
    [place] = kind(found, "Job", "CronJob")
    *path, last = [int(step) if step.isdigit() else step for step in where.split(".")]
    for step in path:
        place = place[step]
    place[last] = value
    said = faults(found)
    assert any(word in fault for fault in said), said


def test_the_doctor_counts_the_members_of_an_ensemble() -> None:
    found = documents(K8S / "train-job.yaml")
    [workload] = kind(found, "Job")
    workload["spec"] |= {"completionMode": "Indexed", "completions": 3, "parallelism": 3}
    asked = {"name": "MNIST_JOB_ENSEMBLE", "value": "3"}
    container_of(workload)["env"].append(asked)
    assert faults(found) == []  # nor does it want a Service: each pod trains alone
    asked["value"] = "4"
    assert any("the last member" in fault for fault in faults(found))


@pytest.mark.parametrize(
    ("where", "value", "word"),
    [
        ("nodeSelector", {"iam.gke.io/gke-metadata-server-enabled": "true"}, "no label iam.gke.io"),
        ("tolerations", [{"key": "nvidia.com/gpu", "operator": "Exists"}], "tolerate"),
        ("nodeSelector", {"cloud.google.com/gke-spot": "true"}, ""),
    ],
)
def test_the_doctor_knows_what_autopilot_refuses(where: str, value: Any, word: str) -> None:
    [workload] = kind(documents(K8S / "train-job.yaml"), "Job")
    assert list(autopilot(workload)) == []
    pod_of(workload)[where] = value
    said = list(autopilot(workload))
    assert [word in fault for fault in said] == ([True] if word else [])


# --- with the tools of `make check` -----------------------------------------------------------


def render(folder: Path) -> list[dict[str, Any]]:
    words = ["kustomize", "--load-restrictor", "LoadRestrictionsNone", str(folder)]
    ended = tool("kubectl", *words)
    assert ended.returncode == 0, ended.stderr
    return list(yaml.load_all(ended.stdout, yaml.CSafeLoader))


def tool(name: str, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    assert (TOOLS / name).exists(), f"{name} is not in .venv-checks: `make check` installs it"
    command = [str(TOOLS / name), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **more)


def components_together() -> list[tuple[str, ...]]:
    """Return all sets of components that make sense: output in one place, GKE's with Google's."""
    names_of_all = [path.name for path in COMPONENTS if path.name != "monitoring"]
    sets = [chosen for size in range(6) for chosen in combinations(names_of_all, size)]
    apart = [{"s3", "gcs"}, {"spot", "spot-gke"}]
    sets = [chosen for chosen in sets if not any(pair <= set(chosen) for pair in apart)]
    sets = [chosen for chosen in sets if "gcs" in chosen or "spot-gke" not in chosen]
    # It touches nothing that the others do: alone, and after all that go together.
    ends = {0, max(map(len, sets))}
    return sets + [(*chosen, "monitoring") for chosen in sets if len(chosen) in ends]


def compose(folder: Path, plain: Path, chosen: Iterable[str]) -> list[dict[str, Any]]:
    """Return what a kustomization in the new `folder`, of a manifest and components, leads to."""
    folder.mkdir()
    written = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(plain)],
        "components": [os.path.relpath(K8S / "components" / one, folder) for one in chosen],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(written))
    return render(folder)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return files with all that the examples and all sets of components lead to, by name."""
    folder = tmp_path_factory.mktemp("rendered")
    found = {path.name: render(path) for path in (K8S, *EXAMPLES)}
    for path in PLAIN:
        for chosen in components_together():
            name = "-".join([path.stem, "with", *chosen])
            found[name] = compose(folder / name, path, chosen)
    files = {name: folder / f"{name}.yaml" for name in found}
    for name, documents_of_it in found.items():
        files[name].write_text(yaml.dump_all(documents_of_it, Dumper=yaml.CSafeDumper))
    return files


@pytest.mark.checks
def test_the_doctor_finds_nothing_in_what_is_rendered(rendered) -> None:
    assert len(rendered) == 1 + len(EXAMPLES) + 5 * 32
    said = {name: faults(documents(path)) for name, path in rendered.items()}
    assert {name: fault for name, fault in said.items() if fault} == {}


@pytest.mark.checks
def test_components_do_what_they_are_for(rendered) -> None:
    for name, path in rendered.items():
        [workload] = kind(documents(path), "Job", "CronJob")
        pod, environment = pod_of(workload), environment_of(workload)
        affinity = pod.get("affinity", {})
        chosen = set(name.partition("with")[2].split("-")) if "with" in name else None
        if chosen is None:
            continue
        stored = bool(chosen & {"s3", "gcs"})
        assert stored == (not kind(documents(path), "PersistentVolumeClaim"))
        assert stored == ("://" in environment["MNIST_JOB_OUTPUT"])
        several = "multiworker" in name or "tune" in name
        assert ("podAffinity" in affinity) == (several and not stored)
        assert ("nodeAffinity" in affinity) == ("spot" in chosen)
        assert job_of(workload).get("suspend", False) == ("kueue" in chosen)
        gpu = "gpu" in chosen or "gpu" in name.partition("with")[0]
        tolerated = {one["key"] for one in pod.get("tolerations", [])}
        assert gpu == ("nvidia.com/gpu" in tolerated)
        assert ("spot" in chosen) == ("cloud.google.com/gke-spot" in tolerated)
        assert gpu == ("nvidia.com/gpu" in container_of(workload)["resources"]["limits"])
        watched = "monitoring" in chosen
        assert watched == bool(kind(documents(path), "PrometheusRule"))
        boards = [one["data"] for one in kind(documents(path), "ConfigMap")]
        assert [list(board) for board in boards] == [["mnist-job.json"]] * watched
        pushes = "MNIST_JOB_PUSHGATEWAY" in environment
        assert pushes == (watched and "tune-job" not in name)  # a study has nothing to push


@pytest.mark.checks
def test_components_may_be_named_in_any_order(tmp_path) -> None:
    chosen = ["gpu", "gcs", "spot-gke", "kueue"]
    pods = []
    for name, words in (("forwards", chosen), ("backwards", reversed(chosen))):
        found = compose(tmp_path / name, K8S / "train-multiworker.yaml", words)
        assert faults(found) == []
        [workload] = kind(found, "Job")
        pod = pod_of(workload)
        pod["tolerations"].sort(key=lambda one: one["key"])
        container_of(workload)["env"].sort(key=lambda one: one["name"])
        pods.append(pod)
    assert pods[0] == pods[1]


@pytest.mark.checks
def test_gke_autopilot_refuses_nothing_but_the_spot_of_all_clouds(rendered) -> None:
    for name, path in rendered.items():
        [workload] = kind(documents(path), "Job", "CronJob")
        said = list(autopilot(workload))
        if "-spot" in name and "spot-gke" not in name and name not in GKE_EXAMPLES:
            assert "Autopilot knows no label eks.amazonaws.com/capacityType" in said, name
        else:  # the README of the component tells how to say which
            assert said == ([WHICH_GPU] if "gpu" in name else []), name


@pytest.mark.checks
@pytest.mark.parametrize("version", ["1.35", "1.36", "1.37"])
def test_strict_schemas_accept_all(rendered, version, tmp_path) -> None:
    files = [str(known(path, tmp_path)) for path in (*PLAIN, *rendered.values())]
    ended = tool("kubernetes-validate", "--strict", "--quiet", "-k", version, *files)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def known(path: Path, folder: Path) -> Path:
    """Return a file without what only operators' schemas know: test_monitoring.py looks at that."""
    if "monitoring.coreos.com" not in path.read_text():
        return path
    found = [one for one in documents(path) if "monitoring.coreos.com" not in one["apiVersion"]]
    (folder / path.name).write_text(yaml.dump_all(found, Dumper=yaml.CSafeDumper))
    return folder / path.name


@pytest.mark.checks
def test_the_versions_are_the_newest_three_there_are() -> None:
    asked = "from kubernetes_validate import utils; print(*utils.all_versions())"
    known = tool("python", "-c", asked).stdout.split()
    [mark] = [m for m in test_strict_schemas_accept_all.pytestmark if m.name == "parametrize"]
    numbers = sorted({tuple(map(int, version.split(".")[:2])) for version in known})
    assert [".".join(map(str, number)) for number in numbers[-3:]] == mark.args[1]


@pytest.mark.checks
def test_strict_schemas_refuse_a_misspelt_field(tmp_path) -> None:
    text = (K8S / "train-job.yaml").read_text()
    (tmp_path / "bad.yaml").write_text(text.replace("backoffLimit", "backofLimit"))
    ended = tool("kubernetes-validate", "--strict", "--quiet", str(tmp_path / "bad.yaml"))
    assert ended.returncode != 0


@pytest.mark.checks
def test_checkov_finds_nothing(rendered, tmp_path) -> None:
    """Plain manifests, examples and the Dockerfile; each check left out has its reason there."""
    folder = tmp_path / "all"
    folder.mkdir()
    for path in PLAIN:
        (folder / path.name).write_text(path.read_text())
    for path in EXAMPLES:
        (folder / f"{path.name}.yaml").write_text(rendered[path.name].read_text())
    (folder / "Dockerfile").write_text((REPOSITORY / "Dockerfile").read_text())
    assert checkov(folder) == []


@pytest.mark.checks
def test_checkov_finds_what_is_wrong(tmp_path) -> None:
    text = (K8S / "train-job.yaml").read_text()
    (tmp_path / "bad.yaml").write_text(text.replace("privileged: false", "privileged: true"))
    assert "CKV_K8S_16" in checkov(tmp_path)


def checkov(folder: Path) -> list[str]:
    """Return the ids of the checks that fail in `folder`."""
    words = ["--directory", str(folder), "--config-file", str(K8S / ".checkov.yaml")]
    ended = tool("checkov", *words)
    summary = re.search(r"Passed checks: (\d+), Failed checks: (\d+)", ended.stdout)
    assert summary, ended.stdout + ended.stderr
    failed = re.findall(r"Check: (\w+):[^\n]*\n\s+FAILED", ended.stdout)
    assert bool(failed) == bool(ended.returncode), ended.stdout
    return failed


@pytest.mark.checks
def test_hadolint_finds_nothing() -> None:
    ended = tool("hadolint", str(REPOSITORY / "Dockerfile"))
    assert ended.returncode == 0, ended.stdout


@pytest.mark.checks
def test_hadolint_finds_what_is_wrong(tmp_path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && sudo ls\n")
    assert tool("hadolint", str(tmp_path / "Dockerfile")).returncode != 0


# --- what others start ------------------------------------------------------------------------


def test_argo_tries_again_what_a_job_would_without_counting() -> None:
    [workflow] = documents(K8S / "argo" / "workflow.yaml")
    [template] = workflow["spec"]["templates"]
    expression = template["retryStrategy"]["expression"]
    assert expression.startswith(f"asInt(lastRetry.exitCode) in {sorted(IGNORE)} || ")
    container = template["container"]
    entry = re.search(r"^ENTRYPOINT (.+)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert entry
    assert container["command"] == json.loads(entry[1])
    names = {entry["name"] for entry in container["env"]}
    assert names <= variables_of("train") | variables_read()
    [plain] = kind(documents(K8S / "train-job.yaml"), "Job")
    assert container["securityContext"] == container_of(plain)["securityContext"]
    assert container["resources"] == container_of(plain)["resources"]
    own = {"fsGroupChangePolicy"}  # which an emptyDir needs not
    wanted = pod_of(plain)["securityContext"]
    assert workflow["spec"]["securityContext"] == {
        name: value for name, value in wanted.items() if name not in own
    }


def test_skypilot_tries_again_what_a_job_would_without_counting() -> None:
    [task] = documents(K8S / "skypilot" / "train.yaml")
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == sorted(IGNORE)
    assert "max_restarts_on_errors" not in recovery  # 64 would be tried again as well
    assert task["envs"].keys() <= variables_of("train")
    # Its exit code is the job's: neither make nor another command comes between.
    assert task["run"].startswith("exec .venv/bin/mnist-job train ")


# --- the texts beside them --------------------------------------------------------------------


@pytest.mark.parametrize("path", [*COMPONENTS, *EXAMPLES], ids=lambda path: path.name)
def test_components_and_examples_are_told_of(path: Path) -> None:
    assert f"`{path.name}`" in (K8S / "README.md").read_text()
    if path in COMPONENTS:
        assert (path / "README.md").read_text().startswith(f"# {path.name}: ")
    else:
        assert f"k8s/examples/{path.name} |" in (path / "kustomization.yaml").read_text()


def look_pod() -> str:
    """Return the pod that README.md looks at files with."""
    _, _, rest = (K8S / "README.md").read_text().partition("kubectl apply -f - <<'END'\n")
    return rest.partition("END\n")[0]


def test_the_pod_for_looking_at_files_is_gone_at_once_and_sees_the_volume() -> None:
    pod = yaml.safe_load(look_pod())
    assert pod["spec"]["terminationGracePeriodSeconds"] == 0  # `sleep` as PID 1 ignores SIGTERM
    claims = {
        claim["metadata"]["name"]
        for claim in kind(documents(K8S / "train-job.yaml"), "PersistentVolumeClaim")
    }
    claimed = {one["persistentVolumeClaim"]["claimName"] for one in pod["spec"]["volumes"]}
    assert claimed <= claims


@pytest.mark.checks
def test_strict_schemas_accept_the_pod_for_looking_at_files(tmp_path) -> None:
    (tmp_path / "look.yaml").write_text(look_pod())
    ended = tool("kubernetes-validate", "--strict", "--quiet", str(tmp_path / "look.yaml"))
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("name", ["job", "cronjob"])
def test_the_place_of_another_stores_address_is_shown(name: str) -> None:
    """Without the two signs that make it a comment, it is a variable of the job's container."""
    text = (K8S / "components" / "s3" / f"{name}.yaml").read_text()
    shown = re.sub(
        r"^( +)# (- name: AWS_ENDPOINT_URL|  value: https://)", r"\1\2", text, flags=re.MULTILINE
    )
    [entry] = [
        entry
        for entry in container_of(yaml.safe_load(shown))["env"]
        if entry["name"] == "AWS_ENDPOINT_URL"
    ]
    assert entry["value"].startswith("https://")


def test_where_no_node_has_a_gpu_is_told_with_the_event_to_look_for() -> None:
    """Such a pod never runs, so it can't say so itself."""
    for path in (
        K8S / "README.md",
        K8S / "train-gpu-job.yaml",
        K8S / "components" / "gpu" / "README.md",
    ):
        for words in ("FailedScheduling", "Insufficient nvidia.com/gpu", "Pending"):
            assert words in path.read_text()


def test_how_long_credentials_may_take_is_told() -> None:
    """The controller waits 10 s before the second pod, and each time twice as long."""
    [workload] = kind(documents(K8S / "train-job.yaml"), "Job")
    limit = workload["spec"]["backoffLimit"]
    text = " ".join((K8S / "README.md").read_text().split())
    waits = [10 * 2**number for number in range(limit)]
    listed = ", ".join(f"{wait} s" for wait in waits[:-1]) + f" and {waits[-1]} s"
    assert f"With `backoffLimit: {limit}` the Job waits {listed} between" in text
    assert f"between its pods, {sum(waits)} s in all" in text
    [(more, seconds)] = re.findall(r"raise `backoffLimit`: (\d+) waits (\d+) s", text)
    assert sum(10 * 2**number for number in range(int(more))) == int(seconds)


def test_the_verdict_that_outlives_its_pod_is_told_by_its_name() -> None:
    folder = RunFolder(parse("/runs/r"))
    text = (K8S / "README.md").read_text()
    for place in (folder.attempt(1), folder.attempt_end(1), folder.metrics):
        assert f"\n{str(place).replace('/runs/r', '<run>')} " in text


def test_what_a_stop_takes_is_told_as_it_is_counted() -> None:
    told = f"| what a stop takes | {PROMISED_STOP_SECONDS:.0f} s at most, once training has begun |"
    assert told in (K8S / "README.md").read_text()
    for name in ("job", "cronjob"):  # the shortest grace there is
        pod = pod_of(yaml.safe_load((K8S / "components" / "spot" / f"{name}.yaml").read_text()))
        assert pod["terminationGracePeriodSeconds"] > PROMISED_STOP_SECONDS
