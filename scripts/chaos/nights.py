"""Kill nights between any two of their writes, and let nights race; compare what comes of them.

    python scripts/chaos/nights.py --races 200 [--parallel 2] [--kind file s3 gs]

**Kills.** A night with new data is killed by SIGKILL before its first write, before its second, and
so on to its last, each time from the same beginning; then the same night is begun again. Log, gate,
nights and runs must then be those of a night that nobody touched. On each kind of storage.

**Races.** Two nights with different challengers decide at the same moment, on the same log, again
and again. Each time the log must be one chain, and each night's record must tell what the log says.
Both have trained before, and the check by plain Keras, which takes seconds, is left out here.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import servers

from job import storage
from job.cli import main as mnist_job
from job.config import EMBEDDED
from job.data import source
from job.nightly import champions, servable
from job.storage import Place, parse, verbs

FLAGS = ("--epochs", "1", "--batch-size", "64", "--gate-minimum", "0.1", "--log", "json")
MOST_WRITES = 60
MEETING_SECONDS = 20.0  # for one racer to wait for the other, which may be refused
# What may differ between a night and the same night begun twice: clocks, processes, attempts.
_PASSING = {"time", "began", "ended", "since", "who", "age_seconds", "champion_age_seconds"}


def main() -> int:
    """Run what the command line asks for; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--kind", nargs="*", default=["file", "s3", "gs"])
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(*arguments.child)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="mnist-job-nights-") as name, _stores(arguments) as at:
        folder = Path(name)
        write_data(folder / "data")
        for kind in arguments.kind:
            wrong += kills(folder, at(kind), arguments.parallel)
        wrong += races(folder, arguments.races)
    return 1 if wrong else 0


@contextlib.contextmanager
def _stores(arguments: argparse.Namespace) -> Iterator[Callable[[str], str]]:
    """Run the servers that are needed, and give what says where a kind of storage is."""
    with contextlib.ExitStack() as stack:
        roots = {}
        for kind, start in (("s3", servers.s3), ("gs", servers.gcs)):
            if kind in arguments.kind:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                server = stack.enter_context(start(folder))
                os.environ.update(server.environment())
                roots[kind] = server.root
        roots["file"] = stack.enter_context(tempfile.TemporaryDirectory())
        yield lambda kind: f"{roots[kind]}/nights"


def write_data(folder: Path) -> None:
    """Write a base set and a shard of MNIST's images: small, since many nights load them."""
    folder.mkdir()
    mnist = source.load(source.DataSource(EMBEDDED))
    base = {"x_train": mnist.x_train[:2000], "y_train": mnist.y_train[:2000]}
    test = {"x_test": mnist.x_test[:500], "y_test": mnist.y_test[:500]}
    np.savez_compressed(folder / "base.npz", **base, **test)


def add_shard(folder: Path) -> None:
    """Write a shard beside the base set."""
    mnist = source.load(source.DataSource(EMBEDDED))
    x_train, y_train = mnist.x_train[2000:3000], mnist.y_train[2000:3000]
    np.savez_compressed(folder / "train-monday.npz", x_train=x_train, y_train=y_train)


# Kills.


def kills(folder: Path, root: str, parallel: int) -> int:
    """Kill the second night of an output at each of its writes; return how many ended otherwise."""
    data = folder / "data"
    for shard in data.glob("train-*"):
        shard.unlink()
    first = f"{root}/template"
    _night(first, data, "night-1")
    add_shard(data)
    unbroken = f"{root}/unbroken"
    _copy(first, unbroken)
    _night(unbroken, data, "night-2")
    expected = state(parse(unbroken))
    began, ends, wrong = time.monotonic(), Counter[str](), 0

    def one(position: int) -> str:
        output = f"{root}/kill-{position}"
        _copy(first, output)
        killed = _night(output, data, "night-2", kill_before=position)
        if killed == 0:
            return "not reached"
        if killed != -signal.SIGKILL:
            return f"exit {killed}"
        again = _night(output, data, "night-2")
        found = state(parse(output))
        if again != 0:
            return f"then exit {again}"
        return "equal" if found == expected else f"differs: {_difference(expected, found)}"

    with ThreadPoolExecutor(parallel) as pool:
        for start in range(1, MOST_WRITES, parallel):
            seen = list(pool.map(one, range(start, start + parallel)))
            ends.update(seen)
            wrong += sum(each not in ("equal", "not reached") for each in seen)
            if "not reached" in seen:
                break
    wrong += ends["equal"] == 0 or ends["not reached"] == 0
    print(
        f"{root.partition(':')[0] if '://' in root else 'files'}: killed before each of "
        f"{ends['equal'] + wrong} writes in {time.monotonic() - began:.0f} s; then begun again: "
        f"{dict(ends)}",
        flush=True,
    )
    return wrong


