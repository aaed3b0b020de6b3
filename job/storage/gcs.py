"""Requests to Google Cloud Storage, by gcsfs; each method is one request.

gcsfs decides where to send them, and brings the credentials that google-auth finds. An emulator,
named by STORAGE_EMULATOR_HOST, needs none.

https://cloud.google.com/storage/docs/json_api/v1/objects
"""

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import aiohttp
from gcsfs.core import GCSFileSystem  # gcsfs's own choice of class would ask by gRPC first
from gcsfs.retry import HttpError, NonRetryableError
from google.auth import exceptions

from job.storage.background import in_thread
from job.storage.connection import Failure, Page, Piece, StoreError

# google-auth trusts a file of credentials to be one.
_NO_FILE = (ValueError, TypeError, KeyError, AttributeError, OSError)


class _RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status)
        self.status = status
        self.text = text


class _Files(GCSFileSystem):  # type: ignore[misc]  # it has no types
    """gcsfs without what it would do on its own."""

    protocol = "gs of this job"  # so fsspec's own configuration, which may hold keys, has no say

    # gcsfs's own would send up to six times and wait in between, which is for `retrying` to do and
    # to tell; fetch tokens while the loop stands still; and drop why an answer is 403 or 404.
    async def _request(
        self,
        method: str,
        path: str,
        *args: str,
        headers: dict[str, str] | None = None,
        json: Any = None,
        data: io.BytesIO | None = None,
        most: int | None = None,
        **query: str | None,
    ) -> tuple[int, Any, aiohttp.RequestInfo, bytes]:
        """Send one request and return status, headers, request and content, of `most` bytes."""
        session = await self._set_session()
        async with session.request(
            method,
            self._format_path(path, args),
            params=self._get_params(query),
            headers=await in_thread(partial(self._get_headers, headers)),
            json=json,
            data=data,
            timeout=self.requests_timeout,
            allow_redirects=False,
        ) as answer:
            if not 200 <= answer.status < 300:
                text = await answer.content.read(10_000)
                raise _RefusedError(answer.status, text.decode(errors="replace"))
            if most is not None and (answer.content_length or 0) > most:
                raise StoreError("unable", "it ignores the header Range")
            return answer.status, answer.headers, answer.request_info, await answer.read()

    @staticmethod
    def close_session(*_: Any) -> None:
        """Do nothing when forgotten: `GCS.close` closes, in the thread that the session is of."""


