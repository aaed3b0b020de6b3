"""A proxy in front of an object store that notes every request and can spoil any of them.

It hands bytes on as they are, the header Host included, so that signatures stay valid. Beside it
runs a host that nobody should ever write to: where its redirects lead.
"""

import base64
import contextlib
import hashlib
import http.client
import http.server
import json
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

# The store, or the way to it, is not well.
UNWELL = ("500", "503", "429", "reset", "stall", "lost reply", "truncated", "cut upload")
# It is never silent, and its answer never there.
SLOW = ("trickle",)
# Somebody else answers, in good HTTP: a captive portal, an ingress. The store is not asked.
REDIRECTS = ("301", "302", "307", "308")
FOREIGN = (
    "page",
    "page with ETag",
    "page as 206",
    "empty",
    "204",
    "other answer",
    "other listing",
    "404 page",
    "404 of another service",
    *REDIRECTS,
)
# The store answers, and on the way something of it is lost.
ALTERED = ("no proof", "no range", "no length", "other bytes")
PASSING = (*UNWELL, *SLOW, *FOREIGN, *ALTERED)
# A page with 403 is that of a proxy which lets nobody through: to ask again is of no use.
REFUSING = ("401", "403", "403 page", "expired")
# A listing that never moves on, which takes more than one answer. After CIRCLES answers it does
# move on, so that the test of a job which follows it fails and doesn't wait for ever.
LASTING_ONLY = ("same page",)
CIRCLES = 50
FAULTS = (*PASSING, *REFUSING, *LASTING_ONLY)

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

PAGE = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body>Sign in</body></html>\n"
OTHER_LISTING = {
    "s3": b"<?xml version='1.0' encoding='UTF-8'?>\n"
    b"<ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Name>another-bucket</Name>"
    b"<Prefix/><KeyCount>0</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>"
    b"</ListBucketResult>",
    "gs": b'{"kind": "storage#buckets"}',
}
OTHER_ANSWER = {"s3": b"<html/>", "gs": b"[]"}
HTML = ("Content-Type", "text/html; charset=utf-8")
PROOFS = {"etag", "x-goog-generation", "x-goog-hash", "seaweed-x-amz-etag"}

Answer = tuple[int, list[tuple[str, str]], bytes]


@dataclass(frozen=True)
class Request:
    """A request that came by."""

    method: str
    """GET, PUT, LIST or DELETE; an upload is a PUT whatever the protocol calls it."""
    key: str
    """Object or prefix it was about."""
    seconds: float = field(default=0.0, compare=False, repr=False)
    """When it came, by `time.monotonic`."""


@dataclass(frozen=True)
class Astray:
    """A request that came where none should."""

    line: str
    headers: dict[str, str]
    body: bytes


def fits(fault: str, request: Request) -> bool:
    """Tell whether `fault` makes anything of the answer to such a request."""
    if fault in {"other listing", "same page"}:
        return request.method == "LIST"
    if fault == "no range":
        return request.method == "GET"
    if fault == "no proof":
        return request.method != "DELETE"
    if fault == "other bytes":  # of what carries a digest: nothing else can tell
        return request.method == "GET" and "/checkpoints/" in request.key
    return True


