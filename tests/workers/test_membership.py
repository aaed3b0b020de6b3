"""Watchers find each other, and notice who is missing, strange, silent or gone."""

import contextlib
import errno
import json
import socket
import threading
import time

import pytest
from conftest import free_ports

from job.errors import ClusterError, TemporaryError
from job.process.preemption import Preemption
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


@contextlib.contextmanager
def pretend(address: str, state: dict[str, object], silent: threading.Event | None = None):
    """Answer at `address` as a watcher in the state `state` would, until `silent`."""
    host, _, port = address.rpartition(":")
    over = threading.Event()
    fields = {"misses": [], "doubt": None, "ready": False, "waits": False, "end": None}
    whole = {"team": "run", "why": None} | fields | state

    def answer(connection):
        with connection, connection.makefile("rwb") as stream, contextlib.suppress(OSError):
            while stream.readline():
                if silent is not None and silent.is_set():
                    over.wait(10)
                    return
                stream.write(json.dumps(whole).encode() + b"\n")
                stream.flush()

    def serve(server):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server((host, int(port) + 1)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        yield
        over.set()
        server.shutdown(socket.SHUT_RDWR)


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
    silent = threading.Event()
    with pretend(addresses[1], {"index": 1}, silent):
        mine, _ = join(0), join(2)
        mine.meet(10)
        silent.set()
        assert until(mine.lost, 5)
        assert "no answer" in mine.lost()


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


def test_all_start_when_all_have_met_all(join, addresses):
    """As where a name that didn't resolve yet goes on not to, for one worker and for a while."""
    late = free_ports(4)[3]  # not one of `addresses`
    seen = Membership(Workers((f"127.0.0.1:{late}", *addresses[1:]), 1), "run")
    mine, third = join(0), join(2)
    began = time.monotonic()
    with pytest.raises(TemporaryError, match=r"worker 1 .*: it has not reached worker 0 yet"):
        mine.meet(1.5)
    with pytest.raises(TemporaryError, match=r"worker 1 .*: it has not reached worker 0 yet"):
        third.meet(0.1)
    assert time.monotonic() - began < 5
    meeting = [threading.Thread(target=one.meet, args=(20,)) for one in (mine, seen, third)]
    for one in meeting:
        one.start()
    time.sleep(0.5)
    assert all(one.is_alive() for one in meeting)
    with relay(late + 1, addresses[0]):
        for one in meeting:
            one.join(10)
        assert not any(one.is_alive() for one in meeting)
        assert [one.lost() for one in (mine, seen, third)] == [None] * 3
    seen.leave(0)


@contextlib.contextmanager
def relay(port: int, address: str):
    """Lead whoever comes to `port` to the watcher of the worker at `address`."""
    host, _, other = address.rpartition(":")

    def carry(source, target):
        with source, contextlib.suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def serve(server):
        with contextlib.suppress(OSError):
            while True:
                near, _ = server.accept()
                far = socket.create_connection((host, int(other) + 1))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        yield
        server.shutdown(socket.SHUT_RDWR)


def test_one_that_takes_itself_for_another_is_refused(join, addresses):
    with pretend(addresses[1], {"index": 2}):
        mine, _ = join(0), join(2)
        with pytest.raises(ClusterError, match=r"worker 1 .* takes itself for worker 2: give each"):
            mine.meet(20)


class Told:
    """Progress that keeps its events."""

    def __init__(self) -> None:
        self.events: list[dict] = []

    def beat(self) -> None:
        pass

    def event(self, name: str, **details: object) -> None:
        self.events.append({"event": name, **details})


def test_who_is_missing_is_said_at_once_and_again(join, addresses, monkeypatch):
    monkeypatch.setattr(peers_module, "_FIRST_WORD_SECONDS", 0.3)
    monkeypatch.setattr(peers_module, "_WORD_SECONDS", 0.5)
    mine, _ = join(0), join(1)
    told = Told()
    assert until(lambda: mine._peers[0].met)
    with pytest.raises(TemporaryError):
        mine.meet(1.5, told)
    assert [event["event"] for event in told.events] == ["waiting_for_workers"] * 3
    assert [event["waited_seconds"] for event in told.events] == [
        pytest.approx(seconds, abs=0.25) for seconds in (0.3, 0.8, 1.3)
    ]
    for event in told.events:
        [missing] = event["missing"]
        assert missing.startswith(f"worker 2 ({addresses[2]}): ")


def test_one_that_goes_before_all_have_met_is_waited_for_again(join):
    """Who has waited keeps its place: it would only have to wait for it again."""
    mine, other = join(0), join(1)
    assert until(lambda: mine._peers[0].met)
    threading.Thread(target=other.leave, args=(75,)).start()
    assert until(lambda: not mine._peers[0].met)
    with pytest.raises(TemporaryError, match=r"worker 1 \(.*it ended with exit code 75"):
        mine.meet(0.3)
    time.sleep(2.5)  # until its port is free again
    later = [join(1), join(2)]
    for one in (mine, *later):
        one.meet(10)
        assert one.lost() is None


@pytest.mark.parametrize("code", [78, 64])
def test_one_that_would_fail_again_is_not_waited_for(join, code):
    mine, other = join(0), join(1)
    threading.Thread(target=other.leave, args=(code, "it says why")).start()
    began = time.monotonic()
    with pytest.raises(TemporaryError, match=rf"exit code {code} \(it says why\)"):
        mine.meet(20)
    assert time.monotonic() - began < 5


def test_of_several_the_one_to_blame_is_named(join):
    """Worker 1 ends since it lost worker 2; it is worker 2 that nobody hears of."""
    everybody = [join(index) for index in range(3)]
    for peers in everybody:
        peers.meet(20)
    mine, victim, frozen = everybody
    frozen.doubt = "showed no life for 9 s"
    assert until(lambda: mine.suspected() is not None)
    assert mine.lost() is None
    threading.Thread(target=victim.leave, args=(75, "lost somebody")).start()
    assert until(mine.lost)
    assert mine.lost().startswith("worker 2 ")
    assert "is lost: it showed no life for 9 s" in mine.lost()
    frozen.doubt = None
    assert until(lambda: mine.lost().startswith("worker 1 "))
    assert "it ended with exit code 75 (lost somebody)" in mine.lost()


def test_who_has_lost_one_does_not_begin_with_its_successor(join, addresses):
    """It is about to end: the one that comes anew waits for the whole next generation."""
    everybody = [join(index) for index in range(3)]
    for peers in everybody:
        peers.meet(20)
    everybody[1].leave(137)
    assert until(everybody[0].lost)
    host, _, port = addresses[0].rpartition(":")
    with (
        socket.create_connection((host, int(port) + 1), 5) as connection,
        connection.makefile("rwb") as stream,
    ):
        stream.write(b"{}\n")
        stream.flush()
        assert json.loads(stream.readline())["misses"] == [1]


def test_all_are_ready_when_each_is(join):
    everybody = [join(index) for index in range(3)]
    for peers in everybody:
        peers.meet(20)
    everybody[1].ready = everybody[2].ready = True
    time.sleep(1.5)
    assert not any(peers.all_ready() for peers in everybody)
    everybody[0].ready = True
    assert until(lambda: all(peers.all_ready() for peers in everybody), 3)


@pytest.mark.slow
def test_where_all_wait_nobody_works(join):
    mine, other, third = (join(index) for index in range(3))
    for peers in (mine, other, third):
        peers.meet(20)
    other.waits = True
    time.sleep(1.5)
    assert mine.another_works()
    third.leave(0)
    assert until(lambda: not mine.another_works(), 3)
    other.waits = False
    assert until(mine.another_works, 3)


def test_a_stop_is_heard_while_others_are_waited_for(join):
    mine = join(0)
    with pytest.raises(TemporaryError, match="--time-limit 5 reached"):
        mine.meet(20, None, Preemption(5, spent_seconds=5))


class Tired:
    """A server's socket that can't take a connection now and then."""

    def __init__(self, server: socket.socket) -> None:
        self._server, self._calls = server, 0

    def accept(self):
        self._calls += 1
        if self._calls % 2:
            raise OSError(errno.EMFILE, "too many open files")
        return self._server.accept()

    def close(self) -> None:
        self._server.close()


def test_an_error_of_a_moment_deafens_nobody(join, monkeypatch):
    listen = peers_module._listen
    monkeypatch.setattr(peers_module, "_listen", lambda port: Tired(listen(port)))
    for peers in [join(index) for index in range(3)]:
        peers.meet(5)
