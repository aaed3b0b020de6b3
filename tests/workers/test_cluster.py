"""The job's place in a cluster comes from the environment that is passed in, and nowhere else."""

import json
from dataclasses import FrozenInstanceError, asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.errors import ClusterError
from job.workers.cluster import Cluster, Workers

VARIABLES = {
    "job": "K8S_JOB_NAME",
    "pod": "K8S_POD_NAME",
    "node": "K8S_NODE_NAME",
    "image": "K8S_IMAGE",
}


def test_a_laptop_is_no_cluster() -> None:
    assert Cluster.from_environment({}) == Cluster(job=None, pod=None, node=None, image=None)


def test_every_field_has_its_variable() -> None:
    assert set(Cluster().names) == set(VARIABLES)
    assert set(asdict(Cluster())) == {*VARIABLES, "cpu_limit", "workers", "completion_index"}


@pytest.mark.parametrize("field", VARIABLES)
def test_a_variable_fills_its_field_and_no_other(field: str) -> None:
    found = Cluster.from_environment({VARIABLES[field]: "mnist-x7", "PATH": "/bin"})
    assert found.names == dict.fromkeys(VARIABLES) | {field: "mnist-x7"}


@pytest.mark.parametrize("field", VARIABLES)
def test_an_empty_variable_counts_as_unset(field: str) -> None:
    assert Cluster.from_environment({VARIABLES[field]: ""}) == Cluster()


@pytest.mark.parametrize("variable", VARIABLES.values())
def test_the_process_environment_is_not_looked_at(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "from-outside")
    assert Cluster.from_environment({}) == Cluster()


def test_a_place_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Cluster().job = "another"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "cores"), [("2", 2), ("64", 64), ("0", None), ("", None), ("x", None), ("1.5", None)]
)
def test_a_cpu_limit_is_a_whole_number_of_cores(text: str, cores: int | None) -> None:
    assert Cluster.from_environment({"K8S_CPU_LIMIT": text}).cpu_limit == cores


@pytest.mark.parametrize(
    ("text", "index"), [("0", 0), ("12", 12), ("", None), ("x", None), ("-1", None)]
)
def test_a_pod_of_an_indexed_job_knows_which_it_is(text: str, index: int | None) -> None:
    assert Cluster.from_environment({"JOB_COMPLETION_INDEX": text}).completion_index == index


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("together", [True, False])
def test_the_index_of_a_worker_is_no_work_of_its_own(count: str, together: bool) -> None:
    """A TrainJob says K8S_WORKERS=1 of its only node, which has index 0 all the same."""
    environment = INDEXED_JOB | {"K8S_WORKERS": count}
    found = Cluster.from_environment(environment, together=together)
    assert found.completion_index is None
    empty = INDEXED_JOB | {"K8S_WORKERS": ""}
    assert Cluster.from_environment(empty).completion_index == 1


INDEXED_JOB = {
    "K8S_WORKERS": "3",
    "JOB_COMPLETION_INDEX": "1",
    "K8S_JOB_NAME": "train",
    "K8S_SERVICE_NAME": "train-workers",
}


def tf_config(**changes: object) -> str:
    task = {"type": "worker", "index": 1}
    whole = {"cluster": {"worker": ["a:2222", "b:2222"]}, "task": task}
    return json.dumps(whole | changes)


def test_workers_of_an_indexed_job() -> None:
    workers = Cluster.from_environment(INDEXED_JOB).workers
    assert workers.addresses == tuple(f"train-{i}.train-workers:2222" for i in range(3))
    assert (workers.index, workers.count, workers.is_chief) == (1, 3, False)


def test_port_of_an_indexed_job() -> None:
    workers = Cluster.from_environment(INDEXED_JOB | {"K8S_WORKER_PORT": "3000"}).workers
    assert workers.addresses[0] == "train-0.train-workers:3000"


