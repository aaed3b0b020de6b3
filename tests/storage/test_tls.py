"""A store behind a certificate of a private authority, as clusters of one's own have them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import authority
import faults
import pytest
import servers

# Where each library looks for authorities beside its own.
BUNDLE = {"s3": "AWS_CA_BUNDLE", "gs": "SSL_CERT_FILE"}

# A process of its own: what Python trusts is read once.
ASK = """
import sys
from job import storage
from job.errors import JobError
place = storage.parse(sys.argv[1])
try:
    storage.create(place, b"content")
    print(storage.read(place, 100).decode())
except JobError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return authority.certificates(tmp_path)[0]


@pytest.fixture
def secure(
    store: servers.Server, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[faults.Proxy]:
    """Return a proxy that speaks https, which this process is led to."""
    with faults.proxy(store.scheme, store.url, bundle.with_name("server.pem")) as proxy:
        for name, value in store.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield proxy


def ask(proxy: faults.Proxy, **variables: str) -> tuple[int, str]:
    """Write and read in a process of its own; return how it ended and what it said."""
    command = [
        sys.executable,
        "-c",
        ASK,
        f"{proxy.scheme}://{servers.BUCKET}/tls-{os.urandom(6).hex()}",
    ]
    ended = subprocess.run(
        command,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return ended.returncode, ended.stdout + ended.stderr


def test_a_private_authority_is_trusted_where_it_is_named(
    secure: faults.Proxy, bundle: Path
) -> None:
    assert ask(secure, **{BUNDLE[secure.scheme]: str(bundle)}) == (0, "content\n")
    assert {request.method for request in secure.requests} == {"GET", "PUT"}


def test_a_certificate_that_nobody_vouches_for_is_a_matter_of_the_setup(
    secure: faults.Proxy,
) -> None:
    code, said = ask(secure)
    assert code == 78, said
    assert "certificates" in said
    assert said.count("\n") == 1  # and no traceback
    assert secure.requests == []  # nothing was said to a stranger


@pytest.mark.parametrize("store", ["s3"], indirect=True)  # Python ignores a missing SSL_CERT_FILE
@pytest.mark.parametrize("content", [None, "no certificate\n"])
def test_a_bundle_that_is_none_is_a_matter_of_the_setup(
    secure: faults.Proxy, bundle: Path, content: str | None
) -> None:
    bundle.unlink()
    if content is not None:
        bundle.write_text(content)
    code, said = ask(secure, AWS_CA_BUNDLE=str(bundle))
    assert code == 78, said
    assert "AWS_CA_BUNDLE" in said
    assert said.count("\n") == 1
