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
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, ClassVar

import aiohttp
from gcsfs.core import GCSFileSystem  # gcsfs's own choice of class would ask by gRPC first
from gcsfs.retry import HttpError, NonRetryableError
from google.auth import exceptions
from requests import sessions

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

# What google-auth raises if a file of credentials is none.
_NO_FILE = (ValueError, TypeError, KeyError, AttributeError, OSError)


class _RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, headers: Mapping[str, str], text: str) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers
        self.text = text


class _Files(GCSFileSystem):  # type: ignore[misc]  # it has no types
    """gcsfs without what it would do on its own."""

    protocol = "gs of this job"  # so fsspec's own configuration, which may hold keys, has no say

    # gcsfs's own would send up to six times and wait in between, which is for `retrying` to do and
    # to tell; follow redirects, with token and body; and drop why an answer is 403 or 404.
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
            # Aside, since google-auth may wait long for a token, and the loop is everybody's.
            headers=await asyncio.to_thread(self._get_headers, headers),
            json=json,
            data=data,
            timeout=self.requests_timeout,
            allow_redirects=False,
        ) as answer:
            if not 200 <= answer.status < 300:
                text = await answer.content.read(10_000)
                raise _RefusedError(answer.status, answer.headers, text.decode(errors="replace"))
            if most is not None and not 0 < (answer.content_length or 0) <= most:
                raise StoreError("passing", FOREIGN)
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
        self._make = partial(
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

    async def get(self, bucket: str, key: str, first: int, last: int) -> Piece:
        """Return the bytes `first` to `last`, or as many as there are."""
        # Without the second header, what was stored gzipped comes back unpacked.
        headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "gzip"}
        most = last - first + 1
        with _judged():
            files = await self._connected()
            try:
                # Not `_cat_file`, which keeps size and version to itself.
                described, data = await files._call(
                    "GET", "b/{}/o/{}", bucket, key, headers=headers, most=most, alt="media"
                )
            except _RefusedError as error:
                empty, gone = first == 0 and error.status == 416, error.status == 404
                if not empty and (not gone or _is_absence(error)):
                    raise
                # An empty object has no first byte; and an emulator's 404 has no sign that it is
                # the store's. What describes the object tells for certain.
                facts = await files._call("GET", "b/{}/o/{}", bucket, key, json_out=True)
                if gone or facts["size"] != "0":
                    raise StoreError("passing", FOREIGN) from error
                return Piece(b"", 0, str(facts["generation"]))
        span, generation = described.get("Content-Range", ""), described.get("X-Goog-Generation")
        return piece(data, span, first, last, generation)

    async def put_new(self, bucket: str, key: str, data: bytes) -> bool:
        """Create the object, unless there is one; its MD5 and generation prove that it is ours."""
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
        with _judged(precondition="exists", absent="no bucket"):
            files = await self._connected()
            answer = await files._call(
                "POST",
                f"{files._location}/upload/storage/v1/b/{{}}/o",
                bucket,
                headers={"Content-Type": f"multipart/related; boundary={boundary}"},
                data=body,
                json_out=True,
                uploadType="multipart",
                ifGenerationMatch="0",
            )
            if (answer["md5Hash"], answer["name"]) != (digest, key) or not answer["generation"]:
                raise StoreError("passing", FOREIGN)
        return True

    async def page(self, bucket: str, prefix: str, after: str | None, limit: int) -> Page:
        """Return up to `limit` of the names below `prefix`, from the mark `after` on."""
        with _judged(absent="no bucket"):
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
                fields="kind,items(name,updated),prefixes,nextPageToken",
                pageToken=after,
            )
            if found["kind"] != "storage#objects":  # else other JSON would be an empty listing
                raise StoreError("passing", FOREIGN)
            keys = [item["name"] for item in found.get("items", [])]
            written = {
                item["name"]: datetime.fromisoformat(item["updated"])
                for item in found.get("items", [])
                if "updated" in item
            }
            keys += found.get("prefixes", [])
            return Page(tuple(keys), found.get("nextPageToken") or None, written)

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the object; that there is none is fine."""
        try:
            with _judged():
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
                self._files = await asyncio.to_thread(self._open)
            return self._files

    def _open(self) -> _Files:
        """Look for credentials, and connect with them."""
        logging.getLogger("google.auth").setLevel(logging.ERROR)  # failures are ours to tell
        # Whoever gives tokens is told a secret, which must go nowhere else.
        sessions.DEFAULT_REDIRECT_LIMIT = 0  # type: ignore[attr-defined]
        try:
            files = self._make()
        except (exceptions.DefaultCredentialsError, *_NO_FILE) as error:
            # GKE's server of credentials needs some seconds in a new pod.
            soon = "KUBERNETES_SERVICE_HOST" in os.environ
            named = "GOOGLE_APPLICATION_CREDENTIALS" in os.environ
            kind: Failure = "not yet" if soon and not named else "refused"
            raise StoreError(kind, "no credentials found") from error
        # Found out once, not at each request.
        files._endpoint = files._location.rstrip("/")
        return files


@contextlib.contextmanager
def _judged(precondition: Failure = "wrong", absent: Failure = "absent") -> Iterator[None]:
    """Turn what gcsfs raises into a StoreError; a failed condition means `precondition`."""
    try:
        yield
    except _RefusedError as error:
        kind = _kind(error, precondition, absent)
        said = detail(error.status, _reason(error), error.headers.get("X-GUploader-UploadID", ""))
        raise StoreError(kind, said, after=error.headers.get("Retry-After", "")) from error
    except (HttpError, NonRetryableError) as error:  # how gcsfs says that a token isn't renewed
        passing = getattr(error.__cause__, "retryable", False)
        name = type(error.__cause__).__name__
        raise StoreError("passing" if passing else "refused", name) from error
    except exceptions.GoogleAuthError as error:
        passing = isinstance(error, exceptions.TransportError)
        raise StoreError("passing" if passing else "refused", type(error).__name__) from error
    except (aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
        raise StoreError("setup", type(error).__name__) from error
    except (aiohttp.ClientError, OSError) as error:
        # requests says so of a bundle of certificates that isn't there.
        missing = type(error) is OSError and error.errno is None
        raise StoreError("setup" if missing else "passing", type(error).__name__) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError("passing", FOREIGN) from error


def _kind(error: _RefusedError, precondition: Failure, absent: Failure) -> Failure:
    status, reason = error.status, _reason(error)
    if status == 404 and _is_absence(error):
        return "no bucket" if "bucket does not exist" in error.text else absent
    if status == 403 and reason.endswith("ateLimitExceeded"):
        return "passing"
    if status == 403 and reason.endswith("uotaExceeded"):
        return "full"
    return by_status(status, precondition, signed=bool(_error(error)))


def _is_absence(error: _RefusedError) -> bool:
    """Tell whether a 404 is Google's own: JSON, or its one line where content was asked for."""
    return bool(_error(error)) or error.text.startswith("No such object: ")


def _reason(error: _RefusedError) -> str:
    """Return the one word that Google's JSON errors carry, or nothing."""
    return str(_error(error).get("reason", ""))


def _error(error: _RefusedError) -> dict[str, Any]:
    """Return the first of the errors in the JSON of Google's answer; nothing if it is no such."""
    try:
        said = json.loads(error.text)["error"]
        return dict(said["errors"][0]) if said["code"] == error.status else {}
    except (ValueError, LookupError, TypeError):
        return {}
