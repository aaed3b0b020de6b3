"""Break the code on purpose, one line at a time, and see whether a test fails.

    python scripts/mutants/run.py [--only objects.py] [--listed-only] [--parallel 2]

`mutants.txt` lists the breaks, each with the tests that should see it. First all these tests run
without any break, and which lines each of them ran is recorded: most breaks are then seen within
seconds, by the quickest tests of their lines. A break that these do not see is tried on the tests
that the list names, then on all tests of storage, checkpoints and publishing; one that survives
them too is printed as SURVIVED. Of every eighth or so, what failed is run once more without the
break: a test that fails then as well has seen nothing, and the break is printed as UNSTEADY. Each
is made in a copy of the repository; nothing here changes. The two object stores run once for all.
"""

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import coverage
import servers

ROOT = Path(__file__).parents[2]
ALL = ("tests/storage", "tests/training/test_checkpoint.py", "tests/results/test_publishing.py")
QUICK_SECONDS = 20.0  # how long the quickest tests of a line may take together


@dataclass(frozen=True)
class Mutant:
    """One break."""

    path: str
    """Of the file, from the top of the repository."""
    old: str
    """Text that is in it once."""
    new: str
    """Text to put in its place."""
    tests: tuple[str, ...]
    """Arguments of pytest that choose those which should fail."""
    line: int
    """Where the list has it."""

    def __str__(self) -> str:
        """Return one line that shows it."""
        parts = [" ".join(text.split()) or "(nothing)" for text in (self.old, self.new)]
        return f"{self.path}: {parts[0]}  ->  {parts[1]}"


def listed(path: Path) -> list[Mutant]:
    """Return the breaks in a list.

    A line `# <file>: <tests>` says for all below it where and by which tests; then come blocks of
    what is there, a line `--->`, and what to put there, with an empty line between blocks.

    Raises:
        ValueError: a text isn't in its file exactly once.
    """
    found, where, tests, number = [], "", (), 1
    for block in path.read_text().split("\n\n"):
        lines = block.strip("\n").split("\n")
        begins = number
        number += block.count("\n") + 2
        if lines[0].startswith("# "):
            where, _, rest = lines.pop(0)[2:].partition(": ")
            tests = tuple(rest.split())
        if not any(lines):
            continue
        old, arrow, new = "\n".join(lines).partition("\n--->")
        if not arrow or (ROOT / where).read_text().count(old) != 1:
            raise ValueError(f"{path.name}:{begins}: {old!r} is not in {where} exactly once")
        found.append(Mutant(where, old, new.removeprefix("\n"), tests, begins))
    return found


@dataclass(frozen=True)
class Workbench:
    """Where breaks are tried."""

    stores: Path
    """Of the object stores that run for all."""
    ran: dict[str, dict[int, set[str]]]
    """File -> line -> the tests that ran it."""
    seconds: dict[str, float]
    """Test -> how long it took without any break."""
    timeout: float
    """Seconds after which tests hang: a break that makes them do so is seen, too."""
    elsewhere: tuple[str, ...]
    """Tests to try a break on that those of the list don't see."""

    def quickest(self, mutant: Mutant) -> list[str]:
        """Return the quickest tests that ran the lines of a break, the quickest first."""
        first = (ROOT / mutant.path).read_text().partition(mutant.old)[0].count("\n") + 1
        lines = range(first, first + mutant.old.count("\n") + 1)
        ran = self.ran.get(mutant.path, {})
        tests = sorted(set().union(*(ran.get(line, set()) for line in lines)))
        tests.sort(key=lambda test: self.seconds[test])
        total, chosen = 0.0, []
        for test in tests:
            total += self.seconds[test]
            if total > QUICK_SECONDS:
                break
            chosen.append(test)
        return chosen

    def tried(self, mutant: Mutant, copy: Path) -> str:
        """Return what became of a break: `failed`, `hung`, `failed elsewhere` or no good.

        No good are `SURVIVED` and `UNSTEADY`.
        """
        path = copy / mutant.path
        text = path.read_text()
        path.write_text(text.replace(mutant.old, mutant.new))
        try:
            for tests in (self.quickest(mutant), mutant.tests):
                if tests and (seen := self._fails(copy, tests)):
                    break
            else:
                seen = self.elsewhere and self._fails(copy, self.elsewhere)
                return "failed elsewhere" if seen else "SURVIVED"
        finally:
            path.write_text(text)
        if mutant.line % 8 == 0 and self._fails(copy, tests):
            return "UNSTEADY"  # it would have failed without the break
        return seen

    def _fails(self, copy: Path, tests: Sequence[str]) -> str:
        """Return `failed` or `hung` if one of `tests` does so in the repository at `copy`."""
        try:
            ended = pytest(copy, self.stores, ["-x", *tests], timeout=self.timeout)
        except subprocess.TimeoutExpired:
            return "hung"
        if ended.returncode > 2:  # 2 is code that can't be imported; more, that no test was found
            raise RuntimeError(f"pytest {' '.join(tests)}: {ended.stdout[-2000:]}")
        return "failed" if ended.returncode else ""


