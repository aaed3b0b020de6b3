"""An HTTP or HTTPS server on loopback that answers as a test wants, and keeps what it was asked."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def __iter__(self) -> Iterator:
        return iter((self.method, self.path, self.headers, self.body))


@contextmanager
def server(
    answer: Callable[[BaseHTTPRequestHandler, Asked], None],
    path: str = "",
    chain: Path | None = None,
) -> Iterator[tuple[str, list[Asked]]]:
    """Yield the URL of a server, with `path`, and the list of all it was asked.

    It answers each request by `answer(handler, asked)`, and with `chain`, its key and certificate
    in one file, it speaks https.
    """
    requests: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = Asked(self.command, self.path, dict(self.headers), body)
            requests.append(asked)
            answer(self, asked)

        def do_GET(self):
            self.do_POST()

        def do_PUT(self):
            self.do_POST()

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            """A client that has given up is no news."""

    listening = Server(("127.0.0.1", 0), Handler)
    if chain is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        # The handshake is left to the thread of each request, or a stranger would hold up all.
        listening.socket = context.wrap_socket(
            listening.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        scheme = "http" if chain is None else "https"
        yield f"{scheme}://127.0.0.1:{listening.server_address[1]}{path}", requests
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def status(code: int, words: str = "as asked", body: bytes = b"", **headers: str) -> Callable:
    """Return an answer of this status."""

    def answer(handler, _):
        handler.send_response(code, words)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer
