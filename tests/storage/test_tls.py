"""A store behind a certificate of a private authority, as clusters of one's own have them."""

import datetime as dt
import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
import servers
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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


def certificates(folder: Path) -> tuple[Path, Path]:
    """Make an authority, and a certificate by it; return its bundle, and a server's chain."""
    now = dt.datetime.now(dt.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        for name in ("an authority of these tests", "localhost")
    ]
    made = []
    for key, name in zip(keys, names, strict=True):
        is_authority = name == names[0]
        here = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), False
            )
            .add_extension(usage(signs=is_authority), critical=True)
        )
        if not is_authority:
            builder = builder.add_extension(x509.SubjectAlternativeName(here), critical=False)
        certificate = builder.sign(keys[0], hashes.SHA256())
        made.append(certificate.public_bytes(serialization.Encoding.PEM))
    private = keys[1].private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    bundle, chain = folder / "authority.pem", folder / "server.pem"
    bundle.write_bytes(made[0])
    chain.write_bytes(private + made[1])
    return bundle, chain


def usage(*, signs: bool) -> x509.KeyUsage:
    """Return what a key may do; Python 3.13 asks whether an authority's may sign."""
    rest = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    no = dict.fromkeys((*rest, "crl_sign", "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, **no)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return certificates(tmp_path)[0]


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
