"""Requests to Google Cloud Storage, by its JSON API; each function is one request.

STORAGE_EMULATOR_HOST names another server, which needs none.

https://cloud.google.com/storage/docs/json_api/v1/objects
"""

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import aiohttp
from google.auth import exceptions

from job.stores import Kind, Page, Piece, StoreError
from job.tokens import Tokens

ENDPOINT = "https://storage.googleapis.com"


class GCS:
    """A connection to Google Cloud Storage, or to an emulator of it."""

    def __init__(self, *, anonymous: bool, timeout_seconds: float, connections: int) -> None:
        """Open nothing yet; `anonymous` sends no credentials, and looks for none."""
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        self._endpoint = emulator or ENDPOINT
        # An emulator asks for no credentials.
        self._tokens = None if anonymous or emulator else Tokens(timeout_seconds)
        self._connections = connections
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def get(
        self, bucket: str, key: str, first: int, last: int, version: str | None = None
    ) -> Piece:
        """Return the bytes `first` to `last`, if the object is still of that `version`."""
        condition = {} if version is None else {"ifGenerationMatch": version}
        # Without the second header, what was stored gzipped comes back unpacked.
        headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "gzip"}
        query = {"alt": "media", **condition}
        with _judged():
            async with self._send("GET", _path(bucket, key), query, headers) as answer:
                if answer.status == 416 and first == 0:  # an empty object has no first byte
                    return Piece(b"", 0, "empty")
                await _check(answer, "changed")
                length = answer.content_length
                if length is not None and length > last - first + 1:
                    raise StoreError("unable", "it ignores the header Range")
                data = await answer.read()
                total = answer.headers.get("Content-Range", str(len(data))).rpartition("/")[2]
                generation = answer.headers.get("X-Goog-Generation", "")
        return Piece(data, int(total), generation)

    async def put_new(self, bucket: str, key: str, data: bytes) -> None:
        """Create the object, unless there is one."""
        # Google compares the digest before it commits; a body cut short can't become an object.
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        facts = json.dumps({"name": key, "md5Hash": digest})
        boundary = secrets.token_hex(16)  # which the data, made before it, can't hold
        opening = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{facts}\r\n"
        )
        opening += f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        body = io.BytesIO(b"".join([opening.encode(), data, f"\r\n--{boundary}--".encode()]))
        headers = {"Content-Type": f"multipart/related; boundary={boundary}"}
        query = {"uploadType": "multipart", "ifGenerationMatch": "0"}
        path = f"/upload/storage/v1/b/{quote(bucket)}/o"
        with _judged():
            async with self._send("POST", path, query, headers, body) as answer:
                await _check(answer, "exists", absent="no bucket")
                await answer.read()

    async def page(self, bucket: str, prefix: str, after: str | None, limit: int) -> Page:
        """Return up to `limit` of the names below `prefix`, from the mark `after` on."""
        fields = "items(name),prefixes,nextPageToken"
        query = {"prefix": prefix, "delimiter": "/", "maxResults": str(limit), "fields": fields}
        if after is not None:
            query["pageToken"] = after
        with _judged():
            path = f"/storage/v1/b/{quote(bucket)}/o"
            async with self._send("GET", path, query) as answer:
                await _check(answer, "wrong", absent="no bucket")
                found = await answer.json(content_type=None)
        keys = [item["name"] for item in found.get("items", [])]
        return Page(tuple(keys + found.get("prefixes", [])), found.get("nextPageToken") or None)

    async def delete(self, bucket: str, key: str) -> None:
        """Remove the object; that there is none is fine."""
        with _judged():
            async with self._send("DELETE", _path(bucket, key), {}) as answer:
                if answer.status != 404:
                    await _check(answer, "wrong")

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        headers: dict[str, str] | None = None,
        body: io.BytesIO | None = None,
    ) -> Any:
        async with self._opening:
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=self._connections),
                    timeout=aiohttp.ClientTimeout(total=None),  # `retrying` sets the deadline
                    auto_decompress=False,
                    trust_env=True,
                )
            bearer = {}
            if self._tokens is not None:
                bearer = {"Authorization": f"Bearer {await self._tokens.valid()}"}
        async with self._session.request(
            method,
            self._endpoint + path,
            params=query,
            headers={**(headers or {}), **bearer},
            data=body,
            allow_redirects=False,
        ) as answer:
            yield answer


def _path(bucket: str, key: str) -> str:
    return f"/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}"


@contextlib.contextmanager
def _judged() -> Iterator[None]:
    """Turn what aiohttp and google-auth raise into a StoreError."""
    try:
        yield
    except exceptions.DefaultCredentialsError as error:
        raise StoreError("refused", "no credentials found") from error
    except (exceptions.TransportError, exceptions.RefreshError) as error:
        passing = isinstance(error, exceptions.TransportError) or error.retryable
        raise StoreError("passing" if passing else "refused", type(error).__name__) from error
    except exceptions.GoogleAuthError as error:
        raise StoreError("refused", type(error).__name__) from error
    except (aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
        raise StoreError("setup", type(error).__name__) from error
    except (aiohttp.ClientError, OSError) as error:
        raise StoreError("passing", type(error).__name__) from error
    except (ValueError, KeyError, TypeError) as error:  # an answer that is not what it should be
        raise StoreError("passing", "an answer that can't be understood") from error


async def _check(answer: aiohttp.ClientResponse, failed: Kind, absent: Kind = "absent") -> None:
    """Raise a StoreError unless the answer is a success; a failed condition means `failed`."""
    status = answer.status
    if 200 <= status < 300:
        return
    text = (await answer.content.read(10_000)).decode(errors="replace")
    if status == 404 and "bucket does not exist" in text:
        absent = "no bucket"
    reason = _reason(text)
    kinds: dict[int, Kind] = {
        401: "refused",
        403: "passing" if "ateLimitExceeded" in reason else "refused",
        404: absent,
        408: "passing",
        409: "busy",
        412: failed,
        429: "passing",
        501: "unable",
    }
    kind = kinds.get(status, "passing" if status >= 500 else "wrong")
    raise StoreError(kind, f"{status} {reason}".strip())


def _reason(text: str) -> str:
    """Return the one word that Google's JSON errors carry, or nothing: other text may hold keys."""
    try:
        word = str(json.loads(text)["error"]["errors"][0]["reason"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return word if re.fullmatch(r"[A-Za-z]{1,60}", word) else ""