class Proxy:
    """What came by, and what is to be spoiled."""

    def __init__(self, scheme: str, target: str) -> None:
        self.scheme = scheme
        self.target = urlsplit(target)
        self.url = ""
        self.elsewhere = ""
        """The other host, as a URL."""
        self.astray: list[Astray] = []
        """What arrived there."""
        self.requests: list[Request] = []
        self.bytes_per_second: float | None = None
        self.retry_after: str | None = None
        """The header of that name, in answers such as 503."""
        self.after_listing: Callable[[], None] | None = None
        """Called once, when the store has answered a listing and nobody has seen the answer."""
        self._spoiled: list[tuple[range, str]] = []
        self._ignores_conditions = False
        self._lock = threading.Lock()
        self.stopping = threading.Event()

    def clear(self) -> None:
        """Forget what came by, and spoil nothing."""
        with self._lock:
            self.requests, self.astray, self._ignores_conditions = [], [], False
            self.retry_after = self.after_listing = None
        self.heal()

    def heal(self) -> None:
        """Spoil nothing from now on."""
        self._spoiled = []

    def spoil(self, fault: str, *, first: int, count: int = 1) -> None:
        """Answer `count` requests from number `first` (from 0) on with `fault`.

        Of several calls, the last counts.
        """
        self._spoiled = [(range(first, first + count), fault), *self._spoiled]

    def ignore_conditions(self) -> None:
        """Answer as a store does that overwrites: no condition ever fails."""
        self._ignores_conditions = True

    def note(self, request: Request) -> str | None:
        """Note a request and return its fault."""
        with self._lock:
            self.requests.append(request)
            number = len(self.requests) - 1
            fault = next((fault for numbers, fault in self._spoiled if number in numbers), None)
            lists = sum(each.method == "LIST" for each in self.requests)
            return None if fault == "same page" and lists > CIRCLES else fault

    def overwrote(self, status: int) -> bool:
        """Tell whether to answer that an upload succeeded which the store refused by `status`."""
        return status == 412 and self._ignores_conditions

    def foreign(self, fault: str, path: str) -> Answer:
        """Return what somebody else answers."""
        if fault in REDIRECTS:
            return int(fault), [HTML, ("Location", f"{self.elsewhere}{path}")], PAGE
        xml, json_ = ("Content-Type", "application/xml"), ("Content-Type", "application/json")
        ours = xml if self.scheme == "s3" else json_
        answers: dict[str, Answer] = {
            "page": (200, [HTML], PAGE),
            "page with ETag": (200, [HTML, ("ETag", '"5f3c-61d2a8c0b1e40"')], PAGE),
            "page as 206": (206, [HTML], PAGE),
            "empty": (200, [], b""),
            "204": (204, [], b""),
            "other answer": (200, [ours], OTHER_ANSWER[self.scheme]),
            "other listing": (200, [ours], OTHER_LISTING[self.scheme]),
            "403 page": (403, [HTML], PAGE),
            "404 page": (404, [HTML], PAGE),
            "404 of another service": (
                404,
                [json_],
                b'{"error": {"code": 404, "message": "no route matches"}, "path": "/"}',
            ),
        }
        return answers[fault]

    def altered(self, fault: str, request: Request, answer: Answer) -> Answer:
        """Return the store's answer without what `fault` takes from it."""
        status, headers, body = answer
        if fault == "no proof":
            headers = [each for each in headers if each[0].lower() not in PROOFS]
            if request.method == "LIST":
                body = re.sub(rb"<KeyCount>.*?</KeyCount>|<Name>.*?</Name>", b"", body)
                body = body.replace(b'"kind":"storage#objects"', b'"":""')
            elif request.method == "PUT" and self.scheme == "gs" and status == 200:
                body = b"{}"
        elif fault == "no range":
            headers = [each for each in headers if each[0].lower() != "content-range"]
        elif fault == "other bytes" and status in {200, 206}:
            body = bytes(255 - byte for byte in body)
        elif fault == "same page" and self.scheme == "s3":
            more = (
                b"<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>"
            )
            body = body.replace(b"<IsTruncated>false</IsTruncated>", more)
        elif fault == "same page":
            body = json.dumps({**json.loads(body), "nextPageToken": "a"}).encode()
        return status, headers, body


@contextlib.contextmanager
def proxy(scheme: str, target: str, chain: Path | None = None) -> Iterator[Proxy]:
    """Run a proxy of the store at `target`; by https if `chain` holds key and certificate."""
    state = Proxy(scheme, target)

    class Bound(_Handler):
        proxy = state

    class Other(_Elsewhere):
        astray = state

    with _serving(Other) as (port, _), _serving(Bound, chain) as (own, closing):
        state.elsewhere = f"http://localhost:{port}"  # by name, so that it is another host
        state.url = f"http://127.0.0.1:{own}" if chain is None else f"https://localhost:{own}"
        closing.callback(state.stopping.set)
        yield state


