"""Whether the other workers are there: a line a second between the processes that watch over them.

TensorFlow waits for a peer that never comes for half an hour, and deaf to every signal; one that
hangs it may never notice. So each worker's watcher answers on the port after TensorFlow's, and asks
every other one. No answer for some seconds, a closed connection or word of a failure mean that the
peer is lost.
"""

import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from job.errors import ClusterError, TemporaryError
from job.process.liveness import Liveness
from job.workers.cluster import Workers

PORT_OFFSET = 1  # from TensorFlow's port
SILENCE_SECONDS = 10.0  # a healthy watcher answers within milliseconds, a paused machine in seconds
_INTERVAL_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_LOOK_SECONDS = 0.1
_MAX_LINE = 1024  # bytes; whatever sends more is not a peer


@dataclass
class _Peer:
    """What is known of another worker."""

    name: str
    host: str
    port: int
    met: bool = False
    problem: str = "not tried yet"
    """Why it isn't met, or why it is lost."""
    lost: bool = False
    ended: bool = False
    """It is through, having done its part."""
    thread: threading.Thread | None = field(default=None, repr=False)


class Membership:
    """The other workers of a training, as far as this one can see them."""

    def __init__(self, workers: Workers, team: str) -> None:
        """Answer from now on, and begin to look for the others.

        Args:
            workers: who trains together.
            team: what all of them must agree on, such as run id and digest of the config.

        Raises:
            ClusterError: this worker's port can't be had.
        """
        self._team = team
        self._index = workers.index
        self._ending: int | None = None
        self._closed = threading.Event()
        self._stranger: str | None = None
        places = [address.rpartition(":") for address in workers.addresses]
        port = int(places[workers.index][2])
        _listen(port).close()  # TensorFlow will take it: see now that it can
        self._server = _listen(port + PORT_OFFSET)
        threading.Thread(target=self._accept, daemon=True).start()
        self._peers = [
            _Peer(f"worker {index} ({host}:{port})", host, int(port) + PORT_OFFSET)
            for index, (host, _, port) in enumerate(places)
            if index != workers.index
        ]
        for peer in self._peers:
            peer.thread = threading.Thread(target=self._follow, args=(peer,), daemon=True)
            peer.thread.start()

    def meet(self, timeout_seconds: float, liveness: Liveness | None = None) -> None:
        """Wait until every other worker has answered.

        Args:
            timeout_seconds: how long.
            liveness: beats meanwhile.

        Raises:
            TemporaryError: one didn't in time.
            ClusterError: one belongs to another team.
        """
        deadline = time.monotonic() + timeout_seconds
        while missing := [peer for peer in self._peers if not peer.met]:
            if self._stranger is not None:
                raise ClusterError(self._stranger)
            if (gone := self.lost()) is not None:
                raise TemporaryError(gone)
            if time.monotonic() > deadline:
                reasons = "; ".join(f"{peer.name}: {peer.problem}" for peer in missing)
                raise TemporaryError(
                    f"not all workers came within {timeout_seconds:g} s ({reasons}): check that "
                    "their pods run and that their names resolve, or raise --peer-timeout"
                )
            if liveness is not None:
                liveness.beat()
            time.sleep(_LOOK_SECONDS)

    def lost(self) -> str | None:
        """Return who is lost and why, or None while all others are well."""
        for peer in self._peers:
            if peer.lost:
                return f"{peer.name} is lost: {peer.problem}"
        return None

    def leave(self, code: int) -> None:
        """Tell the others that this worker ends with the exit code `code`, and close."""
        self._ending = code
        # Each asks once in an interval: after two of them all have heard it, or are gone.
        deadline = time.monotonic() + 2 * _INTERVAL_SECONDS
        while time.monotonic() < deadline and not all(p.lost or p.ended for p in self._peers):
            time.sleep(_LOOK_SECONDS)
        self._closed.set()
        self._server.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        """Answer another worker's lines until it goes."""
        try:
            with connection, connection.makefile("rwb") as stream:
                connection.settimeout(2 * SILENCE_SECONDS)
                while not self._closed.is_set() and stream.readline(_MAX_LINE):
                    _send(stream, {"team": self._team, "index": self._index, "end": self._ending})
        except OSError:
            return  # whoever it was is gone, which only matters to those who asked it

    def _follow(self, peer: _Peer) -> None:
        """Look for `peer`, then ask it again and again."""
        while not self._closed.is_set() and not peer.met:
            try:
                connection = socket.create_connection((peer.host, peer.port), SILENCE_SECONDS)
                with connection, connection.makefile("rwb") as stream:
                    self._ask(peer, stream)
            except (OSError, ValueError, LookupError, TypeError) as error:
                peer.problem = _reason(error)
                peer.lost = peer.met
            time.sleep(_RETRY_SECONDS)

    def _ask(self, peer: _Peer, stream: Any) -> None:
        while not self._closed.is_set():
            _send(stream, {"index": self._index})
            line = stream.readline(_MAX_LINE)
            if not line:
                raise ConnectionError("it closed the connection")
            answer = json.loads(line)
            if answer["team"] != self._team:
                self._stranger = (
                    f"{peer.name} trains {answer['team'][:80]!r}, not {self._team!r} as this one: "
                    "give all workers the same flags"
                )
                return
            peer.met = True
            if answer["end"] is not None:
                peer.ended = answer["end"] == 0
                if not peer.ended:
                    peer.problem = f"it ended with exit code {answer['end']}"
                    peer.lost = True
                return
            self._closed.wait(_INTERVAL_SECONDS)


def _listen(port: int) -> socket.socket:
    # Of both families where the machine has both: a pod's name may resolve to either.
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise ClusterError(
            f"cannot listen on port {port} ({error.strerror}): free it, or choose another by "
            "TF_CONFIG or K8S_WORKER_PORT, of which the port after it must be free as well"
        ) from error


def _send(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer for {SILENCE_SECONDS:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
