"""What becomes of reads and writes when an object store misbehaves, on real stores."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Self

import faults
import pytest
import servers
from botocore import exceptions

from job import storage
from job.errors import (
    ClusterError,
    ConflictError,
    CredentialsError,
    JobError,
    MissingInputError,
    OutputError,
    TemporaryError,
    UsageError,
)
from job.storage import Place, gcs, objects, parse, retrying
from job.storage.connection import Page, StoreError
from job.storage.gcs import GCS
from job.storage.s3 import S3

TIMEOUT_SECONDS = 1.0  # of a store that says nothing
LASTING = (*faults.UNWELL, *faults.REFUSING)
HANG_UPS = {"reset", "lost reply", "cut upload"}
METHODS = {
    "read": "GET",
    "exists": "GET",
    "is_folder": "GET",
    "names": "LIST",
    "folders": "LIST",
    "written": "LIST",
    "create": "PUT",
    "remove": "DELETE",
}

VERBS: dict[str, tuple[Any, ...]] = {
    "read": (100,),
    "exists": (),
    "is_folder": (),
    "names": (),
    "folders": (),
    "written": (),
    "create": (b"content",),
    "remove": (),
}


def cases(spoilt: Sequence[str], verbs: Sequence[str]) -> list[Any]:
    """Return all verbs with all faults; those of other than `verbs` run with the slow tests."""
    return [
        pytest.param(verb, fault, marks=[] if verb in verbs else [pytest.mark.slow])
        for verb in VERBS
        for fault in spoilt
        if (verb, fault) != ("remove", "truncated")  # the first is done, and the next says so
    ]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def retries(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Return what is told of retries, from now on."""
    told: list[dict[str, Any]] = []
    notify = lambda _, **details: told.append(details)  # noqa: E731
    # Where a store answers at once, a short deadline would count a busy machine among the faults.
    silent = request.node.callspec.params.get("fault") == "stall"
    seconds = TIMEOUT_SECONDS if silent else storage.Settings().timeout_seconds
    storage.configure(storage.Settings(timeout_seconds=seconds, notify=notify))
    return told


def methods(faulty: faults.Proxy) -> list[str]:
    return [request.method for request in faulty.requests]


def sent_twice(scheme: str, method: str, fault: str) -> bool:
    """Tell whether aiohttp itself sends a request once more, unseen, after its connection closed.

    It does so if that may do no harm by HTTP's rules; Google's upload is a POST. What is truncated
    closes it before the answer's end only where that has no body.
    """
    upload = method == "PUT" and scheme == "gs"
    return not upload and (fault in HANG_UPS or (fault, method) == ("truncated", "PUT"))


def requests_of_a_fault_that_passes(verb: str, fault: str) -> list[str]:
    """Return the methods of all requests of a verb whose first is spoiled."""
    method = METHODS[verb]
    # The write was carried out, so the second finds the object there, and it is looked at.
    looks = verb == "create" and fault in {"lost reply", "truncated"}
    return [method, method, *(["GET"] if looks else [])]


def requests_of_a_fault_that_lasts(scheme: str, verb: str, fault: str) -> list[str]:
    """Return the methods of all requests of a verb of which each is spoiled."""
    method = METHODS[verb]
    if fault in faults.REFUSING:
        return [method]

    def tried(one: str) -> list[str]:
        return [one] * (retrying.ATTEMPTS * (2 if sent_twice(scheme, one, fault) else 1))

    if verb != "create":
        return tried(method)
    if fault == "truncated":
        # The first write is carried out. S3's next answers have a body, "exists already", which is
        # cut as well; Google's status comes through, and so its second try is the last.
        return ["PUT"] * (retrying.ATTEMPTS + 1 if scheme == "s3" else 2) + tried("GET")
    return tried("PUT") + tried("GET")  # the write, then the look whether it was one


@pytest.mark.usefixtures("retries")
@pytest.mark.parametrize(("verb", "method"), METHODS.items())
def test_every_verb_is_one_request(
    faulty: faults.Proxy, place: Place, verb: str, method: str
) -> None:
    storage.create(place / "before", b"")
    # The first of a bucket: may it be overwritten? The emulator's 404 alone isn't believed.
    assert methods(faulty) == [*["GET"] * (2 if faulty.scheme == "gs" else 1), "PUT", "PUT"]
    if verb != "create":
        storage.create(place / "object", b"content")
    faulty.clear()
    getattr(storage, verb)(place / "object", *VERBS[verb])
    assert methods(faulty) == [method]


