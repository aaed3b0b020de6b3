"""What many tests share: small real data, one trained run, and the command line as a function."""

import compileall
import functools
import json
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import faults
import jsonschema
import numpy as np
import pytest
import referencing
import servers

from job import storage
from job.cli import main
from job.config import EMBEDDED, DataSource
from job.data import source
from job.process import runtime

REPOSITORY = Path(__file__).parent.parent

# Begun first, so that nobody waits for one of them at the end; the longest tests come before all.
LONG_FILES = (
    "nightly/test_fortnight.py",
    "nightly/test_gate_simulation.py",
    "workers/test_supervision.py",
    "training/test_resume.py",
    "commands/test_drill.py",
    "training/test_replicas.py",
    "storage/test_rehearsal.py",
    "test_scripts.py",
    "test_run.py",
    "training/test_train.py",
    "training/test_feed.py",
    "test_ensemble.py",
    "test_init_weights.py",
    "nightly/test_servable.py",
    "training/test_strategy.py",
    "test_accuracy.py",
)

# Whichever test imports TensorFlow first, it must compute as it does in the job.
runtime.prepare_tensorflow()
runtime.limit_threads(runtime.available_cores())


def pytest_configure(config: pytest.Config) -> None:
    """Compile the job once, which its many processes would do each where no bytecode is written.

    And heed signals, which a shell lets what it starts in the background ignore, and with it all
    the processes that tests start and signal.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    if not hasattr(config, "workerinput"):  # the others of pytest-xdist follow
        compileall.compile_dir(REPOSITORY / "job", quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are cores: some tests wait, for processes and for stores."""
    return runtime.available_cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the long tests come first."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONG_FILES)}
    for path in ranks:
        if not path.exists():
            raise pytest.UsageError(f"{__file__}: LONG_FILES names {path}, which does not exist")
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the stores while the first tests run."""
    needed = any(
        {"stores", "anywhere"} & set(getattr(item, "fixturenames", ())) for item in session.items
    )
    if needed and not session.config.option.collectonly:
        folder = stores_folder(session.config)
        servers.start(folder)
        session.config.add_cleanup(lambda: servers.leave(folder))


def stores_folder(config: pytest.Config) -> Path:
    """Return the folder that all processes of this session share for the stores."""
    if shared := os.environ.get("TEST_STORES"):  # they run already
        return Path(shared)
    base = config._tmp_path_factory.getbasetemp()
    return (base.parent if hasattr(config, "workerinput") else base) / "stores"


@functools.cache
def schema(name: str) -> jsonschema.Draft202012Validator:
    """Return what holds documents to `job/assets/<name>.schema.json`, and that to its own rules."""
    paths = (REPOSITORY / "job" / "assets").glob("*.schema.json")
    found = {path.name.partition(".")[0]: json.loads(path.read_text()) for path in paths}
    known = referencing.Registry().with_contents([(each["$id"], each) for each in found.values()])
    times = jsonschema.FormatChecker(formats=())
    times.checks("date-time", ValueError)(lambda text: bool(datetime.fromisoformat(text).tzinfo))
    kind = jsonschema.Draft202012Validator
    kind.check_schema(found[name])
    return kind(found[name], registry=known, format_checker=times)


@dataclass(frozen=True)
class Finished:
    """A command that has run: its exit code and what it printed."""

    code: int
    out: str
    err: str


def free_ports(count: int) -> list[int]:
    """Return ports of which each, and the one after it, is free; below those that systems give.

    Drawn by chance, since other processes look for some at the same time.
    """
    draw = secrets.SystemRandom()
    found: list[int] = []
    while len(found) < count:
        port = draw.randrange(10_000, 32_000, 2)
        if port in found:
            continue
        try:
            for number in (port, port + 1):
                socket.create_server(("127.0.0.1", number)).close()
        except OSError:
            continue
        found.append(port)
    return found


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the developer's flags and credentials, and a cluster's variables out of tests."""
    for name in list(os.environ):
        ours = ("MNIST_JOB_", "K8S_", "AWS_", "STORAGE_EMULATOR", "GOOGLE_", "MLFLOW_", "KUBEFLOW_")
        ours += ("AIP_", "CLOUD_ML_", "TRAINING_JOB_")
        if name.startswith(ours) or name in {"TF_CONFIG", "CLUSTER_SPEC", "JOB_COMPLETION_INDEX"}:
            monkeypatch.delenv(name)
    # A page takes a third of a second of each run; tests/report/test_runs.py has them drawn.
    monkeypatch.setenv("MNIST_JOB_NO_REPORT", "true")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("CLOUDSDK_CONFIG", os.devnull)
    yield
    storage.configure(storage.Settings())


@pytest.fixture(scope="session")
def stores(pytestconfig: pytest.Config) -> Iterator[dict[str, servers.Server]]:
    """Run an S3 and a Google store, by scheme, one of each for all processes of this session."""
    with servers.shared(stores_folder(pytestconfig)) as running:
        yield running


@pytest.fixture(params=["s3", "gs"])
def store(
    request: pytest.FixtureRequest,
    stores: dict[str, servers.Server],
    monkeypatch: pytest.MonkeyPatch,
) -> servers.Server:
    """Return a store that this process is led to; the test runs once for each kind."""
    server = stores[request.param]
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def faulty(store: servers.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[faults.Proxy]:
    """Return a proxy of `store` that this process is led to instead."""
    with faults.proxy(store.scheme, store.url) as proxy:
        for name, value in store.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield proxy


@pytest.fixture
def place(store: servers.Server) -> storage.Place:
    """Return a folder in `store` that nobody else uses."""
    return storage.parse(f"{store.root}/{secrets.token_hex(8)}")


@pytest.fixture(params=["file", "s3", "gs"])
def anywhere(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> storage.Place:
    """Return a folder that nobody else uses, on each kind of storage."""
    if request.param == "file":
        return storage.parse(str(tmp_path / "a folder"))
    server = request.getfixturevalue("stores")[request.param]
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return storage.parse(f"{server.root}/{secrets.token_hex(8)}/deep")


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Return a function that runs `mnist-job` with its arguments in this process."""

    def run(*arguments: object) -> Finished:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Finished(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def mnist() -> source.Dataset:
    """Return the embedded data set."""
    return source.load(DataSource(EMBEDDED))


@pytest.fixture(scope="session")
def small_mnist(mnist: source.Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return where an .npz with 2,000 training and 505 test images of MNIST lies."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(
        path,
        x_train=mnist.x_train[:2000],
        y_train=mnist.y_train[:2000],
        x_test=mnist.x_test[:505],
        y_test=mnist.y_test[:505],
    )
    return str(path)


@pytest.fixture(scope="session")
def trained(small_mnist: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two epochs on the small data."""
    output = tmp_path_factory.mktemp("output")
    flags = ["--data", small_mnist, "--epochs", "2", "--output", str(output), "--run-id", "trained"]
    assert main(["train", *flags]) == 0
    return output / "trained"


@pytest.fixture
def foreign_folder(tmp_path: Path) -> Path:
    """Return a folder where `job` and `json` are somebody else's, and end whoever imports them."""
    folder = tmp_path / "foreign"
    (folder / "job").mkdir(parents=True)
    for path in (folder / "job" / "__init__.py", folder / "json.py"):
        path.write_text("raise SystemExit('imported from the current folder')\n")
    return folder
