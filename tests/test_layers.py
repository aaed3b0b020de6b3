"""The house rules of DESIGN.md, read off the source: who may import whom, and what for."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import job

SOURCE = Path(job.__file__).parent
MODULES = {path.stem: path for path in sorted(SOURCE.rglob("*.py"))}

LAYERS = {
    0: {"__init__", "errors"},
    1: {
        *("config", "cluster", "runtime", "arrays", "preemption", "ink", "uris"),
        *("peers", "pulse", "heartbeat"),
        *("storage", "local", "temporaries", "cache"),
        *("remote", "objects", "refusals", "retrying", "background", "s3", "gcs"),
        "stores",
    },
    2: {
        "data",
        "examples",
        "handwriting",
        "gallery",
        "model",
        "augmentation",
        "strategy",
        "team",
        "progress",
        "verdict",
    },
    3: {"weights", "publishing", "checkpoint", "loop", "feed"},
    4: {"training", "evaluation"},
    5: {"run", "scoring", "drill", "flags", "supervision"},
    6: {"cli", "__main__"},
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}
# The exceptions: these may import a neighbour of their own layer.
SIDEWAYS = {
    *(("config", "uris"), ("data", "examples"), ("__main__", "cli"), ("loop", "feed")),
    *(("peers", "cluster"), ("peers", "heartbeat")),
    # Storage is a house of its own: a front, one room for files, and a wing for object stores.
    *(("storage", name) for name in ("uris", "local", "cache", "remote", "retrying")),
    *(("local", name) for name in ("uris", "temporaries")),
    ("cache", "local"),
    *(("remote", name) for name in ("background", "objects", "refusals", "retrying", "stores")),
    *(("objects", name) for name in ("uris", "retrying", "s3", "gcs", "stores")),
    *(("refusals", name) for name in ("uris", "retrying", "stores")),
    *(("retrying", "stores"), ("s3", "stores"), ("gcs", "stores"), ("gcs", "background")),
}

# Which files may import an outside package, and the parts of the standard library with an owner.
TENSORFLOW_LAYERS = LAYERS[2] | LAYERS[3] | LAYERS[4] | LAYERS[5]
OWNERS = {
    # Of fsspec the file systems only; what else they need, for the errors that come of it.
    "s3fs": {"s3"},
    "gcsfs": {"gcs"},
    "botocore": {"s3"},
    "aiohttp": {"s3", "gcs"},
    "google": {"gcs"},
    "typer": {"cli", "flags"},
    "signal": {"preemption", "pulse"},
    "PIL": {"handwriting", "ink", "gallery"},
    "h5py": {"weights"},
    "safetensors": {"checkpoint"},
    "absl": {"weights"},
    "numpy": set(LAYER_OF),
    "tensorflow": TENSORFLOW_LAYERS | {"runtime"},
    "keras": TENSORFLOW_LAYERS | {"runtime"},
}
TENSORFLOW = {"tensorflow", "keras"}
IMPORT_LATE = LAYERS[1] | LAYERS[5] | LAYERS[6]  # these must not cost TensorFlow's seconds
HEAVY = (*TENSORFLOW, "numpy", "PIL", "h5py", "asyncio", "fsspec", "aiohttp", "botocore", "google")

MAX_LINES = 250
NO_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}


@dataclass(frozen=True)
class Import:
    target: str
    """`job.storage`, `job` for the package itself, or the top name of another package."""
    line: int
    late: bool
    """Inside a function, so not done when the module is imported."""
    for_types: bool
    """Under TYPE_CHECKING, so never done."""


def imports(source: str) -> Iterator[Import]:
    yield from _imports(ast.parse(source).body, late=False, for_types=False)


def _imports(nodes: list[ast.AST], *, late: bool, for_types: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in _targets(node):
                yield Import(target, node.lineno, late, for_types)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.body, late=late, for_types=True)
            yield from _imports(node.orelse, late=late, for_types=for_types)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            children = list(ast.iter_child_nodes(node))
            yield from _imports(children, late=late or inside, for_types=for_types)


def _targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        dotted = [alias.name for alias in node.names]
    elif node.level:  # `from . import x`, `from .x import y`
        package = ".".join(filter(None, ["job", node.module]))
        dotted = [f"{package}.{alias.name}" for alias in node.names]
    else:
        dotted = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in dotted:
        top, _, rest = name.partition(".")
        inner = rest.partition(".")[0]
        if top != "job":
            yield top
        elif inner in MODULES:
            yield f"job.{inner}"
        else:
            yield "job"


def layer_faults(name: str, source: str) -> list[str]:
    faults = []
    for found in imports(source):
        if not found.target.startswith("job."):
            continue  # the package itself holds the version only, and is for everyone
        other = found.target.removeprefix("job.")
        if LAYER_OF[other] >= LAYER_OF[name] and (name, other) not in SIDEWAYS:
            faults.append(f"{name}.py:{found.line} imports {other}, which is not below it")
    return faults


def owner_faults(name: str, source: str) -> list[str]:
    return [
        f"{name}.py:{found.line} imports {found.target}, which is not its to use"
        for found in imports(source)
        if found.target.partition(".")[0] != "job"
        and (found.target in OWNERS or found.target not in sys.stdlib_module_names)
        and name not in OWNERS.get(found.target, set())
    ]


def at_import(source: str) -> set[str]:
    """Return what is imported as soon as the module is."""
    return {found.target for found in imports(source) if not (found.late or found.for_types)}


def brings_tensorflow(name: str) -> list[str]:
    """Return the chain of imports by which importing `name` imports TensorFlow or Keras, if any."""
    targets = at_import(MODULES[name].read_text())
    if direct := targets & TENSORFLOW:
        return [name, min(direct)]
    inner = sorted(target.removeprefix("job.") for target in targets if target.startswith("job."))
    chains = (brings_tensorflow(other) for other in inner)
    return next(([name, *chain] for chain in chains if chain), [])


def test_the_table_has_every_file_and_no_other() -> None:
    names = [name for layer in LAYERS.values() for name in layer]
    assert sorted(names) == sorted(MODULES)


def test_the_house_is_flat() -> None:
    assert {path.parent for path in MODULES.values()} == {SOURCE}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    assert layer_faults(name, MODULES[name].read_text()) == []


@pytest.mark.parametrize("name", MODULES)
def test_outside_packages_have_owners(name: str) -> None:
    assert owner_faults(name, MODULES[name].read_text()) == []


def test_runtime_imports_tensorflow_in_one_function_only() -> None:
    tree = ast.parse(MODULES["runtime"].read_text())
    users = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and TENSORFLOW & {found.target for found in imports(ast.unparse(node))}
    }
    assert users == {"import_tensorflow"}


@pytest.mark.parametrize("name", sorted(IMPORT_LATE & set(MODULES)))
def test_tensorflow_is_imported_late(name: str) -> None:
    assert brings_tensorflow(name) == []


def test_the_rooms_known_to_need_tensorflow_are_seen_to_need_it() -> None:
    assert brings_tensorflow("model") == ["model", "keras"]
    assert brings_tensorflow("training")[-1] in TENSORFLOW


@pytest.mark.parametrize("name", MODULES)
def test_no_import_hides_from_this_test(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not used & {"__import__", "import_module", "exec", "eval", "run_module", "run_path"}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"cli", "flags"}))
def test_only_the_command_line_exits(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    words = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.expr)}
    assert not words & {"sys.exit", "os._exit", "os.abort", "SystemExit", "exit", "quit"}


@pytest.mark.parametrize("name", MODULES)
def test_nothing_happens_at_import(name: str) -> None:
    for node in ast.parse(MODULES[name].read_text()).body:
        allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
        definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and ast.unparse(node.test) in {
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        }
        assert isinstance(node, allowed) or definition or text or guard, (
            f"{name}.py:{node.lineno} does something when it is imported"
        )


@pytest.mark.parametrize("name", MODULES)
def test_a_file_is_read_in_one_go_and_named_by_what_it_holds(name: str) -> None:
    assert name not in NO_NAMES
    lines = len(MODULES[name].read_text().splitlines())
    assert lines <= MAX_LINES, f"{name}.py has {lines} lines: split it by noun"


def test_importing_the_command_line_is_cheap_and_quiet() -> None:
    program = f"""
