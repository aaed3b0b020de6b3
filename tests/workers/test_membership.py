"""Watchers find each other, and notice who is missing, strange, silent or gone."""

import contextlib
import json
import socket
import threading
import time

import pytest
from conftest import free_ports

from job.errors import ClusterError, TemporaryError
from job.workers import membership as peers_module
from job.workers.cluster import Workers
from job.workers.membership import Membership


@pytest.fixture
def addresses() -> tuple[str, ...]:
    """Return three addresses on this machine whose next ports are free."""
    return tuple(f"127.0.0.1:{port}" for port in free_ports(3))


@pytest.fixture
def join(addresses):
    """Return a function that lets a worker join; all leave at the end."""
    joined = []

    def one(index: int, team: str = "run") -> Membership:
        joined.append(Membership(Workers(addresses, index), team))
        return joined[-1]

    yield one
    for peers in joined:
        threading.Thread(target=peers.leave, args=(0,)).start()


def until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def test_all_meet_whoever_comes_first(join):
    first = join(0)
    later = [join(1), join(2)]
    for peers in (first, *later):
        peers.meet(20)
        assert peers.lost() is None


def test_a_missing_one_is_named(join, addresses):
    first, _ = join(0), join(1)
    with pytest.raises(TemporaryError, match="within 1 s") as caught:
        first.meet(1)
    assert "worker 2 " in str(caught.value)
    assert addresses[2] in str(caught.value)
    assert "worker 1 " not in str(caught.value)


def test_a_name_that_does_not_resolve_is_told():
    mine = f"127.0.0.1:{free_ports(1)[0]}"
    peers = Membership(Workers((mine, "no-such-host.invalid:2222"), 0), "run")
    with pytest.raises(TemporaryError, match="no-such-host"):
        peers.meet(1.5)
    peers.leave(75)


def test_another_training_is_refused(join):
    mine, _ = join(0, "run-1 aaaa"), join(1, "run-2 bbbb")
    join(2, "run-1 aaaa")
    with pytest.raises(ClusterError, match=r"run-2 bbbb.*not 'run-1 aaaa'"):
        mine.meet(20)


@pytest.mark.parametrize("code", [75, 143, 137, 70])
def test_one_that_fails_is_lost(join, code):
    everybody = [join(index) for index in range(3)]
    for peers in everybody:
        peers.meet(20)
    everybody[1].leave(code)
    assert until(everybody[0].lost)
    assert "worker 1 " in everybody[0].lost()
    assert f"exit code {code}" in everybody[0].lost()


def test_one_that_is_done_is_not_lost(join):
    everybody = [join(index) for index in range(3)]
    for peers in everybody:
        peers.meet(20)
    everybody[1].leave(0)
    time.sleep(1.5)
    assert everybody[0].lost() is None


def test_one_that_falls_silent_is_lost(join, addresses, monkeypatch):
    """A frozen process keeps its connections: the kernel even accepts new ones for it."""
    monkeypatch.setattr(peers_module, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(peers_module, "_INTERVAL_SECONDS", 0.1)
    host, _, port = addresses[1].rpartition(":")

    def answer_once(server):
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as stream:
            stream.readline()
            stream.write(json.dumps({"team": "run", "index": 1, "end": None}).encode() + b"\n")
            stream.flush()
            stopped.wait(10)

    stopped = threading.Event()
    with socket.create_server((host, int(port) + 1)) as server:
        thread = threading.Thread(target=answer_once, args=(server,))
        thread.start()
        mine, _ = join(0), join(2)
        mine.meet(10)
        assert until(mine.lost, 5)
        assert "no answer" in mine.lost()
        stopped.set()
        thread.join()


@pytest.mark.parametrize(
    "noise", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000, b"[]\n", b"{}\n"]
)
def test_noise_on_the_port_harms_nobody(join, addresses, noise):
    everybody = [join(index) for index in range(3)]
    host, _, port = addresses[0].rpartition(":")
    with socket.create_connection((host, int(port) + 1), 5) as connection:
        connection.sendall(noise)
    for peers in everybody:
        peers.meet(20)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400\r\n", b"[]\n", b"{}\n", b"7\n", b"\xff\n"])
def test_a_stranger_on_a_peers_port_is_nobody(join, addresses, answer):
    host, _, port = addresses[1].rpartition(":")
    stopped = threading.Event()

    def serve(server):
        while not stopped.is_set():
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):  # who asked may be gone
                connection.sendall(answer)

    with socket.create_server((host, int(port) + 1)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        mine, _ = join(0), join(2)
        with pytest.raises(TemporaryError, match="worker 1 "):
            mine.meet(1.2)
        stopped.set()


@pytest.mark.parametrize("offset", [0, peers_module.PORT_OFFSET])
def test_a_port_that_is_taken_is_an_error_of_the_cluster(addresses, offset):
    """TensorFlow's own port is looked at as well: it would be a traceback later."""
    port = int(addresses[0].rpartition(":")[2]) + offset
    taken = socket.create_server(("127.0.0.1", port))
    with taken, pytest.raises(ClusterError, match=f"cannot listen on port {port} "):
        Membership(Workers(addresses, 0), "run")
