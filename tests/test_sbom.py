"""What `make sbom` lists: all that is installed, and nothing else, in the form of CycloneDX."""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow  # six seconds of CPU

SCRIPT = REPOSITORY / "scripts" / "sbom.py"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def made(*words: object) -> str:
    ended = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the lists of wheel and image for this Python, and that of the image on GPUs."""
    wheel = tmp_path_factory.mktemp("dist") / "a.whl"
    wheel.write_bytes(b"a wheel")
    return {
        "wheel": made("wheel", "cpu", "--wheel", wheel),
        "image": made("image", "cpu", "--python", PYTHON),
        "image on gpu": made("image", "gpu"),
    }


def names(listed: dict) -> dict[str, str]:
    return {each["name"]: each["version"] for each in listed["components"]}


def installed(texts: list[str]) -> dict[str, str]:
    """Return name and version of what these requirements bring, as metadata installed here say."""
    found: dict[str, str] = {}
    wanted = [(Requirement(text), "") for text in texts]
    seen = set()
    while wanted:
        requirement, extra = wanted.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = importlib.metadata.version(name)
        for each in {"", *requirement.extras}:
            if (name, each) not in seen:
                seen.add((name, each))
                needs = importlib.metadata.requires(name) or []
                wanted += [(Requirement(text), each) for text in needs]
    return found


@pytest.mark.parametrize("what", ["wheel", "image", "image on gpu"])
def test_a_list_follows_the_schema_of_cyclonedx(texts: dict[str, str], what: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(texts[what]) is None


def test_a_list_names_what_is_installed_and_nothing_else(texts: dict[str, str]) -> None:
    """Against what the packages themselves say, which the lock was not asked for."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wheel = [*project["project"]["dependencies"], *extras["cpu"]]
    image = [*wheel, *extras["tensorboard"], *project["dependency-groups"]["image"]]
    assert names(json.loads(texts["wheel"])) == installed(wheel)
    assert names(json.loads(texts["image"])) == installed(image)


def test_the_list_of_the_gpu_image_names_what_cuda_brings(texts: dict[str, str]) -> None:
    found = names(json.loads(texts["image on gpu"]))
    assert {"tensorflow", "nvidia-cudnn-cu12", "dumb-init", "tensorboardx"} <= found.keys()
    assert "tensorflow-cpu" not in found
    assert "pytest" not in found


def test_each_component_has_its_purl_its_digests_and_its_licence(texts: dict[str, str]) -> None:
    listed = json.loads(texts["image"])
    lock = (REPOSITORY / "requirements.lock").read_text()
    for each in listed["components"]:
        assert each["purl"] == f"pkg:pypi/{each['name']}@{each['version']}"
        assert each["hashes"]
        assert all(f"sha256:{digest['content']}" in lock for digest in each["hashes"])
    without = [each["name"] for each in listed["components"] if not each.get("licenses")]
    assert without == ["namex"]  # which declares none
    component = listed["metadata"]["component"]
    assert component["licenses"][0]["expression"] == "MIT AND CC-BY-SA-3.0"
    assert "not what its base brings" in component["properties"][0]["value"]


def test_a_list_says_which_file_it_is_of_and_who_needs_what(texts: dict[str, str]) -> None:
    listed = json.loads(texts["wheel"])
    [digest] = listed["metadata"]["component"]["hashes"]
    assert digest["content"] == hashlib.sha256(b"a wheel").hexdigest()
    needs = {each["ref"]: each.get("dependsOn", []) for each in listed["dependencies"]}
    of_keras = {ref.partition("@")[0] for ref in needs[ref_of(listed, "keras")]}
    assert {"pkg:pypi/h5py", "pkg:pypi/absl-py"} <= of_keras
    assert ref_of(listed, "keras") in needs["mnist-job"]


def ref_of(listed: dict, name: str) -> str:
    return next(each["bom-ref"] for each in listed["components"] if each["name"] == name)


def test_the_same_lock_gives_the_same_bytes(texts: dict[str, str]) -> None:
    assert made("image", "gpu") == texts["image on gpu"]


def test_a_wrong_python_is_refused() -> None:
    ended = subprocess.run(
        [sys.executable, SCRIPT, "wheel", "cpu", "--python", "three"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "must be such as 3.12, not 'three'" in ended.stderr


def test_the_image_is_listed_for_the_python_of_its_base() -> None:
    assert 'IMAGE_PYTHON = "3.12"' in SCRIPT.read_text()
    assert "ARG BASE=python:3.12-slim" in (Path(REPOSITORY) / "Dockerfile").read_text()
