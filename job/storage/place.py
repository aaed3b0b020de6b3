"""Where bytes lie: a text is parsed into a `Place` once, at the door, and is a value from then on.

Not `pathlib`: a `Path` would eat one of the slashes of `scheme://`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, unquote_to_bytes

from job.errors import UsageError

Kind = Literal["file", "s3", "gs"]

MAX_KEY_BYTES = 700  # stores take 1,024, and a run puts names of its own below

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=:/)")
_STORES: dict[str, Kind] = {"s3": "s3", "gs": "gs", "gcs": "gs"}
# What S3 and Google accept as a bucket's name: no `:` or `@`, which credentials come with.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_NO_KEY_SIGNS = "%?#*\\"  # they mean something else to one tool or another
_ACCEPTED = "a local path, file:///absolute/path, s3://bucket/key or gs://bucket/key"


@dataclass(frozen=True)
class Place:
    """A folder or an object, wherever it lies: made by `parse`, or from another one by `/`."""

    kind: Kind
    """`file` for this machine's file system, else the kind of object store."""
    bucket: str
    """The store's; empty for files."""
    key: str
    """Path in the bucket, without a slash at its end; or the path on this machine."""
    text: str
    """As it was given, which is how it prints."""

    @classmethod
    def of(cls, path: Path) -> "Place":
        """Return the place of a path on this machine."""
        return cls("file", "", str(path), str(path))

    def __str__(self) -> str:
        """Return the text that names the place."""
        return self.text

    def __truediv__(self, name: str) -> "Place":
        """Return the place of `name`, which may have several parts, below this folder."""
        scheme, separator, rest = self.text.partition("://")
        folder = f"{scheme}://{rest.rstrip('/')}" if separator else self.text.rstrip("/")
        return Place(self.kind, self.bucket, f"{self.key.rstrip('/')}/{name}", f"{folder}/{name}")

    def beside(self, name: str) -> "Place":
        """Return the place of `name` in the folder that this object lies in."""
        key, text = (f"{''.join(part.rpartition('/')[:2])}{name}" for part in (self.key, self.text))
        return Place(self.kind, self.bucket, key, text)

    @property
    def name(self) -> str:
        """The last part: what the object is called in its folder."""
        return Path(self.key).name

    @property
    def path(self) -> Path:
        """The path on this machine, of a file."""
        return Path(self.key)


def parse(text: str, option: str = "the path") -> Place:
    """Return the place that `text`, the value of the flag `option`, names.

    Accepted are local paths and URIs of `file`, `s3`, `gs` and `gcs`; the decision is made here,
    before any other library interprets the text.

    Raises:
        UsageError: it is anything else. Text that may hold a secret is not echoed.
    """
    _check(text, option)
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _STORES:
        bucket, _, key = rest.partition("/")
        return Place(_STORES[scheme], bucket, key.rstrip("/"), text)
    path = os.fsdecode(unquote_to_bytes(rest)) if scheme == "file" and separator else text
    return Place("file", "", path, text)


def _check(uri: str, option: str) -> None:
    if not uri or not uri.strip():
        raise UsageError(f"{option} is empty: give a path or a URI")
    decoded = unquote(uri) if uri.startswith("file:") else uri
    if any(ord(character) < 32 or ord(character) == 127 for character in decoded):
        raise UsageError(f"{option} holds a control character: give a plain path or URI")
    if "::" in uri:
        raise UsageError(
            f"{option} holds '::': chained URLs are not accepted, give one path or URI"
        )
    scheme = _SCHEME.match(uri)
    if scheme is not None and scheme.group() in _STORES and uri[scheme.end() :].startswith("://"):
        _check_object(uri, option)
        return
    if scheme is None and not uri.startswith("file:"):
        if "://" in uri:  # as a path it would be echoed, with whatever key it holds
            raise UsageError(
                f"{option} holds '://' but is no URI this job accepts: give {_ACCEPTED}"
            )
        return
    if scheme is not None and scheme.group() != "file":
        # Only the scheme is shown: what follows may hold a key.
        raise UsageError(
            f"{option} has the scheme '{scheme.group()}:' in a form that this job does not accept: "
            f"give {_ACCEPTED}"
        )
    if not uri.startswith("file:///") or "?" in uri or "#" in uri:
        raise UsageError(
            f"{option} is not a file URI the job understands: write file:///absolute/path, with "
            "no host, query or fragment"
        )
    if ".." in decoded.split("/"):
        raise UsageError(f"{option} holds '..': write the path in full")


def _check_object(uri: str, option: str) -> None:
    """Refuse what follows a store's `scheme://` unless it is a bucket and a plain key."""
    scheme, _, rest = uri.partition("://")
    bucket, slash, key = rest.partition("/")
    shape = f"give {scheme}://bucket/key"
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{option} names no bucket after {scheme}:// (3 to 63 of a-z, 0-9, '.', '_' and '-'; "
            f"no user, password or port): {shape}"
        )
    if not slash or not key.strip("/"):
        raise UsageError(f"{option} names a bucket only: {shape}, with a folder of its own")
    segments = key.removesuffix("/").split("/")
    if any(segment.strip() in {"", ".", ".."} for segment in segments):
        raise UsageError(f"{option} has an empty, '.' or '..' part in its key: {shape}, in full")
    if not key.isprintable() or any(sign in key for sign in _NO_KEY_SIGNS):
        raise UsageError(
            f"{option} has a sign in its key that this job does not accept (one of "
            f"{' '.join(_NO_KEY_SIGNS)}, or one that cannot be shown): {shape}, with a plain key"
        )
    if len(key.encode()) > MAX_KEY_BYTES:
        raise UsageError(f"{option} has a key of more than {MAX_KEY_BYTES} bytes: {shape}, shorter")
