"""What a run is asked to do, checked at the door.

A config that exists is valid: each class validates itself when it is made, before TensorFlow is
imported and before anything is read or written, and names the flag that is wrong.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from job.errors import UsageError
from job.storage import Place, parse

ModelName = Literal["mlp", "cnn", "cnn-wide"]
Preset = Literal["reference", "fast", "cnn", "best"]
Schedule = Literal["linear", "cosine", "constant"]
Augmentation = Literal["none", "shift", "affine"]
Strategy = Literal["auto", "cpu", "gpu", "mirrored", "multiworker"]
Precision = Literal["float32", "mixed_bfloat16"]
Exchange = Literal["float32", "bfloat16"]
Export = Literal["savedmodel"]

MOST_MEMBERS = 50  # of an ensemble: HDF5 has no room for the names of many more layers
STRENGTH = 0.8  # of affine augmentation, where none is given: the best for mlp

EMBEDDED = Place("file", "", str(Path(__file__).parent / "assets" / "mnist.npz"), "mnist")
"""The data set in the box, which goes by a name of its own."""
# What nights and studies keep lies beside the runs.
RESERVED_RUN_IDS = ("champion", "nights", "gates", "shards", "studies")
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

# Also a legal Kubernetes label value and one segment of any object name.
_RUN_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
# Where a run goes, and what it runs on, don't change which run it is.
_NOT_IDENTITY = (
    *("output", "run_id", "place", "source", "only", "strategy", "require_gpu"),
    *("checkpoint_seconds", "time_limit", "peer_timeout", "tensorboard", "report"),
    "tensorboard_dir",
)
# Fields that came later, and what all runs had until then: part of the identity where another is
# given, so old digests hold.
_SINCE = {
    "base": None,
    "augment_strength": None,
    "dropout": 0.0,
    "validation": 0.0,
    "validation_seed": 0,
    "early_stopping": None,
    "init_weights": None,
    "exchange": "float32",
    "ensemble": None,
    "export": None,
}


@dataclass(frozen=True)
class DataSource:
    """What names a data set: where it lies, and which of the files there it is of."""

    place: Place
    """The embedded set, an .npz, a folder of four IDX files, or a folder of shards."""
    base: Place | None = None
    """What the shards at `place` add to; None where that lies among them, or there are none."""
    only: tuple[tuple[str, str], ...] | None = None
    """Name and sha256 (hex) of the files to take, the base's too; None for all that are there."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what one training run does, and where it publishes.

    The defaults of the last seven were chosen on a held-out sixth of the training set; the test set
    had no say (scripts/bench/README.md tells the numbers, and how to repeat them).
    """

    output: str = "runs"
    """Folder or URI prefix; the run is published at `<output>/<run_id>/`."""
    run_id: str
    """Names the run: the same id and config continue or find the same run."""
    data: str = EMBEDDED.text
    """`mnist` for the embedded data set, or the URI of one."""
    base: str | None = None
    """What the shards at `data` add to, named as `data` is; None where it lies among them."""
    only: tuple[tuple[str, str], ...] | None = None
    """Name and sha256 (hex) of the data's files to take; None for all that are there."""
    model: ModelName = "mlp"
    """Name of an architecture in `job.training.model`."""
    strategy: Strategy = "auto"
    """What to train on; `auto` takes all workers if there are several, else all GPUs, else CPU."""
    require_gpu: bool = False
    """Refuse to train without a GPU."""
    precision: Precision = "float32"
    """Numbers inside the layers; weights are kept and published as float32 either way."""
    seed: int = 0
    """The only source of randomness: initial weights, order of examples, augmentation."""
    epochs: int = 10
    """Passes over the training set."""
    batch_size: int = 32
    """Examples per optimizer step, over all replicas."""
    learning_rate: float = 0.003
    """Peak of the schedule, reached after the first tenth of all steps."""
    schedule: Schedule = "linear"
    """Fall of the learning rate after the warm-up: to zero on a line or a half cosine, or none."""
    weight_decay: float = 0.1
    """Share of the learning rate by which each step shrinks the kernels, biases excepted."""
    label_smoothing: float = 0.02
    """Share of each target spread evenly over all classes."""
    checkpoint_seconds: float = 30.0
    """Save the state of the training this often; it is saved at every stop as well."""
    time_limit: float | None = None
    """Seconds after which to save and stop, to be continued by the same command."""
    peer_timeout: float = 45.0
    """Seconds to wait for the other workers before the training starts."""
    report: bool = False
    """Leave a page that shows the run, or how far an attempt came that failed or was stopped."""
    tensorboard_dir: str | None = None
    """Event files go below this folder or URI; None for the run's own folder."""
    tensorboard: bool | None = None
    """Also write event files for TensorBoard, one with each checkpoint; None becomes True where
    `tensorboard_dir` names a folder for them, else False."""
    augment: Augmentation = "none"
    """`shift` moves each training image by up to two pixels, anew in every epoch; `affine` turns,
    scales, slants and moves it."""
    augment_strength: float | None = None
    """How far `affine` goes, 1 being as `job.training.augmentation` says; None for `STRENGTH`."""
    dropout: float = 0.0
    """Share of the last hidden layer that each step leaves out."""
    validation: float = 0.0
    """Share of the training examples that is held out: not trained on, and scored every epoch."""
    validation_seed: int = 0
    """Which ones: runs of other seeds are compared on the same examples."""
    early_stopping: int | None = None
    """End after so many epochs without a better validation loss; None to do all epochs."""
    init_weights: str | None = None
    """A weights file, or the folder of a run, that step 0 begins with; None to draw them."""
    exchange: Exchange = "float32"
    """How replicas send each other gradients: as `bfloat16` they are half as long, and rounded."""
    ensemble: int | None = None
    """Nets that are trained, each a run of its own, and published as one; None to train one."""
    export: Export | None = None
    """Also publish the model as TensorFlow Serving takes it; None to publish no such files."""
    place: Place = field(init=False, repr=False)
    """Folder that the run is published in."""
    source: DataSource = field(init=False, repr=False)
    """What names the data set."""

    @classmethod
    def of(
        cls, *, preset: Preset = "reference", run_id: str | None = None, **fields: Any
    ) -> "RunConfig":
        """Return the config of `mnist-job train` with flags of these names and values.

        Variables of the environment are not looked at.

        Args:
            preset: values for many fields at once; any field given beside it wins.
            run_id: None for a fresh one.
            fields: other fields of the config, such as `epochs=3`. Unlike that of a bare config,
                `report` is True unless given.

        Raises:
            UsageError: there is no such preset or field, or a value is wrong.
        """
        _check_choice("--preset", preset, Preset)
        known = [each.name for each in dataclasses.fields(cls) if each.init]
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                meant = f": is {near[0]} meant?" if near else f", only {', '.join(sorted(known))}"
                raise UsageError(f"a config has no field {name!r}{meant}")
        fields = {
            name: os.fspath(value) if isinstance(value, os.PathLike) else value
            for name, value in (
                {"report": True} | fields_of_preset(preset, fields) | fields
            ).items()
        }
        run_id = run_id or fresh_run_id(fields.get("model", cls.model))
        return cls(run_id=run_id, **fields)

    def __post_init__(self) -> None:
        check_run_id(self.run_id)
        object.__setattr__(self, "place", parse(self.output, "--output") / self.run_id)
        base = None if self.base is None else parse_data(self.base, "--base")
        source = DataSource(parse_data(self.data), base, self.only)
        object.__setattr__(self, "source", source)
        _check_choice("--model", self.model, ModelName)
        _check_choice("--strategy", self.strategy, Strategy)
        _check_choice("--precision", self.precision, Precision)
        _check_choice("--exchange", self.exchange, Exchange)
        _check_choice("--schedule", self.schedule, Schedule)
        _check_choice("--augment", self.augment, Augmentation)
        _check_integer("--seed", self.seed, 0, 2**31 - 1)
        _check_integer("--epochs", self.epochs, 1, 10_000)
        _check_integer("--batch-size", self.batch_size, 1, 65_536)
        _check_real("--learning-rate", self.learning_rate, "above 0 and at most 10", 0, 10)
        if self.learning_rate == 0:
            raise UsageError("--learning-rate must be above 0 and at most 10, not 0.0")
        _check_real("--checkpoint-seconds", self.checkpoint_seconds, "from 0 to 86400", 0, 86_400)
        if self.time_limit is not None:
            _check_real("--time-limit", self.time_limit, "from 1 to 10000000", 1, 1e7)
        _check_real("--peer-timeout", self.peer_timeout, "from 1 to 86400", 1, 86_400)
        _check_switch("--require-gpu", self.require_gpu)
        has_dir = self.tensorboard_dir is not None
        tensorboard = has_dir if self.tensorboard is None else self.tensorboard
        _check_switch("--tensorboard", tensorboard)
        object.__setattr__(self, "tensorboard", tensorboard)
        if self.tensorboard_dir is not None:
            parse(self.tensorboard_dir, "--tensorboard-dir")
        _check_switch("--no-report", self.report)
        if self.require_gpu and self.strategy == "cpu":
            raise UsageError("--require-gpu and --strategy cpu exclude each other: drop one")
        _check_real("--weight-decay", self.weight_decay, "from 0 to 10", 0, 10)
        _check_real("--label-smoothing", self.label_smoothing, "from 0 to 0.9", 0, 0.9)
        _check_real("--validation", self.validation, "from 0 to 0.9", 0, 0.9)
        _check_integer("--validation-seed", self.validation_seed, 0, 2**31 - 1)
        if self.early_stopping is not None:
            _check_integer("--early-stopping", self.early_stopping, 1, 10_000)
        for name in ("validation_seed", "early_stopping"):
            if getattr(self, name) and not self.validation:
                raise UsageError(
                    f"--{name.replace('_', '-')} is about held-out examples, and there are none: "
                    "give --validation 0.1, say, or drop it"
                )
        _check_real("--dropout", self.dropout, "from 0 to 0.9", 0, 0.9)
        if self.init_weights is not None:
            parse(self.init_weights, "--init-weights")
        if self.ensemble is not None:
            self._check_ensemble(self.ensemble)
        if self.export is not None:
            _check_choice("--export", self.export, Export)
        self._check_strength()
        for name in (
            *("learning_rate", "weight_decay", "label_smoothing", "dropout", "validation"),
        ):
            # 1 and -0.0 equal 1.0 and 0.0, and so must their digests.
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)

    @property
    def events(self) -> Place | None:
        """Folder of the run's event files, where that isn't below `place`.

        It is called `<run_id>-<8 hex digits>`, which tell apart runs of one id that have another
        output or another config: in one folder the later would find its curves drawn already.
        """
        if self.tensorboard_dir is None:
            return None
        which = json.dumps([self.place.kind, self.place.bucket, self.place.key, self.digest])
        name = f"{self.run_id}-{hashlib.sha256(which.encode()).hexdigest()[:8]}"
        return parse(self.tensorboard_dir, "--tensorboard-dir") / name

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that decide the trained weights, and which files are published, by name."""
        fields = {name: value for name, value in asdict(self).items() if name not in _NOT_IDENTITY}
        return {
            name: value
            for name, value in fields.items()
            if name not in _SINCE or value != _SINCE[name]
        }

    @property
    def digest(self) -> str:
        """Sha256 (hex) of `identity`: two runs of one digest train the same weights."""
        canonical = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def member(self, number: int) -> "RunConfig":
        """Return the config of the ensemble's member `number`, counted from 1: a run of its own."""
        return replace(
            self,
            ensemble=None,
            export=None,  # it is the ensemble that is served
            run_id=f"{self.run_id}-{number}",
            seed=self.seed + number - 1,
        )

    def _check_strength(self) -> None:
        if self.augment == "affine":
            strength = STRENGTH if self.augment_strength is None else self.augment_strength
            _check_real("--augment-strength", strength, "from 0 to 3", 0, 3)
            object.__setattr__(self, "augment_strength", float(strength) + 0.0)
        elif self.augment_strength is not None:
            raise UsageError(
                f"--augment-strength is of --augment affine, not of {self.augment}: drop it"
            )

    def _check_ensemble(self, members: int) -> None:
        _check_integer("--ensemble", members, 2, MOST_MEMBERS)
        if self.strategy == "multiworker":
            raise UsageError(
                "--ensemble trains each member in one process, and --strategy multiworker in "
                "several: drop one"
            )
        try:
            self.member(members)
        except UsageError as error:
            raise UsageError(f"--ensemble {members}, of its last member: {error}") from error

    def check_examples(self, examples: int) -> None:
        """Check the config against the number of training examples, once that is known.

        Raises:
            UsageError: one batch would be more than all that are trained on, or none is held out.
        """
        held_out = round(self.validation * examples)
        if self.validation and not held_out:
            raise UsageError(
                f"--validation {self.validation:g} of {examples:,} training examples is none: give "
                f"at least {1 / examples:.2g}"
            )
        if self.batch_size > examples - held_out:
            but = f", without the {held_out:,} held out" if held_out else ""
            raise UsageError(
                f"--batch-size {self.batch_size:,} is more than the {examples - held_out:,} "
                f"training examples of {self.data}{but}: give at most that many"
            )

    def steps_per_epoch(self, examples: int) -> int:
        """Return the optimizer steps of one pass over `examples`, those held out left out."""
        return math.ceil((examples - round(self.validation * examples)) / self.batch_size)

    def difference(self, other: dict[str, Any]) -> str:
        """Describe in a few words where the identity `other` departs from this config's."""
        mine, theirs = _SINCE | self.identity, _SINCE | other
        names = [name for name in mine | theirs if theirs.get(name) != mine.get(name)]
        return ", ".join(
            f"{name} {theirs.get(name)!r} there, {mine.get(name)!r} here" for name in names
        )


