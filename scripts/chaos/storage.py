"""Misuse all three kinds of storage and print what came of it, one table for each.

    python scripts/chaos/storage.py --kills 1000 --rounds 200

Writers are killed by SIGKILL at random moments; every request of a run's life is spoiled in every
way, alone and with all that follow in the same start; eight processes race for one object; the
requests of a default run are counted; odd URIs are given as --output. S3 is SeaweedFS, Google's
store is fake-gcs-server, both started here. The two stores are tried at the same time.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "storage"))

import faults
import matrix
import servers
from test_contract import race
from test_matrix import small_data
from test_place import DISGUISED, GENERATED, REFUSED, REFUSED_ONCE_DECODED, SECRET

from job import cli
from job.errors import MissingInputError
from job.storage import Place, parse, retrying
from job.storage.backend import Backend
from job.storage.files import Files, is_temporary
from job.storage.objects import Objects

# Writers are forked by a process that has everything imported, so that a kill costs no second.
NURSERY = """
import asyncio, functools, json, os, signal, sys, time
from aiobotocore import session
from job import storage
from job.storage.gcs import GCS
from job.storage.s3 import S3

session.AioSession = functools.cache(session.AioSession)

async def warm():
    store = S3(anonymous=True, timeout_seconds=1, connections=1)
    await store._files.set_session()  # reads what describes S3
    await store.close()

asyncio.run(warm())
folder = storage.parse(sys.argv[1])
for line in sys.stdin:
    start, delay = json.loads(line)
    reading, writing = os.pipe()
    writer = os.fork()
    if not writer:
        for number in range(start, start + 100_000):
            storage.create(folder / str(number), b"%d " % number * 50_000)
            os.write(writing, b"%d " % number)
    os.close(writing)
    time.sleep(delay)
    os.kill(writer, signal.SIGKILL)
    said = b""
    while more := os.read(reading, 65536):
        said += more
    os.close(reading)
    os.waitpid(writer, 0)
    print(json.dumps([int(number) for number in said.split()]), flush=True)
"""


class Report:
    """Lines of one table, and whether any figure is not what it must be."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.lines: list[str] = []
        self.bad = 0

    def add(self, name: str, figures: str, *, bad: bool) -> None:
        """Add a line."""
        self.bad += bad
        self.lines.append(f"  {name:<34} {figures}{'   <- WRONG' if bad else ''}")
        print(f"{self.title}: {name}: done", file=sys.stderr, flush=True)

    def table(self) -> str:
        """Return the table as text."""
        return "\n".join([f"\n{self.title}", *self.lines])


