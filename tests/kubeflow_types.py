"""Prints what of a manifest the types of Kubeflow's Trainer and of JobSet don't know.

Run by the Python of .venv-checks, which has them: kubeflow_types.py FILE..., each a list of
documents in JSON. A field that a type doesn't know is lost on the way through it; one of another
kind, or one that is missing, is an error of its own.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubeflow_trainer_api import models

KINDS = {
    "ClusterTrainingRuntime": models.TrainerV1alpha1ClusterTrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
    "JobSet": models.JobsetV1alpha2JobSet,
}


def lost(before: Any, after: Any, path: str) -> Iterator[str]:
    """Yield the paths of what `before` has and `after` hasn't."""
    if isinstance(before, dict):
        for name, value in before.items():
            if not isinstance(after, dict) or name not in after:
                yield f"{path}.{name} is not known"
            else:
                yield from lost(value, after[name], f"{path}.{name}")
    elif isinstance(before, list):
        for index, value in enumerate(before):
            yield from lost(value, after[index], f"{path}.{index}")
    elif before != after:
        yield f"{path} is {before!r}, and became {after!r}"


for file in sys.argv[1:]:
    for document in json.loads(Path(file).read_text()):
        if document["kind"] not in KINDS:
            continue
        try:
            found = KINDS[document["kind"]].from_dict(document).to_dict()
            said = list(lost(document, found, document["kind"]))
        except ValueError as error:  # pydantic's
            said = [" ".join(str(error).split())]
        print(*said, sep="\n", end="\n" if said else "")
        print(f"looked at {document['kind']}", file=sys.stderr)
