"""What a command was called with, and what its flags are where nobody gives them.

From the lowest: what the code has, what the image has, and what the platform gives; above them are
variables and flags, which win.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.commands.flags import PREFIX
from job.errors import UsageError
from job.process import verdict
from job.process.progress import Progress
from job.workers.cluster import Cluster

if TYPE_CHECKING:
    from job import platforms

_OUTPUT = f"{PREFIX}INTERNAL_OUTPUT"  # the image's own --output
_ROOT = f"{PREFIX}INTERNAL_ROOT"  # folder that platforms' paths lie below, in tests
_OPTION = "--platform"
_HIDDEN = {"pushgateway", "notify"}  # flags whose values may hold a secret


@dataclass(frozen=True)
class Invocation:
    """A command line, and where it was given."""

    words: list[str]
    """After the program's name."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Of flags, by command and the name of its parameter, as Typer takes them."""
    platform: "platforms.Found | None" = None

    @classmethod
    def of(cls, words: list[str], program: Any, environment: Mapping[str, str]) -> "Invocation":
        """Find out what holds where `words` were given.

        Args:
            words: after the program's name.
            program: Typer's group of all commands.
            environment: of the process.

        Raises:
            JobError: the platform gives what can't be understood, or not be used.
        """
        defaults: dict[str, Any] = {}
        if output := environment.get(_OUTPUT):
            defaults = _outputs(program, output)
        command = program.commands.get(next(iter(words), ""))
        found = None
        if command is not None and not {"--help", "--version"} & set(words):
            parameters = {each.opts[0].removeprefix("--"): each for each in command.params}
            if "platform" in parameters:
                found = _platform(words, parameters, environment)
            if found is not None:
                given = {
                    parameters[flag].name: _as_typer_has_it(flag, parameters[flag], default)
                    for flag, default in found.defaults.items()
                    if flag in parameters
                }
                defaults = defaults | {words[0]: defaults.get(words[0], {}) | given}
        return cls(words, defaults, found)

    def cluster(self, environment: Mapping[str, str], *, together: bool) -> Cluster:
        """Return this process's place; the environment wins over what the platform's files say.

        CLUSTER_SPEC is heeded where it is the platform's, and is somebody else's elsewhere.

        Raises:
            ClusterError: see `Cluster.from_environment`.
        """
        found = self.platform
        return Cluster.from_environment(
            environment,
            together=together,
            pools=found is not None and found.pools,
            otherwise=None if found is None else found.workers,
        )

    def given(self, option: str, environment: Mapping[str, str]) -> str | None:
        """Return what a flag such as `--log` was given, also where the parser refuses others.

        By the command line, else its variable, else the platform.
        """
        if named := verdict.given(self.words, environment, option):
            return named
        found = {} if self.platform is None else self.platform.defaults
        default = found.get(option.removeprefix("--"))
        return default.value if default is not None and isinstance(default.value, str) else None

    def explain(self, message: str) -> str:
        """Return a refusal with the source of each flag in it that the platform gave."""
        if self.platform is None:
            return message
        found = self.platform.defaults
        named = dict.fromkeys(re.findall(r"--([a-z]+(?:-[a-z]+)*)", message))
        told = [f"--{flag} is from {found[flag].source}" for flag in named if flag in found]
        return f"{message} ({', '.join(told)})" if told else message

    def tell(self, progress: Progress) -> None:
        """Report the platform, if there is one, and what it gave."""
        if (found := self.platform) is None:
            return
        progress.event(
            "platform",
            platform=found.name,
            because=found.because,
            flags={
                flag: "(not shown)" if flag in _HIDDEN else default.value
                for flag, default in found.defaults.items()
            },
            sources={flag: default.source for flag, default in found.defaults.items()},
            ignored=found.ignored,
        )


def failure_file(words: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Return where the reason of a failure goes; known also where flags can't be understood."""
    if named := verdict.given(words, environment, verdict.FAILURE):
        return named
    from job import platforms  # noqa: PLC0415

    return platforms.failure_file(_named(words, environment), _surroundings(environment))


def _named(words: Sequence[str], environment: Mapping[str, str]) -> str:
    return verdict.given(words, environment, _OPTION) or "auto"


def _surroundings(environment: Mapping[str, str], **more: Any) -> "platforms.Surroundings":
    from job import platforms  # noqa: PLC0415

    return platforms.Surroundings(environment, root=Path(environment.get(_ROOT) or "/"), **more)


def _platform(
    words: list[str], parameters: Mapping[str, Any], environment: Mapping[str, str]
) -> "platforms.Found | None":
    """Return the platform that a command runs on, which has these flags."""
    from job import platforms  # noqa: PLC0415  for commands that look for one

    given = {
        flag
        for flag, parameter in parameters.items()
        if any(word == f"--{flag}" or word.startswith(f"--{flag}=") for word in words)
        or environment.get(parameter.envvar or "")
    }
    here = _surroundings(environment, flags=frozenset(parameters), given=frozenset(given))
    return platforms.find(_named(words, environment), here)


def _as_typer_has_it(flag: str, parameter: Any, default: "platforms.Default") -> Any:
    """Return a value that the parameter takes.

    Raises:
        UsageError: it is a list, and the flag is given once.
    """
    if parameter.multiple:
        return default.value if isinstance(default.value, list) else [default.value]
    if isinstance(default.value, list):
        raise UsageError(f"{default.source} gives --{flag} a list: give one value")
    return default.value


def _outputs(command: Any, output: str) -> dict[str, Any]:
    """Return the defaults that let every command use `output`."""
    found = {}
    for name, each in command.commands.items():
        if hasattr(each, "commands"):
            found[name] = _outputs(each, output)
        elif any("--output" in parameter.opts for parameter in each.params):
            found[name] = {"output": output}
    return found
