"""That a rehearsed run asks a store for what a real one asks for, and may stand in for it."""

import os
import re
import subprocess
import sys

import faults
import pytest
import rehearsal
import servers


def asked(proxy: faults.Proxy, run: str) -> list[str]:
    """Return the requests since the last call, without what differs from run to run."""
    said = [
        re.sub(r"\d{10}-[0-9a-f]{64}", "<step>-<digest>", f"{seen.method} {seen.key}")
        for seen in proxy.requests
    ]
    proxy.clear()
    return sorted(line.replace(run, "<run>") for line in said)  # artifacts go in any order


@pytest.mark.parametrize("scheme", ["s3", pytest.param("gs", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_requests_of_a_default_run_are_few_and_those_of_a_rehearsal(
    stores: dict[str, servers.Server], scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of the defaults, but for fewer epochs: one that takes no checkpoint on the way."""
    server = stores[scheme]
    monkeypatch.delenv("MNIST_JOB_NO_REPORT")
    with faults.proxy(scheme, server.url) as proxy:
        for name, value in server.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        output = f"{server.root}/defaults-{os.getpid()}"
        flags = ["--epochs", "1", "--output", output, "--checkpoint-seconds", "3600"]
        command = [sys.executable, "-m", "job", "train", *flags, "--run-id", "real"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        real = asked(proxy, "real")
        assert rehearsal.train(*flags, "--run-id", "rehearsed").code == 0
        assert asked(proxy, "rehearsed") == real
    methods = [line.split()[0] for line in real]
    assert methods.count("PUT") <= 9  # the last are those of metrics.prom and report.html
    assert methods.count("LIST") == 1  # no checkpoint lies there, which nothing else can tell
    assert set(methods) == {"GET", "PUT", "LIST"}
