"""Whether the other workers are there: a line a second between the processes that watch over them.

TensorFlow waits for a peer that never comes for half an hour, and deaf to every signal; one that
hangs it may never notice. So each worker's watcher answers on the port after TensorFlow's, and asks
every other one. They begin when each has reached each, since names may resolve in one place before
they do in another. After that no answer for some seconds, a closed connection or word of a failure
mean that the peer is lost.
"""

import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from job.errors import ClusterError, TemporaryError
from job.process.preemption import Preemption
from job.process.progress import Progress
from job.workers.cluster import Workers

PORT_OFFSET = 1  # from TensorFlow's port
SILENCE_SECONDS = 10.0  # a healthy watcher answers within milliseconds, a paused machine in seconds
_INTERVAL_SECONDS = 1.0
_RETRY_SECONDS = 0.5
_LOOK_SECONDS = 0.1
_MEETING_SECONDS = 0.2  # between two questions while this worker waits for the answer
_FIRST_WORD_SECONDS = 1.0  # so long workers of one Job may come one after the other
_WORD_SECONDS = 30.0
_MAX_LINE = 8192  # bytes; whatever sends more is not a peer
_MAX_TEXT = 400  # characters of a reason
_MAX_NAMED = 8
_SIGNALS = 128  # what a signal ended has this and its number as exit code


