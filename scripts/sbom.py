"""List what the wheel or the image is made of, as CycloneDX, from requirements.lock: `make sbom`.

    python scripts/sbom.py wheel cpu > wheel.cdx.json
    python scripts/sbom.py image gpu --python 3.12 > image.cdx.json

The lock says which version of what is installed on Linux, x86-64, for one version of Python, and
which files of it are accepted; pyproject.toml says where to begin. Licences are as the packages
that are installed here declare them. The same lock gives the same bytes.

Of an image these are the Python packages. What its base brings (Debian's packages, Python itself)
is not in the lock; who builds the image lists that, as .github/workflows/image.yml does.
"""

import argparse
import hashlib
import importlib.metadata
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.markers import Environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
IMAGE_PYTHON = "3.12"  # of the base that the Dockerfile names
# What an image has beside the extra that it is built for.
IMAGE_EXTRA, IMAGE_GROUP = "tensorboard", "image"
_LONGEST_NAME = 80  # characters; a licence's field may hold its whole text
_OURS = "mnist-job:"


@dataclass(frozen=True)
class Locked:
    """A package as the lock has it."""

    requirement: Requirement
    digests: tuple[str, ...]
    """Sha256 (hex) of each file of this version that may be installed."""
    needed_by: frozenset[str]
    """Names of the packages that ask for it."""

    @property
    def name(self) -> str:
        """Its name, in the form that names are compared in."""
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        """The one version that is locked."""
        [only] = self.requirement.specifier
        return only.version


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["wheel", "image"])
    parser.add_argument("extra", choices=["cpu", "gpu"])
    parser.add_argument("--python", help=f"default: this one; of the image {IMAGE_PYTHON}")
    parser.add_argument("--wheel", type=Path, help="the file, whose digest is to be in the list")
    given = parser.parse_args()
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = given.python or (own if given.what == "wheel" else IMAGE_PYTHON)
    if not re.fullmatch(r"3\.[0-9]{1,2}", python):
        parser.error(f"--python must be such as 3.12, not {python!r}")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    lock = (REPOSITORY / "requirements.lock").read_text()
    print(listed(given.what, given.extra, python, project, lock, given.wheel))


def listed(
    what: str, extra: str, python: str, project: dict, lock: str, wheel: Path | None = None
) -> str:
    """Return the list as JSON of CycloneDX 1.6.

    Args:
        what: `wheel` or `image`.
        extra: `cpu` or `gpu`.
        python: version of Python, such as `3.12`.
        project: pyproject.toml.
        lock: requirements.lock.
        wheel: the file that the list is of; None to leave its digest out.
    """
    environment = linux(python)
    asked = [each for each in asked_for(what, extra, project) if applies(each, environment)]
    packages = closure(
        {canonicalize_name(each.name) for each in asked},
        [each for each in read(lock) if applies(each.requirement, environment)],
    )
    bom = Bom()
    bom.metadata.timestamp = None  # which would make every list another one
    bom.metadata.component = root = itself(what, project["project"], python, extra, wheel)
    components = {each.name: component(each) for each in packages}
    for each in components.values():
        bom.components.add(each)
    bom.register_dependency(root, [components[canonicalize_name(each.name)] for each in asked])
    for each in packages:
        needed = [components[other.name] for other in packages if each.name in other.needed_by]
        bom.register_dependency(components[each.name], needed)
    purls = sorted(str(each.purl) for each in (root, *components.values()))
    digest = hashlib.sha256("\n".join([what, python, lock, *purls]).encode()).hexdigest()
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, digest)
    return JsonV1Dot6(bom).output_as_string(indent=2)


def linux(python: str) -> Environment:
    """Return what markers ask for, of CPython on Linux, x86-64."""
    return Environment(
        implementation_name="cpython",
        implementation_version=f"{python}.0",
        os_name="posix",
        platform_machine="x86_64",
        platform_python_implementation="CPython",
        platform_release="",
        platform_system="Linux",
        platform_version="",
        python_full_version=f"{python}.0",
        python_version=python,
        sys_platform="linux",
    )


def applies(requirement: Requirement, environment: Environment) -> bool:
    """Tell whether a requirement is one in that environment."""
    return requirement.marker is None or requirement.marker.evaluate(dict(environment))


def asked_for(what: str, extra: str, project: dict) -> Iterator[Requirement]:
    """Yield what the wheel itself asks for, and what the image adds."""
    extras = project["project"]["optional-dependencies"]
    texts = [*project["project"]["dependencies"], *extras[extra]]
    if what == "image":
        texts += [*extras[IMAGE_EXTRA], *project["dependency-groups"][IMAGE_GROUP]]
    yield from map(Requirement, texts)


def read(lock: str) -> Iterator[Locked]:
    """Yield the packages of a lock that uv wrote."""
    for entry in re.split(r"^(?=[a-zA-Z0-9])", lock, flags=re.MULTILINE):
        if entry.startswith("#"):
            continue
        text, *rest = entry.replace("\\\n", "\n").splitlines()
        _, _, via = entry.partition("# via")
        yield Locked(
            Requirement(text),
            tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", "\n".join(rest))),
            frozenset(map(canonicalize_name, re.findall(r"^[ #]*([\w.-]+)", via, re.MULTILINE))),
        )


def closure(names: set[str], packages: list[Locked]) -> list[Locked]:
    """Return the packages of these names, and all that they need, by name."""
    wanted, found = set(names), set()
    while new := wanted - found:
        found |= new
        wanted |= {each.name for each in packages if each.needed_by & new}
    chosen = sorted((each for each in packages if each.name in found), key=lambda each: each.name)
    if missing := names - {each.name for each in chosen}:
        sys.exit(f"requirements.lock lacks {', '.join(sorted(missing))}: run make lock")
    return chosen


def itself(what: str, project: dict, python: str, extra: str, wheel: Path | None) -> Component:
    """Return what the list is of."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest() if wheel else None
    scope = f"Linux, x86-64, CPython {python}, extra {extra}"
    covers = {
        "wheel": f"what the lock installs with the wheel on {scope}",
        "image": f"the Python packages of the image on {scope}; not what its base brings",
    }
    return Component(
        name=project["name"],
        version=project["version"],
        type=ComponentType.CONTAINER if what == "image" else ComponentType.APPLICATION,
        bom_ref=project["name"],
        description=project["description"],
        purl=PackageURL("pypi", name=project["name"], version=project["version"]),
        licenses=[declared(project["license"])],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else None,
        properties=[Property(name=f"{_OURS}covers", value=covers[what])],
    )


def component(package: Locked) -> Component:
    """Return a package as CycloneDX has it."""
    purl = PackageURL("pypi", name=package.name, version=package.version)
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        purl=purl,
        licenses=[declared(name) for name in licences_of(package.name)],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in package.digests],
    )


def declared(name: str) -> License:
    """Return a licence that a package declares: by its SPDX name if it has one."""
    acknowledged = LicenseAcknowledgement.DECLARED
    return LicenseFactory().make_from_string(name, license_acknowledgement=acknowledged)


def licences_of(name: str) -> list[str]:
    """Return the licences of a package that is installed here, as it declares them.

    One expression where it has one, else its classifiers, else the field that is free text.
    """
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    if expression := metadata.get("License-Expression"):
        return [expression]
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier", [])
        if text.startswith("License :: ") and text != "License :: OSI Approved"
    ]
    free = " ".join(str(metadata.get("License", "")).split())
    return sorted(set(classifiers)) or ([free] if 0 < len(free) <= _LONGEST_NAME else [])


if __name__ == "__main__":
    main()