def test_tf_config_wins() -> None:
    environment = INDEXED_JOB | {"TF_CONFIG": tf_config()}
    assert Cluster.from_environment(environment).workers == Workers(("a:2222", "b:2222"), 1)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {
            "JOB_COMPLETION_INDEX": "2"
        },  # an Indexed Job of trainings that know nothing of each other
        INDEXED_JOB | {"K8S_WORKERS": "1", "JOB_COMPLETION_INDEX": "0"},
        {"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'},
    ],
)
def test_one_worker_is_a_process_on_its_own(environment: dict[str, str]) -> None:
    workers = Cluster.from_environment(environment).workers
    assert workers == Workers()
    assert workers.count == 1
    assert workers.is_chief


def test_a_process_that_wants_no_others_does_not_look_for_them() -> None:
    found = Cluster.from_environment({"TF_CONFIG": "nonsense"}, together=False)
    assert found.workers == Workers()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"K8S_WORKERS": "many"}, "K8S_WORKERS"),
        ({"K8S_WORKERS": "0"}, "K8S_WORKERS"),
        ({"K8S_WORKERS": "-2"}, "K8S_WORKERS"),
        ({"K8S_WORKERS": "1001"}, "K8S_WORKERS"),
        ({"JOB_COMPLETION_INDEX": ""}, "JOB_COMPLETION_INDEX"),
        ({"JOB_COMPLETION_INDEX": "3"}, "JOB_COMPLETION_INDEX"),
        ({"JOB_COMPLETION_INDEX": "-1"}, "JOB_COMPLETION_INDEX"),
        ({"K8S_WORKER_PORT": "0"}, "K8S_WORKER_PORT"),
        ({"K8S_WORKER_PORT": "65535"}, "K8S_WORKER_PORT"),
        ({"K8S_SERVICE_NAME": ""}, "K8S_SERVICE_NAME"),
        ({"K8S_JOB_NAME": ""}, "K8S_JOB_NAME"),
        ({"TF_CONFIG": "{"}, "TF_CONFIG"),
        ({"TF_CONFIG": "[]"}, "TF_CONFIG"),
        ({"TF_CONFIG": "{}"}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(task={"type": "worker", "index": 2})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(task={"type": "ps", "index": 0})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(task={"type": "worker", "index": "x"})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(cluster={"worker": ["a:1", "a:1"]})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(cluster={"worker": ["a", "b"]})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(cluster={"worker": ["a:x", "b:1"]})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(cluster={"chief": ["a:1"], "worker": ["b:1"]})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(cluster={"chief": ["a:1", "b:1"]})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(cluster={"chief": "a:1"})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(cluster={"worker": [["a:1"], "b:1"]})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(cluster=["worker"])}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(task={"type": ["worker"], "index": 0})}, "TF_CONFIG"),
        ({"TF_CONFIG": tf_config(task={"type": "chief", "index": 0})}, "TF_CONFIG"),
        ({"TF_CONFIG": "[" * 100_000}, "TF_CONFIG"),
        ({"CLUSTER_SPEC": "{"}, "CLUSTER_SPEC"),
        ({"CLUSTER_SPEC": tf_config()}, "CLUSTER_SPEC .* 'worker'"),  # of the other variable
        ({"CLUSTER_SPEC": tf_config(cluster={"workerpool0": ["a:1", "b:1"]})}, "CLUSTER_SPEC"),
    ],
)
def test_a_cluster_that_cannot_work_is_refused(change: dict[str, str], named: str) -> None:
    with pytest.raises(ClusterError, match=named):
        Cluster.from_environment(INDEXED_JOB | change)


CHIEF_AND_TWO = {"chief": ["c:2222"], "worker": ["a:2222", "b:2222"]}


@pytest.mark.parametrize(
    ("kind", "index", "place"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)]
)
def test_a_chief_comes_before_the_workers(kind: str, index: int, place: int) -> None:
    """TensorFlow's own form, and with the job's name Vertex AI's."""
    task = {"type": kind, "index": index, "trial": ""}
    text = tf_config(cluster=CHIEF_AND_TWO, task=task, job="{}", environment="cloud")
    workers = Cluster.from_environment({"TF_CONFIG": text}).workers
    assert workers == Workers(("c:2222", "a:2222", "b:2222"), place)
    assert workers.is_chief is (kind == "chief")


@pytest.mark.parametrize("cluster", [{"chief": ["c:1"]}, {"chief": ["c:1"], "worker": []}])
def test_a_lone_chief_is_one_worker(cluster: dict[str, list[str]]) -> None:
    text = tf_config(cluster=cluster, task={"type": "chief", "index": 0})
    assert Cluster.from_environment({"TF_CONFIG": text}).workers == Workers()


