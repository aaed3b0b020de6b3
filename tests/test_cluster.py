"""The job's place in a cluster comes from the environment that is passed in, and nowhere else."""

from dataclasses import FrozenInstanceError, asdict

import pytest

from job.cluster import Cluster

VARIABLES = {
    "job": "K8S_JOB_NAME",
    "pod": "K8S_POD_NAME",
    "node": "K8S_NODE_NAME",
    "image": "K8S_IMAGE",
}


def test_a_laptop_is_no_cluster() -> None:
    assert Cluster.from_environment({}) == Cluster(job=None, pod=None, node=None, image=None)


def test_every_field_has_its_variable() -> None:
    assert set(asdict(Cluster())) == set(VARIABLES)


@pytest.mark.parametrize("field", VARIABLES)
def test_a_variable_fills_its_field_and_no_other(field: str) -> None:
    found = Cluster.from_environment({VARIABLES[field]: "mnist-x7", "PATH": "/bin"})
    assert asdict(found) == dict.fromkeys(VARIABLES) | {field: "mnist-x7"}


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
