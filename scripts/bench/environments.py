"""The peers' environments: one for each library, made once and kept in .bench/."""

import hashlib
import json
import os
import sys
from pathlib import Path

import children

REPOSITORY = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
FOLDER = REPOSITORY / ".bench"

# What would change how a contestant computes, or where it looks for code.
_KEPT_OUT = ("PYTHON", "MNIST_JOB_", "TF_", "XLA_", "KERAS_", "JAX_", "TORCH", "OMP_", "MKL_")
_KEPT_OUT += ("OPENBLAS_",)


class BenchError(Exception):
    """The bench can't go on; says what to do."""


def clean_environment() -> dict[str, str]:
    """Return the variables that every contestant runs with: ours, less all that would steer it.

    PYTHONDONTWRITEBYTECODE is among those that go: without bytecode an import takes three times as
    long.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(_KEPT_OUT)}


def own_python() -> Path:
    """Return the interpreter of the job's own environment, which this process runs in."""
    return Path(sys.executable)


def peer_python(name: str) -> Path:
    """Return the interpreter of the environment for `peers/<name>.txt`, made if need be.

    Raises:
        BenchError: it can't be made.
    """
    requirements = PEERS / f"{name}.txt"
    folder = FOLDER / name
    python, mark = folder / "bin" / "python", folder / "made-from"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if not (mark.is_file() and mark.read_text() == wanted):
        print(f"making {folder.relative_to(REPOSITORY)} (once)", file=sys.stderr, flush=True)
        _uv("venv", "--clear", "--python", sys.executable, str(folder))
        _install(python, requirements)
        mark.write_text(wanted)
    return python


def _install(python: Path, requirements: Path) -> None:
    words = ["pip", "install", "--python", str(python), "--compile-bytecode", "--require-hashes"]
    words += ["--requirements", str(requirements)]
    try:
        _uv(*words)
    except BenchError as error:
        if "+cpu" not in requirements.read_text():
            raise
        # The package index has PyTorch with CUDA only; uv knows where the CPU builds are.
        try:
            _uv(*words, "--torch-backend", "cpu")
        except BenchError as other:
            raise BenchError(
                f"{requirements.name} can't be installed: its build of PyTorch is for the CPU, "
                f"Linux on x86-64 and one Python; name a place that has it in UV_FIND_LINKS or "
                f"UV_INDEX, or leave it out with --without {requirements.stem} ({error}; {other})"
            ) from other


def _uv(*words: str) -> None:
    environment = {"UV_SYSTEM_CERTS": "1", "UV_PYTHON_DOWNLOADS": "never"} | os.environ
    if places := os.environ.get("PIP_FIND_LINKS"):  # what pip has been told holds for uv too
        environment.setdefault("UV_FIND_LINKS", ",".join(places.split()))
    uv = Path(sys.executable).parent / "uv"
    ended = children.run([str(uv), *words], env=environment, capture_output=True)
    if ended.returncode:
        said = " ".join(ended.stderr.split())[-300:]
        raise BenchError(f"uv {' '.join(words[:2])} failed: {said}")


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those of `packages` that `python` has, and Python's own."""
    program = (
        "import importlib.metadata as m, json, platform, sys\n"
        "there = {d.name.lower().replace('_', '-'): d.version for d in m.distributions()}\n"
        "found = {name: there[name] for name in sys.argv[1:] if name in there}\n"
        "print(json.dumps({'python': platform.python_version()} | found))"
    )
    command = [str(python), "-c", program, *packages]
    found = children.run(command, env=clean_environment(), capture_output=True, check=True)
    return dict(json.loads(found.stdout))
