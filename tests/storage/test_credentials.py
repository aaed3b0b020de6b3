"""Credentials: found the usual way, never made up, never shown, and their lack is exit code 77."""

import http.server
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import faults
import fsspec.config
import pytest
import servers

from job import storage
from job.errors import ClusterError, CredentialsError, JobError, TemporaryError
from job.storage import Place, parse

SECRET = "hunter2hunter2hunter2"


@pytest.fixture
def google(stores: dict[str, servers.Server], monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Lead this process to the emulator as if it were Google itself; return a place there."""
    with faults.proxy("gs", stores["gs"].url) as proxy:
        monkeypatch.setattr("gcsfs.core._location", lambda _: proxy.url)
        yield parse(f"gs://{servers.BUCKET}/{time.monotonic_ns()}")


def wrong(uri: str | Place) -> JobError:
    with pytest.raises(JobError) as caught:
        storage.create(parse(str(uri)), b"x")
    assert SECRET not in str(caught.value)
    return caught.value


def test_no_credentials_for_s3(stores: dict[str, servers.Server], monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", stores["s3"].url)
    error = wrong(f"{stores['s3'].root}/object")
    assert type(error) is CredentialsError
    assert "AWS_ACCESS_KEY_ID" in str(error)
    assert "--anonymous" in str(error)


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_ACCESS_KEY_ID", "somebody-else"), ("AWS_SECRET_ACCESS_KEY", SECRET)],
)
def test_wrong_credentials_for_s3(
    stores: dict[str, servers.Server], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    for each, right in stores["s3"].environment().items():
        monkeypatch.setenv(each, right)
    monkeypatch.setenv(name, value)
    assert type(wrong(f"{stores['s3'].root}/object")) is CredentialsError


def test_a_profile_that_is_not_there(
    stores: dict[str, servers.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", stores["s3"].url)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert type(wrong(f"{stores['s3'].root}/object")) is CredentialsError


def test_credentials_of_a_profile_are_found(
    stores: dict[str, servers.Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = f"aws_access_key_id = {servers.KEY_ID}\naws_secret_access_key = {servers.SECRET_KEY}\n"
    (tmp_path / "credentials").write_text(f"[trainer]\n{keys}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", stores["s3"].url)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "trainer")
    storage.create(parse(f"{stores['s3'].root}/{time.monotonic_ns()}"), b"x")


def test_anonymous_is_asked_for_and_looks_for_nothing(
    stores: dict[str, servers.Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store here allows nothing to nobody: that it says so shows that it was asked."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", stores["s3"].url)
    storage.configure(storage.Settings(anonymous=True))
    assert "403" in str(wrong(f"{stores['s3'].root}/object"))


@pytest.mark.parametrize("url", ["nowhere", "http://", f"http://user:{SECRET}@"])
def test_an_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    storage.configure(storage.Settings(timeout_seconds=1))
    assert type(wrong("s3://bucket/key")) in {ClusterError, TemporaryError}


def test_the_configuration_of_fsspec_has_no_say(
    stores: dict[str, servers.Server], google: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README of storage names all places where credentials are looked for."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", stores["s3"].url)
    keys = {"key": servers.KEY_ID, "secret": servers.SECRET_KEY}
    elsewhere = {"endpoint_url": "http://127.0.0.1:9"}
    for name, options in {"s3": keys, "s3a": keys, "gs": elsewhere, "gcs": elsewhere}.items():
        monkeypatch.setitem(fsspec.config.conf, name, options)
    assert type(wrong(f"{stores['s3'].root}/object")) is CredentialsError
    storage.configure(storage.Settings(anonymous=True))
    storage.create(google / "object", b"x")


def test_no_credentials_for_google(google: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        error = wrong(f"{google}/object")
    assert type(error) is CredentialsError
    assert "GOOGLE_APPLICATION_CREDENTIALS" in str(error)
    assert caplog.records == []


def test_anonymous_for_google(google: Place) -> None:
    storage.configure(storage.Settings(anonymous=True))
    storage.create(google / "object", b"x")
    assert storage.read(google / "object", 1) == b"x"


@pytest.mark.parametrize("content", ["", "no json", "{}", '{"type": "service_account"}', "[1]"])
def test_a_file_that_holds_no_credentials(
    google: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    (tmp_path / "key.json").write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert type(wrong(f"{google}/object")) is CredentialsError
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    assert type(wrong(f"{google}/object")) is CredentialsError


class Tokens:
    """A server of tokens that says what it is told to, or nothing."""

    def __init__(self, answer: bytes | None) -> None:
        self.asked = 0
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/token"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        open_ones = []
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                for connection in open_ones:
                    connection.close()
                return
            self.asked += 1
            if self._answer is None:
                open_ones.append(connection)
                continue
            with connection:
                connection.recv(65536)
                connection.sendall(self._answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def user_credentials(folder: Path, token_uri: str) -> str:
    """Return a file as gcloud's login writes it, but for the server of tokens."""
    facts = {
        "type": "authorized_user",
        "client_id": "client",
        "client_secret": SECRET,
        "refresh_token": SECRET,
        "token_uri": token_uri,
    }
    (folder / "user.json").write_text(json.dumps(facts))
    return str(folder / "user.json")


def http_json(status: str, facts: dict[str, object]) -> bytes:
    body = json.dumps(facts)
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.fixture
def led_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that makes a server of tokens the one that is asked."""

    def lead(tokens: Tokens) -> None:
        path = user_credentials(tmp_path, tokens.url)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", path)
        monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", tokens.url)

    return lead


def test_a_token_is_fetched_once_and_sent_along(
    stores: dict[str, servers.Server], monkeypatch: pytest.MonkeyPatch, led_to
) -> None:
    seen = []
    send = faults._Handler._handle

    def look(handler) -> None:
        seen.append(handler.headers["Authorization"])
        send(handler)

    for name in ("do_GET", "do_POST"):
        monkeypatch.setattr(faults._Handler, name, look)
    answer = http_json("200 OK", {"access_token": "a-token", "expires_in": 3600})
    with faults.proxy("gs", stores["gs"].url) as proxy, Tokens(answer) as tokens:
        monkeypatch.setattr("gcsfs.core._location", lambda _: proxy.url)
        led_to(tokens)
        storage.create(parse(f"gs://{servers.BUCKET}/{time.monotonic_ns()}"), b"x")
        assert seen == ["Bearer a-token"] * 4
        assert tokens.asked == 1


def test_a_token_that_ends_soon_is_renewed(google: Place, led_to) -> None:
    answer = http_json("200 OK", {"access_token": "a-token", "expires_in": 120})
    with Tokens(answer) as tokens:
        led_to(tokens)
        storage.create(google / "object", b"x")
        assert tokens.asked == 4


def test_a_netrc_has_no_say(
    google: Place, led_to, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The libraries below would send its password beside the token, or give up over both."""
    (tmp_path / "netrc").write_text(f"default login somebody password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Tokens(http_json("200 OK", {"access_token": "a-token", "expires_in": 3600})) as tokens:
        led_to(tokens)
        storage.create(google / "object", b"x")


def test_a_revoked_login_is_refused(google: Place, led_to) -> None:
    with Tokens(http_json("400 Bad Request", {"error": "invalid_grant"})) as tokens:
        led_to(tokens)
        error = wrong(f"{google}/object")
    assert type(error) is CredentialsError
    assert "RefreshError" in str(error)


def test_a_secret_goes_nowhere_that_the_server_of_tokens_redirects_to(
    google: Place, led_to, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("job.storage.retrying.FIRST_WAIT_SECONDS", 0.01)
    with Tokens(http_json("200 OK", {"access_token": "a-token", "expires_in": 3600})) as elsewhere:
        head = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {elsewhere.url}\r\n"
        answer = f"{head}Connection: close\r\nContent-Length: 0\r\n\r\n".encode()
        with Tokens(answer) as tokens:
            led_to(tokens)
            assert type(wrong(f"{google}/object")) is TemporaryError
            assert tokens.asked
        assert elsewhere.asked == 0


def test_a_server_of_tokens_that_says_nothing_is_not_waited_for(
    google: Place, led_to, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("job.storage.retrying.FIRST_WAIT_SECONDS", 0.01)
    storage.configure(storage.Settings(timeout_seconds=0.5))
    with Tokens(None) as tokens:
        led_to(tokens)
        began = time.monotonic()
        assert type(wrong(f"{google}/object")) is TemporaryError
        assert time.monotonic() - began < 20


def http_xml(status: str, body: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.fixture
def s3_of_a_role(
    stores: dict[str, servers.Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> str:
    """Lead this process to the S3 store by a web identity, as EKS does; return a place there."""
    monkeypatch.setattr("job.storage.retrying.FIRST_WAIT_SECONDS", 0.01)
    (tmp_path / "token").write_text(SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", stores["s3"].url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/trainer")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    return f"{stores['s3'].root}/{time.monotonic_ns()}"


def role_answer(expires: str) -> bytes:
    keys = f"<AccessKeyId>{servers.KEY_ID}</AccessKeyId>"
    keys += f"<SecretAccessKey>{servers.SECRET_KEY}</SecretAccessKey>"
    keys += f"<SessionToken>{SECRET}</SessionToken><Expiration>{expires}</Expiration>"
    credentials = f"<Credentials>{keys}</Credentials>"
    name = "AssumeRoleWithWebIdentity"
    found = f"<{name}Result>{credentials}</{name}Result>"
    space = "https://sts.amazonaws.com/doc/2011-06-15/"
    return http_xml("200 OK", f'<{name}Response xmlns="{space}">{found}</{name}Response>')


def sts_error(code: str) -> bytes:
    error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{SECRET}</Message></Error>"
    return http_xml("400 Bad Request", f"<ErrorResponse>{error}</ErrorResponse>")


@pytest.mark.parametrize(
    ("answer", "kind", "asked"),
    [
        pytest.param(sts_error("InvalidIdentityToken"), CredentialsError, 1, id="refused"),
        pytest.param(role_answer("2020-01-01T00:00:00Z"), CredentialsError, None, id="too old"),
        pytest.param(
            sts_error("IDPCommunicationError"),
            TemporaryError,
            None,
            id="not well",
            marks=pytest.mark.slow,  # AWS' own tries take half a minute
        ),
        pytest.param(
            http_xml("200 OK", "<html><p>Welcome to our network</html>"),
            TemporaryError,
            None,
            id="a page",
        ),
    ],
)
def test_what_the_service_for_tokens_answers(
    s3_of_a_role: str,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    kind: type[JobError],
    asked: int | None,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Tokens(answer) as tokens:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", tokens.url)
        assert type(wrong(s3_of_a_role)) is kind
        assert asked in {None, tokens.asked}
    assert SECRET not in "".join([*capfd.readouterr(), caplog.text])


def test_a_pods_token_does_not_follow_a_redirect(
    s3_of_a_role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Tokens(http_xml("200 OK", "<html/>")) as elsewhere:
        head = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {elsewhere.url}\r\n"
        redirect = f"{head}Connection: close\r\nContent-Length: 0\r\n\r\n".encode()
        with Tokens(redirect) as tokens:
            monkeypatch.setenv("AWS_ENDPOINT_URL_STS", tokens.url)
            assert type(wrong(s3_of_a_role)) is TemporaryError
            assert tokens.asked > 0
        assert elsewhere.asked == 0


@pytest.mark.parametrize("container", [False, True], ids=["web identity", "pod identity"])
def test_a_tokens_file_that_is_not_there(
    s3_of_a_role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, container: bool
) -> None:
    nowhere = str(tmp_path / "nowhere")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", nowhere)
    if container:
        monkeypatch.delenv("AWS_WEB_IDENTITY_TOKEN_FILE")
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9/")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", nowhere)
    told: list[str] = []
    storage.configure(storage.Settings(notify=lambda event, **_: told.append(event)))
    assert type(wrong(s3_of_a_role)) is CredentialsError
    assert told == []


def test_a_bundle_of_certificates_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:9")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
    error = wrong("s3://bucket/key")
    assert type(error) is ClusterError
    assert "AWS_CA_BUNDLE" in str(error)


class MetadataServer:
    """GKE's server of credentials: it says nothing to the first requests of a new pod."""

    def __init__(self, silent: int) -> None:
        self.asked = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                if outer.asked <= silent:
                    self.connection.close()
                    return
                facts = {"access_token": "a-token", "expires_in": 3600, "token_type": "Bearer"}
                facts |= {"aliases": ["default"], "email": "default", "scopes": []}
                said = "a-project" if "project-id" in self.path else json.dumps(facts)
                self.send_response(200)
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(said.encode())

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize("in_a_pod", [True, False])
def test_a_new_pod_waits_for_gkes_server_of_credentials(
    google: Place, monkeypatch: pytest.MonkeyPatch, in_a_pod: bool
) -> None:
    monkeypatch.setattr("job.storage.retrying.FIRST_WAIT_SECONDS", 0.01)
    metadata = "google.auth.compute_engine._metadata"
    monkeypatch.setattr(f"{metadata}._NO_GCE_CHECK", False)
    monkeypatch.setattr(f"{metadata}.detect_gce_residency_linux", lambda: False)
    if in_a_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    told: list[str] = []
    storage.configure(storage.Settings(notify=lambda event, **_: told.append(event)))
    server = MetadataServer(silent=3)
    monkeypatch.setattr(f"{metadata}._GCE_METADATA_HOST", server.host)
    monkeypatch.setenv("GCE_METADATA_IP", server.host)
    try:
        if in_a_pod:
            storage.create(google / "object", b"x")
            assert told == ["storage_retry"]
        else:
            assert type(wrong(google / "object")) is CredentialsError
            assert told == []
    finally:
        server.close()
