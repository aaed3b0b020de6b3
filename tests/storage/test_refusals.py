"""What each end of a request means, from the store's answer to the exit code."""

import asyncio
from typing import Any, get_args

import aiohttp
import pytest
from aiohttp import web
from botocore import exceptions
from s3fs.errors import translate_boto_error

from job.storage import gcs, parse, s3
from job.storage.connection import (
    FOREIGN,
    Failure,
    Page,
    StoreError,
    by_status,
    explained,
    piece,
)

CODES = {
    "absent": (66, 66),
    "no bucket": (66, 64),  # reading, writing
    "changed": (75, 75),
    "exists": (74, 74),
    "busy": (75, 75),
    "passing": (75, 75),
    "refused": (77, 77),
    "not yet": (77, 77),
    "full": (74, 74),
    "unable": (78, 78),
    "setup": (78, 78),
    "wrong": (74, 74),
}


STORES = {
    "s3": s3.S3(anonymous=True, timeout_seconds=1, connections=1),
    "gs": gcs.GCS(anonymous=True, timeout_seconds=1),
}


def test_the_table_has_every_kind() -> None:
    assert set(CODES) == set(get_args(Failure))


@pytest.mark.parametrize("uri", ["s3://bucket/key", "gs://bucket/key", "gcs://bucket/key"])
@pytest.mark.parametrize("kind", CODES)
def test_every_kind_has_its_exit_code_and_says_what_and_where(uri: str, kind: Any) -> None:
    error = StoreError(kind, "418 Teapot")
    store = STORES[parse(uri).kind]
    found = [explained(error, parse(uri), doing, store) for doing in ("reading", "writing")]
    assert tuple(each.exit_code for each in found) == CODES[kind]
    for each in found:
        assert uri in str(each)
        assert "418 Teapot" in str(each) or kind in {"absent", "no bucket"}