def _night(output: str, data: Path, night: str, kill_before: int = 0) -> int:
    """Let a night happen in a process of its own; return its exit code, or minus its signal."""
    command = [sys.executable, __file__, "--child", "night", str(kill_before)]
    flags = ["--data", str(data), "--output", output, "--night", night, *FLAGS]
    environment = {**os.environ, "KILLED_NIGHT": json.dumps(flags)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in {0, -signal.SIGKILL}:
        print(done.stderr[-2000:], file=sys.stderr)
    return done.returncode


def child(what: str, *words: str) -> int:
    """Be a night that kills itself, or one that races."""
    return _killed(int(words[0])) if what == "night" else _racer(Path(words[0]))


def _killed(position: int) -> int:
    """Run a night that kills itself before its write number `position`; 0 is never."""
    count = 0

    def counted(verb: Callable[..., None]) -> Callable[..., None]:
        def write(*arguments: Any) -> None:
            nonlocal count
            count += 1
            if count == position:
                os.kill(os.getpid(), signal.SIGKILL)
            verb(*arguments)

        return write

    backend = verbs._backend  # noqa: SLF001  the one door that all writes go through

    def counting(place: Place) -> Any:
        found = backend(place)
        if "create" not in vars(found):
            found.create, found.remove = counted(found.create), counted(found.remove)
        return found

    verbs._backend = counting  # noqa: SLF001
    return mnist_job(["retrain", *json.loads(os.environ["KILLED_NIGHT"])])


def state(output: Place) -> dict[str, Any]:
    """Return all that an output holds, less what may differ between a night and its repetition."""
    found: dict[str, Any] = {}
    for folder in ("champion", "nights", "gates"):
        for name in storage.names(output / folder):
            if not name.endswith(".json"):  # made of the record, times and all
                found[f"{folder}/{name}"] = "is there"
                continue
            document = json.loads(storage.read(output / folder / name, 2**24))
            found[f"{folder}/{name}"] = _lasting(document)
    for name, document in list(found.items()):
        is_record = name.startswith("nights/") and name.endswith(".json")
        run = document.get("run") if is_record else None
        if run:
            metrics = json.loads(storage.read(output / run / "metrics.json", 2**24))
            artifacts = {artifact["path"] for artifact in metrics["artifacts"]}
            for file in files_in(output / run):  # others are made of metrics.json, times and all
                content = storage.read(output / run / file, 2**26) if file in artifacts else None
                found[f"{run}/{file}"] = content or "is there"
            found[f"{run}/metrics.json"] = metrics["artifacts"], metrics["test"]
    return found


def files_in(folder: Place) -> list[str]:
    """Return the names of the files directly in a folder."""
    folders = storage.folders(folder)
    return [name for name in storage.names(folder) if name not in folders]


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(each) for name, each in value.items() if name not in _PASSING}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    names = [name for name in expected | found if expected.get(name) != found.get(name)]
    return ", ".join(sorted(names))


def _copy(source_root: str, target: str) -> None:
    """Copy an output, file by file: on a store there is no other way."""
    source_place, target_place = parse(source_root), parse(target)
    record = json.loads(storage.read(source_place / "nights/night-1.json", 2**24))
    run = record["run"]
    shards = [f"shards/{name}" for name in storage.folders(source_place / "shards")]
    runs = [run, f"{run}/attempts", f"{run}/checkpoints"]
    for folder in ("champion", "nights", "gates", *shards, *runs):
        for name in files_in(source_place / folder):
            content = storage.read(source_place / folder / name, 2**28)
            storage.create(target_place / folder / name, content)


# Races.


