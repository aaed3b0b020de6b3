"""What each end of a request means, from the store's answer to the exit code."""

import asyncio
from typing import Any, get_args

import aiohttp
import pytest
from aiohttp import web
from botocore import exceptions
from s3fs.errors import translate_boto_error

from job.storage import gcs, parse, s3
from job.storage.connection import Failure, StoreError, explained

CODES = {
    "absent": (66, 66),
    "no bucket": (66, 64),  # reading, writing
    "changed": (74, 74),
    "exists": (74, 74),
    "busy": (75, 75),
    "passing": (75, 75),
    "refused": (77, 77),
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
    found = [explained(error, parse(uri), doing, store, 4) for doing in ("reading", "writing")]
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
        ("gs://bucket/key", "passing", " 3 times"),
    ],
)
def test_the_advice_is_that_of_the_store(uri: str, kind: Any, advice: str) -> None:
    place = parse(uri)
    error = StoreError(kind, "418 Teapot")
    assert advice in str(explained(error, place, "reading", STORES[place.kind], 3))


S3_ANSWERS = [
    (200, "InternalError", "passing"),  # an error in the body of a success
    (301, "PermanentRedirect", "wrong"),
    (400, "InvalidRequest", "wrong"),
    (400, "ExpiredToken", "refused"),
    (400, "InvalidToken", "refused"),
    (400, "RequestTimeout", "passing"),
    (401, "Unauthorized", "refused"),
    (403, "AccessDenied", "refused"),
    (403, "InvalidAccessKeyId", "refused"),
    (403, "SignatureDoesNotMatch", "refused"),
    (404, "NoSuchKey", "absent"),
    (404, "NoSuchBucket", "no bucket"),
    (404, "", "absent"),
    (405, "MethodNotAllowed", "wrong"),
    (408, "", "passing"),
    (409, "ConditionalRequestConflict", "busy"),
    (412, "PreconditionFailed", "exists"),
    (429, "TooManyRequests", "passing"),
    (500, "InternalError", "passing"),
    (501, "NotImplemented", "unable"),
    (503, "SlowDown", "passing"),
    (599, "", "passing"),
]


@pytest.mark.parametrize(("status", "code", "kind"), S3_ANSWERS)
def test_answers_of_s3(status: int, code: str, kind: str) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(StoreError) as caught, s3._judged("exists"):
        raise translate_boto_error(exceptions.ClientError(answer, "PutObject"))
    assert (caught.value.kind, caught.value.detail) == (kind, f"{status} {code}".strip())


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


def google(reason: str) -> str:
    return f'{{"error": {{"errors": [{{"reason": "{reason}"}}], "message": "hunter2"}}}}'


GOOGLE_ANSWERS = [
    (400, google("invalid"), "wrong", "400 invalid"),
    (401, google("authError"), "refused", "401 authError"),
    (403, google("forbidden"), "refused", "403 forbidden"),
    (403, google("userRateLimitExceeded"), "passing", "403 userRateLimitExceeded"),
    (403, google("AKIA7"), "refused", "403"),
    (404, "No such object: bucket/key", "absent", "404"),
    (404, "The specified bucket does not exist.", "no bucket", "404"),
    (408, "", "passing", "408"),
    (409, google("conflict"), "busy", "409 conflict"),
    (412, google("conditionNotMet"), "changed", "412 conditionNotMet"),
    (429, "[]", "passing", "429"),
    (500, google("backendError"), "passing", "500 backendError"),
    (501, "", "unable", "501"),
    (503, "<html>hunter2</html>", "passing", "503"),
    (308, "", "wrong", "308"),
]


@pytest.mark.parametrize(("status", "text", "kind", "detail"), GOOGLE_ANSWERS)
def test_answers_of_google(
    status: int, text: str, kind: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=status, text=text)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{port}")
        store = gcs.GCS(anonymous=False, timeout_seconds=10)
        try:
            await store.get("bucket", "key", 0, 9)
        finally:
            await store.close()
            await runner.cleanup()

    with pytest.raises(StoreError) as caught:
        asyncio.run(ask())
    assert "hunter2" not in str(caught.value)
    assert (caught.value.kind, caught.value.detail) == (kind, detail)