@pytest.mark.slow
def test_an_object_of_any_size_is_one_request(faulty: faults.Proxy, place: Place) -> None:
    """Left to themselves, s3fs sends several from 100 MiB on, and gcsfs from 50."""
    storage.create(place / "before", b"")
    faulty.clear()
    storage.create(place / "object", bytes(101 << 20))
    assert methods(faulty) == ["PUT"]


@pytest.mark.parametrize(("verb", "fault"), cases(faults.UNWELL, ["read", "create"]))
def test_a_fault_that_passes_is_waited_out(
    faulty: faults.Proxy, place: Place, retries: list[dict[str, Any]], verb: str, fault: str
) -> None:
    storage.create(place / "before", b"")
    if verb not in {"create", "remove"}:
        storage.create(place / "object", b"content")
    faulty.clear()
    retries.clear()  # on a busy machine the store may have been slow before
    faulty.spoil(fault, first=0)
    found = getattr(storage, verb)(place / "object", *VERBS[verb])
    answers = {"read": b"content", "exists": True, "is_folder": False, "names": [], "folders": []}
    answers |= {"written": {}}
    assert found == answers.get(verb)
    if verb == "create":
        assert storage.read(place / "object", 100) == b"content"
        assert faulty.requests.pop().method == "GET"
    wanted = requests_of_a_fault_that_passes(verb, fault)
    assert methods(faulty)[: len(wanted)] == wanted
    if fault != "stall":  # whose next try may come too late as well, on a busy machine
        assert methods(faulty) == wanted
    if not sent_twice(faulty.scheme, METHODS[verb], fault):
        assert retries
        assert retries[0]["request"] == f"{METHODS[verb]} {place}/object"


@pytest.mark.parametrize(("verb", "fault"), cases(LASTING, ["create"]))
def test_a_fault_that_lasts_has_its_exit_code_and_a_known_number_of_tries(
    faulty: faults.Proxy, place: Place, retries: list[dict[str, Any]], verb: str, fault: str
) -> None:
    storage.create(place / "before", b"")
    if verb != "create":
        storage.create(place / "object", b"content")
    faulty.clear()
    retries.clear()
    faulty.spoil(fault, first=0, count=1000)
    began = time.monotonic()
    with pytest.raises(JobError) as caught:
        getattr(storage, verb)(place / "object", *VERBS[verb])
    took = time.monotonic() - began
    refused = fault in faults.REFUSING
    assert type(caught.value) is (CredentialsError if refused else TemporaryError)
    wanted = requests_of_a_fault_that_lasts(faulty.scheme, verb, fault)
    if fault == "stall":  # fewer: all tries together have a deadline
        assert methods(faulty)[0] == METHODS[verb]
        assert not Counter(methods(faulty)) - Counter(wanted)
        assert retries
    else:
        assert methods(faulty) == wanted
    assert took < 3 * TIMEOUT_SECONDS + 20
    message = str(caught.value)
    assert f"{place}/object" in message
    assert servers.SECRET_KEY not in message
    assert servers.KEY_ID not in message


@pytest.mark.usefixtures("retries")
def test_a_lost_reply_to_a_write_of_other_bytes_is_a_conflict(
    faulty: faults.Proxy, place: Place
) -> None:
    storage.create(place / "object", b"theirs")
    faulty.clear()
    faulty.spoil("lost reply", first=0)
    with pytest.raises(ConflictError):
        storage.create(place / "object", b"mine")
    assert storage.read(place / "object", 100) == b"theirs"


@pytest.mark.usefixtures("retries")
def test_a_write_whose_every_answer_is_lost_is_found_by_looking(
    faulty: faults.Proxy, place: Place
) -> None:
    storage.create(place / "before", b"")
    faulty.clear()
    faulty.spoil("500", first=1, count=3)
    faulty.spoil("lost reply", first=0)
    storage.create(place / "object", b"content")
    assert methods(faulty)[-1] == "GET"
    assert storage.read(place / "object", 100) == b"content"


@pytest.mark.usefixtures("retries")
def test_a_conflict_that_cannot_be_compared_is_neither_success_nor_conflict(
    faulty: faults.Proxy, place: Place
) -> None:
    storage.create(place / "object", b"content")
    faulty.clear()
    faulty.spoil("403", first=1, count=100)
    with pytest.raises(CredentialsError, match="/object"):
        storage.create(place / "object", b"content")
    assert methods(faulty) == ["PUT", "GET"]


