"""Requests to S3 and what speaks its language, by s3fs; each method is one request.

botocore, below s3fs, decides where to send them and signs them: credentials, region and endpoint
come from its usual chain of environment, files and cloud. The retries of both are off.
"""

import base64
import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import ClassVar

import aiohttp
from botocore import exceptions
from botocore.parsers import ResponseParserError
from s3fs import S3FileSystem

from job.storage.connection import Failure, Page, Piece, StoreError

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
# S3 says by status 400 that a token is too old.
_STALE = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_SLOW = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"}


class _Files(S3FileSystem):  # type: ignore[misc]  # it has no types
    """s3fs without what it would do on its own."""

    retries = 1  # that is, none: `retrying` counts and tells
    protocol = "s3 of this job"  # so fsspec's own configuration, which may hold keys, has no say


class S3:
    """A connection to S3, or to a store that AWS_ENDPOINT_URL names."""

    credentials: ClassVar[str] = (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the pod's role"
    )
    endpoint: ClassVar[str] = "AWS_ENDPOINT_URL and AWS_REGION"

    def __init__(self, *, anonymous: bool, timeout_seconds: float, connections: int) -> None:
        """Open nothing yet; `anonymous` sends requests unsigned."""
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
        self._files = _Files(
            anon=anonymous,
            config_kwargs=config,
            asynchronous=True,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    async def get(
        self, bucket: str, key: str, first: int, last: int, version: str | None = None
    ) -> Piece:
        """Return the bytes `first` to `last`, if the object is still of that `version`."""
        still = {} if version is None else {"IfMatch": version}
        span = f"bytes={first}-{last}"
        with _judged("changed"):
            try:
                # Not `_cat_file`, which keeps size and version to itself.
                answer = await self._files._call_s3(
                    "get_object", Bucket=bucket, Key=key, Range=span, **still
                )
            except OSError as error:
                # An empty object has no first byte.
                if first == 0 and _status(error) == 416:
                    return Piece(b"", 0, "empty")
                raise
            async with answer["Body"] as body:
                if answer["ContentLength"] > last - first + 1:
                    raise StoreError("unable", "it ignores the header Range")
                data = await body.read()
        total = answer.get("ContentRange", str(answer["ContentLength"])).rpartition("/")[2]
        if len(data) != answer["ContentLength"]:
            raise StoreError("passing", "the answer was cut short")
        return Piece(data, int(total), answer["ETag"])

    async def put_new(self, bucket: str, key: str, data: bytes) -> None:
        """Create the object, unless there is one."""
        # Compared before the object appears: SeaweedFS would make an empty one of an upload that
        # broke off between head and body, whatever the signature says of the body.
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        with _judged("exists"):
            # What fits into a chunk goes in one PUT, with If-None-Match.
            await self._files._pipe_file(
                f"{bucket}/{key}",
                data,
                chunksize=len(data) + 1,
                mode="create",
                ContentMD5=digest,
            )

    async def page(self, bucket: str, prefix: str, after: str | None, limit: int) -> Page:
        """Return up to `limit` of the names below `prefix`, from the mark `after` on."""
        more = {} if after is None else {"ContinuationToken": after}
        with _judged("wrong"):
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
        folders = [found["Prefix"] for found in answer.get("CommonPrefixes", [])]
        return Page(tuple(keys + folders), answer.get("NextContinuationToken"))

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the object; that there is none is fine."""
        with _judged("wrong"):
            await self._files._rm_file(f"{bucket}/{key}")

    async def close(self) -> None:
        """Close the connection."""
        if self._files._s3 is not None:
            await self._files._s3.close()


@contextlib.contextmanager
def _judged(precondition: Failure) -> Iterator[None]:
    """Turn what s3fs raises into a StoreError; a failed condition means `precondition`."""
    try:
        yield
    except _CREDENTIALS as error:
        raise StoreError("refused", type(error).__name__) from error
    except (exceptions.SSLError, exceptions.InvalidProxiesConfigError) as error:
        raise StoreError("setup", type(error).__name__) from error
    except _PASSING as error:
        raise StoreError("passing", type(error).__name__) from error
    except exceptions.ParamValidationError as error:
        raise StoreError("wrong", type(error).__name__) from error
    except (exceptions.BotoCoreError, ValueError) as error:
        # An endpoint that is no URL, a config file that can't be read, and their like.
        raise StoreError("setup", type(error).__name__) from error
    except OSError as error:
        if not isinstance(error.__cause__, exceptions.ClientError):
            raise StoreError("passing", type(error).__name__) from error
        code = str(error.__cause__.response.get("Error", {}).get("Code", ""))
        # A code is one word; anything else is not repeated, for it may hold a key.
        word = code if re.fullmatch(r"[A-Za-z]{1,60}", code) else ""
        status = _status(error)
        raise StoreError(_kind(status, code, precondition), f"{status} {word}".strip()) from error


def _status(error: OSError) -> int:
    """Return the status of the answer that s3fs made `error` of, or 0 if there was none."""
    answer = getattr(error.__cause__, "response", None) or {}
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _kind(status: int, code: str, precondition: Failure) -> Failure:
    kinds: dict[int, Failure] = {
        401: "refused",
        403: "refused",
        404: "no bucket" if code == "NoSuchBucket" else "absent",
        408: "passing",
        409: "busy",
        412: precondition,
        429: "passing",
        501: "unable",
    }
    if code in _STALE:
        return "refused"
    if code in _SLOW:
        return "passing"
    return kinds.get(status, "passing" if status >= 500 or status == 200 else "wrong")
