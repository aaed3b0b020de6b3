"""Notices against real servers that answer badly, slowly or not at all; the URL stays a secret."""

import io
import json
import socket
import time

import listening
import pytest

from job.errors import StoppedError, UsageError
from job.nightly import notice
from job.process import runtime
from job.process.progress import Progress

SECRET = "T0K3N"
RECORD = {"night": "n-1", "verdict": "refused", "why": "significantly worse", "gate": {"p": 0.01}}


def server(answer):
    """Run a server whose URL has the secret in its path and query."""
    return listening.server(answer, f"/{SECRET}/hook?token={SECRET}")


def status(code, **headers):
    return listening.status(code, SECRET, **headers)


def told(url, record=RECORD, log_format="json"):
    stream = io.StringIO()
    notice.post(url, record, Progress(log_format, stream))
    assert SECRET not in stream.getvalue()
    assert "/hook" not in stream.getvalue().replace("//hooks.example", "")
    return json.loads(stream.getvalue()) if log_format == "json" else stream.getvalue()


@pytest.fixture(autouse=True)
def _nothing_secret_is_printed(capfd, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    assert SECRET not in "".join(capfd.readouterr())


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(notice, "LIMIT_SECONDS", 0.5)


@pytest.mark.parametrize("code", [200, 202, 204])
def test_the_record_is_posted_with_a_sentence(code):
    with server(status(code)) as (url, requests):
        event = told(url + "\n")  # as a Secret made of a file has it
    assert (event["event"], event["level"], event["to"]) == ("notified", "info", "http://127.0.0.1")
    [(method, path, headers, body)] = requests
    assert (method, path) == ("POST", f"/{SECRET}/hook?token={SECRET}")
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        **RECORD,
        "text": "mnist-job night n-1: refused: significantly worse",
    }


def test_a_stale_champion_is_in_the_sentence():
    text = notice.text_of({"night": "n", "verdict": "unchanged", "stale": True})
    assert text == "mnist-job night n: unchanged, and the champion is stale"


@pytest.mark.parametrize("code", [400, 404, 410, 429, 500, 503])
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_an_answer_that_is_no_yes_is_told_by_its_number(code, log_format):
    with server(status(code)) as (url, requests):
        event = told(url, log_format=log_format)
    assert len(requests) == 1
    if log_format == "text":
        words = f"nobody was told at http://127.0.0.1: the answer was {code}"
        assert event == f"warning    {words}\n"
    else:
        assert (event["event"], event["level"]) == ("not_notified", "warning")
        assert event["reason"] == f"the answer was {code}"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(code):
    with server(status(200)) as (elsewhere, theirs):
        with server(status(code, Location=elsewhere)) as (url, mine):
            event = told(url)
        assert event["reason"] == f"the answer was {code}"
    assert (len(mine), theirs) == (1, [])


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    event = told(f"http://127.0.0.1:{port}/{SECRET}/hook")
    assert event["reason"] == "Connection refused"


def test_a_server_that_speaks_another_language():
    def answer(handler, _):
        handler.wfile.write(f"{SECRET} is what you sent\r\n\r\n".encode())

    with server(answer) as (url, _):
        assert told(url)["reason"] == "BadStatusLine"


def test_a_certificate_that_nobody_vouches_for():
    with server(status(200)) as (url, _):
        event = told(url.replace("http:", "https:"))
    assert event["event"] == "not_notified"
    assert event["to"] == "https://127.0.0.1"


def silent(*_):
    time.sleep(3)


def trickling(handler, _):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(30):  # each byte comes within the limit of a socket
        handler.wfile.write(b"X")
        time.sleep(0.1)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("answer", [silent, trickling])
def test_one_limit_holds_for_all_of_it(answer):
    began = time.monotonic()
    with server(answer) as (url, _):
        event = told(url)
        assert time.monotonic() - began < 2
    assert event["reason"] == "it took over 0.5 s"


@pytest.mark.usefixtures("hurried")
def test_a_name_that_is_not_resolved_in_time(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3))
    began = time.monotonic()
    assert told(f"https://hooks.example/{SECRET}/hook")["reason"] == "it took over 0.5 s"
    assert time.monotonic() - began < 2


def test_the_limit_is_ten_seconds():
    assert notice.LIMIT_SECONDS == 10


@pytest.mark.parametrize(
    "record", [{"why": float("nan")}, {"why": object()}, {1: {}, "a": {("b",): 1}}]
)
def test_a_record_that_is_no_json_fails_nothing(record):
    with server(status(200)) as (url, requests):
        event = told(url, record)
    assert event["event"] == "not_notified"
    assert requests == []


def test_a_stop_is_heeded(monkeypatch):
    def stopped(_):
        raise StoppedError("stopped by SIGTERM")

    monkeypatch.setattr(runtime, "beside", stopped)
    with pytest.raises(StoppedError):
        told("https://hooks.example/hook")


BAD = [
    *(f"{scheme}://x.example/{SECRET}" for scheme in ("ftp", "file", "HTTP+unix", "s3")),
    *(SECRET, f"/{SECRET}", f"https:///{SECRET}", f"https:{SECRET}", ""),
    f"https://user:{SECRET}@x.example/",
    f"https://{SECRET}@x.example/",
    f"https://x.example:{SECRET}/",
    f"https://x.example:99999/{SECRET}",
    f"https://[{SECRET}/",
    f"https://x.example/{SECRET}\n/more",
    f"https://x.example/{SECRET} /more",
    f"https://x.example/{SECRET}é",
]


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_url_to_post_to_is_refused_at_the_door_and_not_shown(url):
    with pytest.raises(UsageError) as refused:
        notice.check(url)
    assert "--notify must be an http:// or https:// URL" in str(refused.value)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
    event = told(url)  # past the door it fails no night either
    assert (event["event"], event["to"]) == ("not_notified", "the URL of --notify")


@pytest.mark.parametrize(
    "url",
    ["https://x.example", "HTTPS://x.example/a?b=c", "http://x.example:8080/", "http://[::1]/"],
)
def test_what_can_be_posted_to_passes_the_door(url):
    notice.check(url)


def test_a_url_may_lie_in_a_file_as_a_secret_does(tmp_path):
    place = tmp_path / "url"
    assert notice.url_of(str(place)) is None  # a Secret that was left out
    place.write_text("https://hooks.example.com/T0/secret\n")
    assert notice.url_of(str(place)) == "https://hooks.example.com/T0/secret"
    assert notice.url_of("https://hooks.example.com/x") == "https://hooks.example.com/x"


@pytest.mark.parametrize("content", [b"", b"ftp://x/secret", b"\xff\xfe", b"https://x/a secret"])
def test_a_file_that_holds_no_url_is_refused_and_not_shown(tmp_path, content):
    (tmp_path / "url").write_bytes(content)
    with pytest.raises(UsageError) as refused:
        notice.url_of(str(tmp_path / "url"))
    assert "secret" not in str(refused.value).replace("may be secret", "")


def test_a_folder_is_no_file_that_holds_a_url(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        notice.url_of(str(tmp_path))
