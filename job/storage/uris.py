"""Texts that name a place: which are accepted, and how to get from one to another.

URIs are plain strings everywhere: a `Path` would eat one of the slashes of `scheme://`.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from job.errors import UsageError

MAX_KEY_BYTES = 700  # stores take 1,024, and a run puts names of its own below

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=:/)")
_STORES = {"s3": "s3", "gs": "gs", "gcs": "gs"}
# What S3 and Google accept as a bucket's name: no `:` or `@`, which credentials come with.
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_NO_KEY_SIGNS = "%?#*\\"  # they mean something else to one tool or another
_ACCEPTED = "a local path, file:///absolute/path, s3://bucket/key or gs://bucket/key"


def check(uri: str, option: str) -> str:
    """Return `uri` unchanged if the job accepts it as a place to read or write.

    Accepted are local paths and URIs of `file`, `s3`, `gs` and `gcs`; the decision is made here,
    before any other library interprets the text.

    Raises:
        UsageError: it is anything else. Text that may hold a secret is not echoed.
    """
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
        return uri
    if scheme is None and not uri.startswith("file:"):
        if "://" in uri:  # as a path it would be echoed, with whatever key it holds
            raise UsageError(
                f"{option} holds '://' but is no URI this job accepts: give {_ACCEPTED}"
            )
        return uri
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
    return uri


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


def is_remote(uri: str) -> bool:
    """Tell whether `uri` lies in an object store rather than in this machine's file system."""
    return uri.partition("://")[0] in _STORES and "://" in uri


def in_store(uri: str) -> tuple[str, str, str]:
    """Return the kind of store (`s3` or `gs`), the bucket and the key that a remote `uri` names."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return _STORES[scheme], bucket, key.rstrip("/")


def join(uri: str, *names: str) -> str:
    """Return the URI of `names` below the folder `uri`."""
    root = "file://" if uri == "file:///" else uri.rstrip("/")
    return "/".join([root, *names])


def beside(uri: str, name: str) -> str:
    """Return the URI of `name` in the folder that the object `uri` lies in."""
    folder, slash, _ = uri.rpartition("/")
    return f"{folder}{slash}{name}"


def name(uri: str) -> str:
    """Return the last part of `uri`: the name of the object in its folder."""
    return in_store(uri)[2].rpartition("/")[2] if is_remote(uri) else local_path(uri).name


def local_path(uri: str) -> Path:
    """Return the path on this machine that `uri`, a local path or a `file://` URI, names."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return Path(uri)
