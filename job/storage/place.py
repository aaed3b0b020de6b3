"""Where bytes lie: a text is parsed into a `Place` once, at the door, and is a value from then on.

Not `pathlib`: a `Path` would eat one of the slashes of `scheme://`.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

from job.errors import UsageError

Kind = Literal["file", "s3", "gs"]

MAX_KEY_BYTES = 700  # stores take 1,024, and a run puts names of its own below

# A scheme and what follows its colon; `file:` is one even without a slash, which is then missed.
_URI = re.compile(r"(file|[A-Za-z][A-Za-z0-9+.-]*(?=:/)):(.*)", re.DOTALL)
_STORES: dict[str, Kind] = {"s3": "s3", "gs": "gs", "gcs": "gs"}
# What S3 and Google accept as a bucket's name: no `:` or `@`, which credentials come with.
_BUCKET = re.compile(r"(?!.*[^.]{64})[a-z0-9][a-z0-9._-]+[a-z0-9]")
_NO_KEY_SIGNS = "%?#*\\"  # they mean something else to one tool or another
_ACCEPTED = "a local path, file:///absolute/path, s3://bucket/key or gs://bucket/key"


@dataclass(frozen=True)
class Place:
    """A folder or an object, wherever it lies: made by `parse`, or from another one.

    Places are equal if they are the same place, however each was given.
    """

    kind: Kind
    """`file` for this machine's file system, else the kind of object store."""
    bucket: str
    """The store's; empty for files."""
    key: str
    """Path in the bucket or on this machine, without a slash at its end, unless it is all slash."""
    text: str = field(compare=False)
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
        return self._in(_as_folder, name)

    def beside(self, name: str) -> "Place":
        """Return the place of `name` in the folder that this object lies in."""
        return self._in(_folder_of, name)

    def _in(self, folder: Callable[[str, str], str], name: str) -> "Place":
        """Return the place of `name` in what `folder` makes of key and text, with their slash."""
        key = folder(self.key, "/") + name
        if self.kind == "file" and self.text.startswith("file://"):
            written = folder(self.text.removeprefix("file://"), "(?:/|%2[Ff])")
            return Place(self.kind, "", key, f"file://{written}{quote(os.fsencode(name))}")
        return Place(self.kind, self.bucket, key, folder(self.text, "/") + name)

    @property
    def name(self) -> str:
        """The last part: what the object is called in its folder."""
        return Path(self.key).name

    @property
    def path(self) -> Path:
        """The path on this machine, of a file."""
        return Path(self.key)


def _as_folder(path: str, slash: str) -> str:
    """Return `path` with one slash at its end."""
    return re.sub(rf"{slash}*\Z", "/", path, count=1)


def _folder_of(path: str, slash: str) -> str:
    """Return `path` up to its last part, whatever slashes are at its end."""
    ends = [each.end() for each in re.finditer(slash, re.sub(rf"{slash}+\Z", "", path))]
    return path[: ends[-1]] if ends else path[: len(path) - len(path.lstrip("/"))]


def parse(text: str, option: str = "the path") -> Place:
    """Return the place that `text`, the value of the flag `option`, names.

    Accepted are local paths and URIs of `file`, `s3`, `gs` and `gcs`; the decision is made here,
    before any other library interprets the text.

    Raises:
        UsageError: it is anything else. Text that may hold a secret is not echoed.
    """
    if not text or not text.strip():
        raise UsageError(f"{option} is empty: give a path or a URI")
    found = _URI.fullmatch(text)
    scheme, rest = found.groups() if found else ("", text)
    try:
        path = os.fsdecode(unquote_to_bytes(os.fsencode(rest))) if scheme == "file" else rest
        os.fsencode(path)
    except UnicodeEncodeError:
        raise UsageError(f"{option} holds half a character: give a plain path or URI") from None
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        raise UsageError(f"{option} holds a control character: give a plain path or URI")
    if "::" in text:
        raise UsageError(
            f"{option} holds '::': chained URLs are not accepted, give one path or URI"
        )
    if scheme == "file":
        return _file(path, text, option)
    if scheme in _STORES and rest.startswith("//"):
        return _object(scheme, rest.removeprefix("//"), text, option)
    if scheme:
        # Only the scheme is shown: what follows may hold a key.
        raise UsageError(
            f"{option} has the scheme '{scheme}:' in a form that this job does not accept: "
            f"give {_ACCEPTED}"
        )
    if "://" in text:  # as a path it would be echoed, with whatever key it holds
        raise UsageError(f"{option} holds '://' but is no URI this job accepts: give {_ACCEPTED}")
    return _local(text, option)


def _local(text: str, option: str) -> Place:
    """Return the place of a path; `~` at its beginning is the home, as in a shell."""
    if re.match("~[^/]", text):
        raise UsageError(f"{option} begins with '~' and a name: write it in full, or ./~name")
    path = os.path.expanduser(text)  # noqa: PTH111  a Path would lose slashes and dots
    if text.startswith("~") and not path.startswith("/"):
        raise UsageError(f"{option} begins with '~', but no home is known: write it in full")
    return Place("file", "", _bare(path), path)


def _file(path: str, text: str, option: str) -> Place:
    """Return the place of the file URI `text`; `path` is what follows `file:`, decoded."""
    if not text.startswith("file:///") or "?" in text or "#" in text:
        raise UsageError(
            f"{option} is not a file URI the job understands: write file:///absolute/path, with "
            "no host, query or fragment"
        )
    if ".." in path.split("/"):
        raise UsageError(f"{option} holds '..': write the path in full")
    return Place("file", "", _bare(path.removeprefix("//")), text)


def _object(scheme: str, rest: str, text: str, option: str) -> Place:
    """Return the place of a store's URI, if `rest`, after `scheme://`, is bucket and plain key."""
    bucket, slash, key = rest.partition("/")
    key = key.removesuffix("/")
    shape = f"give {scheme}://bucket/key"
    if not _BUCKET.fullmatch(bucket) or len(bucket) > (63 if scheme == "s3" else 222):
        raise UsageError(
            f"{option} names no bucket after {scheme}:// (3 to 63 of a-z, 0-9, '.', '_' and '-'; "
            f"gs:// takes 222 with dots; no user, password or port): {shape}"
        )
    if scheme == "s3" and bucket.endswith("--x-s3"):  # they know no Content-MD5
        raise UsageError(f"{option} names a directory bucket, which is not supported: {shape}")
    if not slash or not key.strip("/"):
        raise UsageError(f"{option} names a bucket only: {shape}, with a folder of its own")
    if any(segment.strip() in {"", ".", ".."} for segment in key.split("/")):
        raise UsageError(f"{option} has an empty, '.' or '..' part in its key: {shape}, in full")
    if not key.isprintable() or any(sign in key for sign in _NO_KEY_SIGNS):
        raise UsageError(
            f"{option} has a sign in its key that this job does not accept (one of "
            f"{' '.join(_NO_KEY_SIGNS)}, or one that cannot be shown): {shape}, with a plain key"
        )
    if len(key.encode()) > MAX_KEY_BYTES:
        raise UsageError(f"{option} has a key of more than {MAX_KEY_BYTES} bytes: {shape}, shorter")
    return Place(_STORES[scheme], bucket, key, text)


def _bare(path: str) -> str:
    return path.rstrip("/") or path
