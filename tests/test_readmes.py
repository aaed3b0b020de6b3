"""The README files tell the truth: their commands, flags, defaults, exit codes, paths and links."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import typer
from conftest import REPOSITORY

from job import cli, errors
from job.commands import flags
from job.process import verdict

README = REPOSITORY / "README.md"
HOUSE = REPOSITORY / "job" / "README.md"
WINGS = sorted(front.parent.name for front in HOUSE.parent.glob("*/__init__.py"))
TOPS = ("job", "k8s", "scripts", "tests")
TEXTS = sorted(
    [*REPOSITORY.glob("*.md"), *(p for top in TOPS for p in (REPOSITORY / top).rglob("*.md"))]
)
COMMAND = typer.main.get_command(cli.app)
COMMANDS = {name: each for name, each in COMMAND.commands.items() if name != "data"}
COMMANDS |= {f"data {name}": each for name, each in COMMAND.commands["data"].commands.items()}
# Flags of other programs that the texts speak of; each is theirs, and none of ours.
FOREIGN = {"--delete-emptydir-data", "--isolation", "--volume"}
FOREIGN |= {"--workload-metadata", "--workload-pool"}

each_text = pytest.mark.parametrize(
    "path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY))
)


# --- what is in a text ------------------------------------------------------------------------


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a text: language and content."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """Return the text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Return what stands between backticks, on one line or over two."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def commands(text: str) -> Iterator[list[str]]:
    """Yield every command of a text, as words: those of its shell blocks and those in backticks."""
    for language, content in blocks(text):
        if language == "sh":
            shell = re.sub(r"<<'END'\n.*?^END$", "", content, flags=re.MULTILINE | re.DOTALL)
            for words in lines_of(shell.replace("\\\n", " ")):
                yield from parts(words)
    for span in spans(text):
        if re.match(r"(make|mnist-job|python|taskset|scripts/\S+) ", span) and "=..." not in span:
            words = shlex.split(span)
            if words[0] != "mnist-job" or " ".join(words[1:]) not in COMMANDS:  # but its name
                yield words


def lines_of(shell: str) -> Iterator[list[str]]:
    """Yield the words of each line; a line goes on where a quotation does."""
    line = ""
    for more in shell.splitlines():
        line = f"{line}\n{more}" if line else more
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # no closing quotation
            continue
        line = ""
        yield words
    assert not line, line


def parts(words: list[str]) -> Iterator[list[str]]:
    """Yield the commands of a line, without the variables that are set for one."""
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in {"&&", "|", ";"}:
            if command or not re.match(r"[A-Z_]+=", word):
                command.append(word)
        elif command:
            yield command
            command = []


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def makefile() -> dict[str, str]:
    """Return the targets that `make help` lists, each with its recipe."""
    text = (REPOSITORY / "Makefile").read_text()
    found = re.findall(r"^([a-z-]+):.*## .*\n((?:\t.*\n)*)", text, re.MULTILINE)
    return dict(found)


def check(words: list[str]) -> None:
    """Fail if a command of ours has no such form; commands of others pass."""
    if words[:2] == ["taskset", "-c"]:
        words = words[3:]
    program, *rest = words
    if program == "mnist-job":
        check_job(rest)
    elif program == "make":
        check_make(rest)
    elif program == "python" and rest[0].startswith("scripts/"):
        check_script(*rest)
    elif program.startswith("scripts/"):
        assert os.access(REPOSITORY / program, os.X_OK), program
        if program == "scripts/multiworker-local":
            check_job(["train", *rest[1:]])


def check_job(words: list[str]) -> None:
    """Fail if the command line would refuse these words; nothing is run."""
    name, *rest = words
    if name == "drill":  # hands its flags to train
        name = "train"
    if name == "data" and rest:
        name, *rest = f"data {rest[0]}", *rest[1:]
    assert name in COMMANDS, words
    if rest != ["--help"]:
        COMMANDS[name].make_context(name, rest)  # raises what the command line would


def check_make(words: list[str]) -> None:
    """Fail if there is no such target, or what it calls has no such flag."""
    targets = [word for word in words if "=" not in word]
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    recipes = makefile()
    assert targets, words
    for target in targets:
        assert target in recipes, words
    assert variables.keys() <= variables_of_make(), words
    given = shlex.split(variables.get("ARGS", ""))
    if targets == ["train"]:
        check_job(["train", *given])
    elif script := re.search(r"scripts/\S+\.py", recipes[targets[-1]]):
        check_script(script.group(), *given)
    else:
        assert not given or "pytest" in recipes[targets[-1]], words