def main() -> int:
    """Run what the command line asks for; return 1 if any figure is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["local", "s3", "gs"], help="one kind of storage")
    parser.add_argument("--kills", type=int, default=1000, help="writers to kill, for each kind")
    parser.add_argument("--rounds", type=int, default=200, help="objects to race for")
    parser.add_argument("--every", type=int, default=1, help="of the matrix, every so many cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", help=argparse.SUPPRESS)  # given to the processes of one kind
    arguments = parser.parse_args()
    if arguments.server:
        report = one_kind(arguments, *arguments.server.split(" ", 1))
        print(report.table(), flush=True)
        return 1 if report.bad else 0
    with tempfile.TemporaryDirectory(prefix="mnist-job-chaos-") as folder:
        environment = os.environ | {"GIT_COMMIT": "none"}
        with servers.shared(Path(folder, "stores")) as stores:
            places = {"local": f"{folder}/output"} | {name: s.url for name, s in stores.items()}
            if arguments.only:
                places = {arguments.only: places[arguments.only]}

            def run(kind: str) -> "subprocess.CompletedProcess[str]":
                command = [sys.executable, *sys.argv, "--server", f"{kind} {places[kind]}"]
                return subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=False
                )

            with ThreadPoolExecutor(2) as pool:
                ended = list(pool.map(run, places))
    for process in ended:
        print(process.stdout.rstrip(), flush=True)
    return max(process.returncode for process in ended)


def one_kind(arguments: argparse.Namespace, kind: str, place: str) -> Report:
    """Try one kind of storage."""
    titles = {"local": "local files", "s3": "S3 (SeaweedFS)", "gs": "GCS (fake-gcs-server)"}
    report, draw = Report(titles[kind]), random.Random(arguments.seed)
    server = None if kind == "local" else servers.Server(kind, place)
    if server is not None:
        os.environ.update(server.environment())
    root = parse(place if server is None else f"{server.root}/chaos")
    direct(root)  # made here, since threads use it next
    kills(report, root, arguments.kills, draw)
    races(report, root / "race", arguments.rounds)
    if server is not None:
        spoil(report, server, arguments.every)
        count(report, server)
    odd(report)
    return report


def kills(report: Report, root: Place, wanted: int, draw: random.Random) -> None:
    """Kill writers at random moments and see what is left."""
    began, lost, torn, promised, number = time.monotonic(), 0, 0, 0, 0
    folder, is_local = root / "kills", root.kind == "file"
    left_at_most = 0
    command = [sys.executable, "-c", NURSERY, str(folder)]
    with (
        ThreadPoolExecutor(8) as pool,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        ) as nursery,
    ):
        assert nursery.stdin
        assert nursery.stdout
        for _ in range(wanted):
            # Anywhere from before the first write, connecting included, to within a later one.
            delay = draw.uniform(0, 0.03 if is_local else 0.3)
            nursery.stdin.write(f"{json.dumps([number, delay])}\n")
            said: list[int] = json.loads(nursery.stdout.readline())
            promised += len(said)
            last = said[-1] if said else number - 1
            # What was promised must be there; the one it was at, there whole or not at all.
            found = list(pool.map(lambda each: take(folder, each), [*said, last + 1]))
            lost += found[:-1].count(None)
            torn += sum(
                content not in {None, whole(each)}
                for each, content in zip([*said, last + 1], found, strict=True)
            )
            number = last + 2
            if is_local and folder.path.exists():
                left = [path for path in folder.path.iterdir() if is_temporary(path.name)]
                left_at_most = max(left_at_most, len(left))
    create = (
        "import sys; from job import storage; storage.create(storage.parse(sys.argv[1]), b'last')"
    )
    subprocess.run([sys.executable, "-c", create, f"{folder}/last"], check=True)
    figures = f"{lost} lost of {promised:,} commits, {torn} torn"
    bad = bool(lost or torn or not promised)
    if is_local:
        unswept = sum(is_temporary(path.name) for path in folder.path.iterdir())
        figures += f", at most {left_at_most} temps at a time, {unswept} after the next write"
        bad = bad or bool(unswept)
    seconds = time.monotonic() - began
    report.add("SIGKILL while writing", f"{wanted:,} kills: {figures} ({seconds:.0f} s)", bad=bad)


def whole(number: int) -> bytes:
    """Return what a writer puts into the object `number`."""
    return b"%d " % number * 50_000


def look(place: Place) -> bytes | None:
    """Return an object, or None if there is none."""
    try:
        return direct(place).read(place, 10**7)
    except MissingInputError:
        return None


def take(folder: Place, number: int) -> bytes | None:
    """Return an object of a writer and remove it, so that no store gets too full; None if none."""
    place = folder / str(number)
    content = look(place)
    if content is not None:
        direct(place).remove(place)
    return content


_direct: list[Backend] = []


def direct(place: Place) -> Backend:
    """Return a backend of our own, which no proxy is before."""
    if not _direct:
        patience = retrying.Patience(60, lambda *_, **__: None)
        objects = place.kind != "file"
        _direct.append(Objects(place.kind, patience, anonymous=False) if objects else Files())
    return _direct[0]


def races(report: Report, folder: Place, rounds: int) -> None:
    """Let eight processes create the same objects."""
    began = time.monotonic()
    said = race(folder, "abcdefgh", rounds)
    winners = Counter(line.count("success") for line in said)
    others = {word for line in said for word in line} - {"success", "conflict"}
    wrong = sum(
        look_first(folder, number) != "abcdefgh"[line.index("success")]
        for number, line in enumerate(said)
        if "success" in line
    )
    bad = winners != {1: rounds} or bool(others) or bool(wrong)
    figures = f"{rounds} rounds: winners {dict(winners)}, {wrong} objects not the winner's"
    seconds = time.monotonic() - began
    report.add("8 writers race for one object", f"{figures} ({seconds:.0f} s)", bad=bad)


def look_first(folder: Place, number: int) -> str:
    """Return the first sign of an object that was raced for."""
    return (look(folder / str(number)) or b"?")[:1].decode()


def spoil(report: Report, server: servers.Server, every: int) -> None:
    """Live through the fault matrix."""
    began = time.monotonic()
    data = parse(f"{server.root}/chaos/data.npz")
    direct(data).create(data, small_data())
    with faults.proxy(server.scheme, server.url) as proxy, matrix.quick():
        life = matrix.Life(server, proxy, data)
        cases = life.cases()
        tried = list(life.tried(cases[::every]))
        life.close()
    wrong = [case for case in tried if case.wrong]
    for case in wrong:
        print(case, file=sys.stderr, flush=True)
    said = [fault for case in wrong for fault in case.wrong]
    hangs = sum(map(matrix.too_slow, tried))
    kinds = ("wrong commit", "fresh start", "wrong code")
    seen = {kind: sum(kind in fault for fault in said) for kind in kinds}
    once = sum(not case.lasting for case in tried)
    figures = (
        f"{len(tried)} cases of {len(faults.FAULTS)} faults, {once} once and "
        f"{len(tried) - once} lasting: {hangs} hangs past the deadline, "
        f"{', '.join(f'{number} {kind}s' for kind, number in seen.items())}, "
        f"{sum(case.codes.count(70) for case in tried)} exits 70, "
        f"{len(said) - sum(seen.values())} other things, "
        f"slowest start {max(case.slowest_seconds for case in tried):.1f} s"
    )
    seconds = time.monotonic() - began
    report.add("fault matrix", f"{figures} ({seconds:.0f} s)", bad=bool(wrong) or bool(hangs))


def count(report: Report, server: servers.Server) -> None:
    """Count the requests of a real run of all defaults."""
    with faults.proxy(server.scheme, server.url) as proxy:
        environment = os.environ | server.environment(proxy.url)
        output = f"{server.root}/chaos/default"
        command = [sys.executable, "-P", "-m", "job", "train", "--output", output, "--log", "json"]
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        methods = Counter(request.method for request in proxy.requests)
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    saved = sum(event["event"] == "checkpoint_saved" for event in events)
    seconds = next((e["total_seconds"] for e in events if e["event"] == "complete"), 0.0)
    # A run longer than --checkpoint-seconds saves more often: that is no part of the budget.
    more = max(0, saved - 1)
    # One listing: that no checkpoint lies there, nothing else can tell.
    bad = bool(ended.returncode) or methods["PUT"] - more > 6 or methods["LIST"] > 1
    figures = ", ".join(f"{methods[name]} {name}" for name in ("PUT", "GET", "LIST", "DELETE"))
    figures += f" in {seconds:.0f} s, {saved} checkpoint{'s' if saved != 1 else ''}"
    report.add("requests of a default run", figures, bad=bad)


def odd(report: Report) -> None:
    """Give odd URIs to the real command, in every flag that takes one."""
    uris = [*REFUSED, *REFUSED_ONCE_DECODED, *DISGUISED, *GENERATED]
    wrong, echoed = 0, 0
    for number, uri in enumerate(uris):
        words = [["train", "--output"], ["evaluate", "--weights"], ["predict", "--weights"]]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([*words[number % 3], uri])
        said = out.getvalue() + err.getvalue()
        one_line = r"(mnist-job: error: [^\n]*|\{[^\n]*\})\n"
        wrong += code != 64 or not re.fullmatch(one_line, said)
        echoed += SECRET in said
    figures = f"{len(uris)} of them: {wrong} without exit 64 and one line, {echoed} keys echoed"
    report.add("odd URIs", figures, bad=bool(wrong or echoed))


if __name__ == "__main__":
    sys.exit(main())
