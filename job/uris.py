"""Texts that name a place: which are accepted, and how to get from one to another.

URIs are plain strings everywhere: a `Path` would eat one of the slashes of `scheme://`.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from job.errors import UsageError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=:/)")


def check(uri: str, option: str) -> str:
    """Return `uri` unchanged if the job accepts it as a place to read or write.

    Accepted are local paths and `file://` URIs; the decision is made here, before any other
    library interprets the text.

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
    if scheme is None and not uri.startswith("file:"):
        if "://" in uri:  # as a path it would be echoed, with whatever key it holds
            raise UsageError(
                f"{option} holds '://' but is no URI this job accepts: give a local path or "
                "file:///absolute/path"
            )
        return uri
    if scheme is not None and scheme.group() != "file":
        # Only the scheme is shown: what follows may hold a key.
        raise UsageError(
            f"{option} has the scheme '{scheme.group()}:', which this job does not accept: "
            "give a local path or file:///absolute/path"
        )
    if not uri.startswith("file:///") or "?" in uri or "#" in uri:
        raise UsageError(
            f"{option} is not a file URI the job understands: write file:///absolute/path, with "
            "no host, query or fragment"
        )
    if ".." in decoded.split("/"):
        raise UsageError(f"{option} holds '..': write the path in full")
    return uri


def join(uri: str, *names: str) -> str:
    """Return the URI of `names` below the folder `uri`."""
    root = "file://" if uri == "file:///" else uri.rstrip("/")
    return "/".join([root, *names])


def beside(uri: str, name: str) -> str:
    """Return the URI of `name` in the folder that the object `uri` lies in."""
    folder, slash, _ = uri.rpartition("/")
    return f"{folder}{slash}{name}"


def local_path(uri: str) -> Path:
    """Return the path on this machine that `uri`, a local path or a `file://` URI, names."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return Path(uri)
