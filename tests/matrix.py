"""Every request of a run's life, spoiled one at a time in every way, and what must come of it.

The life: a start that is stopped after a checkpoint, a second that goes on and publishes, a third
that finds the run complete. After the fault the run is started until it is complete.
"""

import contextlib
import functools
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import faults
import rehearsal
import servers
from aiobotocore import session

from job.storage import Place, parse, retrying
from job.storage.objects import Objects

TIMEOUT_SECONDS = 1.0
SLACK_SECONDS = 10.0  # for a machine with other things to do
STARTS = 6  # a run must be complete after so many


@dataclass(frozen=True)
class Case:
    """One request of the life, and one way to spoil it."""

    request: faults.Request
    number: int
    fault: str
    wrong: tuple[str, ...] = ()
    """What was not as it must be."""
    codes: tuple[int, ...] = ()
    """Exit codes of the starts."""
    slowest_seconds: float = 0.0


class Life:
    """Lives of runs, each in a folder of its own, with their requests by way of a proxy."""

    def __init__(self, server: servers.Server, proxy: faults.Proxy, data: Place) -> None:
        """Take the data set from the store as well, so that reading it is part of the life."""
        self._server, self._proxy, self._data = server, proxy, data
        with mock.patch.dict(os.environ, server.environment()):
            patience = retrying.Patience(60, lambda *_, **__: None)
            self._direct = Objects(data.kind, patience, anonymous=False)
            self._direct.exists(data)  # connects, while the environment says where to

    def unspoiled(self) -> list[faults.Request]:
        """Live once without a fault and return the requests."""
        self._proxy.clear()
        case = self._live(Case(faults.Request("", ""), -1, "none"))
        assert case.wrong == (), case
        assert case.codes == (143, 0, 0), case
        return list(self._proxy.requests)

    def cases(self) -> list[Case]:
        """Return every request with every fault."""
        requests = self.unspoiled()
        return [
            Case(request, number, fault)
            for fault in faults.FAULTS
            for number, request in enumerate(requests)
        ]

    def tried(self, cases: list[Case]) -> Iterator[Case]:
        """Live through each case."""
        for case in cases:
            self._proxy.clear()
            self._proxy.spoil(case.fault, first=case.number)
            yield self._live(case)

    def _live(self, case: Case) -> Case:
        run_id = secrets.token_hex(8)
        run = parse(f"{self._server.root}/matrix/{run_id}")
        flags = ("--output", f"{self._server.root}/matrix", "--run-id", run_id)
        flags += ("--data", str(self._data), "--batch-size", "1")
        flags += ("--storage-timeout", str(TIMEOUT_SECONDS))
        codes: list[int] = []
        wrong: list[str] = []
        slowest = 0.0
        complete = 0
        met = case.number < 0  # where there is nothing to meet
        while complete < 2 and len(codes) < STARTS:
            saved = rehearsal.steps_saved(self._direct, run)
            stop = not saved and not codes
            with mock.patch.dict(os.environ, self._server.environment(self._proxy.url)):
                began = time.monotonic()
                before = len(self._proxy.requests)
                ended = rehearsal.train(*flags, stop=stop)
                took = time.monotonic() - began
            hit = before <= case.number < len(self._proxy.requests)
            met |= hit
            codes.append(ended.code)
            slowest = max(slowest, took)
            seen = self._faults_of(case, ended, hit=hit, stop=stop)
            wrong += [f"start {len(codes)}: {fault}" for fault in seen]
            resumed = [event["step"] for event in ended.events if event["event"] == "resumed"]
            if ended.code == 0 and complete == 0 and saved and resumed != [max(saved)]:
                wrong.append(f"start {len(codes)} had steps {saved} and resumed from {resumed}")
            wrong += rehearsal.look(self._direct, run)
            complete += ended.code == 0
        if complete < 2:
            wrong.append("never complete")
        if not met:
            wrong.append("the fault was never met")
        return Case(case.request, case.number, case.fault, tuple(wrong), tuple(codes), slowest)

    def _faults_of(
        self, case: Case, ended: rehearsal.Ended, *, hit: bool, stop: bool
    ) -> Iterator[str]:
        """Yield what is wrong with how a start ended."""
        wanted = 143 if stop else 0
        # An old checkpoint that can't be removed costs room only, and how an attempt ended is
        # written after its end.
        spared = case.request.method == "DELETE" or case.request.key.endswith("-end.json")
        if hit and case.fault in faults.REFUSING and not spared:
            wanted = 77
        told = {event["event"] for event in ended.events}
        if {"already_complete", "data_not_compared"} <= told:  # its data is looked at in vain
            wanted = 0
        if ended.code != wanted:
            yield f"exit {ended.code} instead of {wanted}: {ended.error.strip()}"
        retries = [event for event in ended.events if event["event"] == "storage_retry"]
        silent = hit and case.fault in faults.PASSING and not retries
        # aiohttp itself sends once more if a connection it had kept was closed.
        if silent and case.fault not in {"reset", "lost reply", "truncated", "cut upload"}:
            yield "retried without a word"

    def close(self) -> None:
        """Leave the store."""
        self._direct.close()


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Wait less between tries than the job does, and read what describes S3 once for all lives."""
    with (
        mock.patch.object(retrying, "FIRST_WAIT_SECONDS", 0.02),
        mock.patch.object(session, "AioSession", functools.cache(session.AioSession)),
        mock.patch.dict(os.environ, {"GIT_COMMIT": "none"}),  # asking git takes a while
    ):
        yield


def too_slow(case: Case) -> bool:
    """Tell whether a start took longer than one deadline and its own work."""
    return case.slowest_seconds > TIMEOUT_SECONDS + SLACK_SECONDS