@contextlib.contextmanager
def _serving(
    handler: type[http.server.BaseHTTPRequestHandler], chain: Path | None = None
) -> Iterator[tuple[int, contextlib.ExitStack]]:
    """Serve in a thread; give the port, and what is to be closed before."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Clients that go away are what this is about."""

    server = Server(("127.0.0.1", 0), handler)
    if chain is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        # Hands are shaken by the thread that reads, so that a client which doesn't stops nobody.
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    with contextlib.ExitStack() as closing:
        try:
            yield server.server_address[1], closing
        finally:
            closing.close()
            server.shutdown()
            server.server_close()
            thread.join()


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """A host that accepts everything and proves it as S3 does: whoever writes there believes it."""

    protocol_version = "HTTP/1.1"
    astray: Proxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.astray.astray.append(Astray(self.requestline, dict(self.headers.items()), body))
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Tests print their own."""


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
            later = self.proxy.retry_after
            headers = [] if later is None else [("Retry-After", later)]
            self._answer(status, headers, _error_body(self.proxy.scheme, status, word))
        elif fault in FOREIGN or fault == "403 page":
            self._answer(*self.proxy.foreign(str(fault), self.path))
        else:
            status, headers, content = self._forwarded(body)
            if request.method == "LIST" and self.proxy.after_listing is not None:
                change, self.proxy.after_listing = self.proxy.after_listing, None
                change()
            if fault == "lost reply":
                self._reset()
            elif fault is None or not fits(fault, request):
                self._answer(status, headers, content)
            else:
                answer = self.proxy.altered(fault, request, (status, headers, content))
                self._answer(*answer, fault=fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _forwarded(self, body: bytes) -> Answer:
        target = self.proxy.target
        connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=60)
        hop = {"connection", "expect", "keep-alive"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if self.proxy.overwrote(answer.status):
                return _written(self.proxy.scheme, body)
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
        self, status: int, headers: list[tuple[str, str]], body: bytes, fault: str = ""
    ) -> None:
        ours = {"connection", "content-length", "transfer-encoding", "keep-alive"}
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
        lines += [f"{name}: {value}" for name, value in headers if name.lower() not in ours]
        if fault == "no length":
            lines += ["Transfer-Encoding: chunked"]
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        elif status != 204:
            lines += [f"Content-Length: {len(body)}"]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        if self.command == "HEAD":  # which botocore sends after a redirect; its answer has no body
            body = b""
        if fault == "truncated":
            # Half of the body, or of the head where there is no body.
            whole = head + body
            self.wfile.write(
                whole[: len(head) + len(body) // 2] if body else head[: len(head) // 2]
            )
            self.wfile.flush()
            self.close_connection = True
            return
        if fault == "trickle":
            self._trickle(head + body)
        elif self.proxy.bytes_per_second is None:
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

    def _trickle(self, whole: bytes) -> None:
        """Send a byte now and then: the connection is never silent, and the answer never there."""
        self.close_connection = True
        for number in range(len(whole)):
            self.wfile.write(whole[number : number + 1])
            self.wfile.flush()
            if self.proxy.stopping.wait(0.05) or select.select([self.connection], [], [], 0)[0]:
                return

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
    now = time.monotonic()
    if method == "POST":  # Google's upload: the name is in the JSON part
        return Request("PUT", str(_facts(body)["name"]), now)
    if method == "GET" and ("list-type" in query or parts.path.endswith("/o")):
        return Request("LIST", query.get("prefix", [""])[0], now)
    key = parts.path.partition("/o/")[2] if scheme == "gs" else parts.path.split("/", 2)[-1]
    return Request(method, key.replace("%2F", "/"), now)


def _facts(body: bytes) -> dict[str, Any]:
    """Return the JSON part of an upload to Google."""
    found: dict[str, Any] = json.loads(body.partition(b"\r\n\r\n")[2].partition(b"\r\n")[0])
    return found


def _written(scheme: str, body: bytes) -> Answer:
    """Return what a store answers that has just written an object."""
    if scheme == "s3":
        return 200, [("ETag", f'"{hashlib.md5(body).hexdigest()}"')], b""
    boundary = body[2 : body.index(b"\r\n")]
    data = body.rpartition(b"\r\n--" + boundary)[0].split(b"\r\n\r\n", 2)[2]
    digest = base64.b64encode(hashlib.md5(data).digest()).decode()
    facts = {"kind": "storage#object", "name": _facts(body)["name"], "md5Hash": digest}
    facts |= {"generation": "2", "size": str(len(data))}
    return 200, [("Content-Type", "application/json")], json.dumps(facts).encode()


def _error_body(scheme: str, status: int, word: str) -> bytes:
    if scheme == "gs":
        error = {"code": status, "message": word, "errors": [{"reason": word}]}
        return json.dumps({"error": error}).encode()
    return f"<?xml version='1.0'?><Error><Code>{word}</Code><Message>no</Message></Error>".encode()