def races(folder: Path, rounds: int) -> int:
    """Let two nights decide at the same moment, `rounds` times; return how many went wrong."""
    if not rounds:
        return 0
    data, template = folder / "data", folder / "template"
    for shard in data.glob("train-*"):
        shard.unlink()
    _night(str(template), data, "night-1")
    add_shard(data)
    for index in (1, 2):  # both challengers are trained before, so that they meet at the log
        other = folder / f"other-{index}"
        shutil.copytree(template, other)
        code = _night_with(str(other), data, "trained", ["--seed", str(index)])
        assert code == 0, code
        record = json.loads((other / "nights/trained.json").read_bytes())
        shutil.copytree(other / record["run"], template / record["run"])
    racers = [
        subprocess.Popen(
            [sys.executable, __file__, "--child", "racer", str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    began, ends, wrong = time.monotonic(), Counter[str](), 0
    try:
        for number in range(rounds):
            output = folder / f"race-{number}"
            shutil.copytree(template, output, copy_function=os.link)
            meeting = folder / f"meeting-{number}"
            meeting.mkdir()
            for index, racer in enumerate(racers, start=1):
                told = {"output": str(output), "night": f"racer-{index}", "seed": index}
                if number % 4:  # a quarter run as they come, which is mostly one after the other
                    told["meeting"] = str(meeting)
                racer.stdin.write(json.dumps(told) + "\n")
                racer.stdin.flush()
            codes, overtaken = zip(*map(_end, racers), strict=True)
            seen = consistent(output, list(codes)) + (
                ", at the same moment" if any(overtaken) else ", one after the other"
            )
            ends[seen] += 1
            if not seen.startswith("one log"):
                wrong += 1
            shutil.rmtree(output)
    finally:
        for racer in racers:
            racer.stdin.close()
            racer.wait(60)
    print(f"races: {rounds} in {time.monotonic() - began:.0f} s: {dict(ends)}", flush=True)
    return wrong


def _night_with(output: str, data: Path, night: str, more: list[str]) -> int:
    flags = ["--data", str(data), "--output", output, "--night", night, *FLAGS, *more]
    command = [sys.executable, "-m", "job", "retrain", *flags]
    return subprocess.run(command, capture_output=True, check=False).returncode


def _end(racer: "subprocess.Popen[str]") -> tuple[int, bool]:
    """Return how a racer's night ended, and whether it lost the race for an entry of the log."""
    overtaken = False
    while line := racer.stdout.readline():
        overtaken |= '"event": "overtaken"' in line
        if line.startswith("raced "):
            return int(line.split()[1]), overtaken
    raise RuntimeError("a racer has ended")


def _racer(data: Path) -> int:
    """Run a night for each line of standard input."""
    servable.check = lambda *_: None  # it takes seconds, and is no part of the race
    append, told = champions.Log.append, dict[str, Any]()

    def together(log: champions.Log, entry: champions.Entry) -> None:
        """Append, but the first time of a race only when both are about to."""
        if (meeting := told.pop("meeting", None)) is not None:
            Path(meeting, told["night"]).touch()
            ends = time.monotonic() + MEETING_SECONDS
            while len(list(Path(meeting).iterdir())) < 2 and time.monotonic() < ends:
                time.sleep(0.001)
        append(log, entry)

    champions.Log.append = together
    for line in sys.stdin:
        told.update(json.loads(line))
        flags = ["--data", str(data), "--output", told["output"], "--night", told["night"], *FLAGS]
        flags += ["--gate-alpha", "0.0001"]  # so that both may be promoted, one after the other
        code = mnist_job(["retrain", *flags, "--seed", str(told["seed"])])
        print("raced", code, flush=True)
    return 0


def consistent(output: Path, codes: list[int]) -> str:
    """Say what came of a race: `one log ...`, or what is wrong with it."""
    if codes != [0, 0]:
        return f"exit codes {codes}"
    entries = [json.loads(path.read_bytes()) for path in sorted((output / "champion").iterdir())]
    if [entry["number"] for entry in entries] != list(range(1, len(entries) + 1)):
        return "a gap in the log"
    for before, entry in itertools.pairwise(entries):
        if entry["from"] != before["to"]:
            return f"entry {entry['number']} does not follow from the one before"
    promoting = Counter(entry["night"] for entry in entries)
    verdicts = []
    for night in ("racer-1", "racer-2"):
        record = json.loads((output / f"nights/{night}.json").read_bytes())
        promoted = record["verdict"] == "promoted"
        if promoting[night] != int(promoted):
            return f"{night} says {record['verdict']}, the log has it {promoting[night]} times"
        verdicts.append(record["verdict"])
    return f"one log, {' and '.join(sorted(verdicts))}"


if __name__ == "__main__":
    sys.exit(main())