def variables_of_make() -> set[str]:
    """Return the variables that the Makefile and its image script let their callers set."""
    makefile, image = ((REPOSITORY / name).read_text() for name in ("Makefile", "scripts/image"))
    return {
        *re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE),
        *re.findall(r"\$\{([A-Z_]+):-", image),
    }


def check_script(script: str, *words: str) -> None:
    """Fail if there is no such script, or it has no such flag; words after `--` are train's."""
    source = (REPOSITORY / script).read_text()
    own, _, trains = " ".join(words).partition("-- ")
    for word in own.split():
        if word.startswith("--") and word != "--":
            assert f'"{word.partition("=")[0]}"' in source, (script, word)
    if trains and trains.startswith("--"):
        check_job(["train", *trains.split()])


# --- commands and flags -----------------------------------------------------------------------


@each_text
def test_every_command_is_one_that_there_is(path: Path) -> None:
    for words in commands(path.read_text()):
        check(words)


@pytest.mark.parametrize(
    "words",
    [
        "mnist-job train --epoch 3",
        "mnist-job train --epochs many",
        "mnist-job evaluate",
        "mnist-job publish",
        "mnist-job drill --image x.png",
        "mnist-job data look folder",
        "mnist-job data check --epochs 3",
        "mnist-job data check",
        "mnist-job hold",
        "make traim",
        'make train ARGS="--seeds 3"',
        'make seeds ARGS="--epochs 3"',
        'make seeds ARGS="--held-out -- --held-out"',
        "make train EXTRAS=gpu",
        "python scripts/chaos/kill.py --times 3",
        "python scripts/train.py",
        "scripts/multiworker-global 2",
        "scripts/multiworker-local 2 --worker 3",
    ],
)
def test_a_wrong_command_is_found(words: str) -> None:
    right, wrong = commands(f"```sh\nmake train && {words}    # as it was\n```\n")
    check(right)
    with pytest.raises((AssertionError, OSError, typer.TyperException)):
        check(wrong)


@each_text
def test_every_flag_and_variable_is_one_that_there_is(path: Path) -> None:
    known = {f"--{name}" for name in re.findall(r'_flag\(\s*"([a-z-]+)"', _flags_source())}
    known |= {"--version", "--help", "--install-completion"} | FOREIGN
    known |= set(flags.GONE) if path.name == "CHANGELOG.md" else set()
    scripts = "".join(p.read_text() for p in (REPOSITORY / "scripts").rglob("*.py"))
    known |= set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', scripts))
    text = path.read_text()
    named = {flag for span in spans(text) for flag in re.findall(r"^--[a-z][a-z-]*", span)}
    assert named - known == set()
    variables = set(re.findall(r"MNIST_JOB_[A-Z_]*[A-Z]", text)) - {"MNIST_JOB_EPOCH"}  # a slip
    assert variables - flags._variables == set()


def _flags_source() -> str:
    return Path(flags.__file__).read_text()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "drill"])
def test_the_table_of_flags_is_the_command_line(name: str) -> None:
    """Each flag has a row in its command's table, with the default that it really has."""
    flags = [param for param in COMMANDS[name].params if param.opts[0].startswith("--")]
    options = {flag.opts[0]: flag for flag in flags if flag.opts[0] != "--help"}
    table = HOUSE.read_text().partition(f"| `mnist-job {name}` | default |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| (`--[^|]+) \|([^|]*)\|", table, re.MULTILINE))
    assert {flag for names in rows for flag in re.findall(r"--[a-z-]+", names)} == options.keys()
    for names, told in rows.items():
        for flag in re.findall(r"--[a-z-]+", names):
            assert told.strip() in {"as above", *_told(options[flag].default)}, flag


def _told(default: object) -> set[str]:
    """Return how a table may tell a default; what is found out in the end it says in words."""
    if default is None:
        words = {"a fresh one", "`/dev/termination-log`, if it is there"}
        words |= {f"the run's own{more}" for more in ("", ", else `mnist`", ", else `mlp`")}
        return {"", "none", "the champion before"} | words
    if default is False:
        return {"off"}
    return {f"`{default}`" if isinstance(default, str) else f"`{default:g}`"}


