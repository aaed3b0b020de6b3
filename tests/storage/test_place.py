"""What a URI may be, and that no text that may hold a key is ever repeated."""

import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job import storage
from job.errors import JobError, UsageError
from job.storage import parse

SECRET = "hunter2"

ACCEPTED = [
    *("runs", "./runs", "../runs", ".", "..", "/", "/tmp/x", "a/b.h5", "a//b", "a/", "-x", "./~x"),
    *("a b", "ä/ö", "日本", "a%20b", "a%2e%2e/b", "a%00b", "a#b", "a?b", "a*[0]", "a\\b", "a&b;c"),
    *("a:b", "host:path", "10:30", "file", "files/x", "s3", "s3/b/k", "./s3:/b", "./file:/x"),
    *("file:///", "file:///a", "file:///a/b.h5", "file:///a%20b", "file:///a%2520b", "file:///ä"),
    *("file:///a/..b", "file:///a/b..", "file:///a//b", "file:///a%3Fb%23c", "file:///a:b"),
    *("file:////a", "file:///a/%252e%252e/b", "file:///a%", "file:///%zz"),
    *("s3://bucket/key", "s3://bucket/key/", "s3://my-bucket.x_1/a/b.npz", "s3://abc/a b/ä+=,@!"),
    *("gs://bucket/key", "gcs://bucket/key", "gs://bucket/..a/b..", f"s3://{'b' * 63}/{'k' * 700}"),
    *("s3://bucket/a:b", "s3://bucket/user:pass@host", "gs://bucket/日本", "a/~", "a/~b/c"),
    *("file:///~/x", "s3://bucket/~/x", "gs://bucket--x-s3/k", "s3://bucket--x-s3-not/k"),
    f"gs://{'.'.join(['b' * 63, 'c' * 63, 'd' * 63, 'e' * 30])}/k",
    f"gcs://{'.'.join(['b' * 63, 'c'])}/k",
]
REFUSED = [
    # other schemes, however they are spelled
    *("s3:/bucket/k", "S3://bucket/k", "GS://bucket/k", "s3a://bucket/k", "s3n://bucket/k"),
    *("gs:/bucket/k", "gcs:/bucket/k", "az://c/k", "minio://bucket/k", "s3+http://bucket/k"),
    # a bucket and nothing in it, or no bucket
    *("s3://bucket", "s3://bucket/", "s3://bucket//", "gs://bucket", "gcs://bucket/", "s3://"),
    *("s3:///k", "s3:///", "gs:///k", "s3:////bucket/k", "s3://./k", "s3://../k", "s3:// /k"),
    # no name for a bucket
    *("s3://b/k", "s3://bu/k", "s3://Bucket/k", "s3://-bucket/k", "s3://bucket-/k", "s3://b b/k"),
    *(f"s3://{'b' * 64}/k", "s3://bücket/k", "s3://bucket:9000/k", "gs://bucket%2fa/k"),
    *("s3://bucket?/k", "s3://bucket#/k", "s3://[::1]/k", "s3://[ab]/k", "s3://buck*t/k"),
    *("gs://b/k", f"gs://{'b' * 64}/k", f"gs://{'b' * 64}.c/k", f"gcs://a.{'b' * 64}/k"),
    f"gs://{'.'.join(['b' * 63, 'c' * 63, 'd' * 63, 'e' * 31])}/k",
    f"s3://{'.'.join(['b' * 32, 'c' * 31])}/k",
    "s3://bucket--use1-az4--x-s3/k",
    # no key that means the same to every tool
    *(
        "s3://bucket/..",
        "s3://bucket/../k",
        "s3://bucket/a/../b",
        "s3://bucket/a/..",
        "s3://bucket/.",
    ),
    *(
        "s3://bucket/./k",
        "s3://bucket/a/./b",
        "gs://bucket/a//b",
        "s3://bucket//a",
        "s3://bucket/a//",
    ),
    *("s3://bucket/a/ /b", "s3://bucket/ ", "gs://bucket/%2e%2e/k", "s3://bucket/a%2Fb"),
    *("s3://bucket/a?versionId=1", "gs://bucket/a#123", "s3://bucket/a*", "s3://bucket/a\\b"),
    *("s3://bucket/a\u202eb", "s3://bucket/\udc80", "s3://bucket/a\u00a0b", "s3://bucket/a\u2028b"),
    f"s3://bucket/{'k' * 701}",
    f"gs://bucket/{'ä' * 351}",
    *("abfs://c@acc.dfs.core.windows.net/k", "hdfs://h/k", "webhdfs://h/k", "memory://k"),
    *("http://h/x", "https://h/x", "HTTPS://h/x", "ftp://h/x", "sftp://h/x", "ssh://h/x"),
    *("git://h/x", "github://org:repo@/x", "hf://org/x", "zip://x", "tar:///x", "data:/x"),
    *("local:///x", "filesystem:/x", "C:/Users/x", "c:/", "x-y.z+1://h", "a:/", "a://"),
    # secrets, which must not be repeated
    f"https://user:{SECRET}@h/x",
    f"s3://KEY:{SECRET}@bucket/k",
    f"s3://{SECRET}@bucket/k",
    f"s3://bucket@{SECRET}/k",
    f"s3://KEY:{SECRET}@bucket",
    f"gs://{SECRET}:x@bucket/k",
    f"gcs://bucket/k?access_token={SECRET}",
    f"s3://bucket/k?X-Amz-Signature={SECRET}",
    f"s3://bucket/k#{SECRET}",
    f"s3://bucket/../{SECRET}",
    f"s3://bucket//{SECRET}",
    f"s3:KEY:{SECRET}@://bucket/k",
    f"s3://https://user:{SECRET}@h/x",
    f"ftp://user:{SECRET}@h/x",
    f"https://h/x?X-Amz-Signature={SECRET}",
    f"s3:/{SECRET}",
    f"file://user:{SECRET}@h/x",
    f"file:///a?token={SECRET}",
    f"file:///a#{SECRET}",
    f"simplecache::https://user:{SECRET}@h/x",
    f"a\n{SECRET}",
    f"file:///a/../{SECRET}",
    # chains
    *("simplecache::s3://b/k", "zip://a.npz::file:///b.zip", "a::b", "::", "a::", "file:///a::b"),
    # file URIs of another kind than ours
    *("file:/a", "file://", "file://a", "file://h/a", "file://localhost/a", "FILE:///a"),
    *("File:///a", "file:///a?b", "file:///a#b", "file:///?", "file:////a#"),
    # somebody's home
    *("~x", "~x/y", "~root", "~root/x", f"~{SECRET}/x", "~+/x", "~~", "~\\x", "~ /x"),
    # ways up
    *("file:///..", "file:///../a", "file:///a/..", "file:///a/../b", "file:///a/%2e%2e/b"),
    *("file:///a/%2E./b", "file:///a/.%2e", "file:///a%2f..%2fb", "file:///a%2F%2e%2e"),
    # nothing, and what terminals and kernels take for something else
    *("", " ", "   ", "\t", "\n", "\u2003", "a\nb", "a\rb", "a\tb", "a\0b", "\0", "a\x1b[31mb"),
    *("a\x7fb", "file:///a\nb", "s3://b/k\n", "a\n", "\x01"),
    *("a\ud800", "file:///a\ud800", "s3://bucket/a\ud800"),  # JSON can hold what no name can
]
REFUSED_ONCE_DECODED = ["file:///a%00b", "file:///%00", "file:///a%0Ab", "file:///a%1b%5B31m"]
DISGUISED = [
    *(" s3://b/k", f" https://user:{SECRET}@h/x", "\u00a0s3://b/k", "_s3://b/k", "3s://b/k"),
    *("://h/x", "é://h/x", "-https://h/x", f"<https://user:{SECRET}@h/x>", f"'s3://K:{SECRET}@b'"),
]