@pytest.mark.parametrize(
    ("uri", "kind", "advice"),
    [
        ("s3://bucket/key", "refused", "AWS_ACCESS_KEY_ID"),
        ("gs://bucket/key", "refused", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("s3://bucket/key", "setup", "AWS_ENDPOINT_URL"),
        ("gs://bucket/key", "unable", "STORAGE_EMULATOR_HOST"),
        ("gs://bucket/key", "passing", "failed 3 times (418 Teapot)"),
        ("s3://bucket/key", "full", "no room left"),
    ],
)
def test_the_advice_is_that_of_the_store(uri: str, kind: Any, advice: str) -> None:
    place = parse(uri)
    error = StoreError(kind, "418 Teapot")
    error.tries = 3
    said = str(explained(error, place, "reading", STORES[place.kind]))
    assert advice in said
    assert ("credentials" in said) == (kind == "refused")


@pytest.mark.parametrize(
    ("detail", "foreign"),
    [
        (FOREIGN, True),
        (f"{FOREIGN}, and no time is left", True),
        ("302", True),
        ("404, request 18EB63B592BF020F", True),
        ("200 InternalError", False),
        ("307 TemporaryRedirect", False),
        ("503 SlowDown", False),
        ("no answer in 60 s", False),
    ],
)
@pytest.mark.parametrize("kind", STORES)
def test_who_may_have_answered_is_said(kind: str, detail: str, foreign: bool) -> None:
    store = STORES[kind]
    error = StoreError("passing", detail)
    said = str(explained(error, parse(f"{kind}://bucket/key"), "reading", store))
    assert ("something else answers" in said and f"network and {store.endpoint}" in said) == foreign
    assert ("--storage-timeout" in said) != foreign


def test_one_try_is_not_counted() -> None:
    error = StoreError("wrong", "400 InvalidRequest")
    place = parse("s3://bucket/key")
    said = str(explained(error, place, "reading", STORES["s3"]))
    assert said.startswith("reading s3://bucket/key failed (400 InvalidRequest): ")


S3_ANSWERS = [
    (200, "InternalError", "passing"),  # an error in the body of a success
    (301, "PermanentRedirect", "setup"),  # the bucket is in another region
    (302, "", "passing"),
    (307, "TemporaryRedirect", "passing"),
    (400, "InvalidRequest", "wrong"),
    (400, "400", "passing"),  # a page
    (413, "413", "passing"),
    (405, "", "passing"),
    (400, "ExpiredToken", "refused"),
    (400, "InvalidToken", "refused"),
    (400, "RequestTimeout", "passing"),
    (400, "BadDigest", "passing"),
    (400, "IncompleteBody", "passing"),
    (401, "Unauthorized", "refused"),
    (403, "AccessDenied", "refused"),
    (403, "InvalidAccessKeyId", "refused"),
    (403, "SignatureDoesNotMatch", "refused"),
    (404, "NoSuchKey", "absent"),
    (404, "NoSuchBucket", "no bucket"),
    (404, "", "passing"),  # an ingress says so too
    (404, "404", "passing"),
    (403, "QuotaExceeded", "full"),
    (403, "AccessDenied.IpRule", "refused"),
    (416, "InvalidRange", "changed"),
    (507, "XMinioStorageFull", "full"),
    (507, "", "full"),
    (405, "MethodNotAllowed", "wrong"),
    (408, "", "passing"),
    (409, "ConditionalRequestConflict", "busy"),
    (412, "PreconditionFailed", "exists"),
    (429, "TooManyRequests", "passing"),
    (500, "InternalError", "passing"),
    (400, "IDPCommunicationError", "passing"),  # AWS can't reach who vouches for a token just now
    (501, "NotImplemented", "unable"),
    (503, "SlowDown", "passing"),
    (599, "", "passing"),
]


@pytest.mark.parametrize(("status", "code", "kind"), S3_ANSWERS)
def test_answers_of_s3(status: int, code: str, kind: str) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(StoreError) as caught, s3._judged("exists"):
        raise translate_boto_error(exceptions.ClientError(answer, "PutObject"))
    said = f"{status} {code}".strip() if code != str(status) else code
    assert (caught.value.kind, caught.value.detail) == (kind, said)


def test_a_request_of_s3_can_be_asked_for_by_its_number() -> None:
    headers = {"x-amz-request-id": "18EB63B592BF020F5B5AB6D1", "retry-after": "7"}
    facts = {"HTTPStatusCode": 503, "HTTPHeaders": headers}
    answer = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": facts}
    with pytest.raises(StoreError) as caught, s3._judged():
        raise translate_boto_error(exceptions.ClientError(answer, "PutObject"))
    assert caught.value.detail == "503 SlowDown, request 18EB63B592BF020F5B5AB6D1"
    assert caught.value.after_seconds == 7
    headers["x-amz-request-id"] = "hunter2 hunter2"
    with pytest.raises(StoreError) as caught, s3._judged():
        raise translate_boto_error(exceptions.ClientError(answer, "PutObject"))
    assert caught.value.detail == "503 SlowDown"


@pytest.mark.parametrize(
    "code", ["AKIAIOSFODNN7EXAMPLE", "a b", "<Key>", "x" * 61, "hunter2", "é", "A\n"]
)
def test_what_is_no_word_of_an_answer_is_not_repeated(code: str) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    with pytest.raises(StoreError) as caught, s3._judged("exists"):
        raise translate_boto_error(exceptions.ClientError(answer, "PutObject"))
    assert caught.value.detail == "403"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.NoCredentialsError(), "refused"),
        (exceptions.CredentialRetrievalError(provider="x", error_msg="hunter2"), "refused"),
        (exceptions.ProfileNotFound(profile="hunter2"), "refused"),
        (FileNotFoundError(2, "No such file", "/var/run/hunter2/token"), "refused"),
        (RuntimeError("the refreshed credentials are still expired."), "refused"),
        (RuntimeError("Session is closed"), "passing"),
        (exceptions.EndpointConnectionError(endpoint_url="http://u:hunter2@h"), "passing"),
        (exceptions.ReadTimeoutError(endpoint_url="http://u:hunter2@h"), "passing"),
        (exceptions.SSLError(endpoint_url="http://u:hunter2@h", error="x"), "setup"),
        (exceptions.ConfigParseError(path="hunter2"), "setup"),
        (ValueError("Invalid endpoint: hunter2"), "setup"),
        (aiohttp.ClientPayloadError("hunter2"), "passing"),
        (ConnectionResetError("hunter2"), "passing"),
    ],
)
def test_what_botocore_raises(error: Exception, kind: str) -> None:
    with pytest.raises(StoreError) as caught, s3._judged("exists"):
        raise error
    assert caught.value.kind == kind
    assert "hunter2" not in str(caught.value)