@dataclass
class _Peer:
    """What is known of another worker."""

    index: int
    name: str
    host: str
    port: int
    met: bool = False
    misses: list[int] = field(default_factory=list)
    """Workers that it hasn't met itself."""
    problem: str = "not tried yet"
    """Why it isn't met, or why it is lost."""
    doubt: str | None = None
    """What its watcher finds wrong with it so far, as in "it showed no life"."""
    ready: bool = False
    """It is about to connect."""
    waits: bool = False
    """It does nothing but wait for others."""
    lost: bool = False
    for_another: bool = False
    """It was lost because it had lost somebody itself."""
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
        self.doubt: str | None = None
        """What is wrong with this worker so far, for the others to know: "showed no life"."""
        self.ready = False
        """Whether this worker is about to connect, for the others to know."""
        self.waits = False
        """Whether this worker does nothing but wait for the others, for them to know."""
        self._team = team
        self._index = workers.index
        self._ending: int | None = None
        self._why: str | None = None
        self._begun = False
        self._closed = threading.Event()
        self._stranger: str | None = None
        places = [address.rpartition(":") for address in workers.addresses]
        self._peers = [
            _Peer(index, f"worker {index} ({host}:{port})", host, int(port) + PORT_OFFSET)
            for index, (host, _, port) in enumerate(places)
            if index != workers.index
        ]
        port = int(places[workers.index][2])
        _listen(port).close()  # TensorFlow will take it: see now that it can
        self._server = _listen(port + PORT_OFFSET)
        threading.Thread(target=self._accept, daemon=True).start()
        for peer in self._peers:
            peer.thread = threading.Thread(target=self._follow, args=(peer,), daemon=True)
            peer.thread.start()

    def meet(
        self,
        timeout_seconds: float,
        progress: Progress | None = None,
        preemption: Preemption | None = None,
    ) -> None:
        """Wait until every worker has reached every other one.

        Args:
            timeout_seconds: how long.
            progress: beats meanwhile, and is told soon and then each half a minute who is missing.
            preemption: asked whether to stop.

        Raises:
            TemporaryError: one didn't in time, or the time limit of the run is reached.
            StoppedError, KeyboardInterrupt: asked to stop.
            ClusterError: one belongs to another team, or takes itself for another worker.
        """
        began = time.monotonic()
        next_word = began + _FIRST_WORD_SECONDS
        while missing := self._missing():
            now = time.monotonic()
            if preemption is not None and (reason := preemption.reason()) is not None:
                raise reason
            if self._stranger is not None:
                raise ClusterError(self._stranger)
            if (gone := self.lost()) is not None:
                raise TemporaryError(gone)
            if now - began > timeout_seconds:
                raise TemporaryError(
                    f"not all workers came within {timeout_seconds:g} s ({'; '.join(missing)}): "
                    "check that their pods run and that their names resolve, or raise "
                    "--peer-timeout"
                )
            if progress is not None:
                progress.beat()
                if now >= next_word:
                    next_word += _WORD_SECONDS
                    progress.event(
                        "waiting_for_workers",
                        missing=missing,
                        waited_seconds=round(now - began, 1),
                        timeout_seconds=timeout_seconds,
                    )
            time.sleep(_LOOK_SECONDS)
        self._begun = True

    def lost(self) -> str | None:
        """Return who is lost and why, or None while all others are well."""
        return self.suspected() if any(peer.lost for peer in self._peers) else None

    def suspected(self) -> str | None:
        """Return who is lost, or else who is to blame if this worker can't go on, or None."""
        lost = [peer for peer in self._peers if peer.lost]
        # Who ended because of another says less than whoever watches over that other one.
        for peer in (peer for peer in lost if not peer.for_another):
            return f"{peer.name} is lost: {peer.problem}"
        for peer in (peer for peer in self._peers if peer.doubt is not None):
            return f"{peer.name} is lost: it {peer.doubt}"
        for peer in lost:
            return f"{peer.name} is lost: {peer.problem}"
        return None

    def all_ready(self) -> bool:
        """Tell whether all workers, this one too, are about to connect or further."""
        return self.ready and all(peer.ready or peer.ended for peer in self._peers)

    def another_works(self) -> bool:
        """Tell whether another worker does something else than to wait for others in its turn."""
        return any(not peer.waits and not peer.ended for peer in self._peers)

    def leave(self, code: int, why: str | None = None) -> None:
        """Tell the others that this worker ends with the exit code `code`, and why, and close."""
        self._why = why
        self._ending = code
        # Each asks once in an interval: after two of them all have heard it, or are gone.
        deadline = time.monotonic() + 2 * _INTERVAL_SECONDS
        while time.monotonic() < deadline and not all(p.lost or p.ended for p in self._peers):
            time.sleep(_LOOK_SECONDS)
        self._closed.set()
        self._server.close()

    def _missing(self) -> list[str]:
        """Return, as a text for each, who is not there or hasn't reached everybody itself."""
        unmet = {peer.index for peer in self._peers if not peer.met}
        missing = [f"{peer.name}: {peer.problem}" for peer in self._peers if peer.index in unmet]
        for peer in self._peers:
            # Whom this one hasn't reached either is named already.
            names = [f"worker {index}" for index in peer.misses if index not in unmet]
            if names and peer.met and not peer.ended:
                missing.append(f"{peer.name}: it has not reached {', '.join(names)} yet")
        more = len(missing) - _MAX_NAMED
        return missing[:_MAX_NAMED] + ([f"and {more} more"] if more > 0 else [])

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed, or short of something for a moment, such as open files
                self._closed.wait(_LOOK_SECONDS)
                continue
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        """Answer another worker's lines until it goes."""
        try:
            with connection, connection.makefile("rwb") as stream:
                connection.settimeout(2 * SILENCE_SECONDS)
                while not self._closed.is_set() and stream.readline(_MAX_LINE):
                    _send(stream, self._state())
        except OSError:
            return  # whoever it was is gone, which only matters to those who asked it

    def _state(self) -> dict[str, Any]:
        # Who has lost one ends soon: nobody who comes anew shall begin with it.
        unmet = [peer.index for peer in self._peers if not peer.met or peer.lost]
        return {
            "team": self._team,
            "index": self._index,
            "misses": unmet[:_MAX_NAMED],
            "doubt": self.doubt,
            "ready": self.ready,
            "waits": self.waits,
            "end": self._ending,
            "why": self._why and self._why[:_MAX_TEXT],
        }

    def _follow(self, peer: _Peer) -> None:
        """Look for `peer`, then ask it again and again."""
        while not (self._closed.is_set() or peer.lost or peer.ended or self._stranger):
            try:
                connection = socket.create_connection((peer.host, peer.port), SILENCE_SECONDS)
                with connection, connection.makefile("rwb") as stream:
                    self._ask(peer, stream)
            except (OSError, ValueError, LookupError, TypeError) as error:
                peer.problem = _reason(error)
                if self._begun:
                    peer.lost = True
                else:  # another may come in its place, and this one needn't give up its own
                    peer.met = False
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
            if answer["index"] != peer.index:
                self._stranger = (
                    f"{peer.name} takes itself for worker {str(answer['index'])[:20]}: give each "
                    "worker its own index, in TF_CONFIG or JOB_COMPLETION_INDEX"
                )
                return
            peer.misses, peer.doubt = list(answer["misses"]), answer["doubt"]
            peer.ready, peer.waits = bool(answer["ready"]), bool(answer["waits"])
            peer.met = True
            if answer["end"] is not None:
                peer.ended = answer["end"] == 0
                if not peer.ended:
                    why = f" ({answer['why']})" if answer["why"] else ""
                    peer.problem = f"it ended with exit code {answer['end']}{why}"
                    if not self._begun and _comes_again(answer["end"]):
                        raise ConnectionError(peer.problem)
                    peer.for_another = answer["end"] == TemporaryError.exit_code
                    peer.lost = True
                return
            awaited = self._missing() or (self.ready and not peer.ready)
            self._closed.wait(_MEETING_SECONDS if awaited else _INTERVAL_SECONDS)


def _comes_again(code: int) -> bool:
    """Tell whether what ends with this exit code is started again, if it is a pod."""
    return code == TemporaryError.exit_code or code > _SIGNALS


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