GENERATED = [
    f"{scheme}{rest}"
    for scheme in ("s3", "gs", "gcs", "s3a", "http", "https", "az", "abfs", "hdfs", "ftp", "file")
    for rest in (
        f"://user:{SECRET}@host/key",
        f"://bucket/../{SECRET}",
        f"://bucket/key?token={SECRET}",
        f"://{SECRET}%40bucket",
        f"::s3://KEY:{SECRET}@bucket/key",
    )
]


def readable(uri: str) -> str:
    return ascii(uri)[:40]


@pytest.mark.parametrize("uri", ACCEPTED, ids=readable)
def test_paths_and_file_uris_are_accepted_unchanged(uri: str) -> None:
    assert str(parse(uri, "--weights")) == uri


@pytest.mark.parametrize("uri", [*REFUSED, *GENERATED], ids=readable)
def test_any_other_uri_is_refused_by_the_flag_and_not_echoed(uri: str) -> None:
    assert_refused(uri)


@pytest.mark.parametrize("uri", REFUSED_ONCE_DECODED, ids=readable)
def test_control_characters_are_refused_in_disguise_as_well(uri: str) -> None:
    assert_refused(uri)


@pytest.mark.parametrize("uri", DISGUISED, ids=readable)
def test_what_only_nearly_has_a_scheme_is_refused_and_not_echoed(uri: str) -> None:
    """Taken for a path it would fail as one that doesn't exist, and the message would repeat it."""
    assert_refused(uri)


