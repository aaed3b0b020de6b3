"""The real Dockerfile, built without a daemon and run as a pod would be: `make image-test`.

Where no registry of images is reached, a base made of Debian's own packages stands in for the
Dockerfile's. What runs in the image runs as uid 10001, PID 1, on a read-only root with a tmpfs for
scratch, without network.

Where that can't be done the tests are skipped, or fail if the variable IMAGE_TEST is `required`.
"""

import base64
import hashlib
import http.server
import inspect
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

import job

pytestmark = pytest.mark.slow

TOOLS = ("buildah", "debootstrap", "openssl", "unshare", "setpriv")
TAG = "localhost/mnist-job-test"
PACKAGES = "python3,python3-venv,ca-certificates"
FLAGS = "--isolation chroot --pull-never"
# What a machine says of its package index, a build on it must know as well.
INDEX = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
# What the machine trusts, its own authorities with it, where it is of Debian's kind.
CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
START = 0.02  # seconds between two looks


def sh(*words: object, **more: str) -> str:
    """Run a command and return what it printed; its complaint is the failure's text."""
    environment = os.environ | {"REGISTRIES_CONFIG_PATH": "/dev/null"} | more
    ended = subprocess.run(
        [str(word) for word in words],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{words}: {ended.stdout[-2000:]}{ended.stderr[-4000:]}"
    return ended.stdout.strip()


def make_base(name: str, folder: Path) -> None:
    """Make a base of Debian's Python, as `BASE` would be: it trusts what Debian trusts."""
    sh("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder)
    shutil.rmtree(folder / "var/cache/apt")
    shutil.rmtree(folder / "var/lib/apt/lists")
    container = sh("buildah", "from", "scratch")
    sh("buildah", "add", "--quiet", container, folder, "/")
    for variable in INDEX:
        if variable in os.environ:
            sh("buildah", "config", "--env", f"{variable}={os.environ[variable]}", container)
    sh("buildah", "commit", "--quiet", "--rm", container, name)
    shutil.rmtree(folder)


def base_name() -> str:
    """Return a name that tells what the base is made of: no other recipe's is taken for it."""
    recipe = [inspect.getsource(make_base), PACKAGES, *(os.environ.get(name) for name in INDEX)]
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()
    return f"localhost/mnist-job-test-base:{digest[:16]}"


def untested(reason: str) -> None:
    """Skip the tests, loudly, or fail where the machine is meant to be able to run them."""
    end = pytest.fail if os.environ.get("IMAGE_TEST") == "required" else pytest.skip
    end(f"THE IMAGE IS NOT TESTED: {reason}")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str
    verdict: str


@dataclass(frozen=True)
class Image:
    """The image that was built: its files and its configuration."""

    root: Path
    config: dict
    folder: Path
    """Holds the volume `runs` and the termination log."""

    def start(self, *words: str, entry: bool = True, **variables: str) -> subprocess.Popen[str]:
        """Start the entry point with `words`, or `words` alone, as a pod's container."""
        log = self.folder / "termination-log"
        log.write_text("")
        log.chmod(0o666)
        environment = [*self.config["Env"], *(f"{key}={value}" for key, value in variables.items())]
        command = [*(self.config["Entrypoint"] if entry else []), *words]
        spaces = ["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
        script = REPOSITORY / "tests" / "pod.sh"
        places = [str(script), str(self.root), str(self.folder / "runs"), str(log)]
        return subprocess.Popen(
            ["unshare", *spaces, "sh", *places, *environment, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, entry: bool = True, **variables: str) -> Ended:
        process = self.start(*words, entry=entry, **variables)
        out, err = process.communicate(timeout=600)
        verdict = (self.folder / "termination-log").read_text()
        return Ended(process.returncode, out, err, verdict)


@dataclass(frozen=True)
class Machine:
    """A machine that can build images: the base to build on, and the certificates for it."""

    base: str
    bundle: Path | None
    """What it trusts, and a line of its own by which a copy is known; None where it has none."""
    mark: str
    """That line."""

    def build(self, tag: str, flags: str, bundle: Path | None) -> None:
        more = {"CA": str(bundle)} if bundle else {}
        sh("scripts/image", "build", "cpu", self.base, TOOL="buildah", TAG=tag, FLAGS=flags, **more)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        untested(
            f"missing {missing}, uid {os.geteuid()}; as root, do apt-get install buildah "
            "debootstrap openssl"
        )
    spaces = ["unshare", "--mount", "--pid", "--net", "--fork", "true"]
    if subprocess.run(spaces, capture_output=True, check=False).returncode != 0:
        untested("this machine gives no namespaces, which pods are of")
    folder = tmp_path_factory.mktemp("machine")
    mark = f"mnist-job-test-{secrets.token_hex(16)}"
    bundle = folder / "bundle.pem" if CERTIFICATES.exists() else None
    if bundle:
        bundle.write_text(f"{CERTIFICATES.read_text()}\n# {mark}\n")
    try:  # nothing of this project's yet: what fails here is the machine's
        found = base_name()
        if not sh("buildah", "images", "--quiet", "--filter", f"reference={found}"):
            make_base(found, folder / "base")
        (folder / "Dockerfile").write_text(f"FROM {found}\nRUN true\n")
        sh("buildah", "build", *FLAGS.split(), folder)
    except AssertionError as error:
        untested(f"this machine can't build any: {error}")
    return Machine(found, bundle, mark)


@pytest.fixture(scope="module")
def image(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("image")
    machine.build(TAG, f"{FLAGS} --layers", machine.bundle)
    container = sh("buildah", "from", "--pull-never", TAG)
    runs = folder / "runs"
    runs.mkdir()
    os.chown(runs, 10001, 10001)
    folder.chmod(0o755)
    try:
        config = json.loads(sh("buildah", "inspect", "--type", "image", TAG))["OCIv1"]["config"]
        yield Image(Path(sh("buildah", "mount", container)), config, folder)
    finally:
        sh("buildah", "umount", container)
        sh("buildah", "rm", container)


@pytest.fixture(scope="module")
def pod() -> dict[str, str]:
    """Return the variables of k8s/train-job.yaml's pod."""
    documents = yaml.safe_load_all((REPOSITORY / "k8s" / "train-job.yaml").read_text())
    [spec] = [found["spec"] for found in documents if found["kind"] == "Job"]
    container = spec["template"]["spec"]["containers"][0]
    variables = {entry["name"]: entry.get("value", "2") for entry in container["env"]}
    return {**variables, "probe": container["livenessProbe"]["exec"]["command"][2]}


def test_a_base_of_another_recipe_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    name = base_name()
    assert base_name() == name
    monkeypatch.setenv("PIP_INDEX_URL", "https://elsewhere.example/simple")
    assert base_name() != name
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setitem(globals(), "PACKAGES", f"{PACKAGES},git")
    assert base_name() != name


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("openssl", r"missing \['openssl'\]"),
        ("unshare", "no namespaces"),
        ("debootstrap", r"can't build any: .*no debootstrap today"),
        ("buildah", r"can't build any: .*no buildah today"),
    ],
)
def test_where_it_is_required_a_skip_is_a_failure(tmp_path: Path, broken: str, reason: str) -> None:
    """On a machine where one tool is missing or fails; which without root is told before."""
    for tool in TOOLS:
        program = tmp_path / tool
        fails = f"echo no {tool} today >&2; exit 1" if tool == broken else "exit 0"
        program.write_text(f"#!/bin/sh\n{fails}\n")
        program.chmod(0o755)
    if broken == "openssl":
        (tmp_path / broken).unlink()
    asked = ["-p", "no:cacheprovider", "-n", "0", "-q", "-rs", "-m", "slow"]
    asked += [f"{__file__}::test_it_says_what_it_is"]
    for required in (True, False):
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *asked],
            env={"PATH": str(tmp_path)} | ({"IMAGE_TEST": "required"} if required else {}),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == required, ended.stdout
        assert "THE IMAGE IS NOT TESTED" in ended.stdout
        assert ("1 skipped" in ended.stdout) != required
        assert os.geteuid() != 0 or re.search(reason, ended.stdout, re.DOTALL), ended.stdout


def test_it_says_what_it_is(image: Image) -> None:
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.version"] == job.__version__
    assert labels["org.opencontainers.image.licenses"] == "MIT AND CC-BY-SA-3.0"
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40
    assert "org.opencontainers.image.source" in labels
    assert image.config["User"] == "10001:10001"
    assert image.config["Entrypoint"] == ["dumb-init", "--single-child", "--", "mnist-job"]


def test_a_pod_trains_and_publishes(image: Image, pod: dict[str, str]) -> None:
    variables = pod | {"K8S_JOB_NAME": "in-a-pod", "MNIST_JOB_EPOCHS": "2"}
    ended = image.run("train", **variables)
    assert (ended.code, ended.err) == (0, "")
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert all({"time", "level", "event"} <= event.keys() for event in events)
    assert events[-1]["event"] == "complete"
    run = image.folder / "runs" / "in-a-pod"
    assert run.stat().st_uid == 10001
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] > 0.96
    revision = image.config["Labels"]["org.opencontainers.image.revision"]
    assert metrics["environment"]["git_commit"] == revision
    assert metrics["environment"]["image"] == pod["K8S_IMAGE"]
    verdict = json.loads(ended.verdict)
    assert (verdict["status"], verdict["run"]) == ("complete", "/runs/in-a-pod")
    # What was exported opens, in the image and without it.
    scored = image.run("evaluate", "--weights", "/runs/in-a-pod")
    assert (scored.code, scored.err) == (0, "")
    assert f"test accuracy: {metrics['test']['accuracy']:.4f}" in scored.out
    shown = image.run("predict", "--weights", "/runs/in-a-pod", "--figure", "/runs/ten.png")
    assert (shown.code, shown.err) == (0, "")
    assert (image.folder / "runs" / "ten.png").read_bytes().startswith(b"\x89PNG")


def test_the_build_trusts_the_bundle_it_is_given_and_keeps_nothing_of_it(
    image: Image, machine: Machine, tmp_path: Path
) -> None:
    found = subprocess.run(
        ["grep", "-rlF", machine.mark, image.root], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (1, ""), found
    assert "PIP_CERT" not in str(image.config)
    assert "SSL_CERT_FILE" not in str(image.config)
    # With one authority, which signed nobody, the index is a stranger.
    subject = ["-subj", "/CN=nobody", "-nodes", "-keyout", tmp_path / "key", "-out"]
    sh("openssl", "req", "-x509", "-newkey", "rsa:2048", *subject, tmp_path / "wrong.pem")
    with pytest.raises(AssertionError, match=r"(?i)certificate"):
        machine.build(f"{TAG}-wrong", f"{FLAGS} --no-cache", tmp_path / "wrong.pem")


def test_the_build_asks_the_index_that_it_is_given_with_its_password(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has nothing: what it was asked is seen, and that no other one is asked instead."""
    asked: list[tuple[str, str | None]] = []

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_error(404 if self.headers["Authorization"] else 401)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as index:
        threading.Thread(target=index.serve_forever, daemon=True).start()
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password secret\n")
        monkeypatch.setenv("INDEX", f"http://127.0.0.1:{index.server_port}/simple")
        monkeypatch.setenv("NETRC", str(netrc))
        with pytest.raises(AssertionError, match="No matching distribution found for uv"):
            machine.build(f"{TAG}-index", f"{FLAGS} --no-cache", None)
        index.shutdown()
    password = f"Basic {base64.b64encode(b'me:secret').decode()}"
    assert ("/simple/uv/", password) in asked


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_stopped_training_resumes_to_the_bit(image: Image, model: str) -> None:
    proof = image.run("drill", "--model", model, "--epochs", "1" if model == "cnn" else "3")
    assert (proof.code, proof.err) == (0, "")
    assert "identical, bit for bit" in proof.out


def test_a_wrong_flag_leaves_its_code_and_its_verdict(image: Image) -> None:
    ended = image.run("train", "--epochs", "0")
    assert (ended.code, ended.out) == (64, "")
    assert json.loads(ended.verdict)["code"] == 64


def test_how_soon_a_pod_speaks_and_trains(
    image: Image, pod: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Measured and printed, not judged: a busy machine is slower."""
    measured: dict[str, list[float]] = {}
    for number in range(3):
        variables = pod | {"K8S_JOB_NAME": f"timed-{number}", "MNIST_JOB_EPOCHS": "1"}
        started = time.monotonic()
        seconds = {}
        with image.start("train", **variables) as process:
            assert process.stdout is not None
            for line in process.stdout:
                seconds[json.loads(line)["event"]] = time.monotonic() - started
        assert process.returncode == 0
        assert next(iter(seconds)) == "started"
        for event in ("started", "data_loaded", "compiled", "epoch", "complete"):
            measured.setdefault(event, []).append(seconds[event])
    with capsys.disabled():
        print("\nseconds from a container's start, three times:")
        for event, times in measured.items():
            print(f"  {event:11} ", *(f"{one:6.2f}" for one in times))


def test_a_stopped_pod_leaves_its_verdict_on_the_volume(image: Image, pod: dict[str, str]) -> None:
    """Its log and its termination message are gone with it."""
    variables = pod | {"K8S_JOB_NAME": "stopped", "MNIST_JOB_EPOCHS": "500"}
    with image.start("train", **variables) as process:
        assert process.stdout is not None
        assert any(json.loads(line)["event"] == "epoch" for line in process.stdout)
        init = child_named(process.pid, "dumb-init")
        assert init is not None
        os.kill(init, signal.SIGTERM)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    end = image.folder / "runs" / "stopped" / "attempts" / "0001-end.json"
    left = json.loads(end.read_text())
    assert (left["status"], left["code"]) == ("stopped", 143)
    verdict = json.loads((image.folder / "termination-log").read_text())
    assert verdict["error"].startswith(left["error"])


def on_sagemaker(image: Image, name: str, owner: int) -> Path:
    """Lay the folders of a training job out on the volume; return where /opt/ml is."""
    ml = image.folder / "runs" / name / "opt" / "ml"
    for folder in ("input/config", "checkpoints", "model", "output/data"):
        (ml / folder).mkdir(parents=True)
    (ml / "input/config/hyperparameters.json").write_text('{"epochs": "1"}')
    for path in (image.folder / "runs" / name).rglob("*"):
        os.chown(path, owner, owner)
    return ml


def test_it_trains_as_sagemaker_starts_it(image: Image) -> None:
    """`docker run IMAGE train`, and its model where SageMaker looks."""
    ml = on_sagemaker(image, "machine", 10001)
    place = {"MNIST_JOB_INTERNAL_ROOT": "/runs/machine", "TRAINING_JOB_NAME": "job-1"}
    ended = image.run("train", **place)
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out.splitlines()[0])["platform"] == "sagemaker"
    assert (ml / "model" / "metrics.json").read_bytes() == (
        ml / "checkpoints" / "job-1" / "metrics.json"
    ).read_bytes()


def test_folders_of_root_are_refused_with_the_way_out(image: Image) -> None:
    """SageMaker's belong to root, and the image runs as somebody else: README has two lines."""
    on_sagemaker(image, "roots", 0)
    ended = image.run("train", MNIST_JOB_INTERNAL_ROOT="/runs/roots", TRAINING_JOB_NAME="job-1")
    assert (ended.code, ended.out) == (78, "")
    verdict = json.loads(ended.verdict)
    assert "can't be written by uid 10001" in verdict["error"]
    assert "USER root" in verdict["error"]


@pytest.mark.parametrize("seconds", [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4])
def test_sigterm_at_any_moment_ends_it_with_143(image: Image, seconds: float) -> None:
    """PID 1 ignores a signal that it has no handler for: without an init, the first ones fail."""
    process = image.start("train", MNIST_JOB_EPOCHS="500")
    init = wait_for(lambda: child_named(process.pid, "dumb-init"))
    time.sleep(seconds)
    os.kill(init, signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert "Traceback" not in err


def test_what_is_left_over_is_reaped(image: Image) -> None:
    program = (
        "import glob, os, time\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0: time.sleep(0.2)\n"
        "    os._exit(0)\n"
        "os.wait(); time.sleep(1)\n"
        "states = [open(path).read().rpartition(')')[2].split()[0] for path in\n"
        "          glob.glob('/proc/[0-9]*/stat')]\n"
        "print(len(states), 'Z' in states)\n"
    )
    init = image.config["Entrypoint"][:-1]
    assert image.run(*init, "python", "-c", program, entry=False).out == "2 False\n"


@pytest.mark.parametrize(
    ("before", "code"),
    [("touch /tmp/alive", 0), ("touch -d '11 minutes ago' /tmp/alive", 1), ("true", 1)],
)
def test_the_probe_tells_a_fresh_file(image: Image, pod: dict[str, str], before, code) -> None:
    assert image.run("sh", "-c", f"{before}; {pod['probe']}", entry=False).code == code


def test_nobody_can_write_the_root(image: Image) -> None:
    tried = image.run("sh", "-c", "id -u; touch /opt/mnist-job/x /x", entry=False)
    assert tried.out == "10001\n"
    assert tried.err.count("Read-only file system") == 2


def test_nothing_is_in_it_but_what_runs(image: Image) -> None:
    home = image.root / "opt" / "mnist-job"
    [packages] = home.glob("lib/python3*/site-packages")
    for name in ("pip", "uv", "pytest", "mypy", "clang", "tensorflow/include"):
        assert not (packages / name).exists()
    assert not list(image.root.glob("root/.cache/*"))
    assert not (image.root / "build").exists()
    in_bin = {path.name for path in (home / "bin").iterdir()}
    assert not in_bin & {"pip", "pip3", "uv", "ruff", "pytest"}
    mebibytes = int(sh("du", "-sm", home).split()[0])
    assert mebibytes < 1400  # 330 of them compressed; `make image-sizes` prints what weighs


def test_all_is_compiled_for_good(image: Image) -> None:
    [packages] = image.root.glob("opt/mnist-job/lib/python3*/site-packages")
    for package in ("job", "keras", "tensorflow", "numpy"):
        sources = [path for path in (packages / package).rglob("*.py") if "tests" not in path.parts]
        assert sources
        for path in sources:
            [compiled] = (path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc")
            with compiled.open("rb") as file:  # PEP 552: not checked against its source
                assert file.read(8)[4:] == b"\x01\x00\x00\x00", compiled


def wait_for(look: Callable[[], int | None]) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(START)
    raise AssertionError("nothing after 30 seconds")


def child_named(parent: int, name: str) -> int | None:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    names = {Path(f"/proc/{child}/comm").read_text().strip(): int(child) for child in children}
    return names.get(name)