# --- exit codes -------------------------------------------------------------------------------


def test_the_table_of_exit_codes_is_the_tree_of_errors() -> None:
    table = README.read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    told = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    tree = {kind.exit_code for kind in (errors.JobError, *errors.JobError.__subclasses__())}
    assert told == sorted({0, verdict.EXIT_INTERRUPTED} | tree)


# --- places and links -------------------------------------------------------------------------


@each_text
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        leads_to = (path.parent / file) if file else path
        assert leads_to.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(leads_to.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), target


@each_text
def test_every_path_in_a_text_is_there(path: Path) -> None:
    text = path.read_text()
    words = [*spans(text), *(word for command in commands(text) for word in command)]
    for word in words:
        if re.fullmatch(r"(job|k8s|scripts|tests)/[\w./-]+", word) and word != "job/mnist-train":
            assert (REPOSITORY / word).exists(), word


def test_the_house_names_all_of_its_floors() -> None:
    """Each file and wing of job/ is in the table, and each one that is named is there."""
    table = HOUSE.read_text().partition("## Flags")[0]
    told: set[str] = set()
    for row in re.findall(r"^\| (.+) \|$", table, re.MULTILINE):
        floor, _, last = row.split(" | ")
        told |= set(re.findall(r"`([\w.]+/?)`", floor))
        told |= {f"assets/{name}" for name in re.findall(r"`([\w.]+)`", last)}
    there = {path.name for path in HOUSE.parent.glob("*.py")} - {"__init__.py"}
    there |= {f"{wing}/" for wing in [*WINGS, "assets"]}
    assert told == there | {f"assets/{p.name}" for p in (HOUSE.parent / "assets").iterdir()}


@pytest.mark.parametrize("wing", WINGS)
def test_the_front_of_a_wing_names_all_of_its_rooms(wing: str) -> None:
    """Each file of a wing is named in its `__init__`, and each one that is named is there."""
    front = importlib.import_module(f"job.{wing}")
    rooms = {path.stem for path in (HOUSE.parent / wing).glob("*.py")} - {"__init__"}
    told = set(re.findall(r"`(\w+)`", front.__doc__ or ""))
    assert rooms - told == set()
    assert told - rooms - set(getattr(front, "__all__", ())) - COMMAND.commands.keys() == set()


# --- the picture ------------------------------------------------------------------------------


def terminal(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "terminal.py", *words],
        env=os.environ | {"MAKELEVEL": "1", "MAKEFLAGS": "w"},  # as `make picture` starts it
        capture_output=True,
        text=True,
        check=False,
    )


def texts_of(picture: Path) -> list[str]:
    """Return the lines that an SVG shows."""
    svg = ET.fromstring(picture.read_text())
    return ["".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_the_picture_shows_what_a_terminal_did(tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    said = (
        "import os, sys; print('a < b & c', sys.stdout.isatty(), 'MAKELEVEL' in os.environ); "
        "print('   deep')"
    )
    made = terminal("--output", str(picture), "--", sys.executable, "-c", said)
    assert made.returncode == 0, made.stderr
    texts = texts_of(picture)
    assert texts[-2:] == ["a < b & c True False", "deep"]
    assert texts[-3].startswith("$ ")


def test_no_picture_is_made_of_a_failure(tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    failed = terminal("--output", str(picture), "--", sys.executable, "-c", "raise SystemExit(75)")
    assert failed.returncode != 0
    assert "75" in failed.stderr
    assert not picture.exists()


def test_the_picture_is_of_what_stays_on_the_screen(tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    said = r"print('\033[31mred\033[0m'); print('gone', end='\r\033[2K'); print('stays')"
    made = terminal("--output", str(picture), "--", sys.executable, "-c", said)
    assert made.returncode == 0, made.stderr
    assert texts_of(picture)[-2:] == ["red", "stays"]


def test_the_picture_in_the_readme_is_of_make_train() -> None:
    assert "](scripts/terminal.svg)" in README.read_text()
    texts = texts_of(REPOSITORY / "scripts" / "terminal.svg")
    assert "$ make train" in texts
    assert "metrics.json" in texts
