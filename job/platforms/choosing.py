"""The table of platforms, and the one that holds here."""

from dataclasses import replace

from job.errors import ClusterError
from job.platforms.contract import NIGHT, Default, Found, Platform, Surroundings, is_folder
from job.platforms.sagemaker import SAGEMAKER
from job.platforms.vertex import VERTEX

PLATFORMS = (SAGEMAKER, VERTEX)
NAMES = tuple(platform.name for platform in PLATFORMS)
AUTO = "auto"


def find(named: str, here: Surroundings) -> Found | None:
    """Return the platform that we are on and what it gives; None where we are on none.

    Args:
        named: `auto` to look for one, or its name; anything else finds none.
        here: where we are.

    Raises:
        ClusterError: nothing shows the platform that is named, or it gives what can't be understood
            or used.
        UsageError: it gives a flag that there is not, or nothing where something is needed.
    """
    if (platform := _recognised(named, here)) is None:
        return None
    if (because := platform.sign(here)) is None:
        raise ClusterError(
            f"--platform {named}: nothing here is {named}'s, which would show by "
            f"{platform.wanted}; leave the flag out"
        )
    by_name = platform.more(here)
    # What a file gives by its own name is as good as given: nothing is looked up for it.
    unnamed = replace(here, given=here.given | by_name.keys())
    defaults = {}
    for row in platform.rows:
        flag = row.flag if row.flag in here.flags else NIGHT.get(row.flag, row.flag)
        if flag in here.flags - unnamed.given and (value := row.read(unnamed)) is not None:
            defaults[flag] = Default(value, row.source)
    return Found(
        platform.name,
        because,
        defaults | {flag: each for flag, each in by_name.items() if flag not in here.given},
        platform.workers(here),
        platform.pools,
        platform.ignored(here),
    )


def failure_file(named: str, here: Surroundings) -> str | None:
    """Return where the platform looks for the reason of a failure, None where it looks nowhere."""
    platform = _recognised(named, here)
    if platform is None or platform.failure_file is None:
        return None
    path = here.path(platform.failure_file)
    return str(path) if is_folder(path.parent) else None


def _recognised(named: str, here: Surroundings) -> Platform | None:
    """Return the platform of that name, or the first whose sign is seen."""
    for platform in PLATFORMS:
        if platform.name == named or (named == AUTO and platform.sign(here) is not None):
            return platform
    return None