def assert_refused(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(uri, "--weights")
    message = caught.value.args[0]
    assert message.startswith("--weights ")
    assert SECRET not in message
    assert message.isprintable()


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_is_accepted_or_refused(uri: str) -> None:
    try:
        assert str(parse(uri, "--data")).endswith(uri.removeprefix("~"))
    except UsageError as error:
        assert str(error).startswith("--data ")  # noqa: PT017  either outcome is right


PIECES = ["/", "..", ".", "%00", "%2e", "%2F", "%", "a", "é", ":", "~", " ", "#", "?", "x" * 300]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["", "/", "file:///", "file:"]), st.lists(st.sampled_from(PIECES)))
def test_whatever_is_accepted_can_be_asked_for(prefix: str, pieces: list[str]) -> None:
    """No accepted URI is answered with anything but bytes or an error of the job's."""
    try:
        place = parse(prefix + "".join(pieces), "--data")
        assert storage.is_folder(place) in {True, False}
        storage.read(place, 10)
    except JobError:
        pass


BUCKETS = ["bucket", "b", "B", "KEY:hunter2@bucket", "bucket:1", "", ".", "..", "ä", "b" * 64]
PARTS = [
    "a",
    "",
    ".",
    "..",
    " ",
    "hunter2",
    "?x",
    "#x",
    "%2e",
    "::",
    "\\",
    "\n",
    "ä",
    "\u202e",
    "*",
]


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(["s3", "gs", "gcs", "S3", "s3a"]),
    st.sampled_from([":", "://", ":/", ":///"]),
    st.sampled_from(BUCKETS) | st.text(max_size=8),
    st.lists(st.sampled_from(PARTS) | st.text(max_size=8), max_size=5),
)
def test_what_is_accepted_of_a_store_is_a_bucket_and_a_plain_key(
    scheme: str, slashes: str, bucket: str, parts: list[str]
) -> None:
    uri = "/".join([f"{scheme}{slashes}{bucket}", *parts])
    try:
        place = parse(uri, "--output")
    except UsageError as error:
        assert SECRET not in str(error)  # noqa: PT017  either outcome is right
        return
    if place.kind == "file":
        assert "://" not in uri
        return
    kind, found, key = place.kind, place.bucket, place.key
    assert kind == {"s3": "s3", "gs": "gs", "gcs": "gs"}[scheme]
    assert uri.removesuffix("/") == f"{scheme}://{found}/{key}"
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", found)
    assert max(map(len, found.split(".") if kind == "gs" else [found])) <= 63
    assert not {"", ".", ".."} & {segment.strip() for segment in key.split("/")}
    assert key.isprintable()


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://bucket/a/b", ("s3", "bucket", "a/b")),
        ("s3://bucket/a/b/", ("s3", "bucket", "a/b")),
        ("gs://bucket/a", ("gs", "bucket", "a")),
        ("gcs://bucket/a", ("gs", "bucket", "a")),
    ],
)
def test_in_store(uri: str, place: tuple[str, str, str]) -> None:
    found = parse(uri)
    assert (found.kind, found.bucket, found.key) == place


@pytest.mark.parametrize("uri", ["a", "s3", "s3/b/k", "./s3:/b", "file:///s3://b/k"])
def test_what_lies_here_is_not_remote(uri: str) -> None:
    assert parse(uri).kind == "file"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("a/b.h5", "b.h5"),
        ("file:///a/b%20c", "b c"),
        ("s3://bucket/a/b.h5", "b.h5"),
        ("gs://bucket/b", "b"),
    ],
)
def test_name(uri: str, name: str) -> None:
    assert parse(uri).name == name


@pytest.mark.parametrize(
    ("folder", "names", "joined"),
    [
        ("runs", ("a",), "runs/a"),
        ("runs/", ("a",), "runs/a"),
        ("runs//", ("a",), "runs/a"),
        ("runs", ("a", "b", "c.json"), "runs/a/b/c.json"),
        (".", ("a",), "./a"),
        ("/", ("a",), "/a"),
        ("a b", ("c d",), "a b/c d"),
        ("file:///out", ("a",), "file:///out/a"),
        ("file:///out/", ("a", "b"), "file:///out/a/b"),
        ("s3://bucket/k", ("a",), "s3://bucket/k/a"),
        ("s3://bucket/k/", ("a",), "s3://bucket/k/a"),
        ("gcs://bucket/k", ("a",), "gcs://bucket/k/a"),
        ("file:///", ("a",), "file:///a"),
        ("file:///out%2F/", ("a",), "file:///out/a"),
    ],
)
def test_join(folder: str, names: tuple[str, ...], joined: str) -> None:
    place = parse(folder)
    for name in names:
        place /= name
    assert str(place) == joined
    assert place == parse(joined)


@pytest.mark.parametrize("folder", ["/", "file:///", "file:///a/", "a", "a/", "./", "../b"])
def test_what_is_joined_lies_in_the_folder(folder: str) -> None:
    assert (parse(folder) / "x").path == parse(folder).path / "x"


