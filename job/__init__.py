"""mnist-job: train, score and publish a digit classifier, as a job that nobody has to watch.

Begin with `run`, one run from config to published. `README.md` beside this tells what is in which
wing, from the command line down to the bytes, and all flags.

Other programs call what `api` offers, by the names below; it is imported when one is first used:

    from job import RunConfig, evaluate, predict, train
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # by name, or a type checker would believe in any name
    from job.api import evaluate, predict, train
    from job.config import RunConfig

__version__ = "0.1.0"
__all__ = ["RunConfig", "__version__", "evaluate", "predict", "train"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(importlib.import_module("job.api"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
