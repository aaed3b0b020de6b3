"""What is no answer of the store is not believed, whoever gave it and however well it is formed.

A captive portal, an ingress or a proxy answers in the store's place, or takes something out of what
the store says. Each of `faults.FOREIGN` and `faults.ALTERED` meets each verb here.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import faults
import matrix
import pytest
from aiobotocore import session

from job import storage
from job.errors import CredentialsError, TemporaryError
from job.storage import Place, retrying

FOR_EVER = 10_000  # requests
# What may be looked at instead of being sent again; and what has no length may end where it ends.
READ_BACK = {
    *(("no proof", "PUT"), ("page with ETag", "PUT")),
    # Of Google, what describes the object is asked for: an emulator's 404 looks like an ingress'.
    *(("404 page", "GET of nothing"), ("404 of another service", "GET of nothing")),
}
WRITTEN_OR_NOT = ("page", "page with ETag", "empty", "204", "no proof")


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with matrix.quick():
        yield


@pytest.fixture(autouse=True)
def retries() -> list[dict[str, Any]]:
    """Return what is told of retries, from now on."""
    return configured(60.0)


def configured(timeout_seconds: float) -> list[dict[str, Any]]:
    """Set the deadline of a try; return what is told of retries, from now on."""
    told: list[dict[str, Any]] = []
    notify = lambda _, **details: told.append(details)  # noqa: E731
    storage.configure(storage.Settings(timeout_seconds=timeout_seconds, notify=notify))
    return told


def verbs_on(place: Place) -> dict[str, Callable[[], object]]:
    """Return what is asked of a folder with `old` and `folder/object` in it, by the request."""
    return {
        "PUT": lambda: storage.create(place / "new", b"new content"),
        "GET": lambda: (storage.read(place / "old", 100), storage.exists(place / "old")),
        "GET of nothing": lambda: storage.exists(place / "nothing"),
        "LIST": lambda: storage.names(place),
        "LIST of folders": lambda: storage.folders(place),
    }


def those_that(fault: str, place: Place) -> dict[str, Callable[[], object]]:
    """Return the verbs whose answers `fault` makes something of."""
    return {
        name: ask
        for name, ask in verbs_on(place).items()
        if faults.fits(fault, faults.Request(name.split()[0], "key"))
        and not (fault in faults.ALTERED and name == "GET of nothing")  # the proof is in the error
    }


@pytest.mark.parametrize("fault", [*faults.FOREIGN, "no proof", "no range", "no length"])
def test_what_is_not_the_stores_is_asked_again(
    faulty: faults.Proxy, place: Place, retries: list[dict[str, Any]], fault: str
) -> None:
    storage.create(place / "old", b"content")
    storage.create(place / "folder/object", b"content")
    found = {}
    for name, ask in those_that(fault, place).items():
        faulty.clear()
        retries.clear()
        faulty.spoil(fault, first=0)
        found[name] = ask()
        assert retries or (fault, name) in READ_BACK or fault == "no length", f"{name} believed it"
        faulty.heal()
    wanted = {
        "PUT": None,
        "GET": (b"content", True),
        "GET of nothing": False,
        "LIST": ["folder", *(["new"] if "PUT" in found else []), "old"],
        "LIST of folders": ["folder"],
    }
    assert found == {name: wanted[name] for name in found}
    if "PUT" in found:
        assert storage.read(place / "new", 100) == b"new content"
    assert faulty.astray == []


@pytest.mark.parametrize("fault", faults.FOREIGN)
def test_where_the_store_never_answers_nothing_is_known(
    faulty: faults.Proxy, place: Place, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a token for the store alone")
    session.AioSession.cache_clear()
    storage.configure(storage.Settings())
    told = {}
    for name, ask in those_that(fault, place).items():
        faulty.clear()
        faulty.spoil(fault, first=0, count=FOR_EVER)
        with pytest.raises(TemporaryError) as caught:
            ask()
        told[name] = str(caught.value)
        assert str(place) in told[name]
        assert faulty.requests
        assert faulty.astray == []  # neither what was to be written nor any credentials
        if fault in faults.REDIRECTS:  # after which botocore would ask for a region, and again
            assert len(faulty.requests) <= 2 * retrying.ATTEMPTS
            assert "something else answers" in told[name]
    assert told
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    session.AioSession.cache_clear()  # which `quick` has made to keep its credentials
    storage.configure(storage.Settings())
    faulty.clear()
    assert storage.names(place) == []


@pytest.mark.parametrize("fault", WRITTEN_OR_NOT)
@pytest.mark.parametrize("number", [1, 2])
def test_an_answer_that_is_not_the_stores_accuses_it_of_nothing(
    faulty: faults.Proxy, place: Place, fault: str, number: int
) -> None:
    """The first write in a bucket is sent twice: had both been accepted, it would overwrite."""
    looks = 2 if faulty.scheme == "gs" else 1  # of the emulator it takes two to see nothing
    faulty.spoil(fault, first=number + looks - 1)
    storage.create(place / "object", b"content")
    methods = [request.method for request in faulty.requests[looks:]]
    assert methods[:2] == ["PUT", "PUT"] or methods[1] == "GET"  # it was read back before
    faulty.clear()
    assert storage.read(place / "object", 100) == b"content"


def test_a_page_that_lets_nobody_through_is_a_refusal(faulty: faults.Proxy, place: Place) -> None:
    storage.create(place / "old", b"content")
    for ask in verbs_on(place).values():
        faulty.clear()
        faulty.spoil("403 page", first=0, count=FOR_EVER)
        with pytest.raises(CredentialsError, match="403"):
            ask()
        assert len(faulty.requests) == 1


@pytest.mark.parametrize("verb", ["names", "folders", "written", "is_folder"])
def test_a_listing_that_never_moves_on_ends(faulty: faults.Proxy, place: Place, verb: str) -> None:
    storage.create(place / "old", b"content")
    faulty.clear()
    faulty.spoil("same page", first=0, count=FOR_EVER)
    if verb == "is_folder":  # asks for one name, and needs no more
        assert storage.is_folder(place)
    else:
        with pytest.raises(TemporaryError, match=str(place)):
            getattr(storage, verb)(place)
    assert len(faulty.requests) < faults.CIRCLES


@pytest.mark.parametrize("fault", ["503", "429"])
def test_a_store_that_says_when_is_not_asked_before(
    faulty: faults.Proxy, place: Place, retries: list[dict[str, Any]], fault: str
) -> None:
    storage.create(place / "old", b"content")
    faulty.clear()
    retries.clear()
    faulty.retry_after = "1"
    faulty.spoil(fault, first=0)
    assert storage.read(place / "old", 100) == b"content"
    first, second = faulty.requests
    assert second.seconds - first.seconds >= 1
    assert retries[0]["wait_seconds"] >= 1  # and it is said that it was that long


def test_a_store_that_says_much_later_is_not_waited_for(faulty: faults.Proxy, place: Place) -> None:
    configured(1.0)
    faulty.retry_after = "3600"
    faulty.spoil("503", first=0, count=FOR_EVER)
    began = time.monotonic()
    with pytest.raises(TemporaryError, match="503"):
        storage.read(place / "old", 100)
    assert time.monotonic() - began < 3 * 1.0 + 5


@pytest.mark.parametrize("later", ["soon", "-1", "", "1e400", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_time_that_makes_no_sense_is_no_reason_to_fail(
    faulty: faults.Proxy, place: Place, later: str
) -> None:
    storage.create(place / "old", b"content")
    faulty.clear()
    faulty.retry_after = later
    faulty.spoil("503", first=0)
    assert storage.read(place / "old", 100) == b"content"
    assert len(faulty.requests) == 2


@pytest.mark.parametrize("fault", ["stall", "trickle"])
@pytest.mark.parametrize("name", ["PUT", "GET", "LIST"])
def test_all_tries_together_have_a_deadline(
    faulty: faults.Proxy, place: Place, fault: str, name: str
) -> None:
    """Of three times that of one, so that the fourth is never made."""
    storage.create(place / "old", b"content")
    seconds = 0.5
    configured(seconds)
    faulty.clear()
    faulty.spoil(fault, first=0, count=FOR_EVER)
    began = time.monotonic()
    with pytest.raises(TemporaryError):
        verbs_on(place)[name]()
    assert time.monotonic() - began < 3 * seconds + 5
    assert 0 < len(faulty.requests) < retrying.ATTEMPTS
