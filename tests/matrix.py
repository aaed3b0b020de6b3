"""Every request of a run's life, spoiled in every way, and what must come of it.

The life: a start that is stopped after a checkpoint, a second that goes on and publishes, a third
that finds the run complete. A fault is met once, or lasts from a request on to the end of that
start. After it the run is started until it is complete.
"""

import contextlib
import functools
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from unittest import mock

import faults
import rehearsal
import servers
from aiobotocore import session

from job import run
from job.storage import Place, parse, retrying
from job.storage.objects import Objects

TIMEOUT_SECONDS = 1.0
SLACK_SECONDS = 10.0  # for a machine with other things to do
# How long a start may take: what it works, one operation with all its tries, and its last words.
LONGEST_SECONDS = SLACK_SECONDS + 3 * TIMEOUT_SECONDS + run.END_SECONDS
STARTS = 6  # a run must be complete after so many
LIVES = 6  # without a fault, of which two in a row must be alike
FOR_EVER = 10**9  # requests
# aiohttp itself sends once more if a connection it had kept was closed; and a write whose proof is
# missing may be read back, which needs no second one.
SILENT = {"reset", "lost reply", "truncated", "cut upload", "page with ETag", *faults.ALTERED}


@dataclass(frozen=True)
class Case:
    """One request of the life, and one way to spoil it."""

    request: faults.Request
    number: int
    fault: str
    lasting: bool = False
    """Whether all that follow in the same start are spoiled as well."""
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
        """Live without a fault until two lives agree, and return their requests.

        On a busy machine a store may be slow enough to be asked again, which is no part of a life.
        """
        lives: list[list[faults.Request]] = []
        while len(lives) < 2 or _alike(lives[-1]) != _alike(lives[-2]):
            self._proxy.clear()
            case = self._live(Case(faults.Request("", ""), -1, "none"))
            assert case.wrong == (), case
            assert case.codes == (143, 0, 0), case
            assert len(lives) < LIVES, lives
            lives.append(list(self._proxy.requests))
        return lives[-1]

    def cases(self) -> list[Case]:
        """Return every request with every fault that makes something of it, once and lasting."""
        requests = self.unspoiled()
        return [
            Case(request, number, fault, lasting)
            for lasting in (False, True)
            for fault in faults.FAULTS
            for number, request in enumerate(requests)
            if faults.fits(fault, request) and (lasting or fault not in faults.LASTING_ONLY)
        ]

    def tried(self, cases: Iterable[Case]) -> Iterator[Case]:
        """Live through each case."""
        for case in cases:
            self._proxy.clear()
            count = FOR_EVER if case.lasting else 1
            self._proxy.spoil(case.fault, first=case.number, count=count)
            yield self._live(case)

    def _live(self, case: Case) -> Case:
        run_id = secrets.token_hex(8)
        folder = parse(f"{self._server.root}/matrix/{run_id}")
        flags = self.flags(run_id)
        codes: list[int] = []
        wrong: list[str] = []
        slowest = 0.0
        complete, needed = 0, 2
        met = case.number < 0  # where there is nothing to meet
        while complete < needed and len(codes) < STARTS:
            saved = rehearsal.steps_saved(self._direct, folder)
            stop = not saved and not codes
            with mock.patch.dict(os.environ, self._server.environment(self._proxy.url)):
                began = time.monotonic()
                before = len(self._proxy.requests)
                ended = rehearsal.train(*flags, stop=stop)
                took = time.monotonic() - began
            hit = before <= case.number < len(self._proxy.requests)
            if hit:
                self._proxy.heal()
                met, needed = True, complete + 1
            codes.append(ended.code)
            slowest = max(slowest, took)
            seen = [*self._faults_of(case, ended, hit=hit, stop=stop), *_anew(ended, saved)]
            left = rehearsal.look(self._direct, folder)
            if ended.code == 0 and not self._direct.exists(folder / "metrics.json"):
                left.append("no metrics.json after success")
            seen += [f"wrong commit: {fault}" for fault in left]
            wrong += [f"start {len(codes)}: {fault}" for fault in seen]
            complete += ended.code == 0
        if complete < needed:
            wrong.append("never complete")
        if not met:
            wrong.append("the fault was never met")
        wrong += [f"sent elsewhere: {request.line}" for request in self._proxy.astray]
        return replace(case, wrong=tuple(wrong), codes=tuple(codes), slowest_seconds=slowest)

    def flags(self, run_id: str) -> tuple[str, ...]:
        """Return the flags of the command that lives."""
        flags = ("--output", f"{self._server.root}/matrix", "--run-id", run_id)
        # What a run publishes is tormented, not the page that is made of it, which may fail.
        flags += ("--data", str(self._data), "--batch-size", "1", "--no-report")
        return (*flags, "--storage-timeout", str(TIMEOUT_SECONDS))

    def _faults_of(
        self, case: Case, ended: rehearsal.Ended, *, hit: bool, stop: bool
    ) -> Iterator[str]:
        """Yield what is wrong with how a start ended."""
        unspoiled = 143 if stop else 0
        wanted = {unspoiled}
        # An old checkpoint that can't be removed costs room only, how an attempt ended is written
        # after its end, and what dashboards read is made of what is published.
        spared = case.request.method == "DELETE" or _costs_nothing(case.request)
        if hit and not spared:
            if case.fault in faults.REFUSING:
                wanted = {77}
            elif case.fault in faults.ALTERED:  # which may leave nothing out of these answers
                wanted |= {75} if case.lasting else set()
            elif case.lasting:
                wanted = {75}
        told = {event["event"] for event in ended.events}
        # Its data, or checkpoints to remove, are looked for in vain.
        if "already_complete" in told and {"data_not_compared", "checkpoint_kept"} & told:
            wanted = {0}
        if ended.code not in wanted:
            codes = " or ".join(map(str, sorted(wanted)))
            yield f"wrong code: {ended.code} instead of {codes}: {ended.error.strip()}"
        retries = [event for event in ended.events if event["event"] == "storage_retry"]
        passing = hit and case.fault in faults.PASSING and case.request.method != "DELETE"
        # Google's store is asked for what describes the object where a 404 alone isn't believed.
        looked = self._server.scheme == "gs" and case.fault.startswith("404")
        if passing and case.fault not in SILENT and not looked and not retries:
            yield "retried without a word"
        if hit and case.fault in faults.REFUSING and case.lasting and not spared:
            more = [
                each for each in self._proxy.requests[case.number + 1 :] if not _costs_nothing(each)
            ]
            if len(more) > 1:  # which may be under way at the same time
                yield f"refused, and asked {len(more)} more times"

    def close(self) -> None:
        """Leave the store."""
        self._direct.close()


def _alike(requests: list[faults.Request]) -> list[tuple[str, str]]:
    """Return of each what every life has: its method, and its key without run and digest."""
    return [(each.method, re.sub(r"[0-9a-f]{16,64}", "", each.key)) for each in requests]


def _costs_nothing(request: faults.Request) -> bool:
    return request.key.endswith(("-end.json", "metrics.prom"))


def _anew(ended: rehearsal.Ended, saved: list[int]) -> Iterator[str]:
    """Yield what is wrong where a start that found the steps `saved` didn't go on with the last."""
    trained = {"checkpoint_saved", "complete"} & {event["event"] for event in ended.events}
    resumed = [event["step"] for event in ended.events if event["event"] == "resumed"]
    if trained and saved and resumed != [max(saved)]:
        yield f"fresh start: it had steps {saved} and resumed from {resumed}"


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
    """Tell whether a start took longer than it may."""
    return case.slowest_seconds > LONGEST_SECONDS
