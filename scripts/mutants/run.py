"""Break the code on purpose, one line at a time, and see whether a test fails.

    python scripts/mutants/run.py [--only objects.py] [--parallel 2]

`mutants.txt` lists the breaks, each with the tests that should see it. A break that these do not
see is tried on all tests of storage, checkpoints and publishing; one that survives them too is
printed as SURVIVED. Each is made in a copy of the repository; nothing here is changed. The two
object stores run once for all.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import servers

ROOT = Path(__file__).parents[2]
ALL = ("tests/storage", "tests/training/test_checkpoint.py", "tests/results/test_publishing.py")
TIMEOUT_SECONDS = 240  # a break that makes the tests hang is seen, too


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


def fails(copy: Path, tests: tuple[str, ...], stores: Path) -> str:
    """Return `failed` or `hung` if one of `tests` does so in the repository at `copy`, else ""."""
    environment = os.environ | {"PYTHONPATH": str(copy), "TEST_STORES": str(stores)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # it tells versions apart by the second
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-n", "0", "-m", "not slow"]
    command += ["-p", "no:cacheprovider", *tests]
    try:
        ended = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "hung"
    if ended.returncode > 2:  # 2 is code that can't be imported; more, that no test was found
        raise RuntimeError(f"pytest {' '.join(tests)}: {ended.stdout[-2000:]}")
    return "failed" if ended.returncode else ""


def tried(mutant: Mutant, copy: Path, stores: Path) -> str:
    """Return what became of a break: `failed`, `hung`, `failed elsewhere` or `SURVIVED`."""
    path = copy / mutant.path
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        if seen := fails(copy, mutant.tests, stores):
            return seen
        return "failed elsewhere" if fails(copy, ALL, stores) else "SURVIVED"
    finally:
        path.write_text(text)


def main() -> int:
    """Try all breaks and print the score; return 1 if it is below what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="breaks whose file's path holds this text")
    parser.add_argument("--parallel", type=int, default=2)
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
            for chosen in dict.fromkeys(mutant.tests for mutant in mutants):
                if ended := fails(copies.queue[0], chosen, stores):
                    print(f"tests {ended} without any break: {' '.join(chosen)}: see to that first")
                    return 1

            def one(mutant: Mutant) -> str:
                copy = copies.get()
                try:
                    return tried(mutant, copy, stores)
                finally:
                    copies.put(copy)

            with ThreadPoolExecutor(arguments.parallel) as pool:
                for mutant, outcome in zip(mutants, pool.map(one, mutants), strict=True):
                    outcomes.append(outcome)
                    print(f"{outcome:<16} {mutant.line:>4} {mutant}", flush=True)
    alive = outcomes.count("SURVIVED")
    score = 1 - alive / max(1, len(outcomes))
    print(
        f"\n{len(outcomes)} breaks, {alive} survived: {score:.0%} seen, of which "
        f"{outcomes.count('hung')} since the tests hung, "
        f"in {time.monotonic() - began:.0f} s"
    )
    return 0 if score >= arguments.least else 1


if __name__ == "__main__":
    sys.exit(main())