def google(status: int, reason: str) -> str:
    error = f'{{"code": {status}, "errors": [{{"reason": "{reason}"}}], "message": "hunter2"}}'
    return f'{{"error": {error}}}'


GOOGLE_ANSWERS = [
    (400, google(400, "invalid"), "wrong", "400 invalid"),
    (400, "<html>hunter2</html>", "passing", "400"),
    (405, "", "passing", "405"),
    (401, google(401, "authError"), "refused", "401 authError"),
    (403, google(403, "forbidden"), "refused", "403 forbidden"),
    (403, google(403, "userRateLimitExceeded"), "passing", "403 userRateLimitExceeded"),
    (403, google(403, "quotaExceeded"), "full", "403 quotaExceeded"),
    (403, google(403, "AKIA7"), "refused", "403"),
    (404, "No such object: bucket/key", "absent", "404"),
    (404, google(404, "notFound"), "absent", "404 notFound"),
    (404, google(404, "x").replace("hunter2", "The bucket does not exist."), "no bucket", "404 x"),
    (404, "<html>nothing here, hunter2</html>", "passing", "404"),
    (404, google(500, "notFound"), "passing", "404"),
    (404, '{"code": 404}', "passing", "404"),
    (404, "[]", "passing", "404"),
    (408, "", "passing", "408"),
    (409, google(409, "conflict"), "busy", "409 conflict"),
    (412, google(412, "conditionNotMet"), "wrong", "412 conditionNotMet"),
    (429, "[]", "passing", "429"),
    (500, google(500, "backendError"), "passing", "500 backendError"),
    (501, "", "unable", "501"),
    (503, "<html>hunter2</html>", "passing", "503"),
    (507, "", "full", "507"),
    (302, "", "passing", "302"),
    (308, "", "passing", "308"),
]


def ask_google(monkeypatch: pytest.MonkeyPatch, answer: web.Response, verb: str, *rest: Any) -> Any:
    """Return what becomes of a request that is answered so, and the headers it was sent with."""
    sent: list[Any] = []

    async def ask() -> Any:
        async def reply(request: web.Request) -> web.Response:
            sent.append(request)
            return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", reply)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{port}")
        store = gcs.GCS(anonymous=False, timeout_seconds=10)
        try:
            return await getattr(store, verb)("bucket", "key", *rest)
        finally:
            await store.close()
            await runner.cleanup()

    return asyncio.run(ask()), sent