@pytest.mark.parametrize(
    ("uri", "neighbour"),
    [
        ("model.h5", "m.json"),
        ("./model.h5", "./m.json"),
        ("runs/r1/model.h5", "runs/r1/m.json"),
        ("/model.h5", "/m.json"),
        ("file:///model.h5", "file:///m.json"),
        ("file:///r/model.h5", "file:///r/m.json"),
        ("../a b/c", "../a b/m.json"),
        ("runs/r1/model.h5//", "runs/r1/m.json"),
        ("model.h5/", "m.json"),
        ("/", "/m.json"),
        ("file:///", "file:///m.json"),
        ("file:///r/model.h5/", "file:///r/m.json"),
        ("file:///a%20b/model.h5%2f/", "file:///a%20b/m.json"),
        ("file:///r%2Fmodel.h5", "file:///r%2Fm.json"),
        ("r%2Fmodel.h5", "m.json"),  # a path is no URI
        ("s3://bucket/model.h5", "s3://bucket/m.json"),
        ("s3://bucket/runs/first/model.h5/", "s3://bucket/runs/first/m.json"),
        ("gcs://bucket/runs/model.h5/", "gcs://bucket/runs/m.json"),
    ],
)
def test_beside(uri: str, neighbour: str) -> None:
    place = parse(uri).beside("m.json")
    assert str(place) == neighbour
    assert place == parse(neighbour)


@pytest.mark.parametrize("uri", ["file:///a%20b", "file:///a%20b/c/"])
def test_what_is_derived_of_a_file_uri_is_written_as_one(uri: str) -> None:
    for place in (parse(uri) / "50%20 of/x", parse(uri).beside("50%20 of")):
        assert parse(str(place)) == place


@pytest.mark.parametrize(
    ("uri", "other"),
    [
        ("gs://bucket/a", "gcs://bucket/a"),
        ("s3://bucket/a", "s3://bucket/a/"),
        ("file:///a%20b", "/a b"),
        ("file:///a/", "file:///%61"),
        ("runs", "runs/"),
    ],
)
def test_places_are_equal_however_they_are_written(uri: str, other: str) -> None:
    assert parse(uri) == parse(other)
    assert hash(parse(uri)) == hash(parse(other))
    assert str(parse(uri)) != str(parse(other))


@pytest.mark.parametrize("other", ["gs://bucket/a", "s3://other/a", "s3://bucket/b", "bucket/a"])
def test_other_places_are_not_equal(other: str) -> None:
    assert parse("s3://bucket/a") != parse(other)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("a/b", b"a/b"),
        ("/a b", b"/a b"),
        ("a%20b", b"a%20b"),  # a path is no URI
        ("file:///a", b"/a"),
        ("file:///a%20b", b"/a b"),
        ("file:///a%2520b", b"/a%20b"),
        ("file:///%C3%A4", "/ä".encode()),
        ("file:///ä", "/ä".encode()),
        ("file:///a%3Fb%23", b"/a?b#"),
        ("file:///100%", b"/100%"),
        ("file:///a\udcffb", b"/a\xffb"),
    ],
)
def test_local_path(uri: str, path: bytes) -> None:
    assert os.fsencode(parse(uri).path) == path


def test_a_percent_encoded_byte_is_that_byte() -> None:
    assert os.fsencode(parse("file:///a%FFb").path) == b"/a\xffb"


@pytest.mark.parametrize("home", ["/home/me", "/home/me/", "/", "/a b/ä"])
@pytest.mark.parametrize("rest", ["", "/", "/x", "/x/y.h5", "//x", "/../x", "/~/x"])
def test_a_tilde_is_the_home_as_in_a_shell(
    home: str, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    place = parse(f"~{rest}", "--output")
    assert place == parse(f"{home.rstrip('/')}{rest}" or "/")
    assert str(place).startswith("/")  # which means the same to whoever has another home
    assert parse(str(place / "a")) == place / "a"
    assert parse(str(place.beside("a"))) == place.beside("a")


def test_a_tilde_without_a_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a user whom only its number names, which a pod may well have."""

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    for text in ("~", "~/x"):
        with pytest.raises(UsageError, match=r"--output .* no home is known: write"):
            parse(text, "--output")
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(UsageError, match="no home is known"):
        parse("~/x", "--output")


def test_what_is_refused_of_a_tilde_says_what_to_write_instead() -> None:
    with pytest.raises(UsageError, match=r"write it in full, or \./~name"):
        parse("~someone/x", "--data")


def test_a_directory_bucket_is_named_as_what_it_is() -> None:
    with pytest.raises(UsageError, match="directory bucket, which is not supported"):
        parse("s3://runs--use1-az4--x-s3/key", "--output")