@pytest.mark.parametrize("unknown", ["ps", "evaluator"])
def test_those_without_a_part_are_refused_by_name(unknown: str) -> None:
    groups = CHIEF_AND_TWO | {unknown: ["d:1"]}
    configs = [
        tf_config(cluster=groups, task={"type": "chief", "index": 0}),
        tf_config(cluster=CHIEF_AND_TWO, task={"type": unknown, "index": 0}),
    ]
    for text in configs:
        with pytest.raises(ClusterError, match=f"names '{unknown}', which this job has no part"):
            Cluster.from_environment({"TF_CONFIG": text})


def cluster_spec(pools: dict[str, list[str]], kind: str, index: int) -> str:
    """Return CLUSTER_SPEC as Vertex AI documents it."""
    task = {"type": kind, "index": index, "trial": "TRIAL_ID"}
    whole = {"cluster": pools, "environment": "cloud", "task": task, "job": "{...}"}
    return json.dumps(whole)


names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=20)
addresses_of_pools = st.lists(
    st.builds("{}:{}".format, names, st.integers(1, 65_534)), min_size=1, max_size=6, unique=True
)


@given(addresses=addresses_of_pools, data=st.data(), empty=st.booleans())
@settings(deadline=None, derandomize=True)
def test_pools_of_vertex_are_a_chief_and_workers(
    addresses: list[str], data: st.DataObject, empty: bool
) -> None:
    """Pool 0 is the chief, pool 1 the workers; a pool that was left empty is nobody."""
    place = data.draw(st.integers(0, len(addresses) - 1))
    pools = {"workerpool0": addresses[:1], "workerpool1": addresses[1:]}
    pools |= {"workerpool2": []} if empty else {}
    kind, index = ("workerpool0", 0) if place == 0 else ("workerpool1", place - 1)
    workers = Cluster.from_environment({"CLUSTER_SPEC": cluster_spec(pools, kind, index)}).workers
    wanted = Workers(tuple(addresses), place) if len(addresses) > 1 else Workers()
    assert workers == wanted


@pytest.mark.parametrize("pool", ["workerpool2", "workerpool3"])
def test_other_pools_of_vertex_are_refused_by_name(pool: str) -> None:
    pools = {"workerpool0": ["c:2222"], "workerpool1": ["a:2222"], pool: ["d:2222"]}
    for kind in ("workerpool0", pool):
        with pytest.raises(ClusterError, match=f"names '{pool}', which this job has no part"):
            Cluster.from_environment({"CLUSTER_SPEC": cluster_spec(pools, kind, 0)})


def test_tf_config_wins_over_the_pools_of_vertex() -> None:
    pools = cluster_spec({"workerpool0": ["c:1"], "workerpool1": ["d:1"]}, "workerpool0", 0)
    both = {"TF_CONFIG": tf_config(), "CLUSTER_SPEC": pools}
    assert Cluster.from_environment(both).workers == Workers(("a:2222", "b:2222"), 1)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
@settings(deadline=None, derandomize=True)
def test_what_is_no_cluster_is_refused_and_no_bug(value: object) -> None:
    for name in ("TF_CONFIG", "CLUSTER_SPEC"):
        for text in (json.dumps(value), json.dumps({"cluster": value, "task": value}), str(value)):
            if text:
                with pytest.raises(ClusterError, match=name):
                    Cluster.from_environment({name: text})


def test_who_trains_together_may_be_known_from_elsewhere() -> None:
    """From a platform's files; the environment wins."""
    told = Workers(("x:1", "y:1"), 1)
    assert Cluster.from_environment({}, otherwise=told).workers == told
    assert Cluster.from_environment({}, otherwise=told, together=False).workers == Workers()
    assert Cluster.from_environment(INDEXED_JOB, otherwise=told).workers.count == 3
    alone = {
        "TF_CONFIG": tf_config(cluster={"worker": ["a:1"]}, task={"type": "worker", "index": 0})
    }
    assert Cluster.from_environment(alone, otherwise=told).workers == Workers()
