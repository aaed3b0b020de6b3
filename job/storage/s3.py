"""Requests to S3 and what speaks its language, by s3fs; each method is one request.

botocore, below s3fs, decides where to send them and signs them: credentials, region and endpoint
come from its usual chain of environment, files and cloud. The retries of both are off.

https://docs.aws.amazon.com/AmazonS3/latest/API
"""

import base64
import contextlib
import hashlib
import logging
import ssl
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import aiohttp
from aiobotocore import session
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from botocore import exceptions
from botocore.parsers import ResponseParserError
from s3fs import S3FileSystem

from job.storage.connection import (
    FOREIGN,
    Failure,
    Page,
    Piece,
    StoreError,
    by_status,
    detail,
    piece,
)

_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
    exceptions.MetadataRetrievalError,
    exceptions.SSOError,
    exceptions.ProfileNotFound,
    exceptions.NoAuthTokenError,
)
_PASSING = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    ResponseParserError,
    aiohttp.ClientError,
)
_CODES: dict[str, Failure] = {
    # S3 says by status 400 that a token is too old.
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "InvalidToken"), "refused"),
    "TokenRefreshRequired": "refused",
    **dict.fromkeys(("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"), "passing"),
    **dict.fromkeys(("QuotaExceeded", "XMinioStorageFull"), "full"),
    "XMinioAdminBucketQuotaExceeded": "full",
    "IDPCommunicationError": "passing",
    **dict.fromkeys(("BadDigest", "IncompleteBody"), "passing"),  # damaged on the way
    "NoSuchBucket": "no bucket",
    "NoSuchKey": "absent",
    "PermanentRedirect": "setup",  # the bucket is in another region
}


class _Files(S3FileSystem):  # type: ignore[misc]  # it has no types
    """s3fs without what it would do on its own."""

    retries = 1  # that is, none: `retrying` counts and tells
    protocol = "s3 of this job"  # so fsspec's own configuration, which may hold keys, has no say


class _Session(AIOHTTPSession):  # type: ignore[misc]  # it has no types
    """aiobotocore's, but a redirect is an answer, and not a way to send token and body anywhere."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        return SimpleNamespace(request=partial(session.request, allow_redirects=False))

    async def send(self, request: Any) -> Any:
        """Send a request; a HEAD is none of ours.

        botocore asks so for the region of a bucket after a redirect that doesn't name it; and after
        a redirect of that again, a hundred times.
        """
        if request.method == "HEAD":
            raise StoreError("passing", FOREIGN)
        return await super().send(request)


class S3:
    """A connection to S3, or to a store that AWS_ENDPOINT_URL names."""

    credentials: ClassVar[str] = (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the pod's role"
    )
    endpoint: ClassVar[str] = "AWS_ENDPOINT_URL, AWS_REGION and AWS_CA_BUNDLE"

    def __init__(self, *, anonymous: bool, timeout_seconds: float, connections: int) -> None:
        """Open nothing yet; `anonymous` sends requests unsigned."""
        # What it logs there, with tracebacks, is raised here too.
        logging.getLogger("aiobotocore.credentials").setLevel(logging.CRITICAL)
        config = {
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": timeout_seconds,
            "read_timeout": timeout_seconds,
            "max_pool_connections": connections,
            # The signature covers the body, so that the store checks what arrives; the newer
            # checksums are unknown to many stores that speak S3.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"payload_signing_enabled": True},
        }
        asking = session.AioSession()
        # Here, and not in `config`, it is that of whoever is asked for credentials as well.
        asking.set_default_client_config(AioConfig(http_session_cls=_Session))
        self._files = _Files(
            session=asking,
            anon=anonymous,
            config_kwargs=config,
            asynchronous=True,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    async def get(self, bucket: str, key: str, first: int, last: int) -> Piece:
        """Return the bytes `first` to `last`, or as many as there are."""
        with _judged():
            try:
                # Not `_cat_file`, which keeps size and version to itself.
                answer = await self._files._call_s3(
                    "get_object", Bucket=bucket, Key=key, Range=f"bytes={first}-{last}"
                )
            except OSError as error:
                # An empty object has no first byte.
                if first == 0 and _said(error.__cause__)[1] == "InvalidRange":
                    return Piece(b"", 0, "empty")
                raise
            async with answer["Body"] as body:
                if not 0 < answer.get("ContentLength", 0) <= last - first + 1:
                    raise StoreError("passing", FOREIGN)
                data = await body.read()
        return piece(data, answer.get("ContentRange", ""), first, last, answer.get("ETag"))

    async def put_new(self, bucket: str, key: str, data: bytes) -> bool:
        """Create the object, unless there is one; an ETag that is the MD5 proves that it is ours.

        It is another one where the store encrypts with keys of its own:
        https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
        """
        digest = hashlib.md5(data, usedforsecurity=False)
        with _judged(precondition="exists"):
            answer = await self._files._call_s3(
                "put_object",
                Bucket=bucket,
                Key=key,
                Body=data,
                IfNoneMatch="*",
                # Compared before the object appears: SeaweedFS would make an empty one of an upload
                # that broke off between head and body, whatever the signature says of the body.
                ContentMD5=base64.b64encode(digest.digest()).decode(),
            )
        if "ETag" not in answer:
            raise StoreError("passing", FOREIGN)
        return bool(answer["ETag"].strip('"') == digest.hexdigest())

    async def page(self, bucket: str, prefix: str, after: str | None, limit: int) -> Page:
        """Return up to `limit` of the names below `prefix`, from the mark `after` on."""
        more = {} if after is None else {"ContinuationToken": after}
        with _judged():
            # Not `_lsdir`, which goes on to the last page.
            answer = await self._files._call_s3(
                "list_objects_v2",
                Bucket=bucket,
                Prefix=prefix,
                Delimiter="/",
                MaxKeys=limit,
                **more,
            )
            keys = [found["Key"] for found in answer.get("Contents", [])]
            written = {
                found["Key"]: found["LastModified"]
                for found in answer.get("Contents", [])
                if "LastModified" in found
            }
            objects = len(keys)
            keys += [found["Prefix"] for found in answer.get("CommonPrefixes", [])]
        following = answer.get("NextContinuationToken") or None  # at the end some send an empty one
        # Whatever is no XML of a listing, an empty body included, would else be an empty one.
        if answer.get("Name") != bucket or (answer.get("IsTruncated") and following is None):
            raise StoreError("passing", FOREIGN)
        if answer.get("KeyCount") not in {len(keys), objects}:  # some stores count no prefixes
            raise StoreError("passing", FOREIGN)
        return Page(tuple(keys), following, written)

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the object; that there is none is fine."""
        with _judged():
            await self._files._call_s3("delete_object", Bucket=bucket, Key=key)

    async def close(self) -> None:
        """Close the connection."""
        if self._files._s3 is not None:
            await self._files._s3.close()