import json, os, signal, sys, threading
environment, handlers = dict(os.environ), [signal.getsignal(n) for n in signal.valid_signals()]
import job.cli
print(json.dumps({{
    "heavy": [name for name in {HEAVY!r} if name in sys.modules],
    "environment": dict(os.environ) == environment,
    "handlers": [signal.getsignal(n) for n in signal.valid_signals()] == handlers,
    "threads": threading.active_count(),
}}))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"]},  # ours is that of a process that imported the job
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr == ""
    assert json.loads(ended.stdout) == {
        "heavy": [],
        "environment": True,
        "handlers": True,
        "threads": 1,
    }


# --- the rules above can fail ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("errors", "from job import storage"),
        ("errors", "from job.storage import read"),
        ("errors", "import job.storage"),
        ("errors", "import job.storage as s"),
        ("errors", "from . import storage"),
        ("errors", "from .storage import read"),
        ("storage", "from job.config import RunConfig"),  # only the other way round
        ("data", "from job import errors, model"),
        ("data", "def f():\n    from job.training import train"),
        ("data", "class A:\n    async def f(self):\n        import job.run"),
        ("data", "if TYPE_CHECKING:\n    from job.run import train_run"),
        ("data", "try:\n    import job.cli\nexcept ImportError:\n    pass"),
        ("training", "from job.evaluation import evaluate"),
        ("cli", "import job.__main__"),
    ],
)
def test_an_import_up_or_sideways_is_seen(name: str, source: str) -> None:
    assert len(layer_faults(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("errors", "import json\nfrom job import __version__"),
        ("config", "from job.errors import UsageError"),
        ("data", "from job.arrays import from_npz\nfrom job import storage"),
        ("cli", "from job import run, storage"),
    ],
)
def test_an_import_down_is_fine(name: str, source: str) -> None:
    assert layer_faults(name, source) == []
    assert owner_faults(name, source) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("data", "import aiohttp"),
        ("storage", "import fsspec"),
        ("gcs", "from s3fs import S3FileSystem"),
        ("storage", "from botocore.session import get_session"),
        ("objects", "import google.auth"),
        ("run", "def f():\n    import typer"),
        ("training", "import signal"),
        ("scoring", "from PIL import Image"),
        ("model", "import h5py"),
        ("cli", "def f():\n    import keras"),
        ("config", "import tensorflow as tf"),
        ("data", "import pandas"),  # nobody's yet
        ("storage", "import boto3"),
    ],
)
def test_a_package_in_other_hands_is_seen(name: str, source: str) -> None:
    assert len(owner_faults(name, source)) == 1


def test_what_is_imported_late_or_for_types_is_told_from_what_is_imported_at_once() -> None:
    source = """
import json
if TYPE_CHECKING:
    import keras
else:
    import math
try:
    from job import data, __version__
except ImportError:
    import os.path
class A:
    import io
    def f(self):
        import tensorflow
f = lambda: [__name__]
"""
    assert at_import(source) == {"json", "math", "job.data", "job", "os", "io"}
