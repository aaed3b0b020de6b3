"""A proxy in front of an object store that notes every request and can spoil one of them.

It hands bytes on as they are, the header Host included, so that signatures stay valid.
"""

import contextlib
import http.client
import http.server
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

PASSING = ("500", "503", "429", "reset", "stall", "lost reply", "truncated", "cut upload")
REFUSING = ("401", "403", "expired")
FAULTS = (*PASSING, *REFUSING)

S3_ERRORS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "429": (429, "TooManyRequests"),
    "401": (401, "Unauthorized"),
    "403": (403, "AccessDenied"),
    "expired": (400, "ExpiredToken"),
}
GCS_ERRORS = {
    "500": (500, "backendError"),
    "503": (503, "backendError"),
    "429": (429, "rateLimitExceeded"),
    "401": (401, "required"),
    "403": (403, "forbidden"),
    "expired": (401, "authError"),
}


@dataclass(frozen=True)
class Request:
    """A request that came by."""

    method: str
    """GET, PUT, LIST or DELETE; an upload is a PUT whatever the protocol calls it."""
    key: str
    """Object or prefix it was about."""


class Proxy:
    """What came by, and what is to be spoiled."""

    def __init__(self, scheme: str, target: str) -> None:
        self.scheme = scheme
        self.target = urlsplit(target)
        self.url = ""
        self.requests: list[Request] = []
        self.bytes_per_second: float | None = None
        self._spoiled: dict[int, str] = {}
        self._ignores_conditions = False
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    def clear(self) -> None:
        """Forget what came by, and spoil nothing."""
        with self._lock:
            self.requests, self._spoiled, self._ignores_conditions = [], {}, False

    def spoil(self, fault: str, *, first: int, count: int = 1) -> None:
        """Answer `count` requests from number `first` (from 0) on with `fault`."""
        self._spoiled = dict.fromkeys(range(first, first + count), fault)

    def ignore_conditions(self) -> None:
        """Answer as a store does that overwrites: no condition ever fails."""
        self._ignores_conditions = True

    def note(self, request: Request) -> str | None:
        """Note a request and return its fault."""
        with self._lock:
            self.requests.append(request)
            return self._spoiled.get(len(self.requests) - 1)

    def overwrote(self, status: int) -> bool:
        """Tell whether to answer that an upload succeeded which the store refused by `status`."""
        return status == 412 and self._ignores_conditions


@contextlib.contextmanager
def proxy(scheme: str, target: str) -> Iterator[Proxy]:
    """Run a proxy of the store at `target`."""
    state = Proxy(scheme, target)

    class Bound(_Handler):
        proxy = state

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Clients that go away are what this is about."""

    server = Server(("127.0.0.1", 0), Bound)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = _described(self.proxy.scheme, self.command, self.path, body)
        fault = self.proxy.note(request)
        errors = S3_ERRORS if self.proxy.scheme == "s3" else GCS_ERRORS
        if fault == "reset":
            self._reset()
        elif fault == "cut upload":
            self._hand_on_the_head_alone()
            self._reset()
        elif fault == "stall":
            self._wait_for_the_client_to_leave()
        elif fault in errors:
            status, word = errors[fault]
            self._answer(status, [], _error_body(self.proxy.scheme, status, word))
        else:
            status, headers, content = self._forwarded(body)
            if fault == "lost reply":
                self._reset()
            elif fault == "truncated":
                self._answer(status, headers, content, cut=True)
            else:
                self._answer(status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        target = self.proxy.target
        connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=60)
        hop = {"connection", "expect", "keep-alive"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if self.proxy.overwrote(answer.status):
                return 200, [("ETag", '"x"')], b"" if self.proxy.scheme == "s3" else b"{}"
            return answer.status, answer.getheaders(), content

    def _hand_on_the_head_alone(self) -> None:
        """Hang up between head and body, as a client does that is killed there."""
        target = self.proxy.target
        with socket.create_connection((str(target.hostname), target.port), timeout=60) as upstream:
            lines = [f"{self.command} {self.path} HTTP/1.1"]
            lines += [
                f"{name}: {value}" for name, value in self.headers.items() if name != "Expect"
            ]
            upstream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            upstream.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                upstream.recv(65536)  # it has made up its mind

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False
    ) -> None:
        ours = {"connection", "content-length", "transfer-encoding", "keep-alive"}
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        lines += [f"{name}: {value}" for name, value in headers if name.lower() not in ours]
        lines += [f"Content-Length: {len(body)}"]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        if cut:
            # Half of the body, or of the head where there is no body.
            whole = head + body
            self.wfile.write(
                whole[: len(head) + len(body) // 2] if body else head[: len(head) // 2]
            )
            self.wfile.flush()
            self.close_connection = True
            return
        if self.proxy.bytes_per_second is None:
            self.wfile.write(head + body)
        else:
            self.wfile.write(head)
            self._write_slowly(body, self.proxy.bytes_per_second)
        self.wfile.flush()

    def _write_slowly(self, body: bytes, rate: float) -> None:
        began = time.monotonic()
        step = 1 << 16
        for first in range(0, len(body), step):
            self.wfile.write(body[first : first + step])
            time.sleep(max(0.0, began + first / rate - time.monotonic()))

    def _reset(self) -> None:
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)  # close with RST
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()

    def _wait_for_the_client_to_leave(self) -> None:
        self.close_connection = True
        while not self.proxy.stopping.is_set():
            if select.select([self.connection], [], [], 0.1)[0]:
                return

    def log_message(self, *_: Any) -> None:
        """Tests print their own."""


def _described(scheme: str, method: str, path: str, body: bytes) -> Request:
    parts = urlsplit(path)
    query = parse_qs(parts.query)
    if method == "POST":  # Google's upload: the name is in the JSON part
        facts = body.partition(b"\r\n\r\n")[2].partition(b"\r\n")[0]
        return Request("PUT", str(json.loads(facts)["name"]))
    if method == "GET" and ("list-type" in query or parts.path.endswith("/o")):
        return Request("LIST", query.get("prefix", [""])[0])
    key = parts.path.partition("/o/")[2] if scheme == "gs" else parts.path.split("/", 2)[-1]
    return Request(method, key.replace("%2F", "/"))


def _error_body(scheme: str, status: int, word: str) -> bytes:
    if scheme == "gs":
        error = {"code": status, "message": word, "errors": [{"reason": word}]}
        return json.dumps({"error": error}).encode()
    return f"<?xml version='1.0'?><Error><Code>{word}</Code><Message>no</Message></Error>".encode()
