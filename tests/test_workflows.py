"""What an ecosystem expects beside the code: workflows, Dependabot, pre-commit, a devcontainer.

No run of them can be tried here. What can be said without one is: their schemas, what an auditor of
workflows finds, and that what they call is there. Run by `make check`, which installs the tools.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from job import __version__

pytestmark = pytest.mark.checks

TOOLS = REPOSITORY / ".venv-checks" / "bin"
GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
SCHEMAS = {
    "vendor.github-workflows": "workflows/*.yml",
    "custom.github-workflows-require-timeout": "workflows/*.yml",
    "vendor.dependabot": "dependabot.yml",
}


def run(*words: object, folder: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS / str(words[0]), *map(str, words[1:])],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def audit(folder: Path) -> subprocess.CompletedProcess[str]:
    return run("zizmor", "--offline", "--persona", "pedantic", "--no-progress", folder)


def check_schema(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run("check-jsonschema", "--builtin-schema", name, *sorted(folder.glob(SCHEMAS[name])))


@pytest.mark.parametrize("name", SCHEMAS)
def test_github_would_take_it(name: str) -> None:
    checked = check_schema(name, GITHUB)
    assert checked.returncode == 0, checked.stdout


def test_an_auditor_of_workflows_finds_nothing() -> None:
    audited = audit(GITHUB)
    assert audited.returncode == 0, audited.stdout


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("workflows/ci.yml", r"checkout@\w+ #.*", "checkout@v7"),
        ("workflows/ci.yml", "contents: read", "contents: write"),
        ("workflows/ci.yml", "persist-credentials: false", "clean: true"),
        ("workflows/image.yml", r"\[ -n \"\$IMAGE\" \]", "[ -n '${{ github.ref_name }}' ]"),
        ("workflows/image.yml", "permissions: {}", "permissions: write-all"),
        ("dependabot.yml", r"cooldown: .*\n", "\n"),
    ],
)
def test_a_weak_workflow_is_found(tmp_path: Path, file: str, old: str, new: str) -> None:
    broken = shutil.copytree(GITHUB, tmp_path / ".github")
    text = (broken / file).read_text()
    changed = re.sub(old, lambda _: new, text, count=1)
    assert changed != text
    (broken / file).write_text(changed)
    assert audit(broken).returncode != 0


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("vendor.github-workflows", "runs-on", "runs_on"),
        ("custom.github-workflows-require-timeout", "    timeout-minutes: 45\n", ""),
        ("vendor.dependabot", "weekly", "weakly"),
    ],
)
def test_what_github_would_refuse_is_found(tmp_path: Path, name: str, old: str, new: str) -> None:
    broken = shutil.copytree(GITHUB, tmp_path / ".github")
    for path in broken.glob(SCHEMAS[name]):
        path.write_text(path.read_text().replace(old, new))
    assert check_schema(name, broken).returncode != 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_and_says_which_version_that_is(path: Path) -> None:
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    for each in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each), each


def test_what_the_workflows_call_is_there() -> None:
    ci, image = ((GITHUB / "workflows" / f"{name}.yml").read_text() for name in ("ci", "image"))
    assert "sudo .ci/run" in ci
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"run: make (\w+)", image):
        assert f"\n{target}: " in makefile
    [step] = [
        step
        for step in yaml.safe_load(image)["jobs"]["image"]["steps"]
        if "build-push-action" in step.get("uses", "")
    ]
    given = re.findall(r"^(\w+)=", step["with"]["build-args"], re.MULTILINE)
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    assert set(given) == set(
        re.findall(r"^ARG (BASE|EXTRA|VERSION|REVISION|SOURCE)\b", dockerfile, re.MULTILINE)
    )


def test_pre_commit_takes_its_config_and_has_its_tools() -> None:
    config = REPOSITORY / ".pre-commit-config.yaml"
    checked = run("pre-commit", "validate-config", config)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    [repo] = yaml.safe_load(config.read_text())["repos"]
    for hook in repo["hooks"]:
        assert (REPOSITORY / hook["entry"].split()[0]).exists(), hook["id"]


def test_the_devcontainer_sets_itself_up_as_a_developer_would() -> None:
    config = json.loads((REPOSITORY / ".devcontainer" / "devcontainer.json").read_text())
    assert re.fullmatch(r"python:3\.\d+", config["image"])
    assert config["postCreateCommand"] == "make setup"


@pytest.mark.parametrize(
    ("ref", "extra", "named"),
    [
        (f"refs/tags/v{__version__}", "cpu", f"version={__version__}\n"),
        (f"refs/tags/v{__version__}", "gpu", f"version={__version__}-gpu\n"),
        (f"refs/heads/v{__version__}", "cpu", None),
        ("refs/tags/v99.0.0", "cpu", None),
    ],
)
def test_an_image_is_pushed_for_the_tag_of_its_version_alone(
    tmp_path: Path, ref: str, extra: str, named: str | None
) -> None:
    steps = yaml.safe_load((GITHUB / "workflows" / "image.yml").read_text())["jobs"]["image"][
        "steps"
    ]
    [script] = [step["run"] for step in steps if step.get("id") == "version"]
    told = tmp_path / "output"
    told.touch()
    ended = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=REPOSITORY,
        env=os.environ | {"GITHUB_REF": ref, "EXTRA": extra, "GITHUB_OUTPUT": str(told)},
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, told.read_text()) == ((64, "") if named is None else (0, named))