@pytest.mark.parametrize(("status", "text", "kind", "detail"), GOOGLE_ANSWERS)
def test_answers_of_google(
    status: int, text: str, kind: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Retry-After": "9"}
    answer = web.Response(status=status, text=text, headers=headers)
    with pytest.raises(StoreError) as caught:
        ask_google(monkeypatch, answer, "get", 0, 9)
    assert "hunter2" not in str(caught.value)
    assert (caught.value.kind, caught.value.detail) == (kind, detail)
    assert caught.value.after_seconds == 9


def test_a_request_of_google_can_be_asked_for_by_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = web.Response(status=500, headers={"X-GUploader-UploadID": "AbC-1_2345"})
    with pytest.raises(StoreError, match=r"^500, request AbC-1_2345$"):
        ask_google(monkeypatch, answer, "get", 0, 9)


def test_what_was_stored_gzipped_comes_as_it_lies_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Google unpacks it for whoever does not say that he takes it packed."""
    headers = {"Content-Range": "bytes 0-9/10", "X-Goog-Generation": "1"}
    headers["Content-Encoding"] = "gzip"
    answer = web.Response(status=206, body=b"\x1f\x8b packed!"[:10], headers=headers)
    found, [sent] = ask_google(monkeypatch, answer, "get", 0, 9)
    assert sent.headers["Accept-Encoding"] == "gzip"
    assert found.data == b"\x1f\x8b packed!"[:10]


PIECES = [
    ("bytes 0-9/10", "v", 0, 9, 10, True),
    ("bytes 0-9/10", "v", 0, 99, 10, True),  # there are no more
    ("bytes 5-9/10", "v", 5, 9, 5, True),
    ("bytes 0-9/10", None, 0, 9, 10, False),
    ("bytes 0-9/10", "", 0, 9, 10, False),
    ("", "v", 0, 9, 10, False),
    ("bytes 0-9/*", "v", 0, 9, 10, False),
    ("bytes */10", "v", 0, 9, 10, False),
    ("bytes 1-9/10", "v", 0, 9, 9, False),  # other bytes than were asked for
    ("bytes 0-8/10", "v", 0, 9, 9, False),  # less
    ("bytes 0-9/10", "v", 0, 9, 9, False),  # cut short
    ("bytes 0-9/20", "v", 0, 9, 11, False),  # more than was said
]


@pytest.mark.parametrize(("span", "version", "first", "last", "length", "believed"), PIECES)
def test_bytes_are_believed_if_they_are_those_asked_for(
    span: str, version: str | None, first: int, last: int, length: int, believed: bool
) -> None:
    if believed:
        found = piece(b"x" * length, span, first, last, version)
        assert (len(found.data), found.version) == (length, "v")
        assert found.size == 10
    else:
        with pytest.raises(StoreError) as caught:
            piece(b"x" * length, span, first, last, version)
        assert caught.value.kind == "passing"


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"KeyCount": 2}, Page(("a/b", "a/c/"), None)),
        ({"KeyCount": 1}, Page(("a/b", "a/c/"), None)),  # prefixes aren't counted
        ({"KeyCount": 0}, None),
        ({"KeyCount": 2, "NextContinuationToken": ""}, Page(("a/b", "a/c/"), None)),
        ({"KeyCount": 2, "NextContinuationToken": "x"}, Page(("a/b", "a/c/"), "x")),
        ({"KeyCount": 2, "IsTruncated": True}, None),
        ({"KeyCount": 2, "IsTruncated": True, "NextContinuationToken": ""}, None),
        ({"KeyCount": 2, "Name": "another"}, None),
    ],
)
def test_a_listing_of_s3_is_whole_or_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], found: Page | None
) -> None:
    """Stores that speak S3 differ in what they count, and in how they say that it is the end."""
    names = {"Contents": [{"Key": "a/b"}], "CommonPrefixes": [{"Prefix": "a/c/"}]}

    async def answered(*_: Any, **__: Any) -> dict[str, Any]:
        return {"Name": "bucket", **names, **facts}

    store = s3.S3(anonymous=True, timeout_seconds=1, connections=1)
    monkeypatch.setattr(store._files, "_call_s3", answered)
    if found is None:
        with pytest.raises(StoreError, match="not the store's"):
            asyncio.run(store.page("bucket", "a/", None, 2))
    else:
        assert asyncio.run(store.page("bucket", "a/", None, 2)) == found


@pytest.mark.parametrize(
    ("status", "signed", "kind"),
    [
        (404, True, "passing"),
        (404, False, "passing"),
        (400, True, "wrong"),
        (400, False, "passing"),
    ],
)
def test_an_absence_that_the_store_has_no_word_for_may_pass(
    status: int, kind: Failure, *, signed: bool
) -> None:
    """Its own words for one are looked for before: any other 404 is of somebody between."""
    assert by_status(status, "exists", signed=signed) == kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("Could not find a suitable TLS CA certificate bundle"), "setup"),
        (OSError(5, "Input/output error"), "passing"),
    ],
)
def test_a_bundle_that_requests_does_not_find_is_setup(error: OSError, kind: Failure) -> None:
    """It says so by an OSError without a number, which no system call raises."""
    with pytest.raises(StoreError) as refused, gcs._judged():
        raise error
    assert refused.value.kind == kind