class GCS:
    """A connection to Google Cloud Storage, or to an emulator of it."""

    credentials: ClassVar[str] = (
        "GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, or workload identity"
    )
    endpoint: ClassVar[str] = "STORAGE_EMULATOR_HOST"

    def __init__(self, *, anonymous: bool, timeout_seconds: float) -> None:
        """Open nothing yet; `anonymous` sends no credentials, and looks for none."""
        emulated = os.environ.get("STORAGE_EMULATOR_HOST", "") not in {"", "default"}
        self._open = partial(
            _Files,
            # Not None, by which gcsfs goes on without credentials in silence if it finds none.
            token="anon" if anonymous or emulated else "google_default",
            access="read_write",
            project="",  # else one of the environment must be that of the credentials
            requests_timeout=timeout_seconds,
            session_kwargs={"auto_decompress": False, "trust_env": True},
            asynchronous=True,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        self._opening = asyncio.Lock()
        self._files: _Files | None = None

    async def get(
        self, bucket: str, key: str, first: int, last: int, version: str | None = None
    ) -> Piece:
        """Return the bytes `first` to `last`, if the object is still of that `version`."""
        # Without the second header, what was stored gzipped comes back unpacked.
        headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "gzip"}
        query = {"alt": "media", "ifGenerationMatch": version}
        most = last - first + 1
        with _judged("changed"):
            files = await self._connected()
            try:
                # Not `_cat_file`, which keeps size and version to itself.
                described, data = await files._call(
                    "GET", "b/{}/o/{}", bucket, key, headers=headers, most=most, **query
                )
            except _RefusedError as error:
                if error.status == 416 and first == 0:  # an empty object has no first byte
                    return Piece(b"", 0, "empty")
                raise
            total = described.get("Content-Range", str(len(data))).rpartition("/")[2]
            return Piece(data, int(total), described.get("X-Goog-Generation", ""))

    async def put_new(self, bucket: str, key: str, data: bytes) -> None:
        """Create the object, unless there is one."""
        # Not `_pipe_file`: its boundary is always the same, so an object that held it would be cut
        # there, and it sends no digest, which Google compares before it commits.
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        facts = json.dumps({"name": key, "md5Hash": digest})
        boundary = secrets.token_hex(16)  # which the data, made before it, can't hold
        opening = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{facts}\r\n"
        )
        opening += f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        body = io.BytesIO(b"".join([opening.encode(), data, f"\r\n--{boundary}--".encode()]))
        with _judged("exists", absent="no bucket"):
            files = await self._connected()
            await files._call(
                "POST",
                f"{files._location}/upload/storage/v1/b/{{}}/o",
                bucket,
                headers={"Content-Type": f"multipart/related; boundary={boundary}"},
                data=body,
                uploadType="multipart",
                ifGenerationMatch="0",
            )

    async def page(self, bucket: str, prefix: str, after: str | None, limit: int) -> Page:
        """Return up to `limit` of the names below `prefix`, from the mark `after` on."""
        with _judged("wrong", absent="no bucket"):
            files = await self._connected()
            # Not `_ls`, which goes on to the last page.
            found = await files._call(
                "GET",
                "b/{}/o",
                bucket,
                json_out=True,
                prefix=prefix,
                delimiter="/",
                maxResults=str(limit),
                fields="items(name),prefixes,nextPageToken",
                pageToken=after,
            )
            keys = [item["name"] for item in found.get("items", [])]
            return Page(tuple(keys + found.get("prefixes", [])), found.get("nextPageToken") or None)

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the object; that there is none is fine."""
        try:
            with _judged("wrong"):
                files = await self._connected()
                await files._rm_file(f"{bucket}/{key}")
        except StoreError as error:
            if error.kind not in {"absent", "no bucket"}:
                raise

    async def close(self) -> None:
        """Close the connection."""
        if self._files is not None and self._files._session is not None:
            await self._files._session.close()

    async def _connected(self) -> _Files:
        async with self._opening:
            if self._files is None:
                logging.getLogger("google.auth").setLevel(
                    logging.ERROR
                )  # failures are ours to tell
                try:
                    self._files = await in_thread(self._open)  # looks for credentials
                except (exceptions.DefaultCredentialsError, *_NO_FILE) as error:
                    raise StoreError("refused", "no credentials found") from error
                # Found out once, not at each request.
                self._files._endpoint = self._files._location.rstrip("/")
        return self._files


@contextlib.contextmanager
def _judged(failed: Failure, absent: Failure = "absent") -> Iterator[None]:
    """Turn what gcsfs raises into a StoreError; a failed condition means `failed`."""
    try:
        yield
    except _RefusedError as error:
        reason = _reason(error.text)
        kind = _kind(error.status, error.text, reason, failed, absent)
        raise StoreError(kind, f"{error.status} {reason}".strip()) from error
    except (HttpError, NonRetryableError) as error:  # how gcsfs says that a token isn't renewed
        passing = getattr(error.__cause__, "retryable", False)
        detail = type(error.__cause__).__name__
        raise StoreError("passing" if passing else "refused", detail) from error
    except exceptions.GoogleAuthError as error:
        passing = isinstance(error, exceptions.TransportError)
        raise StoreError("passing" if passing else "refused", type(error).__name__) from error
    except (aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
        raise StoreError("setup", type(error).__name__) from error
    except (aiohttp.ClientError, OSError) as error:
        raise StoreError("passing", type(error).__name__) from error
    except (ValueError, KeyError, TypeError) as error:  # an answer that is not what it should be
        raise StoreError("passing", "an answer that can't be understood") from error


def _kind(status: int, text: str, reason: str, failed: Failure, absent: Failure) -> Failure:
    kinds: dict[int, Failure] = {
        401: "refused",
        403: "passing" if "ateLimitExceeded" in reason else "refused",
        404: "no bucket" if "bucket does not exist" in text else absent,
        408: "passing",
        409: "busy",
        412: failed,
        429: "passing",
        501: "unable",
    }
    return kinds.get(status, "passing" if status >= 500 else "wrong")


def _reason(text: str) -> str:
    """Return the one word that Google's JSON errors carry, or nothing: other text may hold keys."""
    try:
        word = str(json.loads(text)["error"]["errors"][0]["reason"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return word if re.fullmatch(r"[A-Za-z]{1,60}", word) else ""