@pytest.mark.parametrize("objects_before", [0, 1])
def test_a_store_that_overwrites_is_refused_before_anything_is_lost(
    faulty: faults.Proxy, place: Place, objects_before: int
) -> None:
    if objects_before:
        storage.create(place / "object", b"theirs")
        storage.configure(storage.Settings())
    faulty.ignore_conditions()
    if objects_before:
        with pytest.raises(ConflictError):
            storage.create(place / "object", b"mine")
        assert storage.read(place / "object", 100) == b"theirs"
    with pytest.raises(ClusterError, match="overwrites objects"):
        storage.create(place / "another", b"mine")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_bucket_that_is_not_there(
    stores: dict[str, servers.Server], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stores[scheme].environment().items():
        monkeypatch.setenv(name, value)
    uri = parse(f"{scheme}://no-such-bucket/key")
    assert not storage.exists(uri)
    with pytest.raises(MissingInputError, match="no-such-bucket"):
        storage.read(uri, 10)
    with pytest.raises(MissingInputError, match="no bucket 'no-such-bucket'"):
        storage.names(uri)
    with pytest.raises(MissingInputError, match="no bucket 'no-such-bucket'"):
        storage.folders(uri)
    with pytest.raises(UsageError, match="no bucket 'no-such-bucket'"):
        storage.create(uri, b"x")
    assert not storage.exists(uri)  # it wasn't made either


def test_an_object_that_changes_while_it_is_read_is_read_anew(
    faulty: faults.Proxy, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "FIRST_BYTES", 1000)
    monkeypatch.setattr(objects, "PIECE_BYTES", 1000)
    uri, old, new = place / "object", b"o" * 4000, b"n" * 4000
    storage.create(uri, old)
    note, changed = faulty.note, []

    def change(request: faults.Request) -> str | None:
        fault = note(request)
        if request.method == "GET" and len(faulty.requests) > 1 and not changed:
            changed.append(True)
            other = threading.Thread(target=replace)
            other.start()
            other.join()
        return fault

    def replace() -> None:
        program = "import sys; from job import storage; place = storage.parse(sys.argv[1]); "
        program += "storage.remove(place); storage.create(place, b'n' * 4000)"
        subprocess.run([sys.executable, "-c", program, str(uri)], check=True)

    faulty.clear()
    monkeypatch.setattr(faulty, "note", change)
    assert storage.read(uri, 10_000) == new
    assert changed


def test_sigterm_ends_a_wait_at_once(faulty: faults.Proxy, place: Place) -> None:
    faulty.spoil("stall", first=0, count=100)
    program = f"""
from job import storage
from job.process.preemption import Preemption
Preemption().install()
print("ready", flush=True)
storage.read(storage.parse({str(place)!r} + "/object"), 10)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        while not faulty.requests and time.monotonic() < deadline:
            time.sleep(0.05)
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
        took = time.monotonic() - sent
    assert "StoppedError" in said
    assert "asyncio" not in said.lower().replace("asyncio.run_coroutine_threadsafe", "")
    assert took < 20  # and not the 60 seconds of the request


# --- what S3's answer to a GET must look like ---------------------------------------------------


def s3_that_answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> S3:
    """Return a connection whose every call is answered so; an exception is raised."""
    connection = S3(anonymous=True, timeout_seconds=1, connections=1)

    async def call(*_: object, **__: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(connection._files, "_call_s3", call)
    return connection


class NeverRead:
    """The body of an answer that must not be looked at."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read(self) -> bytes:
        raise AssertionError("it was read")


@pytest.mark.parametrize("length", [-1, 0, 11, 10**12])
def test_a_body_of_another_length_than_was_asked_for_is_never_read(monkeypatch, length):
    answer = {"ContentLength": length, "Body": NeverRead(), "ETag": "x"}
    with pytest.raises(StoreError) as refused:
        asyncio.run(s3_that_answers(monkeypatch, answer).get("bucket", "key", 0, 9))
    assert refused.value.kind == "passing"


@pytest.mark.parametrize(("code", "empty"), [("InvalidRange", True), ("416", False), ("", False)])
def test_an_object_is_empty_only_if_the_store_says_so_in_its_own_words(monkeypatch, code, empty):
    """A proxy's page with 416 says nothing of the object."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 416}}
    error = OSError("range")
    error.__cause__ = exceptions.ClientError(answer, "GetObject")
    connection = s3_that_answers(monkeypatch, error)
    if empty:
        assert asyncio.run(connection.get("bucket", "key", 0, 9)).data == b""
    else:
        with pytest.raises(StoreError):
            asyncio.run(connection.get("bucket", "key", 0, 9))


def test_google_is_told_the_digest_of_what_it_gets(monkeypatch):
    """It compares that before it commits, so that nothing damaged on the way is ever there."""
    sent = []

    class Files:
        _location = "https://store"

        async def _call(self, *_: object, data: Any, **__: object) -> dict[str, str]:
            sent.append(data.read())
            return {"md5Hash": "XUFAKrxLKna5cZ2REBfFkg==", "name": "key", "generation": "1"}

    async def connected() -> Files:
        return Files()

    connection = GCS(anonymous=True, timeout_seconds=1)
    monkeypatch.setattr(connection, "_connected", connected)
    assert asyncio.run(connection.put_new("bucket", "key", b"hello"))
    assert b'"md5Hash": "XUFAKrxLKna5cZ2REBfFkg=="' in sent[0]


@pytest.mark.parametrize(("size", "empty"), [("0", True), ("7", False)])
def test_an_object_of_googles_is_empty_only_if_what_describes_it_says_so(monkeypatch, size, empty):
    """A 416 alone may be of somebody between, for an object that has bytes."""

    class Files:
        async def _call(self, *_: object, json_out: bool = False, **__: object) -> dict[str, str]:
            if json_out:
                return {"size": size, "generation": "1"}
            raise gcs._RefusedError(416, {}, "")

    async def connected() -> Files:
        return Files()

    connection = GCS(anonymous=True, timeout_seconds=1)
    monkeypatch.setattr(connection, "_connected", connected)
    if empty:
        assert asyncio.run(connection.get("bucket", "key", 0, 9)).data == b""
    else:
        with pytest.raises(StoreError):
            asyncio.run(connection.get("bucket", "key", 0, 9))


# --- what a write believes ----------------------------------------------------------------------

PLACE = parse("s3://test-bucket/key")


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> objects.Objects:
    """A store whose requests tests answer themselves."""
    store = objects.Objects("s3", retrying.Patience(1, lambda *_, **__: None), anonymous=True)
    monkeypatch.setattr(store, "_connection", lambda: SimpleNamespace(put_new=print))
    return store


@pytest.mark.parametrize("kind", ["exists", "passing", "busy"])
def test_only_a_refusal_to_overwrite_proves_that_the_store_refuses(unconnected, kind):
    def refuse(*_: object) -> None:
        raise StoreError(kind, "no")

    with pytest.raises(StoreError):
        unconnected._put(SimpleNamespace(request=refuse), PLACE, b"x")
    assert (PLACE.bucket in unconnected._proven) is (kind == "exists")


@pytest.mark.parametrize(("kind", "told"), [("exists", "busy"), ("passing", "passing")])
def test_a_write_is_not_done_if_its_object_is_gone(unconnected, monkeypatch, kind, told):
    def refuse(*_: object) -> None:
        raise StoreError(kind, "no")

    monkeypatch.setattr(unconnected, "_put", refuse)
    monkeypatch.setattr(unconnected, "_holds", lambda *_: False)
    with pytest.raises(StoreError) as refused:
        unconnected._take(None, PLACE, b"x")
    assert refused.value.kind == told


def test_an_answer_without_proof_is_believed_once_the_object_is_there(unconnected, monkeypatch):
    puts = []
    monkeypatch.setattr(unconnected, "_put", lambda *_: puts.append(1))
    monkeypatch.setattr(unconnected, "_holds", lambda *_: True)
    assert unconnected._take(None, PLACE, b"x")
    assert len(puts) == 1


def test_a_listing_without_end_ends(unconnected, monkeypatch):
    """Each page names another next one, which no check of marks finds."""
    pages = iter(range(10))
    monkeypatch.setattr(objects, "_MAX_PAGES", 3)
    monkeypatch.setattr(unconnected, "_page", lambda *_: Page(("key/a",), str(next(pages))))
    with pytest.raises(OutputError, match="holds over 3,000 names"):
        unconnected.names(PLACE)
    assert next(pages) == 3