@contextlib.contextmanager
def _judged(precondition: Failure = "wrong") -> Iterator[None]:
    """Turn what s3fs raises into a StoreError; a failed condition means `precondition`."""
    try:
        yield
    except _CREDENTIALS as error:
        raise StoreError("refused", type(error).__name__) from error
    except exceptions.SSLError as error:
        raise StoreError("setup", type(error).__name__) from error
    except _PASSING as error:
        # Of a bundle of certificates that isn't there, or is none, botocore says no more.
        bundle = isinstance(error.__context__, FileNotFoundError | PermissionError | ssl.SSLError)
        raise StoreError("setup" if bundle else "passing", type(error).__name__) from error
    except exceptions.ParamValidationError as error:
        raise StoreError("wrong", type(error).__name__) from error
    except (exceptions.BotoCoreError, ValueError) as error:
        # An endpoint that is no URL, a config file that can't be read, and their like.
        raise StoreError("setup", type(error).__name__) from error
    except RuntimeError as error:  # so botocore says that new credentials are too old already
        stale = "expired" in str(error)
        said = "expired when renewed" if stale else type(error).__name__
        raise StoreError("refused" if stale else "passing", said) from error
    except OSError as error:
        status, code, headers = _said(error.__cause__)
        if not status:
            # With a name it is a file, such as a pod's token, which the environment names.
            kind: Failure = "passing" if error.filename is None else "refused"
            raise StoreError(kind, type(error).__name__) from error
        signed = code not in {"", str(status)}  # which botocore makes of a page
        kind = _CODES.get(code) or by_status(status, precondition, signed=signed)
        asked = str(getattr(error.__cause__, "operation_name", ""))
        if kind == "wrong" and asked.startswith("Assume"):  # a role, of the service for tokens
            kind = "refused"
        said = detail(status, code, headers.get("x-amz-request-id", ""))
        raise StoreError(kind, said, after=headers.get("retry-after", "")) from error


def _said(error: BaseException | None) -> tuple[int, str, dict[str, str]]:
    """Return status, code and headers of the answer in a ClientError; 0 if it is none."""
    answer: dict[str, Any] = getattr(error, "response", None) or {}
    facts = answer.get("ResponseMetadata", {})
    code = str(answer.get("Error", {}).get("Code", ""))
    return int(facts.get("HTTPStatusCode", 0)), code, facts.get("HTTPHeaders", {})