PRESETS: dict[Preset, dict[str, Any]] = {
    "reference": {},
    "fast": {
        "model": "cnn",
        "epochs": 1,
        "batch_size": 128,
        "learning_rate": 0.03,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "label_smoothing": 0.1,
        "augment": "affine",
        "augment_strength": 0.6,
    },
    "cnn": {
        "model": "cnn",
        "epochs": 8,
        "batch_size": 128,
        "learning_rate": 0.01,
        "schedule": "cosine",
        "weight_decay": 0.02,
        "label_smoothing": 0.1,
        "augment": "affine",
        "augment_strength": 0.7,
    },
    "best": {
        "model": "cnn-wide",
        "epochs": 20,
        "batch_size": 128,
        "learning_rate": 0.006,
        "schedule": "cosine",
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "augment": "affine",
        "augment_strength": 1.0,
        "dropout": 0.2,
    },
}
"""Fields that a preset gives other values than `RunConfig` does."""


def fields_of_preset(preset: Preset, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a preset gives that `given`, fields by name, does not."""
    fields = {name: value for name, value in PRESETS[preset].items() if name not in given}
    if given.get("augment", "affine") != "affine":
        fields.pop("augment_strength", None)  # the preset's is of affine
    return fields


def check_run_id(run_id: str) -> str:
    """Return `run_id` unchanged if it may name a run.

    Raises:
        UsageError: it may not.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise UsageError(
            f"--run-id must be 1 to 63 letters, digits, '.', '_' or '-', beginning and ending with "
            f"a letter or digit, not {run_id[:80]!r}"
        )
    if run_id in RESERVED_RUN_IDS:
        raise UsageError(f"--run-id {run_id!r} is reserved: choose another name")
    return run_id


def in_full(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's identity with the fields that it leaves out, in the order they are declared.

    What this version doesn't know comes last.
    """
    order = list(RunConfig.__dataclass_fields__)
    full = _SINCE | dict(identity)
    names = sorted(full, key=lambda name: order.index(name) if name in order else len(order))
    return {name: full[name] for name in names}


def default_of(name: str) -> Any:
    """Return the default of the flag for a field, by the field's name; None where it has none."""
    return STRENGTH if name == "augment_strength" else getattr(RunConfig, name, None)


def flags_of(fields: Mapping[str, Any]) -> list[str]:
    """Return the flags of `train` that give a config these fields; defaults are left out.

    Args:
        fields: of a `RunConfig`, by name, from a file that may be anybody's.
    """
    words = []
    for name, value in fields.items():
        if value is None or value == default_of(name) or not re.fullmatch("[a-z_]+", name):
            continue
        text = repr(value) if isinstance(value, float) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    return words


def parse_data(text: str, option: str = "--data") -> Place:
    """Return where the data set that `text`, the value of the flag `option`, names lies.

    Raises:
        UsageError: it is neither the embedded set nor a place the job accepts.
    """
    return EMBEDDED if text == EMBEDDED.text else parse(text, option)


def parse_duration(text: str, flag: str) -> float:
    """Return the seconds that `text`, such as `7d`, `12h`, `30m` or `45s`, stands for.

    Raises:
        UsageError: it is no such text.
    """
    found = re.fullmatch(r"([0-9]{1,6})([dhms])", text.strip())
    if not found:
        raise UsageError(f"{flag} must be a number and d, h, m or s, such as 7d, not {text[:40]!r}")
    return float(int(found[1]) * _SECONDS[found[2]])


def fresh_run_id(model: str) -> str:
    """Return a readable run id that no other run has, such as `mlp-20261122-094512-5f3a`."""
    return f"{model}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _check_choice(flag: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise UsageError(f"{flag} must be one of {', '.join(get_args(choices))}, not {value!r}")


def _check_switch(flag: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise UsageError(f"{flag} must be given or not, not {value!r}")


def _check_integer(flag: str, value: int, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise UsageError(
            f"{flag} must be a whole number from {lowest:,} to {highest:,}, not {value!r}"
        )


def _check_real(flag: str, value: float, wanted: str, lowest: float, highest: float) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not lowest <= value <= highest:  # NaN is in no range
        raise UsageError(f"{flag} must be {wanted}, not {value!r}")
