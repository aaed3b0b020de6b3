"""`k8s/trainer` and `k8s/jobset`: what becomes of them is a Job that the doctor finds nothing in.

What needs tools is marked `checks` and run by `make check`, as in test_manifests.py.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import authority
import controllers
import listening
import pytest
import yaml
from conftest import free_ports
from test_manifests import K8S, checkov, container_of, documents, faults, kind, tool

from job import errors, run
from job.errors import ClusterError
from job.workers.cluster import Cluster

RUNTIME = K8S / "trainer" / "runtime.yaml"
TRAINJOBS = [K8S / "trainer" / "trainjob.yaml", K8S / "trainer" / "trainjob-multiworker.yaml"]
JOBSET = K8S / "jobset" / "train-multiworker.yaml"
APPLIED = [*TRAINJOBS, JOBSET]

Document = dict[str, Any]


def runtime() -> Document:
    [found] = documents(RUNTIME)
    return found


def made_of(path: Path, *, tells_progress: bool = False) -> list[Document]:
    """Return what lies in a namespace once a file is applied, and the controllers have worked."""
    found = documents(path)
    [asked] = kind(found, "TrainJob", "JobSet")
    rest = [one for one in found if one is not asked]
    return rest + made_by(asked, tells_progress=tells_progress)


def made_by(asked: Document, *, tells_progress: bool = False) -> list[Document]:
    if asked["kind"] == "TrainJob":
        asked = controllers.jobset_of(asked, runtime(), tells_progress=tells_progress)
    return controllers.objects_of(asked)


def diagnosis(path: Path, *, tells_progress: bool = False) -> list[str]:
    """Return what the doctor says of the Job that a file leads to."""
    found = copy.deepcopy(made_of(path, tells_progress=tells_progress))
    [job] = kind(found, "Job")
    entries = controllers.environment(job, 0).items()
    container_of(job)["env"] = [{"name": name, "value": value} for name, value in entries]
    [asked] = kind(documents(path), "TrainJob", "JobSet")
    told = asked if asked["kind"] == "JobSet" else runtime()["spec"]["template"]
    # A JobSet that is over is kept as long as this says, and with it its Job.
    job["spec"]["ttlSecondsAfterFinished"] = told["spec"]["ttlSecondsAfterFinished"]
    return faults(found)


def workers_of(asked: Document) -> list[Cluster]:
    [job] = kind(made_by(asked), "Job")
    count = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == count
    return [Cluster.from_environment(controllers.environment(job, i)) for i in range(count)]


# --- what pods are told -----------------------------------------------------------------------


@pytest.mark.parametrize("path", APPLIED, ids=lambda path: path.stem)
@pytest.mark.parametrize("tells_progress", [False, True])
def test_the_doctor_finds_nothing(path: Path, tells_progress: bool) -> None:
    assert diagnosis(path, tells_progress=tells_progress) == []


def test_pods_of_a_trainjob_find_each_other() -> None:
    [asked] = kind(documents(TRAINJOBS[1]), "TrainJob")
    first, second = workers_of(asked)
    name = "mnist-trainjob-multiworker"
    assert first.workers.addresses == second.workers.addresses
    assert first.workers.addresses == (
        f"{name}-node-0-0.{name}:2222",
        f"{name}-node-0-1.{name}:2222",
    )
    assert (first.workers.index, second.workers.index) == (0, 1)
    assert first.pod == f"{name}-node-0-0-abcde"
    assert first.cpu_limit == 2


def test_pods_of_a_jobset_find_each_other() -> None:
    [asked] = kind(documents(JOBSET), "JobSet")
    addresses = (
        "mnist-jobset-worker-0-0.mnist-jobset:2222",
        "mnist-jobset-worker-0-1.mnist-jobset:2222",
    )
    for index, cluster in enumerate(workers_of(asked)):
        assert (cluster.workers.addresses, cluster.workers.index) == (addresses, index)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_number_of_nodes_is_the_only_thing_to_change(count: int) -> None:
    [asked] = kind(documents(TRAINJOBS[0]), "TrainJob")
    asked["spec"]["trainer"]["numNodes"] = count
    found = workers_of(asked)
    assert [cluster.workers.count for cluster in found] == [count] * count
    assert [cluster.workers.index for cluster in found] == list(range(count))


def test_a_trainjob_without_a_word_on_its_trainer_is_one_worker() -> None:
    [asked] = kind(documents(TRAINJOBS[0]), "TrainJob")
    [said] = workers_of(asked)
    del asked["spec"]["trainer"]
    [unsaid] = workers_of(asked)
    assert said.workers.count == unsaid.workers.count == 1
    assert said.completion_index is None  # an ensemble there is all of it, not its first member


def test_a_number_that_is_not_understood_ends_the_job_and_trains_nothing_alone() -> None:
    """As where K8S_WORKERS stood first, or a Trainer had another name for the number."""
    [job] = kind(made_of(TRAINJOBS[1]), "Job")
    container_of(job)["env"].sort(key=lambda entry: entry["name"] == "JAX_NUM_PROCESSES")
    with pytest.raises(ClusterError, match=r"K8S_WORKERS must be .* not '\$\(JAX_NUM_PROCESSES\)'"):
        Cluster.from_environment(controllers.environment(job, 0))


@pytest.mark.parametrize("path", APPLIED, ids=lambda path: path.stem)
def test_the_job_accepts_what_a_pod_is_given(path, command, monkeypatch, tmp_path) -> None:
    seen = []

    def train(config, *_: Any) -> None:
        seen.append((config.output, config.run_id, config.epochs))
        raise errors.TemporaryError("far enough")

    monkeypatch.setattr(run, "train_run", train)
    found = made_of(path)
    [job] = kind(found, "Job")
    for name, value in controllers.environment(job, 0).items():
        monkeypatch.setenv(name, value.replace("/tmp/", f"{tmp_path}/"))
    monkeypatch.setenv("K8S_WORKERS", "1")  # it would wait for its peers
    ended = command(*container_of(job)["args"])
    assert ended.code == 75, ended.err
    [asked] = kind(documents(path), "TrainJob", "JobSet")
    assert seen == [("/runs", asked["metadata"]["name"], 10)]
    assert "unknown_variable" not in ended.out


@pytest.mark.parametrize("path", APPLIED, ids=lambda path: path.stem)
def test_the_first_lines_say_what_to_know(path: Path) -> None:
    head = path.read_text().partition("apiVersion")[0]
    for word in ("# Needs:", "# Does:", "# See:", "kubectl logs", "terminated.message"):
        assert word in head
    [name] = {document["metadata"]["name"] for document in documents(path)}
    assert name in head
    assert str(path.relative_to(K8S.parent)) in (K8S / "README.md").read_text()


def test_all_files_are_looked_at() -> None:
    there = {*K8S.glob("trainer/*"), *K8S.glob("jobset/*")}
    assert there == {RUNTIME, *APPLIED}


# --- the doctor can find something ------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "before", "after", "word"),
    [
        (RUNTIME, "values: [75, 143]", "values: [75]", "Ignore"),
        (RUNTIME, "containerName: node", "containerName: job", "another container"),
        (RUNTIME, "runAsUser: 10001", "runAsUser: 0", "restricted"),
        (RUNTIME, "- name: tensorflow\n                          containerPort", "- containerPort",
         "ports"),
        (RUNTIME, "restartPolicy: Never", "restartPolicy: OnFailure", "restartPolicy"),
        (RUNTIME, 'value: "7200"', 'value: "300"', "its place away"),
        (RUNTIME, "value: $(JAX_NUM_PROCESSES)", 'value: "1"', "K8S_WORKERS differ"),
        (TRAINJOBS[1], "mountPath: /runs", "mountPath: /run", "mounted"),
        (TRAINJOBS[1], "name: MNIST_JOB_EPOCHS", "name: MNIST_JOB_EPOCH", "nobody reads"),
        (TRAINJOBS[1], "serviceAccountName: mnist", "serviceAccountName: most", "ServiceAccount"),
        (TRAINJOBS[1], "jobset-name: mnist", "jobset-name: most", "for other pods"),
        (JOBSET, 'value: "2"', 'value: "3"', "K8S_WORKERS differ"),
        (JOBSET, "containerPort: 2223", "containerPort: 2224", "ports"),
    ],
)  # fmt: skip
def test_the_doctor_sees_what_is_broken(path, before, after, word, tmp_path, monkeypatch) -> None:
    assert before in path.read_text()
    broken = tmp_path / path.name
    broken.write_text(path.read_text().replace(before, after))
    if path == RUNTIME:
        monkeypatch.setattr(f"{__name__}.RUNTIME", broken)
        said = diagnosis(TRAINJOBS[1])
    else:
        said = diagnosis(broken)
    assert any(word in fault for fault in said), said


# --- with the tools of `make check` -----------------------------------------------------------


def unknown(*paths: Path, folder: Path) -> str:
    """Return what the types of Trainer and JobSet say of files."""
    files = []
    for path in paths:
        files.append(folder / f"{path.parent.name}-{path.stem}.json")
        files[-1].write_text(json.dumps(documents(path)))
    script = Path(__file__).with_name("kubeflow_types.py")
    ended = tool("python", str(script), *map(str, files))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("looked at") == len(paths)
    return ended.stdout


@pytest.mark.checks
def test_the_types_of_trainer_and_jobset_know_every_field(tmp_path) -> None:
    assert unknown(RUNTIME, *APPLIED, folder=tmp_path) == ""


@pytest.mark.checks
@pytest.mark.parametrize(
    ("path", "before", "after", "word"),
    [
        (RUNTIME, "numNodes: 1", "numNode: 1", "mlPolicy.numNode is not known"),
        (RUNTIME, "backoffLimit", "backofLimit", "backofLimit is not known"),
        (RUNTIME, "jax: {}", "tensorflow: {}", "mlPolicy.tensorflow is not known"),
        (TRAINJOBS[0], "claimName", "claim", "claim"),
        (TRAINJOBS[0], "numNodes: 1", 'numNodes: "1"', "numNodes"),
        (TRAINJOBS[0], "runtimePatches", "podTemplateOverrides", "is not known"),
        (JOBSET, "podFailurePolicy:", "podFailurePolicies:", "podFailurePolicies is not known"),
        (JOBSET, "  replicatedJobs", "  jobs", "spec.jobs is not known"),
    ],
)  # fmt: skip
def test_the_types_refuse_what_is_misspelt(path, before, after, word, tmp_path) -> None:
    text = path.read_text()
    assert before in text
    broken = tmp_path / "broken" / path.name
    broken.parent.mkdir()
    broken.write_text(text.replace(before, after))
    assert word in unknown(broken, folder=tmp_path)


def rendered(folder: Path) -> list[Path]:
    """Write what Kubernetes itself gets to see, each in a file of its own."""
    files = []
    for path in APPLIED:
        found = made_of(path, tells_progress=True)
        for one in found:
            one["metadata"].pop("ownerReferences", None)
        files.append(folder / f"{path.parent.name}-{path.name}")
        files[-1].write_text(yaml.dump_all(found, Dumper=yaml.CSafeDumper))
    return files


@pytest.mark.checks
@pytest.mark.parametrize("version", ["1.35", "1.36", "1.37"])
def test_strict_schemas_accept_what_comes_of_them(version, tmp_path) -> None:
    files = map(str, rendered(tmp_path))
    ended = tool("kubernetes-validate", "--strict", "--quiet", "-k", version, *files)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.checks
def test_checkov_finds_nothing_in_what_comes_of_them(tmp_path) -> None:
    rendered(tmp_path)
    assert checkov(tmp_path) == []


# --- two workers, really ----------------------------------------------------------------------


@pytest.mark.slow
def test_two_pods_of_a_trainjob_train_one_model_and_the_chief_tells_the_trainer(
    small_mnist, tmp_path
) -> None:
    """As pods, but for their names, which only a cluster resolves: TF_CONFIG gives loopback's."""
    bundle, chain = authority.certificates(tmp_path)
    (tmp_path / "token").write_text("token-of-the-pod")
    [job] = kind(made_of(TRAINJOBS[1], tells_progress=True), "Job")
    name = "mnist-trainjob-multiworker"
    path = controllers.STATUS_PATH.format(name=name)
    answer = listening.status(200, body=b"{}")
    with listening.server(answer, path, chain) as (url, requests):
        here = {
            "KUBEFLOW_TRAINER_SERVER_URL": url,
            "KUBEFLOW_TRAINER_SERVER_CA_CERT": str(bundle),
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(tmp_path / "token"),
            "MNIST_JOB_OUTPUT": str(tmp_path / "runs"),
            "MNIST_JOB_LIVENESS_FILE": str(tmp_path / "alive"),
            "MNIST_JOB_DATA": small_mnist,
        }
        ports = free_ports(2)
        processes = []
        for index in range(2):
            told = controllers.environment(job, index)
            workers = Cluster.from_environment(told).workers
            hosts = [address.rpartition(":")[0] for address in workers.addresses]
            assert hosts == [f"{name}-node-0-{i}.{name}" for i in range(2)]
            task = {"type": "worker", "index": workers.index}
            config = {"cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]}, "task": task}
            variables = told | here | {"TF_CONFIG": json.dumps(config)}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "job", *container_of(job)["args"]],
                    env=os.environ | variables,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    metrics = json.loads((tmp_path / "runs" / name / "metrics.json").read_text())
    assert metrics["train"]["epochs"] == 10
    assert [text.count('"event": "progress_posted"') for text in said] == [1, 0]
    assert {asked.path for asked in requests} == {path}
    shown = [json.loads(asked.body)["trainerStatus"]["progressPercentage"] for asked in requests]
    assert shown == sorted(shown)
    assert shown.count(100) == 1
    assert "token-of-the-pod" not in "".join(said)