def pytest(
    copy: Path,
    stores: Path,
    arguments: Sequence[str],
    before: Sequence[str] = (),
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run pytest in the repository at `copy`, `before` it `-m coverage run`, say."""
    environment = os.environ | {"PYTHONPATH": str(copy), "TEST_STORES": str(stores)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # it tells versions apart by the second
    command = [sys.executable, "-P", *before, "-m", "pytest", "-q", "-n", "0", "-m", "not slow"]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", *arguments],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )


def prepared(
    copy: Path, stores: Path, tests: Sequence[str], elsewhere: tuple[str, ...]
) -> Workbench:
    """Run `tests` and those `elsewhere` without any break, and return what they ran.

    Raises:
        ValueError: one of them fails.
    """
    settings, data, times = (copy.parent / name for name in ("coveragerc", "ran", "times.xml"))
    settings.write_text(
        f"[run]\nsource = job\ndynamic_context = test_function\ndata_file = {data}\n"
    )
    began = time.monotonic()
    watched = ("-m", "coverage", "run", f"--rcfile={settings}")
    chosen = dict.fromkeys((*tests, *elsewhere))
    ended = pytest(copy, stores, [f"--junitxml={times}", *chosen], before=watched)
    if ended.returncode:
        raise ValueError(f"they fail without any break: see to that first:\n{ended.stdout[-2000:]}")
    seconds: dict[str, float] = collections.defaultdict(float)
    for case in ET.parse(times).iter("testcase"):  # noqa: S314  our own
        module = case.attrib["classname"].replace(".", "/")
        seconds[f"{module}.py::{case.attrib['name'].partition('[')[0]}"] += float(
            case.attrib["time"]
        )
    names = {
        f"{Path(test.partition('.py')[0]).name}.{test.partition('::')[2]}": test for test in seconds
    }
    found = coverage.CoverageData(str(data))
    found.read()
    ran: dict[str, dict[int, set[str]]] = {}
    for file in found.measured_files():
        contexts = found.contexts_by_lineno(file)
        ran[str(Path(file).relative_to(copy))] = {
            line: {names[name] for name in them if name in names} for line, them in contexts.items()
        }
    return Workbench(
        stores, ran, seconds, timeout=60 + 3 * (time.monotonic() - began), elsewhere=elsewhere
    )


def main() -> int:
    """Try all breaks and print the score; return 1 if it is below what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="breaks whose file's path holds this text")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument(
        "--listed-only",
        action="store_true",
        help="try no tests but those of the list: half the time, and the score is a lower bound",
    )
    parser.add_argument("--least", type=float, default=0.9, help="score below which to exit 1")
    arguments = parser.parse_args()
    mutants = listed(Path(__file__).with_name("mutants.txt"))
    mutants = [mutant for mutant in mutants if arguments.only in mutant.path]
    began, outcomes = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="mnist-job-mutants-") as folder:
        copies: Queue[Path] = Queue()
        for number in range(arguments.parallel):
            copy = Path(folder, str(number))
            ignored = shutil.ignore_patterns(".*", "__pycache__", "runs")
            shutil.copytree(ROOT, copy, ignore=ignored)
            copies.put(copy)
        stores = Path(folder, "stores")
        with servers.shared(stores):
            tests = [test for mutant in mutants for test in mutant.tests]
            try:
                elsewhere = () if arguments.listed_only else ALL
                bench = prepared(copies.queue[0], stores, tests, elsewhere)
            except ValueError as error:
                print(error)
                return 1
            print(f"the tests took {time.monotonic() - began:.0f} s without any break", flush=True)

            def one(mutant: Mutant) -> str:
                copy = copies.get()
                try:
                    return bench.tried(mutant, copy)
                finally:
                    copies.put(copy)

            with ThreadPoolExecutor(arguments.parallel) as pool:
                for mutant, outcome in zip(mutants, pool.map(one, mutants), strict=True):
                    outcomes.append(outcome)
                    print(f"{outcome:<16} {mutant.line:>4} {mutant}", flush=True)
    count = collections.Counter(outcomes)
    score = 1 - (count["SURVIVED"] + count["UNSTEADY"]) / max(1, len(outcomes))
    print(
        f"\n{len(outcomes)} breaks, {count['SURVIVED']} survived, {count['UNSTEADY']} unsteady: "
        f"{score:.1%} seen, of which {count['hung']} since the tests hung, "
        f"in {time.monotonic() - began:.0f} s"
    )
    return 0 if score >= arguments.least else 1


if __name__ == "__main__":
    sys.exit(main())
