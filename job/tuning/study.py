"""What all trials of a study agree on, and where what they come to lies.

    <output>/studies/<study>/study.json              the space, the rules, all that isn't varied
                             trials/000007.json      what a trial came to
                             rungs/3/000007.json     its score after three epochs
                             decisions/3/000007.json whether it was worth going on, and by what
                             finals/000007-1.json    what its config came to with a fresh seed
                             runs/000007/            its training: attempts and checkpoints

Each is created once and never changed. Trials are counted from 0, as Kubernetes counts the pods of
an Indexed Job. A trial never looks at the test set, so its run has neither metrics nor weights.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from job import storage
from job.config import DataSource, RunConfig, check_run_id
from job.errors import ClusterError, ConflictError, DataError, UsageError
from job.results import publishing
from job.storage import Place, parse
from job.tuning.space import Space, Value

SCHEMA_VERSION = 1
FOLDER = "studies"
MOST_TRIALS = 100_000
Objective = Literal["accuracy", "loss"]
_TRIAL = re.compile(r"(\d{6})\.json")
_FIELDS = {each.name for each in fields(RunConfig) if each.init}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all trials agree on."""

    output: str
    """Folder or URI prefix that runs, nights and studies lie below."""
    name: str
    space: Space
    fixed: Mapping[str, Any]
    """Fields of `RunConfig` that are not varied, but for what is the machine's own."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """Fields that decide how this process trains, and no number that comes of it."""
    objective: Objective = "accuracy"
    """What is compared, of the held-out examples after the last epoch; the other breaks ties.
    The loss alone would refuse label smoothing, which costs loss and earns accuracy."""
    reduction: int = 3
    """One in so many goes on at each rung; 1 lets all go on."""
    first_rung: int = 1
    """Epochs to the first rung; each further one is `reduction` times as far."""
    place: Place = field(init=False)

    def __post_init__(self) -> None:
        """Refuse what can't be meant, before anything is read or written.

        Raises:
            UsageError: which flag is wrong.
        """
        object.__setattr__(self, "place", _place(self.output, self.name))
        known = {name: value for name, value in self.fixed.items() if name not in self.space.names}
        object.__setattr__(self, "fixed", known)
        if not self.space.dimensions:
            raise UsageError("a study of nothing: give --vary or --space")
        if self.objective not in get_args(Objective):
            raise UsageError(f"--objective must be accuracy or loss, not {self.objective!r}")
        if not 1 <= self.reduction <= 100:
            raise UsageError(f"--reduction must be from 1 to 100, not {self.reduction}")
        if self.first_rung < 1:
            raise UsageError(f"--first-rung must be 1 or more, not {self.first_rung}")
        if "epochs" in self.space.names and self.reduction > 1:
            raise UsageError(
                "--vary epochs: trials of other lengths are elsewhere in their schedules after as "
                "many epochs, so none can be halted for that; give --reduction 1"
            )
        if not self.fixed.get("validation"):
            raise UsageError(
                "--validation is what trials are compared by: give a share of the training "
                "images, 0.1 say"
            )
        self._check_ends()

    def _check_ends(self) -> None:
        """Build a config with each end of each dimension: what is wrong there is wrong at once."""
        for dimension in self.space.dimensions:
            for value in dimension.values:
                self.config(0, {**self._first_values(), dimension.name: value})
        affine = self._could_be("augment", "affine")
        if "augment_strength" in self.space.names and not affine:
            raise UsageError(
                "--vary augment-strength is of --augment affine: give that, or vary augment too"
            )

    def _first_values(self) -> dict[str, Value]:
        return {dimension.name: dimension.values[0] for dimension in self.space.dimensions}

    def _could_be(self, name: str, value: Value) -> bool:
        varied = [each.values for each in self.space.dimensions if each.name == name]
        return value in (varied[0] if varied else (self.fixed.get(name),))

    @classmethod
    def opened(
        cls, output: str, name: str, machine: Mapping[str, Any], given: Mapping[str, Any]
    ) -> "Study":
        """Return the study that lies below `output`; `given` goes over what it says.

        Raises:
            UsageError: there is none.
            DataError: it can't be understood.
        """
        place = _place(output, name) / "study.json"
        if not storage.exists(place):
            raise UsageError(f"there is no study at {place}: to begin one, give --vary or --space")
        document = publishing.read_json(place)
        try:
            told = {each: document[each] for each in ("objective", "reduction", "first_rung")}
            fixed = {each: value for each, value in document["fixed"].items() if each in _FIELDS}
            space = Space.parse(document["space"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{place} is no study of this job's ({error!r}): move it away"
            ) from error
        told |= {each: value for each, value in given.items() if each in told}
        fixed |= {each: value for each, value in given.items() if each not in told}
        return cls(output=output, name=name, space=space, machine=machine, fixed=fixed, **told)

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs after which a trial may be halted."""
        found, epoch = [], self.first_rung
        while self.reduction > 1 and epoch < self.fixed["epochs"]:
            found.append(epoch)
            epoch *= self.reduction
        return tuple(found)

    @property
    def document(self) -> dict[str, Any]:
        """What `study.json` says, but for data and code."""
        return {
            "schema_version": SCHEMA_VERSION,
            "study": self.name,
            "space": self.space.texts,
            "objective": self.objective,
            "reduction": self.reduction,
            "first_rung": self.first_rung,
            "rungs": list(self.rungs),
            "fixed": dict(self.fixed),
        }

    def begin(self, data_fingerprint: str, code: Mapping[str, Any]) -> None:
        """Write down what the study is, or see that it is what another trial wrote.

        Raises:
            ConflictError: the study there is another one, or of other data.
            ClusterError: it is of other code: trials of two versions can't be compared.
        """
        mine = {**self.document, "data_fingerprint": data_fingerprint, "code": dict(code)}
        with contextlib.suppress(ConflictError):
            storage.create(self._file, publishing.to_json(mine))
            return
        theirs = publishing.read_json(self._file)
        self._check(theirs)
        if theirs.get("data_fingerprint") != data_fingerprint:
            raise ConflictError(
                f"{self._file} is of other data than lie at {self.fixed['data']} now: nothing was "
                "overwritten; choose another --study"
            )
        if theirs.get("code") != mine["code"]:
            raise ClusterError(
                f"{self._file} was begun with other code ({_difference(theirs.get('code'), code)})"
                ": go on with that, or choose another --study"
            )
        if theirs != mine:  # members of a version that says the same of its code
            raise ConflictError(f"{self._file} can't be understood: choose another --study")

    def check(self) -> None:
        """See that the study there, if there is one, is this one, whatever its data and code.

        Raises:
            ConflictError: it is another one.
        """
        if storage.exists(self._file):
            self._check(publishing.read_json(self._file))

    def _check(self, theirs: dict[str, Any]) -> None:
        mine = self.document
        differing = {name: theirs.get(name) for name in mine if theirs.get(name) != mine[name]}
        if not differing:
            return
        told = _difference(differing, {name: mine[name] for name in differing})
        if set(differing) == {"fixed"}:
            told = _difference(theirs.get("fixed"), self.fixed)
        raise ConflictError(
            f"{self._file} is another study ({told}): nothing was overwritten; choose another "
            "--study, or leave those flags out to go on with it"
        )

    def config(self, trial: int, values: Mapping[str, Value], fresh_seed: int = 0) -> RunConfig:
        """Return the config of a trial.

        Args:
            trial: names its run.
            values: of what is varied, by name.
            fresh_seed: added to the study's seed, which all trials share: so that they are
                compared by the same weights and the same order of examples. Of a final from 1 on.

        Raises:
            UsageError: no run can have these values.
        """
        merged = {**self.fixed, **values}
        if merged.get("augment") != "affine":
            merged["augment_strength"] = None  # it is of the augmentation that isn't taken
        seed = merged.pop("seed", RunConfig.seed)
        return RunConfig(
            **merged,
            **self.machine,
            seed=seed + fresh_seed,
            output=str(self.place / "runs"),
            run_id=self.run(trial, fresh_seed).name,
        )

    @property
    def source(self) -> DataSource:
        """What names the data set, which is the same for all trials."""
        return self.config(0, self._first_values()).source

    @property
    def seed(self) -> int:
        """Of the points, and of all trials."""
        return int(self.fixed.get("seed", RunConfig.seed))

    @property
    def _file(self) -> Place:
        return self.place / "study.json"

    def trial(self, trial: int) -> Place:
        """Say where what a trial came to lies."""
        return self.place / f"trials/{trial:06}.json"

    def final(self, trial: int, fresh_seed: int) -> Place:
        """Say where what a trial's config came to with a fresh seed lies."""
        return self.place / f"finals/{trial:06}-{fresh_seed}.json"

    def run(self, trial: int, fresh_seed: int = 0) -> Place:
        """Say where the training of a trial, or of a final, lies."""
        return self.place / (f"runs/{trial:06}-{fresh_seed}" if fresh_seed else f"runs/{trial:06}")

    def rung(self, epoch: int, trial: int) -> Place:
        """Say where a trial's score at a rung lies."""
        return self.scores(epoch) / f"{trial:06}.json"

    def scores(self, epoch: int) -> Place:
        """Say where the scores of all trials at a rung lie."""
        return self.place / f"rungs/{epoch}"

    def decision(self, epoch: int, trial: int) -> Place:
        """Say where it lies whether a trial went on."""
        return self.place / f"decisions/{epoch}/{trial:06}.json"

    def results(self) -> list[dict[str, Any]]:
        """Return what the trials that are over came to, by their number."""
        return read_all(self.place / "trials")

    def summary(self) -> dict[str, Any]:
        """Return what a person wants to know first of the study as it is.

        Raises:
            UsageError: all trials failed.
        """
        results = self.results()
        counts = {
            state: sum(each["state"] == state for each in results)
            for state in ("complete", "halted", "failed")
        }
        if results and counts["failed"] == len(results):
            raise UsageError(
                f"{self.place}: all {len(results)} trials failed, the first one so: "
                f"{results[0]['why']}"
            )
        names = ("trial", "validation_accuracy", "validation_loss", "values")
        best = next(iter(self.ranked(results)), None)
        return {
            "study": str(self.place),
            "trials": len(results),
            **counts,
            "best": None if best is None else {name: best[name] for name in names},
        }

    def key(self, result: Mapping[str, Any]) -> tuple[float, float]:
        """Return what sorts results by the objective, the best first."""
        accuracy, loss = -float(result["validation_accuracy"]), float(result["validation_loss"])
        return (accuracy, loss) if self.objective == "accuracy" else (loss, accuracy)

    def ranked(self, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return those that are complete, the best first; of equals the first trial."""
        complete = [result for result in results if result["state"] == "complete"]
        return sorted(complete, key=lambda result: (*self.key(result), result["trial"]))


def _place(output: str, name: str) -> Place:
    try:
        check_run_id(name)
    except UsageError as error:
        raise UsageError(str(error).replace("--run-id", "--study")) from error
    return parse(output, "--output") / FOLDER / name


def keep(place: Place, document: dict[str, Any]) -> dict[str, Any]:
    """Write `document` at `place`; return what it says there: the first word stands."""
    try:
        storage.create(place, publishing.to_json(document))
    except ConflictError:
        return publishing.read_json(place)
    return document


def found(place: Place) -> dict[str, Any] | None:
    """Return what `place` says, or None if nothing is there."""
    return publishing.read_json(place) if storage.exists(place) else None


def read_all(folder: Place) -> list[dict[str, Any]]:
    """Return what the trials' objects in `folder` say, by the trials' number."""
    names = [name for name in storage.names(folder) if _TRIAL.fullmatch(name)]
    return [publishing.read_json(folder / name) for name in names]


def _difference(theirs: Any, mine: Mapping[str, Any]) -> str:
    there = theirs if isinstance(theirs, Mapping) else {}
    names = [name for name in {**mine, **there} if there.get(name) != mine.get(name)]
    return ", ".join(f"{name} {there.get(name)!r} there, {mine.get(name)!r} here" for name in names)
